"""What a bench runs beside each other: configurations, composed over the command line's own, and their steps."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from hydra import compose
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from src.bench.step import Step, optimizer_step
from src.bench.stopwatch import Lap, no_lap
from src.errors import UserError
from src.launch.arguments import explain
from src.launch.job import Job
from src.models.flops import count_flops_per_token
from src.settings.read import Settings, read_settings, root_cause
from src.training.process import choose_products
from src.training.run import build_gpt

#: What one configuration of a bench cannot say: it is the invocation's.
FIXED = ("task", "bench", "trusted_targets", "resume", "from_run", "hydra")


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One configuration: `residual` where it is a strategy by its name alone."""

    name: str
    overrides: tuple[str, ...]
    settings: Settings
    residual: str | None

    def build(self) -> "Entrant":
        """Its model and step."""
        return entrant(self.settings)


@dataclasses.dataclass(frozen=True)
class Entrant:
    """Something that takes optimizer steps on token ids [B, T] and targets [B, T]."""

    step: Step
    micro_batch_size: int
    block_size: int
    vocab_size: int
    n_params: int
    flops_per_token: int
    state_tensors: Callable[[], list[Tensor]]  # weights and the optimizer's, once it has stepped

    def tokens(self) -> int:
        """Of one step."""
        return self.micro_batch_size * self.block_size

    def state_bytes(self) -> int:
        """Of weights and optimizer state."""
        return sum(t.numel() * t.element_size() for t in self.state_tensors())


def of_strategy(job: Job, name: str) -> Contestant:
    """The command line's configuration under a shipped strategy."""
    return Contestant(name, (f"residual={name}",), composed(job, name, [f"residual={name}"]), name)


def split_name(text: str) -> tuple[str, str]:
    """`name: rest`, or the text for both."""
    name, found, rest = text.partition(": ")
    return (name, rest) if found else (text, text)


def of_text(job: Job, text: str, base: Sequence[str] = ()) -> Contestant:
    """`overrides` or `name: overrides`; overrides stand apart by spaces, and the last of a kind counts.

    `base` stands before the command line's.
    """
    name, rest = split_name(text)
    overrides = rest.split()
    if not overrides or not all("=" in override for override in overrides):
        raise UserError(
            f"bench.configurations: {text!r} must be overrides such as 'residual=attnres norm=rmsnorm', "
            "as on the command line, without spaces inside one"
        )
    return Contestant(name, tuple(overrides), composed(job, text, overrides, base), residual=None)


def composed(job: Job, text: str, overrides: list[str], base: Sequence[str] = ()) -> Settings:
    """The command line's configuration between other overrides; the last of a kind counts.

    Raises:
        UserError: naming the configuration and what is wrong with it.
    """
    for override in overrides:
        if override.lstrip("+~").partition("=")[0].partition(".")[0] in FIXED:
            raise UserError(f"bench.configurations: {text!r} cannot say {override}; the whole bench has one")
    try:
        config = compose("config", [*base, *job.overrides, *overrides])
        config.trusted_targets = job.config.trusted_targets  # the command line's; no file can add to it
        return read_settings(config, own_keys=("bench",))
    except (UserError, HydraException, OmegaConfBaseException) as error:
        raise UserError(f"bench: {text!r}: {explain(root_cause(error))}") from error


def composed_alone(overrides: Sequence[str]) -> Settings:
    """The default configuration with `overrides` and nothing of the command line's."""
    return read_settings(compose("config", list(overrides)))


def device_of(settings: Settings) -> str:
    """As torch names it."""
    return "cuda" if settings.trainer.accelerator == "gpu" else "cpu"


def entrant(settings: Settings) -> Entrant:
    """A configuration's model and its optimizer step; later visits have begun, schedules stand at their start."""
    gpt = build_gpt(settings).to(device_of(settings))
    taken, optimizer = optimizer_step(
        gpt,
        settings.optimizer,
        bf16=settings.trainer.precision == "bf16-mixed",
        compiled=settings.trainer.compile,
        n_micro=1,
    )

    def step(x: Tensor, y: Tensor, lap: Lap = no_lap) -> Tensor:
        choose_products(settings.trainer)  # another's may be others
        return taken(x, y, lap)

    return Entrant(
        step,
        int(settings.config["data"]["micro_batch_size"]),
        settings.model.block_size,
        settings.model.vocab_size,
        gpt.n_params(positions=True),
        count_flops_per_token(gpt),
        lambda: state_tensors(list(gpt.parameters()), optimizer),
    )


def state_tensors(params: list[Any], optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Weights and the optimizer's moments."""
    held = [value for state in optimizer.state.values() for value in state.values()]
    return [*params, *(value for value in held if isinstance(value, Tensor))]


def refuse_mixture(contestants: list[Contestant]) -> None:
    """What holds for a process holds for all of them.

    Raises:
        UserError: naming two that differ.
    """
    first = contestants[0]
    for other, key in itertools.product(contestants[1:], ("accelerator", "threads")):
        one, two = (getattr(c.settings.trainer, key) for c in (first, other))
        if one != two:
            raise UserError(
                f"bench: {first.name!r} has trainer.{key}={one} and {other.name!r} has {two}, but one process has one "
                f"of it; give trainer.{key} beside task=bench"
            )


def refuse_twice(names: Sequence[str]) -> None:
    """A name stands for one.

    Raises:
        UserError: naming one that does not.
    """
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"bench: {twice[0]!r} is there twice; give one of them another name, 'name: overrides'")
