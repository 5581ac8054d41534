"""Runs long enough to be struck in the middle, and what is compared afterwards."""

import os
import subprocess
import time
from pathlib import Path

import torch

from tests.runs import SMALL

#: Sixty short steps; a checkpoint at every fourth, a validation at every sixth.
LONGER = [*SMALL, "trainer.max_steps=60", "trainer.stream_pictures=false", "samples.tokens=0"]


def saved_step(path: Path) -> int:
    """The step that a checkpoint is of."""
    step: int = torch.load(path, weights_only=True)["reslab"]["step"]
    return step


def same_weights(a: Path, b: Path) -> bool:
    """Whether two run folders ended with the same bits."""
    first, second = (torch.load(p / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for p in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def wait_for_row(step: int, folder: Path, process: subprocess.Popen[str]) -> None:
    """Return once the run has written the row of `step`, or has ended."""
    path = folder / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_text().count("\n") >= step:
            return
        time.sleep(0.005)


def kill_after(step: int, folder: Path, process: subprocess.Popen[str], signum: int) -> int:
    """Send `signum` once the run has written the row of `step`; returns the exit code."""
    wait_for_row(step, folder, process)
    process.send_signal(signum)
    process.communicate(timeout=120)
    return process.returncode


def ranks_of(folder: Path) -> list[int]:
    """The processes that are further ranks of runs below `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"src.ranks" in words and str(folder).encode() in words:
                found.append(int(entry.name))
    return found


def rank_pid(folder: Path) -> int:
    """The process of rank 1 of the run in `folder`."""
    return ranks_of(folder)[0]


def no_process_of(folder: Path) -> bool:
    """Whether every rank that works in `folder` is gone, within a few seconds."""
    for _ in range(100):
        if not ranks_of(folder):
            return True
        time.sleep(0.1)
    return False
