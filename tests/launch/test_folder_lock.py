"""Lock of a run folder: within a process, and between processes that are stopped or killed."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.errors import UserError
from src.launch import folder_lock
from src.launch.folder_lock import _is_zombie, lock_folder
from tests.robust.support import LONGER, wait_for_row
from tests.runs import begin, kill_after, make_shards, result, run


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


def lock_of_another_machine(folder: Path, age_s: float) -> Path:
    """Write the lock of a process of another machine whose last heartbeat was `age_s` seconds ago."""
    with lock_folder(folder):
        text = (folder / ".lock").read_text()
    path = folder / ".lock"
    path.write_text(re.sub("host=.*", "host=elsewhere", text))
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_a_released_lock_leaves_no_file(tmp_path: Path) -> None:
    with lock_folder(tmp_path / "r") as note:
        assert note == ""
        assert [p.name for p in (tmp_path / "r").iterdir()] == [".lock"]
    assert list((tmp_path / "r").iterdir()) == []


def test_a_lock_of_another_machine_with_a_heartbeat_is_respected(tmp_path: Path) -> None:
    path = lock_of_another_machine(tmp_path, age_s=5.0)
    with pytest.raises(UserError, match=r"is in use by process .* on elsewhere"), lock_folder(tmp_path):
        pass
    assert path.exists()


def test_a_lock_of_another_machine_without_a_heartbeat_is_taken_over_after_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_lock, "LEASE_S", 0.2)
    monkeypatch.setattr(folder_lock, "HEARTBEAT_S", 0.1)
    lock_of_another_machine(tmp_path, age_s=3600.0)
    with lock_folder(tmp_path) as note:
        assert "on elsewhere is taken over" in note


def test_a_lock_that_version_0_1_0_left_behind_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    path.write_text('{"pid": 1, "started": "1", "host": "elsewhere", "place": ""}\n')
    os.utime(path, (time.time() - 3600,) * 2)
    with lock_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_live_run_keeps_its_folder_and_a_killed_one_is_resumed(shards: Path, tmp_path: Path) -> None:
    keys = [*LONGER, f"data.path={shards}", "hydra.run.dir=r"]
    process = begin(*keys, cwd=tmp_path)
    wait_for_row(5, tmp_path / "r", process)
    process.send_signal(signal.SIGSTOP)
    for again in (keys, ["resume=r"]):
        done = run(*again, cwd=tmp_path)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert f"process {process.pid}" in done.stderr or "holds a run already" in done.stderr
    assert process.poll() is None
    assert kill_after(1, tmp_path / "r", process, signal.SIGKILL) == -signal.SIGKILL
    assert f"pid={process.pid}\n" in (tmp_path / "r/.lock").read_text()
    done = run("resume=r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "is taken over" in done.stderr
    assert not list((tmp_path / "r").glob(".lock*"))


@pytest.mark.stress
def test_a_process_number_that_was_used_again_is_no_live_run(shards: Path, tmp_path: Path) -> None:
    keys = [*LONGER, "trainer.max_steps=2", f"data.path={shards}", "hydra.run.dir=r"]
    assert run(*keys, cwd=tmp_path).returncode == 0
    process = begin(*keys[:-1], "hydra.run.dir=other", "trainer.max_steps=4000", cwd=tmp_path)
    wait_for_row(1, tmp_path / "other", process)
    live = (tmp_path / "other/.lock").read_text()
    start_token = int(re.search(r"start=(\d+)", live)[1])  # type: ignore[index]  # filelock writes it
    (tmp_path / "r/.lock").write_text(live.replace(str(start_token), str(start_token - 1)))
    done = run("resume=r", "trainer.max_steps=4", cwd=tmp_path)
    process.kill()
    process.communicate()
    assert done.returncode == 0, done.stderr
    assert result(tmp_path / "r")["steps"] == 4


def test_a_process_that_ended_and_was_not_waited_for_does_not_hold_the_lock() -> None:
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        holder = {"pid": str(process.pid), "host": socket.gethostname()}
        assert not _is_zombie({**holder, "host": "elsewhere"})
        process.stdout.read()  # until it ends
        deadline = time.monotonic() + 20
        while not _is_zombie(holder) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert _is_zombie(holder)
    assert not _is_zombie(holder)
