"""task=bench: what every strategy costs over a baseline: parameters, FLOPs, kept memory, time of a step.

Parameters, FLOPs and memory are those at GPT-2 Medium, counted without computing anything. Steps are timed at
the configured size, device, precision and `trainer.compile`: whole optimizer steps, in one process, taking
turns with the baseline in an order shuffled every round. A ratio is the median of the rounds' own ratios, with
their quartiles. On a CPU the clock is the process's CPU time, which neighbours disturb least.

Writes bench.json and table.md into its run folder.
"""

import dataclasses
import json
import logging
import random
import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from src.artefacts import write_atomic
from src.checks.base import Subject
from src.checks.cost import kept_bytes
from src.launch import COMPLETED, Job, TaskEnd
from src.mistakes import UserError
from src.models.config import GPTConfig
from src.models.gpt import GPT
from src.overrides import CONF
from src.tasks.schema import read_section
from src.tasks.settings import Settings, read_settings
from src.tasks.steps import Step, optimizer_step

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class BenchKeys:
    """`bench` as written: strategies by the names of their options."""

    residual: str | list[Any]
    baseline: str
    rounds: int
    at_once: int

    def __post_init__(self) -> None:
        for key in ("rounds", "at_once"):
            if getattr(self, key) < 1:
                raise ValueError(f"bench.{key} must be at least 1, got {getattr(self, key)}")

    def names(self) -> list[str]:
        """The strategies asked for, the baseline left out."""
        shipped = sorted(path.stem for path in (CONF / "residual").glob("*.yaml"))
        asked = shipped if self.residual == "all" else self.residual
        asked = [asked] if isinstance(asked, str) else [str(name) for name in asked]
        for name in [*asked, self.baseline]:
            if name not in shipped:
                raise ValueError(f"bench.residual: there is no {name}; there are all, {', '.join(shipped)}")
        return [name for name in asked if name != self.baseline]


@dataclasses.dataclass(frozen=True)
class Cost:
    """What can be counted, at GPT-2 Medium."""

    n_params: int  # of the strategy alone
    n_params_model: int
    flops_per_token: int
    kept_bytes: int  # for the backward, by the whole trunk under bf16


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds a step by round, and the rounds' ratios to the baseline."""

    seconds: list[float]
    ratios: list[float]
    first_seconds: float

    def quartiles(self) -> tuple[float, float, float]:
        """Of the ratios: lower, median, upper."""
        if len(self.ratios) < 2:
            return (self.ratios[0],) * 3
        low, middle, high = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return low, middle, high


def run(job: Job) -> TaskEnd:
    """Count, time, write the table."""
    settings = read_settings(job.config, own_keys=("bench",))
    try:
        keys = read_section("bench", cast(DictConfig, job.config.bench), BenchKeys)
        names = keys.names()
    except ValueError as error:
        raise UserError(str(error)) from error
    torch.set_num_threads(settings.trainer.threads)
    costs = {}
    for name in [keys.baseline, *names]:
        costs[name] = count(factory(name), settings)
        log.info("%s: %s parameters of its own at GPT-2 Medium", name, f"{costs[name].n_params:,}")
    timings: dict[str, Timing] = {}
    for start in range(0, len(names), keys.at_once):
        some = names[start : start + keys.at_once]
        timings.update(alternate([keys.baseline, *some], settings, keys.rounds))
        for name in some:
            low, middle, high = timings[name].quartiles()
            log.info("%s: %.3f [%.3f, %.3f] of %s's step", name, middle, low, high, keys.baseline)
    text = table(keys.baseline, costs, timings, describe(settings))
    stated = {
        "baseline": keys.baseline,
        "measured": describe(settings),
        "config": settings.config,
        "costs": {name: dataclasses.asdict(cost) for name, cost in costs.items()},
        "timings": {name: {**dataclasses.asdict(t), "ratio": t.quartiles()[1]} for name, t in timings.items()},
    }
    write_atomic(job.folder / "bench.json", json.dumps(stated, indent=2) + "\n")
    write_atomic(job.folder / "table.md", text)
    log.info("%s", text)
    return TaskEnd(COMPLETED, f"benched {len(names)} strategies; {job.folder / 'table.md'}")


def factory(name: str) -> Callable[..., Any]:
    """A shipped residual option, instantiated."""
    return cast(Callable[..., Any], instantiate(OmegaConf.load(CONF / "residual" / f"{name}.yaml")))


def build(settings: Settings, residual: Callable[..., Any], config: GPTConfig, seed: int) -> GPT:
    """The configured model under another strategy and other sizes."""
    return GPT(config, residual=residual, norm=settings.norm, embedding=settings.embedding, seed=seed)


