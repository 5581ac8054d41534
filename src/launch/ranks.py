"""The other ranks of a DDP job on one machine.

Lightning would start them by running this process's command line again, which in a sweep is the whole
sweep. Here rank 0 starts each rank on its own job alone: `python -m src.launch.ranks <run folder>` reads the
configuration that rank 0 wrote there. A rank never outlives rank 0 (the kernel kills it), and a rank that
dies takes the job down within `GRACE_S`, since the others would wait for it in a collective. A rank that hangs
runs into the time-out of the others' collectives, and they end. The rank that failed first is the one that is told of.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from src.launch.signals import guarded

GRACE_S = 20.0
#: How long a rank may take to start; what its collectives may take is a key.
START_S = 300.0
ROOT = Path(__file__).resolve().parents[2]


def started_outside() -> bool:
    """Whether torchrun or a cluster started this process as one of several ranks."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "LOCAL_RANK" in os.environ


class RankError(RuntimeError):
    """Another rank failed first, or does not answer."""


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

    Args:
        folder: the run folder; its config.yaml is what the ranks run.
        n: number of ranks; with 1, or where something else started the ranks, nothing happens here.
        resumes: whether they go on from the folder's checkpoint.
        timeout_s: how long to wait for them at the end.
        on_lost: told why, before this process ends because a rank died.
        on_interrupted: told the signal on which a rank left.

    Raises:
        RankError: the block failed because another rank did.
    """
    if n == 1 or started_outside():
        yield
        return
    place = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(n),
        "NODE_RANK": "0",
    }
    before = dict(os.environ)
    os.environ.update(place, LOCAL_RANK="0", RANK="0")
    for rank in range(1, n):
        _error_file(folder, rank).unlink(missing_ok=True)
        _ready_file(folder, rank).unlink(missing_ok=True)
    children = [_start(folder, rank, resumes, place) for rank in range(1, n)]
    done = threading.Event()
    watch = threading.Thread(target=_watch, args=(folder, children, done, on_lost, on_interrupted), daemon=True)
    watch.start()
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
        os.environ.clear()
        os.environ.update(before)


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
    """What happened in another rank before rank 0 failed at `failed_at` with `error`; None if nothing did."""
    deadline = time.monotonic() + 3.0
    while time.monotonic() < deadline and all(child.poll() is None for child in children):
        time.sleep(0.05)
    told = []
    for rank, child in enumerate(children, 1):
        path = _error_file(folder, rank)
        if path.exists() and path.stat().st_mtime <= failed_at:
            told.append((path.stat().st_mtime, f"rank {rank} failed: {path.read_text(encoding='utf-8')}"))
        elif not path.exists() and child.poll() not in (None, 0):
            told.append((0.0, f"rank {rank} {_how(child.returncode)}"))
    if told:
        return min(told)[1]
    words = str(error).lower()
    silent = [str(rank) for rank, child in enumerate(children, 1) if child.poll() is None]
    if silent and ("timed out" in words or "timeout" in words):
        return f"rank {', '.join(silent)} did not answer in time (safety.rank_timeout_s)"
    return None


def _how(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _start(folder: Path, rank: int, resumes: bool, place: dict[str, str]) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, **place, "LOCAL_RANK": str(rank), "RANK": str(rank), "PYTHONPATH": path}
    command = [sys.executable, "-m", "src.launch.ranks", str(folder), "resume" if resumes else "start"]
    return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _watch(
    folder: Path,
    children: list[subprocess.Popen[bytes]],
    done: threading.Event,
    on_lost: Callable[[str], None],
    on_interrupted: Callable[[int], None],
) -> None:
    while not done.wait(0.2):
        dead = [(i, c.returncode) for i, c in enumerate(children, 1) if c.poll() not in (None, 0)]
        if not dead:
            continue
        rank, code = dead[0]
        if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            on_interrupted(code - 128)
        if not done.wait(GRACE_S):  # rank 0 mostly notices by itself
            path = _error_file(folder, rank)
            why = f": {path.read_text(encoding='utf-8')}" if path.exists() else ""
            on_lost(f"rank {rank} {_how(code)}{why}")
            _end(children)
            os._exit(1)


def _end(children: list[subprocess.Popen[bytes]]) -> None:
    """Give the ranks a moment to leave by themselves, then make them."""
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    """Entry of a rank that rank 0 started."""
    from omegaconf import OmegaConf

    from src.launch.job import FAILED, Job, run_task

    folder = Path(sys.argv[1])
    config = OmegaConf.load(folder / "config.yaml")
    job = Job(folder, config, sys.argv[2] == "resume", rank=int(os.environ["RANK"]))  # type: ignore[arg-type]  # a mapping
    importlib.import_module(
        str(job.config.task._target_).rpartition(".")[0]
    )  # most of the time that a start takes
    _ready_file(folder, job.rank).touch()
    code, line, _ = run_task(job)
    _ready_file(folder, job.rank).unlink(missing_ok=True)
    if code == FAILED:
        _error_file(folder, job.rank).write_text(line.removeprefix("failed: "), encoding="utf-8")
        _end_stopped_parent()
    _leave_group()
    return code


def _end_stopped_parent() -> None:
    """Rank 0 ends a job in which a rank failed; where it was stopped (SIGSTOP) it never will, nor its caller."""
    for _ in range(int(GRACE_S)):
        state = Path(f"/proc/{os.getppid()}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        if state != "T":
            return
        time.sleep(1.0)
    os.kill(os.getppid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(guarded(main))
