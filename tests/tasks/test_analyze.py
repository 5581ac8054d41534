"""task=analyze: every kept checkpoint of a run is measured, drawn, and part of a report.

Covers `src/reporting/analysis.py`, `analysis_curves.py` and `analysis_figures.py` too.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from matplotlib.image import imread

from src.analysis.measure import measure_model
from src.datamodules.token_shards import TokenShardDataModule
from src.errors import UserError
from src.launch.job import Job
from src.reporting.document import build_document
from src.reporting.page import to_html, to_markdown
from src.reporting.report import build_report
from src.tasks import analyze as task
from tests.runs import ROOT, SMALL, error_lines, make_shards, result, run

TRAIN = [*(a for a in SMALL if not a.startswith("model.vocab_size=")), "trainer.val_every_steps=4"]
ANALYZE = ["task=analyze", "trainer=cpu", "trainer.threads=1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run with hyper-connections that keeps three checkpoints."""
    cwd = tmp_path_factory.mktemp("trained")
    keys = ["residual=hyperconn_static", f"data.path={make_shards(cwd / 'shards')}", "safety.keep_checkpoints=3"]
    done = run(*TRAIN, *keys, "hydra.run.dir=r", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "r"


def analyze(*overrides: str, cwd: Path) -> Path:
    """Run the task in this process and return its own folder."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", [*ANALYZE, *overrides])
    task.run(Job(cwd, config, resumes=False, overrides=overrides))
    return cwd


def read(folder: Path, step: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"analysis/step{step:08d}.json").read_text())
    return found


def test_all_checkpoints_are_analyzed_and_reported(trained: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()}
    done = run(*ANALYZE, f"run={trained}", "checkpoint=all", "sequences=32", "hydra.run.dir=a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"3 checkpoints analyzed in {trained}/analysis" in done.stderr
    assert {p: p.read_bytes() for p in before} == before
    names = {p.name for p in (trained / "analysis").iterdir()}
    kinds = ("depth.png", "heads.png", "sources.png")
    steps = [f"step{step:08d}" for step in (4, 8, 12)]
    assert names == {"curves.png", *(f"{s}.json" for s in steps), *(f"{s}_{kind}" for s in steps for kind in kinds)}
    for name in names:
        if name.endswith(".png"):
            assert min(imread(trained / "analysis" / name).shape[:2]) >= 200
    last = read(trained, 12)
    # On all validation sequences the loss is that of the run's last validation.
    assert math.isclose(last["leave_out"]["loss"]["mean"], result(trained)["val_loss"], rel_tol=1e-5)
    assert read(trained, 4)["leave_out"]["loss"]["mean"] > last["leave_out"]["loss"]["mean"]
    assert last["tokens"] == {"sequences": 32, "length": 32, "data_hash": last["data_hash"]}
    assert last["streams"]["composed_forward"] is not None
    assert last["omitted"].keys() == {"sources.shares"}
    report = build_report([trained], None, ["residual"])
    page = build_document(report)
    section = next(s for s in page[1] if s.title == "Analysis of checkpoints")
    (row,) = section.tables[0].rows
    assert row[:3] == ["hyperconn_static", "12", f"{last['leave_out']['loss']['mean']:.4f}"]
    assert [p.caption.rpartition(": ")[2] for p in section.pictures[1:]] == [
        f"{steps[2]}_depth",
        f"{steps[2]}_heads",
        "curves",
    ]
    assert "composed gain" in to_markdown(*page)
    assert to_html(*page).count("data:image/png") >= 3


@pytest.fixture(scope="module")
def analyzed(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Analyze step 8 of a copy of the run on two sequences."""
    cwd = tmp_path_factory.mktemp("analyzed")
    copied = Path(shutil.copytree(trained, cwd / "r", ignore=shutil.ignore_patterns("analysis")))
    document = build_document(build_report([copied], None, ["residual"]))
    assert all(section.title != "Analysis of checkpoints" for section in document[1])
    analyze(f"run={copied}", "checkpoint=8", "sequences=2", cwd=cwd)
    return copied


def store_analysis(folder: Path, analysis: dict[str, Any], step: int, sequences: int) -> None:
    """Store an analysis as that of another step, on another number of sequences."""
    changed = {**analysis, "step": step, "tokens": {**analysis["tokens"], "sequences": sequences}}
    (folder / "analysis").mkdir(exist_ok=True)
    (folder / f"analysis/step{step:08d}.json").write_text(json.dumps(changed))


def test_a_step_is_analyzed_alone(analyzed: Path) -> None:
    assert {p.suffix for p in (analyzed / "analysis").iterdir()} == {".json", ".png"}
    assert read(analyzed, 8)["step"] == 8
    assert not (analyzed / "analysis/curves.png").exists()


def test_analyses_on_other_tokens_are_in_no_common_curve(
    analyzed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    copied = Path(shutil.copytree(analyzed, tmp_path / "copied", ignore=shutil.ignore_patterns("analysis")))
    store_analysis(copied, read(analyzed, 8), step=4, sequences=2)
    drawn: list[list[int]] = []
    draw = task.draw_over_steps
    monkeypatch.setattr(task, "draw_over_steps", lambda found: drawn.append([a["step"] for a in found]) or draw(found))
    for step, sequences in ((8, 1), (12, 2)):
        analyze(f"run={copied}", f"checkpoint={step}", f"sequences={sequences}", cwd=tmp_path)
    assert drawn == [[4, 12]]
    told = [record.message for record in caplog.records if "other tokens" in record.message]
    assert [message.split(",")[0] for message in told] == ["steps 4", "steps 8"]


def test_a_report_warns_of_systems_analyzed_on_different_tokens(analyzed: Path, tmp_path: Path) -> None:
    runs = []
    for name in ("one", "two"):
        copied = Path(shutil.copytree(analyzed, tmp_path / name))
        text = (copied / "result.json").read_text()
        (copied / "result.json").write_text(text.replace("hyperconn_static", name))
        runs.append(copied)
    for sequences, is_warned in ((1, True), (2, False)):
        store_analysis(runs[1], read(analyzed, 8), step=8, sequences=sequences)
        _, sections = build_document(build_report(runs, "one", ["residual"]))
        section = next(s for s in sections if s.title == "Analysis of checkpoints")
        assert any("different tokens" in text for text in section.warnings) is is_warned


def test_data_on_the_command_line_replace_those_of_the_run(trained: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(trained, tmp_path / "copied", ignore=shutil.ignore_patterns("analysis")))
    other = make_shards(tmp_path / "other", vocab_size=300)
    analyze(f"run={copied}", f"data.path={other}", "data.val_tokens=1024", "sequences=2", cwd=tmp_path)
    tokens = read(copied, 12)["tokens"]
    assert tokens["data_hash"] != read(copied, 12)["data_hash"]


def test_attention_stays_within_documents_where_the_data_say_so(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TokenShardDataModule, "_document_mark", 7)
    copied = Path(shutil.copytree(trained, tmp_path / "copied", ignore=shutil.ignore_patterns("analysis")))
    path = trained.parent / "shards"
    marks: list[int | None] = []

    def measure(*arguments: Any) -> dict[str, Any]:
        marks.append(arguments[3])
        return measure_model(*arguments)

    monkeypatch.setattr(task, "measure_model", measure)
    for value in ("true", "false"):
        keys = [f"data.path={path}", "data.val_tokens=1024", f"data.document_attention={value}"]
        analyze(f"run={copied}", *keys, "sequences=1", cwd=tmp_path)
    assert marks == [7, None]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["checkpoint=5"], r"has no checkpoint of step 5; there are those of steps \[4, 8, 12\]"),
        (["checkpoint=mine.ckpt"], r"mine\.ckpt: no checkpoint there"),
        (["sequences=33"], "sequences must be at most 32, the validation sequences of the data, got 33"),
        (["sequences=0"], "sequences must be"),
        (["trainer.devices=2"], "trainer.devices must be 1 or auto for task=analyze, which uses one device, got 2"),
    ],
)
def test_bad_keys_are_one_sentence(trained: Path, tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        analyze(f"run={trained}", *overrides, cwd=tmp_path)


def test_a_checkpoint_without_a_finite_loss_is_one_sentence(trained: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(trained, tmp_path / "copied", ignore=shutil.ignore_patterns("analysis")))
    path = copied / "checkpoints/last.ckpt"
    stored = torch.load(path, weights_only=True)
    next(value for key, value in stored["state_dict"].items() if key.endswith("h.1.mlp.c_proj.weight"))[0, 0] = math.nan
    path.unlink()  # a hard link
    path.with_name("last.ckpt.sha256").unlink()
    torch.save(stored, path)
    with pytest.raises(
        UserError, match=r"step 12: the model's loss is not finite \(2 of 2 .*; analyze an earlier checkpoint"
    ):
        analyze(f"run={copied}", "sequences=2", cwd=tmp_path)
    assert not (copied / "analysis").exists()


def test_a_folder_without_a_run_or_without_checkpoints_is_one_sentence(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run is missing; give run=<run folder>"):
        analyze(cwd=tmp_path)
    with pytest.raises(UserError, match="is not a run folder"):
        analyze(f"run={tmp_path}", cwd=tmp_path)
    for name in ("config.yaml", "result.json"):
        shutil.copy(trained / name, tmp_path / name)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="holds no checkpoint yet"):
        analyze(f"run={tmp_path}", "checkpoint=all", cwd=tmp_path)
    with pytest.raises(UserError, match=r"last\.ckpt: no checkpoint there"):
        analyze(f"run={tmp_path}", cwd=tmp_path)


def test_an_export_is_not_a_key_of_the_task(tmp_path: Path) -> None:
    done = run(*ANALYZE, f"run={tmp_path}", "hf=somewhere", "hydra.run.dir=a", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = error_lines(done)
    assert "hf" in line
