"""Runs that are long enough to be interrupted, and helpers to inspect them."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.prepared import FORKED_RANK
from tests.runs import ROOT, SMALL

#: A folder whose sitecustomize.py breaks the process that has it on its PYTHONPATH.
FAULTS = ROOT / "tests" / "robust" / "faults"

#: Sixty short steps; a checkpoint at every fourth, a validation at every sixth.
LONGER = [*SMALL, "trainer.max_steps=60", "samples.tokens=0"]


@contextmanager
def environ(**values: str) -> Iterator[None]:
    """Set environment variables for processes that start inside the block."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        yield


def saved_step(path: Path) -> int:
    """Return the step of a checkpoint."""
    step: int = torch.load(path, weights_only=True)["reslab"]["step"]
    return step


def wait_for_row(step: int, folder: Path, process: subprocess.Popen[str]) -> None:
    """Wait until the run has written the row of `step`, or has ended."""
    path = folder / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_text().count("\n") >= step:
            return
        time.sleep(0.005)


def ranks_of(folder: Path) -> dict[int, int]:
    """Return the processes of the ranks that runs below `folder` have launched, by rank."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
            if b"src.launch.worker" in words and str(folder).encode() in words:
                env = dict(part.partition(b"=")[::2] for part in (entry / "environ").read_bytes().split(b"\0"))
                found[int(env.get(b"RANK", b"-1"))] = int(entry.name)
            name = (entry / "comm").read_text().strip()
            if name.startswith(FORKED_RANK) and folder.is_relative_to((entry / "cwd").readlink()):
                found[int(name.removeprefix(FORKED_RANK))] = int(entry.name)
        except OSError:
            continue
    return found


def rank_pid(folder: Path, rank: int = 1) -> int:
    """Return the process of a rank of the run in `folder`."""
    return ranks_of(folder)[rank]


def no_process_of(folder: Path) -> bool:
    """Return whether every rank that works in `folder` ends within 10 s."""
    for _ in range(100):
        if not ranks_of(folder):
            return True
        time.sleep(0.1)
    return False
