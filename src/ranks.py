"""The other ranks of a DDP job on one machine.

Lightning would start them by running this process's command line again, which in a sweep is the whole
sweep. Here rank 0 starts each rank on its own job alone: `python -m src.ranks <run folder>` reads the
configuration that rank 0 wrote there. A rank never outlives rank 0 (the kernel kills it), and a rank that
dies takes the job down within `GRACE_S`, since the others would wait for it in a collective.
"""

import ctypes
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

GRACE_S = 20.0
ROOT = Path(__file__).resolve().parents[1]


def started_outside() -> bool:
    """Whether torchrun or a cluster started this process as one of several ranks."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "LOCAL_RANK" in os.environ


@contextmanager
def other_ranks(folder: Path, n: int, *, resumes: bool, on_lost: Callable[[str], None]) -> Iterator[None]:
    """Run ranks 1 to n - 1 of the job in `folder` beside the block, which is rank 0.

    Args:
        folder: the run folder; its config.yaml is what the ranks run.
        n: number of ranks; with 1, or where something else started the ranks, nothing happens here.
        resumes: whether they go on from the folder's checkpoint.
        on_lost: told why, before this process ends because a rank died.
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
    children = [_start(folder, rank, resumes, place) for rank in range(1, n)]
    done = threading.Event()
    watch = threading.Thread(target=_watch, args=(children, done, on_lost), daemon=True)
    watch.start()
    try:
        yield
        _leave_group()
        for child in children:
            child.wait(timeout=GRACE_S)
    finally:
        done.set()
        _leave_group()
        _end(children)
        os.environ.clear()
        os.environ.update(before)


def _start(folder: Path, rank: int, resumes: bool, place: dict[str, str]) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, **place, "LOCAL_RANK": str(rank), "RANK": str(rank), "PYTHONPATH": path}
    command = [sys.executable, "-m", "src.ranks", str(folder), "resume" if resumes else "start"]
    return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _watch(
    children: list[subprocess.Popen[bytes]], done: threading.Event, on_lost: Callable[[str], None]
) -> None:
    while not done.wait(0.2):
        dead = [(i, c.returncode) for i, c in enumerate(children, 1) if c.poll() not in (None, 0)]
        if dead and not done.wait(GRACE_S):  # rank 0 mostly notices by itself, with a better message
            rank, code = dead[0]
            on_lost(f"rank {rank} ended with code {code}")
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

    from src.launch import Job, run_task

    folder = Path(sys.argv[1])
    config = OmegaConf.load(folder / "config.yaml")
    job = Job(folder, config, sys.argv[2] == "resume", rank=int(os.environ["RANK"]))  # type: ignore[arg-type]  # a mapping
    code = run_task(job)[0]
    _leave_group()
    return code


if __name__ == "__main__":
    sys.exit(main())
