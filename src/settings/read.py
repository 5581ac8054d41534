"""From a composed configuration to checked, plain settings: every key known, typed and in range.

Errors are collected over all sections and told together.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.bounds import NonNegativeInt, validate
from src.callbacks.dashboard import SampleKeys
from src.callbacks.guard import GuardKeys
from src.errors import UserError
from src.launch.suggestions import explain, unknown_key
from src.models.config import GPTConfig
from src.models.optim.base import OptimizerConfig
from src.models.optim.schedule import Schedule
from src.settings.components import read_component, read_section, without_value
from src.settings.optimizer import read_optimizer, read_schedule, stored_optimizer, stored_schedule
from src.settings.safety import SafetyKeys
from src.settings.trainer import TrainerKeys, TrainerSettings, settle_trainer

T = TypeVar("T")
Factory = Callable[..., Any]  # Hydra's partials are untyped

#: Sections that name a class (`_target_`), and the keys that stand alone.
COMPONENTS = ("residual", "norm", "embedding", "recurrence", "data", "evaluation")
LOOSE = {
    "trusted_targets": list[str] | None,
    "name": str | int | float | bool,
    "seed": NonNegativeInt,
    "resume": str | None,
    "from_run": str | None,
    "init_from": str | None,
    "check": Literal["quick", "off"],
}


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
    recurrence: Factory
    data: Factory
    evaluation: Any
    loggers: list[Factory]
    callbacks: list[Factory]  # each builds a Lightning callback: `make()`
    profiler: Factory | None  # builds a Lightning profiler: `make(folder of its files)`
    samples: SampleKeys
    safety: SafetyKeys
    guard: GuardKeys
    config: dict[str, Any]


def read_settings(config: DictConfig, own_keys: tuple[str, ...] = ()) -> Settings:
    """Check a composed configuration and settle what it left open.

    Args:
        config: the composed configuration.
        own_keys: top-level keys of the task itself, which it checks.

    Raises:
        UserError: all mistakes of the configuration, one sentence each.
    """
    mistakes = without_value(config)
    if mistakes:
        raise UserError("; ".join(mistakes))

    def attempt(read: Callable[[], T]) -> T | None:
        try:
            return read()
        except (ValueError, HydraException, OmegaConfBaseException) as error:
            mistakes.append(explain(root_cause(error)))
        return None

    known = {
        *COMPONENTS,
        *LOOSE,
        *own_keys,
        "task",
        "model",
        "optimizer",
        "schedule",
        "trainer",
        "samples",
        "safety",
        "guard",
        "logger",
        "callbacks",
        "profiler",
    }
    mistakes.extend(unknown_key(str(key)) for key in config if key not in known)
    for key, kind in LOOSE.items():
        attempt(lambda key=key, kind=kind: _loose(config, key, kind))  # type: ignore[misc]  # lambda defaults
    model = attempt(lambda: read_section("model", config.get("model"), GPTConfig))
    keys = attempt(lambda: read_section("trainer", config.get("trainer"), TrainerKeys))
    listed = _plain(config.get("trusted_targets"))
    trusted = listed if isinstance(listed, list) else []
    component = functools.partial(read_component, trusted=trusted)
    parts = {name: attempt(functools.partial(component, name, config.get(name))) for name in COMPONENTS}
    samples = attempt(lambda: read_section("samples", config.get("samples"), SampleKeys))
    safety = attempt(lambda: read_section("safety", config.get("safety"), SafetyKeys))
    guard = attempt(lambda: read_section("guard", config.get("guard"), GuardKeys))
    named = attempt(lambda: validate("logger", _plain(config.get("logger")), dict[str, dict[str, Any]]))
    loggers = [attempt(functools.partial(component, f"logger.{n}", config.logger[n])) for n in named or {}]
    entries = attempt(
        lambda: validate("callbacks", _plain(config.get("callbacks", {})), dict[str, dict[str, Any]])
    )
    callbacks = [
        attempt(functools.partial(component, f"callbacks.{n}", config.callbacks[n])) for n in entries or {}
    ]
    profiler = None
    if config.get("profiler") is not None:
        profiler = attempt(functools.partial(component, "profiler", config.profiler))
    trainer = None if keys is None else attempt(lambda: settle_trainer(keys))
    n_steps = keys.max_steps if keys else 1
    optimizer = attempt(lambda: read_optimizer(config.get("optimizer"), n_steps, trusted))
    schedule = None
    if keys is not None and optimizer is not None:
        rates = optimizer
        schedule = attempt(lambda: read_schedule(config.get("schedule"), rates, n_steps, trusted))
    if mistakes:
        raise UserError("; ".join(mistakes))
    assert model is not None  # each is None only with a mistake noted
    assert optimizer is not None
    assert schedule is not None
    assert trainer is not None
    assert samples is not None
    assert safety is not None
    assert guard is not None
    resolved: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]  # a mapping in, a mapping out
    resolved["optimizer"] = stored_optimizer(resolved["optimizer"], optimizer)
    resolved.update(stored_schedule(resolved.pop("schedule", None)))
    resolved["trainer"] = dataclasses.asdict(trainer)
    for key in ("callbacks", "profiler"):  # absent where empty, so that hashes are those of version 0.1.0
        if not resolved.get(key):
            resolved.pop(key, None)
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
        recurrence=cast(Factory, parts["recurrence"]),
        data=cast(Factory, parts["data"]),
        evaluation=parts["evaluation"],
        loggers=cast(list[Factory], loggers),
        callbacks=cast(list[Factory], callbacks),
        profiler=profiler,
        samples=samples,
        safety=safety,
        guard=guard,
        config=resolved,
    )


def _loose(config: DictConfig, key: str, kind: Any) -> None:  # an annotation
    value = validate(key, _plain(config.get(key)), kind)
    if key == "name" and (not str(value).strip() or not str(value).isprintable()):
        raise ValueError(f"name must be one line of text, got {value!r}")


def _plain(value: object) -> object:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def root_cause(error: BaseException) -> BaseException:
    """What a constructor said, out of Hydra's wrapping."""
    while isinstance(error, HydraException) and error.__cause__ is not None:
        error = error.__cause__
    return error
