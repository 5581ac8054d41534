"""Ranks that a job launches: one that dies, hangs, fails or drifts ends the job soon, is named, and is restarted by key.

Covers `src/launch/worker.py` too.
"""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
from omegaconf import DictConfig, OmegaConf
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from src.errors import Interrupted, UserError
from src.launch import elastic
from src.launch.elastic import RankError, find_cause, run_rank
from src.launch.job import COMPLETED, FAILED, USER_ERROR, Job, TaskEnd
from src.launch.stop_request import StopRequest
from src.training import session
from tests.faulty import faulty
from tests.robust.support import LONGER, no_process_of, rank_pid, saved_step, wait_for_row
from tests.runs import begin, computed, make_shards, result, run

TWO = ["trainer.devices=2", "safety.rank_timeout_s=15"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.mark.parametrize(
    ("rank", "signum"),
    [
        (1, signal.SIGKILL),
        pytest.param(0, signal.SIGKILL, marks=pytest.mark.stress),
        pytest.param(1, signal.SIGSTOP, marks=pytest.mark.stress),
        pytest.param(0, signal.SIGSTOP, marks=pytest.mark.stress),
    ],
)
def test_a_rank_that_is_killed_or_suspended_ends_the_job_soon(
    rank: int, signum: signal.Signals, shards: Path, tmp_path: Path
) -> None:
    process = begin(*LONGER, *TWO, f"data.path={shards}", "trainer.max_steps=100000", "hydra.run.dir=r", cwd=tmp_path)
    wait_for_row(9, tmp_path / "r", process)
    os.kill(rank_pid(tmp_path / "r", rank), signum)
    _, words = process.communicate(timeout=200)
    assert process.returncode == 1
    expected = f"rank {rank} {'was killed by SIGKILL' if signum == signal.SIGKILL else 'did not answer in time'}"
    assert expected in words.split("failed:", 1)[1].splitlines()[0]
    assert result(tmp_path / "r")["status"] == "failed"
    assert expected in result(tmp_path / "r")["reason"]
    assert saved_step(tmp_path / "r/checkpoints/last.ckpt") >= 8
    assert no_process_of(tmp_path)


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.stress), 1])
def test_the_rank_that_failed_first_is_named_and_restarted_by_key(rank: int, shards: Path, tmp_path: Path) -> None:
    broken = [*faulty("raise", 9, tmp_path, rank=rank, times=2), "trainer.restarts=1"]
    keys = [*LONGER, *TWO, *broken, "trainer.max_steps=16", f"data.path={shards}", "hydra.run.dir=r"]
    done = run(*keys, cwd=tmp_path)
    assert done.returncode == 1
    sentence = f"rank {rank} failed: RuntimeError: planted error"
    assert f"{sentence}; restarting from the last checkpoint (1 of 1)" in done.stderr.splitlines()
    assert sentence in done.stderr.split("failed:", 2)[2].splitlines()[0] or f"failed: {sentence}" in done.stderr
    stated = result(tmp_path / "r")
    assert (stated["status"], stated["reason"]) == ("failed", f"RankError: {sentence}")
    assert stated["resumed_at"] == [8]
    assert [row["step"] for row in computed(tmp_path / "r")] == list(range(1, 10))
    assert "in on_step" in (tmp_path / "r/run.log").read_text()
    assert no_process_of(tmp_path)


def test_ranks_that_drift_apart_stop_and_save_nothing_of_it(shards: Path, tmp_path: Path) -> None:
    drift = faulty("drift", 9, tmp_path, rank=1)
    done = run(*LONGER, *TWO, *drift, f"data.path={shards}", "hydra.run.dir=r", cwd=tmp_path)
    assert done.returncode == 1
    assert "step 12: rank 1 holds other weights than rank 0" in result(tmp_path / "r")["reason"]
    assert saved_step(tmp_path / "r/checkpoints/last.ckpt") == 8


# ---- a rank by itself


