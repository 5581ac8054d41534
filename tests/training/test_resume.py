"""A sweep that was stopped goes on by the same command: nothing is run twice, nothing is lost."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from src.callbacks.checkpoints import link_over
from src.errors import UserError
from src.launch.arguments import RANKS
from src.launch.job import COMPLETED, DIVERGED, Job, TaskEnd
from src.training.provenance import config_hash
from src.training.resume import continue_or_skip, find_resume, newest_first
from tests.runs import SMALL, make_shards, metrics, result, run
from tests.settings.test_read import composed, settled


def test_a_sweep_skips_what_is_completed_and_resumes_what_was_stopped(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards")
    sweep = [
        *SMALL,
        f"data.path={shards}",
        "check=off",
        "hydra.sweep.dir=s",
        "hydra.sweep.subdir=${name}-${seed}",
    ]
    done = run("-m", *sweep, "seed=1,2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first = result(tmp_path / "s/vanilla-1")
    kept = (tmp_path / "s/vanilla-1/result.json").stat().st_mtime_ns
    second = tmp_path / "s/vanilla-2/result.json"  # as a killed process leaves it
    second.write_text(json.dumps({**result(second.parent), "status": "running", "steps": 12}))
    done = run("-m", *sweep, "seed=1,2,3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("#")]
    assert f"completed earlier in {tmp_path / 's/vanilla-1'}, val_loss {first['val_loss']:.4f}" in lines[0]
    assert (tmp_path / "s/vanilla-1/result.json").stat().st_mtime_ns == kept
    stated = [result(tmp_path / f"s/vanilla-{seed}") for seed in (1, 2, 3)]
    assert [r["status"] for r in stated] == ["completed"] * 3
    assert [r["resumed_at"] for r in stated] == [[], [12], []]
    assert [row["step"] for row in metrics(tmp_path / "s/vanilla-2")] == list(range(1, 13))


def job(folder: Path, *overrides: str) -> Job:
    return Job(folder / "0", composed("trainer=cpu", *overrides), resumes=False, sweep=folder)


def leave(folder: Path, *overrides: str, **values: object) -> None:
    """A record of a run with the job's configuration."""
    folder.mkdir(parents=True)
    config = settled("trainer=cpu", *overrides).config
    stated = {"config_hash": config_hash(config), "steps": 4, "reason": "step 4: loss is nan", **values}
    (folder / "result.json").write_text(json.dumps(stated))


def left(folder: Path, *overrides: str, rank: int = 0) -> Job | TaskEnd:
    own = dataclasses.replace(job(folder, *overrides), rank=rank)
    return continue_or_skip(own, settled("trainer=cpu", *overrides))


def test_a_completed_record_anywhere_in_the_sweep_stands_for_the_job(tmp_path: Path) -> None:
    assert left(tmp_path) == job(tmp_path)
    leave(tmp_path / "7", "seed=2", status="completed", val_loss=3.25)
    assert left(tmp_path) == job(tmp_path)
    end = left(tmp_path, "seed=2")
    assert isinstance(end, TaskEnd)
    assert (end.code, end.value) == (COMPLETED, 3.25)
    assert isinstance(left(tmp_path, "seed=2", "name=other", "check=off"), TaskEnd)
    assert isinstance(left(tmp_path, "seed=2", "optimizer.lr=2e-3"), Job)


def test_a_diverged_run_is_not_run_again_and_a_stopped_one_goes_on(tmp_path: Path) -> None:
    leave(tmp_path / "a/0", status="diverged")
    end = left(tmp_path / "a")
    assert isinstance(end, TaskEnd)
    assert (end.code, end.line) == (DIVERGED, "diverged earlier: step 4: loss is nan")
    for status in ("interrupted", "failed", "running"):
        leave(tmp_path / status / "0", status=status)
        for rank in (0, 1):  # every rank of a launcher decides by itself
            again = left(tmp_path / status, rank=rank)
            assert isinstance(again, Job)
            assert again.resumes


def test_a_folder_with_another_run_is_refused(tmp_path: Path) -> None:
    leave(tmp_path / "0", "seed=2", status="interrupted")
    with pytest.raises(UserError, match=r"holds another run; give a new hydra\.sweep\.dir"):
        left(tmp_path)


def test_a_single_run_never_looks_elsewhere(tmp_path: Path) -> None:
    leave(tmp_path / "7", status="completed", val_loss=3.25)
    alone = Job(tmp_path / "0", composed("trainer=cpu"), resumes=False)
    assert continue_or_skip(alone, settled("trainer=cpu")) is alone


@pytest.mark.parametrize("scale", ["cpu", "gpu", "full"])
def test_the_leaderboard_composes_at_every_scale(scale: str) -> None:
    overrides = ["experiment=residual_leaderboard", f"scale={scale}", "trainer=cpu", "evaluation=none"]
    config = composed(*overrides)
    assert config.model.n_layer == {"cpu": 6, "gpu": 12, "full": 24}[scale]
    settled(*overrides)


