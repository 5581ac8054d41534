"""`trainer`: its keys as written, and settled by what this machine has."""

import dataclasses
import os
import re

#: More steps than any run has, and threads than any machine; beyond them sums and lists overflow.
MOST_STEPS, MOST_THREADS = 10**12, 1024


@dataclasses.dataclass(frozen=True)
class TrainerKeys:
    """`trainer` as written: auto asks for what the machine has."""

    max_steps: int
    max_time: str | None
    log_every_steps: int
    val_every_steps: int
    checkpoint_every_steps: int
    stream_pictures: bool
    accelerator: str
    devices: int | str
    strategy: str
    precision: str
    compile: bool | str
    threads: int | str
    onednn: bool | str = False

    def __post_init__(self) -> None:
        max_seconds(self.max_time)
        for key in ("max_steps", "log_every_steps", "val_every_steps", "checkpoint_every_steps"):
            if not 1 <= getattr(self, key) <= MOST_STEPS:
                most = f" and at most {MOST_STEPS:,}" if getattr(self, key) > 1 else ""
                raise ValueError(f"trainer.{key} must be at least 1{most}, got {getattr(self, key)}")
        _one_of("trainer.accelerator", self.accelerator, ("auto", "cpu", "gpu"))
        _one_of("trainer.strategy", self.strategy, ("auto", "ddp"))
        _one_of("trainer.precision", self.precision, ("auto", "32-true", "bf16-mixed"))
        for key in ("devices", "threads"):
            value = getattr(self, key)
            if value != "auto" and not (isinstance(value, int) and value >= 1):
                raise ValueError(f"trainer.{key} must be auto or at least 1, got {value!r}")
            if value != "auto" and int(value) > MOST_THREADS:
                raise ValueError(f"trainer.{key} must be at most {MOST_THREADS}, got {value}")
        for key in ("compile", "onednn"):
            if getattr(self, key) not in (True, False, "auto"):
                raise ValueError(f"trainer.{key} must be auto, true or false, got {getattr(self, key)!r}")


@dataclasses.dataclass(frozen=True)
class TrainerSettings:
    """`trainer` with nothing left open."""

    max_steps: int
    max_time: str | None
    log_every_steps: int
    val_every_steps: int
    checkpoint_every_steps: int
    stream_pictures: bool
    accelerator: str
    devices: int
    strategy: str
    precision: str
    compile: bool
    threads: int
    onednn: bool


def settle_trainer(keys: TrainerKeys) -> TrainerSettings:
    """Settle `auto` by what this machine has.

    Raises:
        ValueError: more devices than there are, or a precision that the device lacks.
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
    return TrainerSettings(
        keys.max_steps,
        keys.max_time,
        keys.log_every_steps,
        keys.val_every_steps,
        keys.checkpoint_every_steps,
        keys.stream_pictures,
        accelerator,
        devices,
        "ddp" if devices > 1 or keys.strategy == "ddp" else "auto",
        precision,
        on_gpu if keys.compile == "auto" else bool(keys.compile),
        default_threads(devices) if keys.threads == "auto" else int(keys.threads),
        not on_gpu and resolve_onednn(keys.onednn),
    )


def default_threads(ranks: int) -> int:
    """CPU threads of a rank: OMP_NUM_THREADS, as a cluster or torchrun sets it, else this process's cores, shared out."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) >= 1:
        return int(asked)
    return max(1, len(os.sched_getaffinity(0)) // ranks)


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{key} must be one of {', '.join(allowed)}, got {value}")


def max_seconds(max_time: str | None) -> float | None:
    """`trainer.max_time` in seconds.

    Raises:
        ValueError: it is no time.
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
