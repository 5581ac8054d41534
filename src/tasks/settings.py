"""From a composed configuration to checked, plain settings: every key known, typed and in range.

Errors are collected over all sections and told together.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.callbacks.dashboard import SampleKeys
from src.mistakes import UserError
from src.models.config import GPTConfig
from src.models.optimizer import OptimizerConfig, Schedule
from src.overrides import explain, unknown_key
from src.tasks.schema import read_component, read_section

T = TypeVar("T")
Factory = Callable[..., Any]  # Hydra's partials are untyped

#: Sections that name a class (`_target_`), and the keys that stand alone.
COMPONENTS = ("residual", "norm", "embedding", "data", "evaluation")
LOOSE = {"name": str, "seed": int, "resume": str, "init_from": str, "check": str}


@dataclasses.dataclass(frozen=True)
class OptimizerKeys:
    """`optimizer` as written: null asks for the protocol's value."""

    lr: float
    min_lr: float | None
    warmup_steps: int | None
    weight_decay: float
    betas: tuple[float, float]
    eps: float
    grad_clip: float

    def resolved(self, max_steps: int) -> OptimizerConfig:
        """A tenth of lr, and 4 % of the run, where nothing was said."""
        values = dataclasses.asdict(self)
        if self.min_lr is None:
            values["min_lr"] = self.lr / 10
        if self.warmup_steps is None:
            values["warmup_steps"] = round(0.04 * max_steps)
        return OptimizerConfig(**values)


@dataclasses.dataclass(frozen=True)
class TrainerKeys:
    """`trainer` as written: auto asks for what the machine has."""

    max_steps: int
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

    def __post_init__(self) -> None:
        for key in ("max_steps", "log_every_steps", "val_every_steps", "checkpoint_every_steps"):
            if getattr(self, key) < 1:
                raise ValueError(f"trainer.{key} must be at least 1, got {getattr(self, key)}")
        _one_of("trainer.accelerator", self.accelerator, ("auto", "cpu", "gpu"))
        _one_of("trainer.strategy", self.strategy, ("auto", "ddp"))
        _one_of("trainer.precision", self.precision, ("auto", "32-true", "bf16-mixed"))
        for key in ("devices", "threads"):
            value = getattr(self, key)
            if value != "auto" and not (isinstance(value, int) and value >= 1):
                raise ValueError(f"trainer.{key} must be auto or at least 1, got {value!r}")
        if self.compile not in (True, False, "auto"):
            raise ValueError(f"trainer.compile must be auto, true or false, got {self.compile!r}")


@dataclasses.dataclass(frozen=True)
class TrainerSettings:
    """`trainer` with nothing left open."""

    max_steps: int
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


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything a run is made of."""

    name: str
    seed: int
    model: GPTConfig
    optimizer: OptimizerConfig
    schedule: Schedule
    trainer: TrainerSettings
    residual: Factory
    norm: Factory
    embedding: Factory
    data: Factory
    evaluation: Any
    loggers: list[Factory]
    samples: SampleKeys
    config: dict[str, Any]


def read_settings(config: DictConfig, own_keys: tuple[str, ...] = ()) -> Settings:
    """Check a composed configuration and settle what it left open.

    Args:
        config: the composed configuration.
        own_keys: top-level keys of the task itself, which it checks.

    Raises:
        UserError: all mistakes of the configuration, one sentence each.
    """
    mistakes: list[str] = []

    def attempt(read: Callable[[], T]) -> T | None:
        try:
            return read()
        except (ValueError, HydraException, OmegaConfBaseException) as error:
            mistakes.append(explain(root_cause(error)))
        return None

    known = {*COMPONENTS, *LOOSE, *own_keys, "task", "model", "optimizer", "trainer", "samples", "logger"}
    mistakes.extend(unknown_key(str(key)) for key in config if key not in known)
    for key, kind in LOOSE.items():
        attempt(lambda key=key, kind=kind: _loose(config, key, kind))  # type: ignore[misc]  # lambda defaults
    model = attempt(lambda: read_section("model", config.model, GPTConfig))
    keys = attempt(lambda: read_section("trainer", config.trainer, TrainerKeys))
    written = attempt(lambda: read_section("optimizer", config.optimizer, OptimizerKeys))
    parts = {name: attempt(lambda name=name: read_component(name, config[name])) for name in COMPONENTS}  # type: ignore[misc]  # lambda defaults
    samples = attempt(lambda: read_section("samples", config.samples, SampleKeys))
    loggers = [
        attempt(lambda name=name: read_component(f"logger.{name}", config.logger[name]))  # type: ignore[misc]  # lambda default
        for name in map(str, config.logger)
    ]
    trainer = None if keys is None else attempt(lambda: settle_trainer(keys))
    optimizer = schedule = None
    if written is not None:
        optimizer = attempt(lambda: written.resolved(keys.max_steps if keys else 1))
    if keys is not None and optimizer is not None:
        rates = optimizer
        schedule = attempt(lambda: Schedule(rates.lr, rates.min_lr, rates.warmup_steps, keys.max_steps))
    if mistakes:
        raise UserError("; ".join(mistakes))
    assert model is not None  # each is None only with a mistake noted
    assert optimizer is not None
    assert schedule is not None
    assert trainer is not None
    assert samples is not None
    resolved: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]  # a mapping in, a mapping out
    resolved["optimizer"] = {**dataclasses.asdict(optimizer), "betas": list(optimizer.betas)}
    resolved["trainer"] = dataclasses.asdict(trainer)
    return Settings(
        name=str(config.name),
        seed=config.seed,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        trainer=trainer,
        residual=cast(Factory, parts["residual"]),
        norm=cast(Factory, parts["norm"]),
        embedding=cast(Factory, parts["embedding"]),
        data=cast(Factory, parts["data"]),
        evaluation=parts["evaluation"],
        loggers=cast(list[Factory], loggers),
        samples=samples,
        config=resolved,
    )


def _loose(config: DictConfig, key: str, kind: type) -> None:
    value = config.get(key)
    optional = key in ("resume", "init_from")
    if key == "check":
        if value not in ("quick", "off"):
            raise ValueError(f"check must be quick or off, got {value!r}")
        return
    if key == "name" and isinstance(value, int | float):
        return
    if not (isinstance(value, kind) and not isinstance(value, bool)) and not (optional and value is None):
        raise ValueError(f"{key} must be {kind.__name__}, got {value!r} ({type(value).__name__})")


def root_cause(error: BaseException) -> BaseException:
    """What a constructor said, out of Hydra's wrapping."""
    while isinstance(error, HydraException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def settle_trainer(keys: TrainerKeys) -> TrainerSettings:
    """Settle `auto` by what this machine has.

    Raises:
        ValueError: more devices than there are, or a precision that the device lacks.
    """
    import torch

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
    cores = len(os.sched_getaffinity(0))
    return TrainerSettings(
        keys.max_steps,
        keys.log_every_steps,
        keys.val_every_steps,
        keys.checkpoint_every_steps,
        keys.stream_pictures,
        accelerator,
        devices,
        "ddp" if devices > 1 or keys.strategy == "ddp" else "auto",
        precision,
        on_gpu if keys.compile == "auto" else bool(keys.compile),
        max(1, cores // devices) if keys.threads == "auto" else int(keys.threads),
    )


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{key} must be one of {', '.join(allowed)}, got {value}")
