"""Further ranks of a DDP job on one machine, started and watched by rank 0.

Lightning would start them with the command line of this process, which in a sweep is the whole sweep. Here rank 0
starts each rank on its own job alone: `python -m src.launch.ranks <run folder>` reads the config.yaml that rank 0
wrote. A rank never outlives rank 0 (the operating system kills it), and a rank that dies ends the job within
`GRACE_S`, since the others would wait for it in a collective. A rank that hangs runs into the timeout of the others'
collectives. The job reports the rank that failed first.
"""

import ctypes
import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from src.files import ROOT
from src.launch.signals import run_guarded
from src.launch.world import read_world

#: Time for rank 0 to notice by itself that another rank has died.
GRACE_S = 20.0
#: Time for a rank to start; the timeout of its collectives is the key safety.rank_timeout_s.
START_S = 300.0


class RankError(RuntimeError):
    """Error of another rank that failed first or does not answer."""


@contextmanager
def other_ranks(
    folder: Path,
    n: int,
    *,
    resumes: bool,
    timeout_s: float,
    on_lost: Callable[[str], None],
    on_interrupted: Callable[[int], None],
) -> Iterator[None]:
    """Run ranks 1 to n - 1 of the job in `folder` beside the block, which is rank 0.

    Does nothing where n is 1 or a launcher started the ranks.

    Args:
        folder: run folder; the ranks read its config.yaml.
        n: number of ranks.
        resumes: continue from the checkpoint in the folder.
        timeout_s: seconds to wait for the ranks at the end.
        on_lost: called with the reason before this process exits because a rank died.
        on_interrupted: called with the signal that ended a rank.

    Raises:
        RankError: the block failed because another rank did.
    """
    if n == 1 or read_world().is_launched:
        yield
        return
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_find_free_port())}
    own = {"WORLD_SIZE": str(n), "NODE_RANK": "0", "LOCAL_RANK": "0", "RANK": "0"}
    for rank in range(1, n):
        _error_file(folder, rank).unlink(missing_ok=True)
        _ready_file(folder, rank).unlink(missing_ok=True)
    with _environment({**address, **own}):
        children = [_start_rank(folder, rank, resumes) for rank in range(1, n)]
        done = threading.Event()
        watch = (folder, children, done, on_lost, on_interrupted)
        threading.Thread(target=_watch, args=watch, daemon=True).start()
        try:
            _wait_for_start(folder, children)
            yield
            _leave_group()
            for child in children:
                child.wait(timeout=timeout_s)
        except Exception as error:
            done.set()
            first = _first_failure(folder, children, time.time(), error)
            if first is None:
                raise
            raise RankError(first) from error
        finally:
            done.set()
            _leave_group()
            _end(children)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables inside the block; no others are touched, as threads may read them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _wait_for_start(folder: Path, children: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + START_S
    for rank, child in enumerate(children, 1):
        while not _ready_file(folder, rank).exists() and child.poll() is None:
            if time.monotonic() > deadline:
                raise RankError(f"rank {rank} did not start within {START_S:g} s")
            time.sleep(0.02)


def _ready_file(folder: Path, rank: int) -> Path:
    return folder / f".rank{rank}.ready"


def _error_file(folder: Path, rank: int) -> Path:
    return folder / f".rank{rank}.error"


def _first_failure(
    folder: Path, children: list[subprocess.Popen[bytes]], failed_at: float, error: Exception
) -> str | None:
    """Return what happened in another rank before rank 0 failed at `failed_at` with `error`; None if nothing did."""
    deadline = time.monotonic() + 3.0
    while time.monotonic() < deadline and all(child.poll() is None for child in children):
        time.sleep(0.05)
    failures = []
    for rank, child in enumerate(children, 1):
        path = _error_file(folder, rank)
        if path.exists() and path.stat().st_mtime <= failed_at:
            failures.append((path.stat().st_mtime, f"rank {rank} failed: {path.read_text(encoding='utf-8')}"))
        elif not path.exists() and child.poll() not in (None, 0):
            failures.append((0.0, f"rank {rank} {_describe_exit(child.returncode)}"))
    if failures:
        return min(failures)[1]
    message = str(error).lower()
    silent = [str(rank) for rank, child in enumerate(children, 1) if child.poll() is None]
    if silent and ("timed out" in message or "timeout" in message):
        return f"rank {', '.join(silent)} did not answer in time (safety.rank_timeout_s)"
    return None


def _describe_exit(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _die_with_parent() -> None:
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _start_rank(folder: Path, rank: int, resumes: bool) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "LOCAL_RANK": str(rank), "RANK": str(rank), "PYTHONPATH": path}
    command = [sys.executable, "-m", "src.launch.ranks", str(folder), "resume" if resumes else "start"]
    return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent)


def _watch(
    folder: Path,
    children: list[subprocess.Popen[bytes]],
    done: threading.Event,
    on_lost: Callable[[str], None],
    on_interrupted: Callable[[int], None],
) -> None:
    """End this process when a rank has died and rank 0 does not notice it within `GRACE_S`."""
    while not done.wait(0.2):
        dead = [(i, c.returncode) for i, c in enumerate(children, 1) if c.poll() not in (None, 0)]
        if not dead:
            continue
        rank, code = dead[0]
        if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            on_interrupted(code - 128)
        if not done.wait(GRACE_S):
            path = _error_file(folder, rank)
            reason = f": {path.read_text(encoding='utf-8')}" if path.exists() else ""
            on_lost(f"rank {rank} {_describe_exit(code)}{reason}")
            _end(children)
            os._exit(1)


def _end(children: list[subprocess.Popen[bytes]]) -> None:
    """Wait up to 5 s for the ranks to exit, then kill them."""
    deadline = time.monotonic() + 5.0
    for child in children:
        try:
            child.wait(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _leave_group() -> None:
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    """Run a rank that rank 0 started; return its exit code."""
    from omegaconf import OmegaConf

    from src.launch.job import FAILED, Job, run_task

    folder = Path(sys.argv[1])
    config = OmegaConf.load(folder / "config.yaml")
    job = Job(folder, config, sys.argv[2] == "resume", rank=int(os.environ["RANK"]))  # type: ignore[arg-type]  # a mapping
    # Import the task before this rank counts as started: imports take most of the time of a start.
    importlib.import_module(str(job.config.task._target_).rpartition(".")[0])
    _ready_file(folder, job.rank).touch()
    code, line, _ = run_task(job)
    _ready_file(folder, job.rank).unlink(missing_ok=True)
    if code == FAILED:
        _error_file(folder, job.rank).write_text(line.removeprefix("failed: "), encoding="utf-8")
        _end_suspended_parent()
    _leave_group()
    return code


def _end_suspended_parent() -> None:
    """Kill rank 0 if it stays suspended (SIGSTOP): it would never end the job in which this rank failed."""
    for _ in range(int(GRACE_S)):
        state = Path(f"/proc/{os.getppid()}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        if state != "T":
            return
        time.sleep(1.0)
    os.kill(os.getppid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(run_guarded(main))
