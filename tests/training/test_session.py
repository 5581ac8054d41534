"""Ends of a training: what is an interruption, a failure or an error of the user; `tests/test_runs.py` has whole runs."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from src.callbacks.guard import DivergedError
from src.callbacks.run_record import RunRecord
from src.errors import CheckpointError, Interrupted, UserError
from src.launch.job import DIVERGED
from src.launch.stop_request import StopRequest
from src.training import session
from tests.runs import SMALL, make_shards, result
from tests.support import composed_settings


@pytest.mark.parametrize(
    ("ranks", "agreed", "error", "status"),
    [
        (2, False, RuntimeError("connection closed by peer"), "interrupted"),
        (2, True, RuntimeError("connection closed by peer"), "failed"),  # rank 0 could not save
        (2, False, CheckpointError("step8.ckpt cannot be written"), "failed"),
        (1, False, RuntimeError("of this rank's own"), "failed"),
    ],
)
def test_an_error_while_a_signal_is_pending_is_a_failure_unless_another_rank_left(
    ranks: int, agreed: bool, error: Exception, status: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stop, settings = StopRequest(grace_s=60.0), SimpleNamespace(trainer=SimpleNamespace(world_size=ranks))
    stop.signum, stop.agreed = signal.SIGTERM, agreed
    run: Any = SimpleNamespace(stop=stop, settings=settings, record=RunRecord(tmp_path, writes=True))
    expected = Interrupted if status == "interrupted" else type(error)
    with pytest.raises(expected), session._record_failures(run):
        raise error
    assert result(tmp_path)["status"] == status
    assert str(error) in result(tmp_path)["reason"]
    assert (str(error) in caplog.text) == (status == "interrupted")  # a failure is logged by the job


def test_a_damaged_row_of_a_resumed_run_is_an_error_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": \n{"step": 2}\n')
    for name in ("build_initial_gpt", "open_loggers"):
        monkeypatch.setattr(session, name, lambda run: None)
    job, record = SimpleNamespace(folder=tmp_path, rank=0), RunRecord(tmp_path, writes=True)
    run: Any = SimpleNamespace(job=job, record=record, settings=None, data=None, first_step=2, branches=False)
    with pytest.raises(UserError, match="line 1: not a JSON object with a step; take the line out"):
        session.fit(run)


def test_a_run_that_overfits_reads_its_first_batches_again(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards")
    data = session._open_data(composed_settings(*SMALL, f"data.path={shards}", "trainer.overfit_batches=2"))
    first, second, third = (data.train_batch(step, 0, 1) for step in range(3))
    assert torch.equal(third, first)
    assert not torch.equal(second, first)


@pytest.mark.parametrize(("steps", "kept"), [([4, 8], "of step 4"), ([8], "there is no earlier checkpoint")])
def test_a_divergence_names_the_checkpoint_before_it(steps: list[int], kept: str, tmp_path: Path) -> None:
    for step in steps:
        (tmp_path / f"step{step:08d}.ckpt").write_text("")
    job = SimpleNamespace(folder=tmp_path, rank=0)
    run: Any = SimpleNamespace(job=job, checkpoints=tmp_path, resume=None)
    end = session.close_diverged(run, DivergedError("loss nan", step=7, began=7))
    assert end.code == DIVERGED
    assert kept in end.line


def test_the_signal_that_ended_the_ranks_may_reach_the_process_that_launched_them_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(job: Any, **_: Any) -> None:
        RunRecord(tmp_path, writes=True).update(status="running")
        raise Interrupted(signal.SIGTERM)

    def finish(record: RunRecord, *end: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        RunRecord.update(record, status=end[0])

    monkeypatch.setattr(session, "check_quickly", lambda settings, job: None)
    monkeypatch.setattr(session, "launch_ranks", end)
    monkeypatch.setattr(RunRecord, "finish", finish)
    keys = SimpleNamespace(devices=2, restarts=0)
    settings: Any = SimpleNamespace(trainer=keys, safety=SimpleNamespace(grace_s=60.0))
    job: Any = SimpleNamespace(folder=tmp_path)
    stop = StopRequest(grace_s=60.0)
    with pytest.raises(Interrupted), stop.installed():
        session.launch(job, settings, stop)
    assert result(tmp_path)["status"] == "interrupted"
