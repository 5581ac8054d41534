"""The process that computes."""

import os
import platform
import subprocess
import sys

import pytest

from tests.runs import ROOT

# Steps whose tensors are all freed at their end; prints the pages that ten of them had cleared.
STEPS = """
import resource, sys, torch
from src.training.process import keep_freed_memory
def step():
    return [torch.ones(7 * 2**20) for _ in range(4)]
if sys.argv[1] == "kept":
    assert keep_freed_memory()
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has its own rules")
def test_freed_memory_serves_the_next_step() -> None:
    def pages(how: str, **settings: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", STEPS, how],
            cwd=ROOT,
            env=os.environ | settings,
            capture_output=True,
            text=True,
            check=True,
        )
        return int(done.stdout)

    # Left alone, glibc gives it back or not, as whatever lies at the end of its heap allows; so, surely.
    assert pages("kept") < 100 < 10_000 < pages("given back", MALLOC_MMAP_THRESHOLD_="65536")
