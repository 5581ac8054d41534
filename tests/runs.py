"""Runs of run.py from outside: their files and exit codes."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.prepared import Prepared

ROOT = Path(__file__).resolve().parents[1]

#: Model and run of a few seconds.
SMALL = [
    "trainer=cpu",
    "model.n_layer=2",
    "model.n_head=2",
    "model.n_embd=32",
    "model.block_size=32",
    "model.vocab_size=512",
    "data.micro_batch_size=2",
    "data.global_batch_size=4",
    "data.val_tokens=1024",
    "trainer.max_steps=12",
    "trainer.log_every_steps=1",
    "trainer.val_every_steps=6",
    "trainer.checkpoint_every_steps=4",
    "trainer.threads=1",
    "trainer.stream_pictures=false",
    "evaluation=none",
]


DDP = ["trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=cpu"]


def make_shards(folder: Path, *, vocab_size: int = 500, tokens: int = 20_000) -> Path:
    """Write shards of learnable tokens in the published format: one for validation, two for training."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for split, number, size in (("val", 0, 3000), ("train", 1, tokens), ("train", 2, tokens // 2)):
        steps = rng.integers(1, 4, size)
        write_bin(folder / f"fineweb_{split}_{number:06d}.bin", np.cumsum(steps) % vocab_size)
    return folder


def write_bin(path: Path, tokens: np.ndarray[Any, Any]) -> None:
    """Write a shard in the format of llm.c, independently of src."""
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, len(tokens)
    path.write_bytes(header.tobytes() + tokens.astype("<u2").tobytes())


def command(*overrides: str) -> list[str]:
    """Return the command line of one invocation."""
    return [sys.executable, str(ROOT / "run.py"), *overrides]


#: Environment variables that libraries set in the process that imports them, as this one does.
SET_BY_IMPORTS = {
    "HF_XET_HIGH_PERFORMANCE",
    "KMP_DUPLICATE_LIB_OK",
    "PYTORCH_NVML_BASED_CUDA_CHECK",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
}


def environment() -> dict[str, str]:
    """Return the environment of a run: no network, quiet libraries."""
    ours = {name: value for name, value in os.environ.items() if name not in SET_BY_IMPORTS}
    return {**ours, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


#: Prepared process for runs with the environment in which the tests started.
PREPARED = Prepared(environment())


def start(*overrides: str, cwd: Path) -> subprocess.Popen[str]:
    """Start an invocation in `cwd` as a process of its own."""
    return subprocess.Popen(
        command(*overrides),
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def begin(*overrides: str, cwd: Path) -> subprocess.Popen[str]:
    """Start an invocation in `cwd`, as a fork with its imports done where that makes no difference."""
    env = environment()
    if PREPARED.suits(env):
        return PREPARED.begin(*command(*overrides)[1:], cwd=cwd, env=env)
    return start(*overrides, cwd=cwd)


def run(*overrides: str, cwd: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run one invocation in `cwd` to its end."""
    with begin(*overrides, cwd=cwd) as process:
        try:
            output = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, *output)


def result(folder: Path) -> dict[str, Any]:
    """Return the folder's result.json."""
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def computed(folder: Path) -> list[dict[str, Any]]:
    """Return the rows without what depends on the clock and on the process."""
    measured = ("tokens_per_s", "flops_per_s", "mfu", "memory_gib")
    return [{k: v for k, v in row.items() if k not in measured} for row in metrics(folder)]


def free_port() -> int:
    """Return a port that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def error_lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the lines of standard error that are not empty."""
    return [line for line in done.stderr.splitlines() if line.strip()]


def kill_after(step: int, folder: Path, process: subprocess.Popen[str], signum: int) -> int:
    """Send `signum` once the run has written the row of `step`; return the exit code."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        path = folder / "metrics.jsonl"
        if path.exists() and path.read_text().count("\n") >= step:
            process.send_signal(signum)
            break
        time.sleep(0.01)
    process.communicate(timeout=120)
    return process.returncode


def same_weights(a: Path, b: Path) -> bool:
    first, second = (torch.load(p / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for p in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
