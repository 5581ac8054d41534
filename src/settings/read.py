"""Settings of a run, read from a composed configuration: every key is known, of its type and within its bounds.

Errors are collected over all sections and raised together.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, TypeVar, cast

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field

from src.bounds import NonNegativeInt, validate
from src.callbacks.dashboard import PromptKeys
from src.callbacks.guard import GuardKeys
from src.errors import UserError
from src.launch.suggestions import explain, unknown_key
from src.models.config import GPTConfig
from src.models.optim.base import OptimizerConfig
from src.models.optim.schedule import Schedule
from src.settings.checkpoint_sizes import copy_sizes_from_checkpoint
from src.settings.components import read_component
from src.settings.optimizer import read_optimizer, read_schedule, serialize_optimizer, serialize_schedule
from src.settings.safety import SafetyKeys
from src.settings.sections import find_missing_values, read_section, to_plain
from src.settings.trainer import TrainerKeys, TrainerSettings, resolve_trainer

T = TypeVar("T")
Factory = Callable[..., Any]  # Hydra's partials are untyped

#: Sections that name a class, sections of one class per entry, sections with fixed keys, and keys without a section.
COMPONENTS = ("residual", "norm", "embedding", "recurrence", "mlp", "data", "evaluation")
#: Components that configurations of earlier versions lack, each with what those versions computed.
IMPLIED = {"mlp": {"_target_": "src.models.mlp.gelu.GELU", "_partial_": True}}
COLLECTIONS = ("logger", "callbacks")
SECTIONS = ("task", "model", "optimizer", "schedule", "trainer", "samples", "safety", "guard", "profiler")
SINGLE_KEYS = {
    "trusted_targets": list[str] | None,
    "name": str | int | float | bool,
    "seed": NonNegativeInt,
    "resume": str | None,
    "from_run": str | None,
    "branch_from": str | None,
    "at": Annotated[int, Field(ge=1, le=10**12)] | None,
    "init_from": str | None,
    "check": Literal["quick", "off"],
    "study": dict[str, str] | None,  # of a study's run: its name, plan, phase and size
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a run; a `Factory` takes the arguments that the configuration does not state.

    Args:
        callbacks: factories of Lightning callbacks, each called as `make()`.
        profiler: factory of a Lightning profiler, called as `make(folder of its files)`.
        config: the configuration with every value resolved, as config.yaml stores it.
    """

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
    mlp: Factory
    data: Factory
    evaluation: Any
    loggers: list[Factory]
    callbacks: list[Factory]
    profiler: Factory | None
    samples: PromptKeys
    safety: SafetyKeys
    guard: GuardKeys
    config: dict[str, Any]


class SettingsReader:
    """Reader of the sections of one configuration, which collects the errors of all of them."""

    def __init__(self, config: DictConfig) -> None:
        self.config = config
        self.errors: list[str] = []
        trusted = to_plain(config.get("trusted_targets"))
        self.trusted = trusted if isinstance(trusted, list) else []

    def attempt(self, read: Callable[[], T]) -> T:
        """Return what `read` returns, or collect its error; the result must not be used once there are errors."""
        try:
            return read()
        except (ValueError, HydraException, OmegaConfBaseException) as error:
            self.errors.append(explain(root_cause(error)))
            return cast(T, None)

    def read_section(self, name: str, schema: type[T]) -> T:
        """Return a section with fixed keys."""
        return self.attempt(lambda: read_section(name, self.config.get(name), schema))

    def read_component(self, name: str) -> Any:  # whatever the section names
        """Return what a section with a `_target_` builds."""
        section = OmegaConf.select(self.config, name)
        if section is None and name in IMPLIED:
            section = OmegaConf.create(IMPLIED[name])
        return self.attempt(lambda: read_component(name, section, self.trusted))

    def read_collection(self, name: str) -> list[Factory]:
        """Return a factory for each entry of a section such as `logger`."""
        plain = to_plain(self.config.get(name, {}))
        entries = self.attempt(lambda: validate(name, plain, dict[str, dict[str, Any]]))
        return [
            self.attempt(lambda key=key: read_component(f"{name}.{key}", self.config[name][key], self.trusted))  # type: ignore[misc]  # lambda defaults
            for key in entries or {}
        ]

    def check_names(self, own_keys: tuple[str, ...]) -> None:
        """Collect an error for each top-level key that does not exist."""
        known = {*COMPONENTS, *COLLECTIONS, *SECTIONS, *SINGLE_KEYS, *own_keys}
        self.errors += [unknown_key(str(key)) for key in self.config if key not in known]

    def check_single_keys(self) -> None:
        """Collect an error for each key without a section that is invalid."""
        for key, kind in SINGLE_KEYS.items():
            value = to_plain(self.config.get(key))
            self.attempt(lambda key=key, value=value, kind=kind: validate(key, value, kind))  # type: ignore[misc]  # lambda defaults
        name = str(self.config.get("name"))
        if not name.strip() or not name.isprintable():
            self.errors.append(f"name must be one line of text, got {name!r}")
        if (self.config.get("branch_from") is None) != (self.config.get("at") is None):
            self.errors.append("branch_from=<run folder> and at=<step> go together; give both, or neither")


