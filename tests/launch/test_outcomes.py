"""Outcomes of jobs: the exit code of an invocation, its lines, and the record of an early interruption."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from src.launch.outcomes import (
    COMPLETED,
    DIVERGED,
    FAILED,
    USER_ERROR,
    JobFailedError,
    Outcome,
    Outcomes,
    record_interruption,
)

TRAINING = OmegaConf.create(
    {
        "task": {"_target_": "src.tasks.train.run"},
        "name": "x",
        "seed": 1,
        "trainer": {"max_steps": 9},
        "resume": "there",
        "from_run": None,
    }
)


def end(code: int, number: int = 0) -> Outcome:
    return Outcome(number, Path("r"), ("seed=1",), code, "line", 2.4)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([COMPLETED], 0),
        ([USER_ERROR], 2),
        ([DIVERGED], 3),
        ([143], 143),
        ([COMPLETED, COMPLETED], 0),
        ([COMPLETED, DIVERGED], FAILED),
        ([], 0),
    ],
)
def test_one_job_gives_its_code_and_a_sweep_0_or_1(codes: list[int], expected: int) -> None:
    assert Outcomes([end(code) for code in codes]).exit_code() == expected


def test_a_failure_in_another_process_is_reported_and_fails_the_sweep(
    capsys: pytest.CaptureFixture[str],
) -> None:
    outcomes = Outcomes()
    assert outcomes.is_caused_by_jobs(JobFailedError("no data"))
    assert outcomes.exit_code() == FAILED
    outcomes.report()
    assert capsys.readouterr().err == "error: a job did not complete: no data\n"


def test_an_exception_of_a_sweeper_is_explained_only_where_every_job_failed() -> None:
    assert Outcomes([end(FAILED), end(DIVERGED)]).is_caused_by_jobs(ValueError())
    assert not Outcomes([end(FAILED), end(COMPLETED)]).is_caused_by_jobs(ValueError())
    assert not Outcomes().is_caused_by_jobs(ValueError())


def test_a_sweep_prints_a_line_for_each_job_and_a_single_job_none(capsys: pytest.CaptureFixture[str]) -> None:
    Outcomes([end(COMPLETED)]).report()
    assert capsys.readouterr().out == ""
    Outcomes([end(COMPLETED), end(FAILED, 1)]).report()
    assert capsys.readouterr().out == "#0 seed=1: line (2 s, r)\n#1 seed=1: line (2 s, r)\n"


def test_an_early_interruption_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")  # by which a requeued job knows its run
    record_interruption(tmp_path, TRAINING, "stopped by SIGTERM")
    assert json.loads((tmp_path / "result.json").read_text()) == {
        **{"name": "x", "seed": 1, "max_steps": 9, "steps": 0, "launched_by": "17"},
        **{"status": "interrupted", "reason": "stopped by SIGTERM"},
    }
    stored = OmegaConf.load(tmp_path / "config.yaml")
    assert (stored.name, stored.resume) == ("x", None)


def test_another_end_or_another_task_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"status": "completed"}')
    record_interruption(tmp_path, TRAINING, "stopped")
    assert (tmp_path / "result.json").read_text() == '{"status": "completed"}'
    (tmp_path / "e").mkdir()
    record_interruption(tmp_path / "e", OmegaConf.create({"task": {"_target_": "src.tasks.check.run"}}), "stopped")
    assert list((tmp_path / "e").iterdir()) == []
