"""Section `trainer`: its keys as configured, and as resolved for this machine."""

import dataclasses
import os
import re
from typing import Annotated, Literal

from pydantic import Field

#: Optimizer steps, below what sums over a run could overflow.
Steps = Annotated[int, Field(ge=1, le=10**12)]


@dataclasses.dataclass(frozen=True)
class TrainerKeys:
    """Keys of `trainer`; auto takes what the machine has."""

    max_steps: Steps
    max_time: str | None
    log_every_steps: Steps
    val_every_steps: Steps
    checkpoint_every_steps: Steps
    stream_pictures: bool
    accelerator: Literal["auto", "cpu", "gpu"]
    devices: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)]
    strategy: Literal["auto", "ddp"]
    precision: Literal["auto", "32-true", "bf16-mixed"]
    compile: Literal["auto"] | bool
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)]
    onednn: Literal["auto"] | bool = False

    def __post_init__(self) -> None:
        max_seconds(self.max_time)


@dataclasses.dataclass(frozen=True)
class TrainerSettings(TrainerKeys):
    """Keys of `trainer` with every auto resolved."""

    accelerator: Literal["cpu", "gpu"]
    devices: int
    precision: Literal["32-true", "bf16-mixed"]
    compile: bool
    threads: int
    onednn: bool


def settle_trainer(keys: TrainerKeys) -> TrainerSettings:
    """Resolve every `auto` for this machine.

    Raises:
        ValueError: the machine has no GPU, or fewer than configured.
    """
    import torch

    from src.kernels.cpu_matmul import resolve_onednn

    n_gpu = torch.cuda.device_count()
    accelerator = keys.accelerator
    if accelerator == "auto":
        accelerator = "gpu" if n_gpu else "cpu"
    if accelerator == "gpu" and not n_gpu:
        raise ValueError("trainer.accelerator=gpu, but torch sees no GPU here; use trainer=cpu")
    on_gpu = accelerator == "gpu"
    devices = (n_gpu if on_gpu else 1) if keys.devices == "auto" else int(keys.devices)
    if on_gpu and devices > n_gpu:
        raise ValueError(f"trainer.devices must be at most {n_gpu}, the GPUs here, got {devices}")
    precision = keys.precision
    if precision == "auto":
        precision = "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"
    resolved = {
        "accelerator": accelerator,
        "devices": devices,
        "strategy": "ddp" if devices > 1 else keys.strategy,
        "precision": precision,
        "compile": on_gpu if keys.compile == "auto" else keys.compile,
        "threads": default_threads(devices) if keys.threads == "auto" else keys.threads,
        "onednn": not on_gpu and resolve_onednn(keys.onednn),
    }
    return TrainerSettings(**{**dataclasses.asdict(keys), **resolved})


def default_threads(ranks: int) -> int:
    """Return the CPU threads of a rank: OMP_NUM_THREADS if set, else the cores of this process divided by the ranks."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) >= 1:
        return int(asked)
    return max(1, len(os.sched_getaffinity(0)) // ranks)


def max_seconds(max_time: str | None) -> float | None:
    """Return `trainer.max_time` in seconds.

    Raises:
        ValueError: `max_time` does not have the form days:hours:minutes:seconds.
    """
    if max_time is None:
        return None
    found = re.fullmatch(r"(\d{1,6}):(\d\d):(\d\d):(\d\d)", max_time)
    if found is None:
        raise ValueError(
            f"trainer.max_time must be days:hours:minutes:seconds as in 00:11:55:00, or null, got {max_time!r}"
        )
    days, hours, minutes, seconds = map(int, found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