def read_settings(config: DictConfig, own_keys: tuple[str, ...] = ()) -> Settings:
    """Return the settings of a composed configuration, with every `auto` and `null` of the trainer resolved.

    Args:
        config: composed configuration.
        own_keys: top-level keys of the task, which validates them itself.

    Raises:
        UserError: all errors of the configuration, one sentence each.
    """
    copy_sizes_from_checkpoint(config)
    if missing := find_missing_values(config):
        raise UserError("; ".join(missing))
    if OmegaConf.select(config, "study.systems") is not None:
        raise UserError("study=<name> is conducted by task=study; give that task, or leave out the study")
    reader = SettingsReader(config)
    reader.check_names(own_keys)
    reader.check_single_keys()
    model = reader.read_section("model", GPTConfig)
    keys = reader.read_section("trainer", TrainerKeys)
    samples = reader.read_section("samples", PromptKeys)
    safety = reader.read_section("safety", SafetyKeys)
    guard = reader.read_section("guard", GuardKeys)
    parts = {name: reader.read_component(name) for name in COMPONENTS}
    loggers, callbacks = (reader.read_collection(name) for name in COLLECTIONS)
    profiler = None if config.get("profiler") is None else reader.read_component("profiler")
    # The optimizer and its schedule depend on the length of the run; `keys` is None where the trainer has errors.
    max_steps = keys.max_steps if keys else 1
    optimizer = reader.attempt(lambda: read_optimizer(config.get("optimizer"), max_steps, reader.trusted))
    trainer, schedule = cast(TrainerSettings, None), cast(Schedule, None)
    if keys:
        trainer = reader.attempt(lambda: resolve_trainer(keys))
    if keys and optimizer:
        section = config.get("schedule")
        schedule = reader.attempt(lambda: read_schedule(section, optimizer, max_steps, reader.trusted))
    errors = [*reader.errors, *_reject_combinations(trainer, guard, profiler)]
    if errors:
        raise UserError("; ".join(errors))
    return Settings(
        name=str(config.name),
        seed=config.seed,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        trainer=trainer,
        **parts,
        loggers=loggers,
        callbacks=callbacks,
        profiler=profiler,
        samples=samples,
        safety=safety,
        guard=guard,
        config=_store(config, optimizer, trainer),
    )


def _reject_combinations(
    trainer: TrainerSettings | None, guard: GuardKeys | None, profiler: Factory | None
) -> Iterator[str]:
    """Yield an error for each pair of keys of different sections that exclude each other; None had errors itself."""
    if trainer and guard and trainer.overfit_batches is not None and guard.rollbacks:
        yield (
            f"trainer.overfit_batches={trainer.overfit_batches} needs guard=stop: a rollback skips data, of which there "
            f"is no other (guard.rollbacks={guard.rollbacks})"
        )
    if trainer and trainer.accelerator == "cpu" and getattr(profiler, "keywords", {}).get("memory_snapshot") is True:
        yield "profiler.memory_snapshot=true needs a GPU, since torch records CUDA allocations only; give auto or false"


def _store(config: DictConfig, optimizer: OptimizerConfig, trainer: TrainerSettings) -> dict[str, Any]:
    """Return the configuration with the resolved values of optimizer, schedule and trainer."""
    stored = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    stored["optimizer"] = serialize_optimizer(stored["optimizer"], optimizer)
    stored.update(serialize_schedule(stored.pop("schedule", None)))
    stored["trainer"] = dataclasses.asdict(trainer)
    # Absent where they change nothing, so that a run of an earlier version is found equal.
    for field in dataclasses.fields(GPTConfig):
        if stored["model"].get(field.name) == field.default:
            stored["model"].pop(field.name, None)
    for key, section in IMPLIED.items():
        if stored.get(key) == section:
            stored.pop(key)
    if stored["data"].get("document_attention") is False:
        del stored["data"]["document_attention"]
    # Absent where empty, so that hashes are those of version 0.1.0.
    for key in ("callbacks", "profiler", "branch_from", "at"):
        if not stored.get(key):
            stored.pop(key, None)
    return stored


def root_cause(error: BaseException) -> BaseException:
    """Return the error of a constructor that Hydra has wrapped in its own."""
    while isinstance(error, HydraException) and error.__cause__ is not None:
        error = error.__cause__
    return error