@pytest.mark.parametrize(
    ("outcome", "code", "stated"),
    [
        (TaskEnd(COMPLETED, "done", 2.5), COMPLETED, {"code": 0, "line": "done", "value": 2.5}),
        (Interrupted(signal.SIGTERM, "stop", agreed=True), COMPLETED, {"code": 143, "line": "stop", "value": None}),
        (Interrupted(signal.SIGINT), 130, "Interrupted: stopped by SIGINT"),
        (UserError("seed must be int"), USER_ERROR, "UserError: seed must be int"),
        (RuntimeError("boom"), FAILED, "RuntimeError: boom"),
    ],
)
def test_a_rank_exits_with_0_where_all_ranks_end_together(
    outcome: TaskEnd | BaseException,
    code: int,
    stated: dict[str, object] | str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def task(job: Job) -> TaskEnd:
        assert (job.config.text, job.overrides, job.resumes, job.checked) == ("${x}", ("text=x",), True, True)
        if isinstance(outcome, TaskEnd):
            return outcome
        raise outcome

    def load(config: DictConfig) -> Callable[[Job], TaskEnd]:
        return task

    monkeypatch.setattr(elastic, "load_task", load)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    config = OmegaConf.create({"text": r"\${x}"})
    elastic._write_job(Job(tmp_path, config, resumes=True, overrides=("text=x",)), tmp_path / "job.yaml")
    assert run_rank(tmp_path, tmp_path / "job.yaml") == code
    if isinstance(stated, str):
        assert json.loads((tmp_path / "error.json").read_text())["message"]["message"] == stated
    else:
        assert json.loads((tmp_path / "end.json").read_text()) == stated


# ---- the record of a failed launch


@pytest.mark.parametrize("has_begun", [True, False])
def test_a_launch_states_a_failure_of_a_run_that_has_begun_only(
    has_begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = {"status": "interrupted", "resumed_at": []}
    (tmp_path / "result.json").write_text(json.dumps(earlier))

    def fail(job: Job, **_: object) -> TaskEnd:
        if has_begun:
            (tmp_path / "result.json").write_text(json.dumps({"status": "running", "resumed_at": [8]}))
        raise UserError("data: changed")

    monkeypatch.setattr(session, "launch_ranks", fail)
    settings = Mock(trainer=Mock(devices=2, restarts=0), safety=Mock(grace_s=60.0), config={"check": "off"})
    with pytest.raises(UserError, match="data: changed"):
        session.launch(Job(tmp_path, OmegaConf.create({}), resumes=True), settings, StopRequest(grace_s=60.0))
    failed = {"status": "failed", "resumed_at": [8], "reason": "UserError: data: changed"}
    assert result(tmp_path) == (failed if has_begun else earlier)


# ---- the rank that failed first


def failure(folder: Path, rank: int, code: int, error: str = "", *, at: float = 0) -> ProcessFailure:
    """Return the failure of a rank whose error file was written at a time in seconds."""
    path = folder / f"{rank}.json"
    if error:
        extra = {"py_callstack": "in on_step", "timestamp": str(int(at))}
        path.write_text(json.dumps({"message": {"message": error, "extraInfo": extra}}))
        os.utime(path, (at, at))
    found = ProcessFailure(rank, 1, code, str(path))
    found.timestamp = int(at)
    return found


@pytest.mark.parametrize(
    ("ends", "error"),
    [
        (
            [(1, "RuntimeError: closed", 9.6), (1, "ValueError: boom", 9.5)],
            RankError("rank 1 failed: ValueError: boom"),
        ),
        ([(1, "RuntimeError: closed", 9.6), (-9, "", 9.5)], RankError("rank 1 was killed by SIGKILL")),
        (
            [(1, "RuntimeError: boom", 9.5), (143, "Interrupted: x", 9.6)],
            RankError("rank 0 failed: RuntimeError: boom"),
        ),
        (
            [(1, "RuntimeError: Timed out waiting 15000ms", 9.5), (-9, "", 39.7)],
            RankError("rank 1 did not answer in time (safety.rank_timeout_s)"),
        ),
        ([(143, "Interrupted: stopped by SIGUSR1", 9.5), (1, "E: closed", 9.6)], Interrupted(15, "stopped by SIGUSR1")),
        ([(143, "", 9.5), (-9, "", 9.5)], RankError("rank 1 was killed by SIGKILL")),
        ([(2, "UserError: data: no shards\n", 9.5)], UserError("data: no shards")),
        ([(7, "", 9.5)], RankError("rank 0 ended with code 7")),
    ],
)
def test_the_cause_is_the_end_of_the_rank_that_failed_first(
    ends: list[tuple[int, str, float]], error: BaseException, tmp_path: Path
) -> None:
    failures = {rank: failure(tmp_path, rank, code, text, at=at) for rank, (code, text, at) in enumerate(ends)}
    found = find_cause(failures)
    assert (type(found), str(found)) == (type(error), str(error))
    if isinstance(found, RankError) and " failed: " in str(found):
        assert found.__notes__ == ["in on_step"]