def count(residual: Callable[..., Any], settings: Settings) -> Cost:
    """What a strategy costs at GPT-2 Medium, eight sequences at a time."""
    medium_file = OmegaConf.load(CONF / "model" / "gpt2_medium.yaml")
    medium = GPTConfig(**cast(dict[str, Any], OmegaConf.to_container(medium_file)))
    subject = Subject(lambda config, seed: build(settings, residual, config, seed), medium)
    kept, n_params, flops = kept_bytes(subject, medium, MEDIUM_BATCH)
    with torch.device("meta"):
        own = sum(p.numel() for p in subject.make(medium, 0).residual.parameters())
    return Cost(own, n_params, flops, kept)


MEDIUM_BATCH = 8


def alternate(names: list[str], settings: Settings, rounds: int) -> dict[str, Timing]:
    """Time one step of each in turn, `rounds` times after one that is not counted; the first is the baseline."""
    device = "cuda" if settings.trainer.accelerator == "gpu" else "cpu"
    clock = clock_of(device)
    steps: dict[str, Step] = {}
    for name in names:
        gpt = build(settings, factory(name), settings.model, settings.seed).to(device)
        steps[name] = optimizer_step(
            gpt,
            settings.optimizer,
            bf16=settings.trainer.precision == "bf16-mixed",
            compiled=settings.trainer.compile,
            n_micro=1,
        )
    generator = torch.Generator().manual_seed(settings.seed)
    shape = (int(settings.config["data"]["micro_batch_size"]), settings.model.block_size + 1)
    order = random.Random(settings.seed)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds + 1):
        tokens_BT = torch.randint(settings.model.vocab_size, shape, generator=generator).to(device)
        for name in order.sample(names, len(names)):
            seconds[name].append(timed(steps[name], tokens_BT, clock))
    timings = {}
    for name, values in seconds.items():
        first, *counted = values
        base = seconds[names[0]][1:]
        ratios = [ours / theirs for ours, theirs in zip(counted, base, strict=True)]
        timings[name] = Timing(counted, ratios, first)
    return timings


def clock_of(device: str) -> Callable[[], float]:
    """CPU time on a CPU; on a GPU the wall, once all its work is done."""
    if device == "cpu":
        return time.process_time

    def synchronized() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronized


def timed(step: Step, tokens_BT: Tensor, clock: Callable[[], float]) -> float:
    """Seconds of one step."""
    began = clock()
    step(tokens_BT[:, :-1], tokens_BT[:, 1:])
    return clock() - began


def describe(settings: Settings) -> str:
    """Where and at what size the steps were timed."""
    model, trainer = settings.model, settings.trainer
    where = torch.cuda.get_device_name() if trainer.accelerator == "gpu" else f"CPU, {trainer.threads} threads"
    how = "compiled" if trainer.compile else "eager"
    return (
        f"{model.n_layer} layers, {model.n_embd} wide, T {model.block_size}, batch "
        f"{settings.config['data']['micro_batch_size']}, vocabulary {model.vocab_size}, {trainer.precision}, "
        f"{how}, {where}, torch {torch.__version__}"
    )


def table(baseline: str, costs: Mapping[str, Cost], timings: Mapping[str, Timing], measured: str) -> str:
    """The costs as Markdown; a strategy's idea and what it equals at init are its own files' words."""
    plain = costs[baseline]
    hidden = MEDIUM_BATCH * 1024 * 1024 * 4  # one float32 hidden state of GPT-2 Medium
    lines = [
        f"Parameters, FLOPs and memory over {baseline} at GPT-2 Medium (memory kept for the backward, in float32 "
        f"hidden states); the time of a step over {baseline}'s at {measured}, median [quartiles].",
        "",
        "| residual | idea and source | at init | parameters | FLOPs | memory | step |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for name, cost in costs.items():
        step = "1"
        if name != baseline:
            low, middle, high = timings[name].quartiles()
            step = f"{middle:.2f} [{low:.2f}, {high:.2f}]"
        flops = 100 * (cost.flops_per_token / plain.flops_per_token - 1)
        memory = (cost.kept_bytes - plain.kept_bytes) / hidden
        lines.append(
            f"| {name} | {idea(name)} | {at_init(name)} | {cost.n_params:,} | {flops:+.2f} % | {memory:+.0f} | {step} |"
        )
    return "\n".join(lines) + "\n"


def idea(name: str) -> str:
    """The first line of the strategy's YAML."""
    first = (CONF / "residual" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    return first.removeprefix(f"# {name}: ").rstrip(".")


def at_init(name: str) -> str:
    """What the strategy's module says it equals at init: vanilla, identity, near vanilla, or something else."""
    text = Path(CONF.parent / "src" / "residual" / f"{name}.py").read_text(encoding="utf-8")
    found = re.search(r"^At init(?: \([^)]*\))?[^:(]*:\s+((?:.|\n)*)", text, re.MULTILINE)
    words = " ".join(found[1].split()) if found else ""
    for said, short in (
        ("vanilla", "vanilla"),
        ("equal to vanilla", "vanilla"),
        ("near vanilla", "near vanilla"),
        ("the identity", "identity"),
        ("nearly the identity", "near identity"),
    ):
        if words.startswith(said):
            return short
    return "-" if name == "vanilla" else "other"
