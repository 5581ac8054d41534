"""Candidates of a benchmark: configurations composed over the command line's, and the steps built from them."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from src.bench.step import Lap, Step, no_lap, optimizer_step
from src.errors import UserError
from src.launch.job import Job
from src.models.flops import count_flops_per_token
from src.settings.compose import compose_config
from src.settings.read import Settings, read_settings
from src.training.process import choose_products
from src.training.run import build_gpt

#: Keys of the whole invocation, which no single configuration of a benchmark can set.
FIXED = ("task", "bench", "trusted_targets", "resume", "from_run", "hydra")


@dataclasses.dataclass(frozen=True)
class BuiltCandidate:
    """Candidate in memory: its step on token ids and targets [B, T], its sizes and counts."""

    step: Step
    micro_batch_size: int
    block_size: int
    vocab_size: int
    n_params: int
    flops_per_token: int
    state_tensors: Callable[[], list[Tensor]]  # weights, and optimizer state once a step has been taken

    def n_tokens(self) -> int:
        """Return the number of tokens in one step."""
        return self.micro_batch_size * self.block_size

    def state_bytes(self) -> int:
        """Return the bytes of the weights and the optimizer state."""
        return sum(t.numel() * t.element_size() for t in self.state_tensors())


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One configuration under a name; `residual` is the strategy if the name alone selected it."""

    name: str
    overrides: tuple[str, ...]
    settings: Settings
    residual: str | None

    def build(self) -> BuiltCandidate:
        """Build the model and its step."""
        return build_candidate(self.settings)


def read_strategy(job: Job, name: str) -> Candidate:
    """Read a shipped strategy's name: the command line's configuration with `residual=name`."""
    override = f"residual={name}"
    return Candidate(name, (override,), compose_settings(job, name, [override]), name)


def read_configuration(job: Job, text: str, base: Sequence[str] = ()) -> Candidate:
    """Read `overrides` or `name: overrides`, separated by spaces.

    The order is `base`, the command line's overrides, these; the last override of a key counts.

    Raises:
        UserError: the text holds no overrides, or they do not compose.
    """
    name, rest = split_name(text)
    overrides = rest.split()
    if not overrides or not all("=" in override for override in overrides):
        raise UserError(
            f"bench.configurations: {text!r} must be overrides such as 'residual=attnres norm=rmsnorm', "
            "as on the command line, without spaces inside one"
        )
    return Candidate(name, tuple(overrides), compose_settings(job, text, overrides, base), residual=None)


def split_name(text: str) -> tuple[str, str]:
    """Split `name: rest`; a text without a name is its own name."""
    name, colon, rest = text.partition(": ")
    return (name, rest) if colon else (text, text)


def compose_settings(job: Job, text: str, overrides: list[str], base: Sequence[str] = ()) -> Settings:
    """Compose `base`, the command line's overrides and `overrides`; the last override of a key counts.

    Raises:
        UserError: an override sets a key of the whole benchmark, or the configuration is invalid.
    """
    for override in overrides:
        if override.lstrip("+~").partition("=")[0].partition(".")[0] in FIXED:
            raise UserError(
                f"bench.configurations: {text!r} cannot set {override}, which applies to the whole benchmark; "
                "give it beside task=bench"
            )
    try:
        config = compose_config([*base, *job.overrides, *overrides])
        config.trusted_targets = job.config.trusted_targets  # trust comes from the command line only
        return read_settings(config, own_keys=("bench",))
    except UserError as error:
        raise UserError(f"bench: {text!r}: {error}") from error


def compose_default_settings(overrides: Sequence[str]) -> Settings:
    """Compose the default configuration with `overrides`, without the command line's."""
    return read_settings(compose_config(overrides))


def device_of(settings: Settings) -> str:
    """Return the name of the configured device in torch: `cuda` or `cpu`."""
    return "cuda" if settings.trainer.accelerator == "gpu" else "cpu"


def build_candidate(settings: Settings) -> BuiltCandidate:
    """Build a configuration's model and optimizer step, at the state of the first optimizer step.

    Repeated visits of a recurrent trunk are active from the start, so that their cost is measured.
    """
    gpt = build_gpt(settings).to(device_of(settings))
    take_step, optimizer = optimizer_step(
        gpt,
        settings.optimizer,
        bf16=settings.trainer.precision == "bf16-mixed",
        compiled=settings.trainer.compile,
        n_micro=1,
    )

    def step(x: Tensor, y: Tensor, lap: Lap = no_lap) -> Tensor:
        choose_products(settings.trainer)  # a process-wide setting that the previous candidate may have changed
        return take_step(x, y, lap)

    return BuiltCandidate(
        step=step,
        micro_batch_size=int(settings.config["data"]["micro_batch_size"]),
        block_size=settings.model.block_size,
        vocab_size=settings.model.vocab_size,
        n_params=gpt.n_params(positions=True),
        flops_per_token=count_flops_per_token(gpt),
        state_tensors=lambda: state_tensors(list(gpt.parameters()), optimizer),
    )


def state_tensors(params: list[Any], optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the weights and the optimizer's state tensors."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    return [*params, *(value for value in values if isinstance(value, Tensor))]


def require_one_process(candidates: list[Candidate]) -> None:
    """Check that all candidates agree on the settings that a process has only once.

    Raises:
        UserError: two candidates differ in `trainer.accelerator` or `trainer.threads`.
    """
    first = candidates[0]
    for other, key in itertools.product(candidates[1:], ("accelerator", "threads")):
        one, two = (getattr(c.settings.trainer, key) for c in (first, other))
        if one != two:
            raise UserError(
                f"bench: {first.name!r} has trainer.{key}={one} and {other.name!r} has {two}, but one process has one "
                f"value; give trainer.{key} beside task=bench"
            )


def require_unique_names(names: Sequence[str]) -> None:
    """Check that every candidate has a name of its own.

    Raises:
        UserError: a name occurs twice.
    """
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        hint = "give one of them another name, 'name: overrides'"
        raise UserError(f"bench: {repeated[0]!r} occurs twice; {hint}")