def test_full_scale_is_the_reference_protocol() -> None:
    one, other = (
        settled(experiment, "trainer=cpu", "evaluation=none", "seed=1").config
        for experiment in ("experiment=residual_reference", "scale=full")
    )
    assert config_hash(one) == config_hash(other)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.global_batch_size=32", r"data of its steps: data\.global_batch_size was 16, is 32; restore the key"),
        ("trainer.overfit_batches=1", r"data of its steps: trainer\.overfit_batches was None, is 1; restore the key"),
        ("seed=2", "keeps its model: seed was 1, is 2"),
    ],
)
def test_a_resumed_run_keeps_the_sequences_of_its_steps(
    override: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    then = {"reslab": {"config": settled("trainer=cpu", "data.global_batch_size=16").config}}
    monkeypatch.setattr("src.training.resume.newest_whole", lambda folder: (folder / "last.ckpt", then))
    with pytest.raises(UserError, match=words):
        find_resume(tmp_path, settled("trainer=cpu", "data.global_batch_size=16", override), {"hash": "0"})


def resumed(folder: Path, *overrides: str, steps: int = 80) -> Job | TaskEnd:
    """Resume a completed run of the shipped configuration with overrides of the command line."""
    if not folder.exists():
        folder.mkdir()
        OmegaConf.save(OmegaConf.create(settled("trainer=cpu").config), folder / "config.yaml")
        stated = {"status": "completed", "steps": steps, "max_steps": steps}
        (folder / "result.json").write_text(json.dumps(stated))
    typed = (*RANKS, "++trusted_targets=[]", f"++resume='{folder}'", *overrides)
    own = Job(folder, composed("trainer=cpu", *overrides), resumes=True, overrides=typed)
    return continue_or_skip(own, settled("trainer=cpu", *overrides))


def test_a_completed_run_is_not_resumed_with_other_values(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    for overrides in ((), ("trainer.max_steps=80",), ("optimizer.lr=1e-3", "seed=1"), ("trusted_targets=[tests]",)):
        assert isinstance(resumed(folder, *overrides), TaskEnd)
    words = r"r is completed with model\.dropout 0\.0, so model\.dropout=0\.3 is not applied; from_run=.*r model"
    with pytest.raises(UserError, match=words):
        resumed(folder, "model.dropout=0.3", "seed=1")
    with pytest.raises(
        UserError, match=r"completed with trainer\.max_steps 80, so trainer\.max_steps=40 is not applied"
    ):
        resumed(folder, "trainer.max_steps=40")
    with pytest.raises(UserError, match=r"batch_size=3 is not applied; task=evaluate run=.*r with these keys"):
        resumed(folder, "evaluation.batch_size=3")
    assert isinstance(resumed(folder, "trainer.max_steps=90", "model.dropout=0.3"), Job)


def test_checkpoints_are_tried_newest_first(tmp_path: Path) -> None:
    old, new, last = (tmp_path / name for name in ("step00000004.ckpt", "step00000008.ckpt", "last.ckpt"))
    for path, time in ((old, 100), (new, 200)):
        path.write_text(path.name)
        os.utime(path, (time, time))
    assert newest_first(tmp_path) == [new, old]
    link_over(new, last)
    assert newest_first(tmp_path) == [last, old]
    link_over(old, last)  # killed between a save and the link to it
    assert newest_first(tmp_path) == [new, old, last]
    os.utime(old, (300, 300))
    assert newest_first(tmp_path) == [last, new]


def test_data_of_another_tokenizer_are_rejected_even_if_changed_data_are_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settled("trainer=cpu", "data.accept_changed=true")
    one, other = ({"name": "x", "sha256": digit * 64, "n_vocab": 300} for digit in "12")
    stored = {"config": settings.config, "data_hash": "0", "tokenizer": one, "step": 4}
    monkeypatch.setattr("src.training.resume.newest_whole", lambda folder: (folder / "last.ckpt", {"reslab": stored}))
    found = find_resume(tmp_path, settings, {"hash": "1", "tokenizer": one})
    assert found is not None
    assert found.step == 4
    with pytest.raises(UserError, match=r"data\.path has the tokens of x .*, and the run was trained on those of x"):
        find_resume(tmp_path, settings, {"hash": "1", "tokenizer": other})


def test_a_run_that_had_passed_its_first_checkpoint_is_not_started_again(tmp_path: Path) -> None:
    settings = settled("trainer=cpu", "trainer.checkpoint_every_steps=5")
    (tmp_path / "metrics.jsonl").write_text('{"step": 5}\n')
    assert find_resume(tmp_path, settings, {"hash": "0"}) is None
    (tmp_path / "metrics.jsonl").write_text('{"step": 5}\n{"step": 6}\n')
    with pytest.raises(UserError, match=r"last\.ckpt is gone, though the run had passed step 6"):
        find_resume(tmp_path, settings, {"hash": "0"})


def test_a_run_of_a_study_is_not_taken_from_another_folder(tmp_path: Path) -> None:
    leave(tmp_path / "7", status="completed", val_loss=3.25)
    own = settled("trainer=cpu")
    own.config["study"] = {"plan": "0" * 16}
    assert isinstance(continue_or_skip(job(tmp_path), own), Job)
    assert isinstance(continue_or_skip(job(tmp_path), settled("trainer=cpu")), TaskEnd)
