"""task=study: a killed study continues, its plan is printed (`describe.py`), wrong and changed plans are rejected."""

import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from src.errors import UserError
from src.study.phases import parse_folder
from src.study.record import read_record, read_results
from src.tasks import study
from tests.runs import begin, error_lines, make_shards, result, run
from tests.study.test_verdict import write_study

#: The miniature study, smaller: runs of 6 steps of 256 tokens, at 3 steps in the search, and a rate that diverges.
STUDY = [
    *("task=study", "study=miniature", "hydra.sweep.dir=s"),
    *("model.vocab_size=512", "model.block_size=32", "data.val_tokens=1024", "trainer.threads=1"),
    *("trainer.stream_pictures=false", "check=off"),
    *(
        "study.rates.grid=[3.0e-3,1.0e+30]",
        "study.budget.tokens=1536",
        "study.timing_steps=4",
        "study.budget.equal=[flops]",
    ),
    "study.sizes.small=['model.n_layer=2','model.n_embd=16']",
    "study.sizes.large=['model.n_layer=2','model.n_embd=32']",
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


def ended(folder: Path, status: str = "completed") -> dict[str, int]:
    """Return the runs of a study that ended so, with the times at which their results were written."""
    found = folder.glob("*/*/*/result.json")
    return {
        path.parent.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for path in found
        if json.loads(path.read_text())["status"] == status
    }


@pytest.mark.slow
def test_a_killed_study_is_continued_by_the_same_command(shards: Path, tmp_path: Path) -> None:
    command = [*STUDY, f"data.path={shards}"]
    folder = tmp_path / "s"
    with begin(*command, cwd=tmp_path) as process:
        while process.poll() is None and not list(folder.glob("search/*/*/result.json")):
            time.sleep(0.05)
        process.kill()  # SIGKILL
    before = ended(folder)
    assert before.keys() >= {"timing/large/resformer-lr0.003-steps4-seed201"}

    done = run(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    after = ended(folder)
    assert {name: after[name] for name in before} == before  # nothing was run again
    specs = [spec for spec in map(parse_folder, after) if spec is not None]
    counts = {phase: sum(spec.phase == phase for spec in specs) for phase in ("timing", "pilot", "ladder")}
    assert counts == {"timing": 6, "pilot": 2, "ladder": 6}
    # A diverged rate is a result: the best is the smallest that was tried, so the search tries a smaller one.
    rates = {spec.lr for spec in specs if spec.phase == "search"}
    assert rates == {0.003, 0.001}
    diverged = [spec for spec in map(parse_folder, ended(folder, "diverged")) if spec is not None]
    assert {(spec.phase, spec.lr, spec.system) for spec in diverged} == {
        ("search", 1e30, system) for system in ("vanilla", "x0_blend", "resformer")
    }
    assert "## Diverged runs" in (folder / "report.md").read_text()
    assert {spec.seed for spec in specs if spec.phase == "search"} == {201}
    confirmed = [spec for spec in specs if spec.phase == "confirmation"]
    assert {(spec.system, spec.seed) for spec in confirmed} == {
        (system, seed) for system in ("vanilla", "x0_blend", "resformer") for seed in (1, 2)
    }
    record = read_record(folder)
    assert record.frozen is not None
    assert record.frozen["hash"] == record.hash
    for spec in confirmed:
        assert spec.lr == record.frozen["rates"]["small"][spec.system]
        stored = (folder / spec.folder / "config.yaml").read_text()
        assert f"plan: {record.hash}" in stored.replace("'", "")
    text = (folder / "plan.txt").read_text()
    assert record.hash in text
    assert "detectable: " in text
    assert "6 runs" in text
    assert result(folder / confirmed[0].folder)["steps"] == 6

    # Another machine, without the folder, has nothing left to run.
    stated = run(*command, "records=runs.jsonl", cwd=tmp_path)
    assert stated.returncode == 0, stated.stderr
    elsewhere = [text.replace("hydra.sweep.dir=s", "hydra.sweep.dir=t") for text in command]
    there = run(*elsewhere, "records=runs.jsonl", cwd=tmp_path)
    assert there.returncode == 0, there.stderr
    assert f"records: {len(after) + len(diverged)} runs from runs.jsonl" in there.stdout
    assert ended(tmp_path / "t").keys() == after.keys()
    assert not list((tmp_path / "t").rglob("*.ckpt"))
    other = run(*elsewhere, "records=runs.jsonl", "optimizer.weight_decay=0", "hydra.sweep.dir=u", cwd=tmp_path)
    assert other.returncode == 2
    assert error_lines(other)[0].startswith("error: records=runs.jsonl is of study miniature, plan ")

    changed = run(*command, "study.margin=0.1", cwd=tmp_path)
    assert changed.returncode == 2
    assert error_lines(changed)[0].startswith("error: the plan of study miniature changed after its confirmation began")
    assert "margin was 0.005, is 0.1" in error_lines(changed)[0]
    amended = run(*command, "study.margin=0.1", "amend='a wider margin'", "records=runs.jsonl", cwd=tmp_path)
    assert amended.returncode == 0, amended.stderr
    assert [change["reason"] for change in read_record(folder).changes] == ["a wider margin"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["study.contrasts=[[newer,vanilla]]"], "study.contrasts names newer, which is not a system"),
        (["optimizer.warmup_steps=3"], "which must exceed optimizer.warmup_steps=3; raise study.budget.tokens"),
        (["study.sizes.large=['model.n_embd=33']"], "vanilla at size large: "),
        (["study.seeds.search=[1]"], "share [1]"),
        (["study.sizes.large=['model.n_embd=1000000']"], "vanilla at size large: "),
        (["seed=3"], "seed=3: the study sets seed in its runs; leave it out"),
        (["until=forever"], "until must be null or one of timing, pilot, search, confirmation, got forever"),
    ],
)
def test_a_wrong_study_exits_with_2_in_one_sentence(
    overrides: list[str], sentence: str, shards: Path, tmp_path: Path
) -> None:
    done = run(*STUDY, f"data.path={shards}", *overrides, cwd=tmp_path)
    assert done.returncode == 2
    assert len(error_lines(done)) == 1
    assert sentence in error_lines(done)[0]
    assert not list(tmp_path.glob("s/*/*/*"))


def test_a_study_needs_its_name_and_its_task(tmp_path: Path) -> None:
    nameless = run("task=study", cwd=tmp_path)
    assert nameless.returncode == 2
    assert "task=study needs study=<name>" in nameless.stderr
    assert "miniature" in nameless.stderr
    untasked = run("study=miniature", cwd=tmp_path)
    assert untasked.returncode == 2
    assert error_lines(untasked)[0].endswith("is conducted by task=study; give that task, or leave out the study")


def test_a_study_whose_frozen_values_no_longer_follow_from_its_results_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = write_study(tmp_path)
    assert record.frozen is not None
    record.frozen["rates"]["small"]["better"] = 0.001
    shutil.rmtree(next(tmp_path.glob("confirmation/small/better*")))  # a run is left to launch
    monkeypatch.setattr(study, "_read_planned", lambda folder, record: read_results(folder))
    machinery: Any = SimpleNamespace()  # nothing is launched
    with pytest.raises(UserError, match=r"not the frozen values: the rate of better at size small \(0\.001, now"):
        study._run_phases(tmp_path, record, None, machinery)
