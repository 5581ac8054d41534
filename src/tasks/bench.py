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
import time
from collections.abc import Callable
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
from src.overrides import CONF, meant
from src.tasks.chip import matmul_speed, published_peak
from src.tasks.schema import read_section
from src.tasks.settings import Settings, read_settings
from src.tasks.steps import Step, optimizer_step
from src.tasks.strategy_table import MEDIUM_BATCH, Cost, Timing, speed_table, table

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class BenchKeys:
    """`bench` as written: strategies by the names of their options."""

    residual: str | list[str]
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
                raise ValueError(
                    f"bench.residual={name} is no strategy{meant(name, shipped)}; all, or {', '.join(shipped)}"
                )
        return [name for name in asked if name != self.baseline]


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
    ceiling, words = ceiling_of(settings)
    text = table(keys.baseline, costs, timings, describe(settings))
    text += "\n" + speed_table(timings, ceiling, words)
    stated = {
        "baseline": keys.baseline,
        "measured": describe(settings),
        "ceiling_flops": ceiling,
        "ceiling": words,
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
    parts = {"norm": settings.norm, "embedding": settings.embedding, "recurrence": settings.recurrence}
    return GPT(config, residual=residual, seed=seed, **parts)


def count(residual: Callable[..., Any], settings: Settings) -> Cost:
    """What a strategy costs at GPT-2 Medium, eight sequences at a time."""
    medium_file = OmegaConf.load(CONF / "model" / "gpt2_medium.yaml")
    medium = GPTConfig(**cast(dict[str, Any], OmegaConf.to_container(medium_file)))
    subject = Subject(lambda config, seed: build(settings, residual, config, seed), medium)
    kept, n_params, flops = kept_bytes(subject, medium, MEDIUM_BATCH)
    with torch.device("meta"):
        own = sum(p.numel() for p in subject.make(medium, 0).residual.parameters())
    return Cost(own, n_params, flops, kept)


def alternate(names: list[str], settings: Settings, rounds: int) -> dict[str, Timing]:
    """Time one step of each in turn, `rounds` times after one that is not counted; the first is the baseline."""
    device = "cuda" if settings.trainer.accelerator == "gpu" else "cpu"
    clock = clock_of(device)
    steps: dict[str, Step] = {}
    flops: dict[str, int] = {}
    memory: dict[str, int | None] = dict.fromkeys(names)
    for name in names:
        gpt = build(settings, factory(name), settings.model, settings.seed).to(device)
        flops[name] = gpt.flops_per_token()
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
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                found = torch.cuda.memory_allocated()
            seconds[name].append(timed(steps[name], tokens_BT, clock))
            if device == "cuda":
                memory[name] = torch.cuda.max_memory_allocated() - found
    timings = {}
    for name, values in seconds.items():
        first, *counted = values
        base = seconds[names[0]][1:]
        ratios = [ours / theirs for ours, theirs in zip(counted, base, strict=True)]
        tokens = shape[0] * settings.model.block_size
        timings[name] = Timing(counted, ratios, first, tokens, flops[name], memory[name])
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


def ceiling_of(settings: Settings) -> tuple[float, str]:
    """FLOP/s that a step is held against, and what they are: a chip's published peak, else a measured product's."""
    bf16 = settings.trainer.precision == "bf16-mixed"
    if settings.trainer.accelerator == "gpu":
        peak = published_peak(torch.cuda.get_device_name()) if bf16 else None
        if peak is not None:
            return peak, f"{torch.cuda.get_device_name()}'s published bf16 peak"
        return matmul_speed("cuda", torch.bfloat16 if bf16 else torch.float32), "a large matrix product's speed"
    return matmul_speed("cpu", torch.float32), "a large float32 matrix product's speed in CPU time"


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
