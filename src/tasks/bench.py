"""task=bench: what configurations cost over a baseline: parameters, FLOPs, memory, time of a step.

Whole optimizer steps, in one process, taking turns with the baseline (`src.bench.timing` says how), at each
configuration's own size, device, precision and `trainer.compile`. For strategies named by `bench.residual`,
parameters, FLOPs and the memory kept for the backward are also counted at GPT-2 Medium, without computing anything.

Writes bench.json, table.md and bench.png into its run folder.
"""

import dataclasses
import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf

from benchmarks.run_suite import run_suite
from benchmarks.suites import SUITES
from src.bench.candidates import (
    Contestant,
    device_of,
    of_strategy,
    of_text,
    refuse_mixture,
    refuse_twice,
)
from src.bench.device_peak import Ceiling, ceiling_of
from src.bench.host_overhead import data_seconds, loop_seconds
from src.bench.peer_entry import LOSS_TOLERANCE, read_peers
from src.bench.strategy_table import MEDIUM_BATCH, Cost, table
from src.bench.tables import describe, parts_table, peers_line, speed_table
from src.bench.timing import time_in_turns
from src.checks.base import Subject
from src.checks.cost import kept_bytes
from src.errors import UserError
from src.files import write_atomic
from src.launch.arguments import CONF, meant, options
from src.launch.job import COMPLETED, FAILED, Job, TaskEnd
from src.models.config import GPTConfig
from src.reporting.bench_figure import bench_figure
from src.settings.components import read_section
from src.settings.read import Settings, read_settings
from src.training.process import prepare_process
from src.training.run import build_gpt

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class BenchKeys:
    """`bench` as written: strategies by the names of their options, configurations by their overrides."""

    residual: str | list[str] | None
    configurations: list[str]
    baseline: str
    peer: str | list[str]
    rounds: int
    at_once: int
    suite: str | None
    budget_s: float | None

    def __post_init__(self) -> None:
        for key in ("rounds", "at_once"):
            if getattr(self, key) < 1:
                raise ValueError(f"bench.{key} must be at least 1, got {getattr(self, key)}")
        if self.suite is not None and self.suite not in SUITES:
            raise ValueError(f"bench.suite must be null or one of {', '.join(SUITES)}, got {self.suite}")
        if self.budget_s is not None and self.budget_s <= 0:
            raise ValueError(f"bench.budget_s must be null or positive, got {self.budget_s}")

    def names(self) -> list[str]:
        """The strategies asked for, the baseline left out."""
        shipped = options("residual")
        asked = "all" if self.residual is None and not self.configurations else self.residual
        asked = shipped if asked == "all" else asked or []
        asked = [asked] if isinstance(asked, str) else [str(name) for name in asked]
        for name in [*asked, *([] if "=" in self.baseline else [self.baseline])]:
            if name not in shipped:
                raise ValueError(
                    f"bench.residual={name} is no strategy{meant(name, shipped)}; all, or {', '.join(shipped)}"
                )
        return [name for name in asked if name != self.baseline]


def run(job: Job) -> TaskEnd:
    """Compose, count, time, write the table."""
    settings = read_settings(job.config, own_keys=("bench",))
    try:
        keys = read_section("bench", cast(DictConfig, job.config.bench), BenchKeys)
        names = keys.names()
    except ValueError as error:
        raise UserError(str(error)) from error
    if keys.suite is not None:
        return run_suite(job, keys.suite, keys.rounds, keys.budget_s)
    compose_one = of_text if "=" in keys.baseline else of_strategy
    baseline = compose_one(job, keys.baseline)
    others = [of_strategy(job, name) for name in names]
    others += [of_text(job, text) for text in keys.configurations]
    refuse_mixture([baseline, *others])
    prepare_process(baseline.settings.trainer)
    texts = [keys.peer] if isinstance(keys.peer, str) else keys.peer
    peers = read_peers(texts, baseline.settings, list(map(str, job.config.trusted_targets)))
    refuse_twice([*(c.name for c in (baseline, *others)), *(p.name for p in peers)])
    costs = count_strategies([baseline, *others])
    gaps = {peer.name: peer.loss_gap() for peer in peers}
    builders = {c.name: c.build for c in (baseline, *others)} | {p.name: p.build for p in peers}
    timings = time_in_turns(
        builders,
        device=device_of(baseline.settings),
        rounds=keys.rounds,
        at_once=keys.at_once,
        seed=baseline.settings.seed,
    )
    ceilings = {c.name: measured_ceiling(c.settings) for c in (baseline, *others)}
    ceilings |= {peer.name: ceilings[baseline.name] for peer in peers}
    measured = describe(baseline.settings)
    text = table(baseline.name, costs, timings, measured) + "\n" if len(costs) > 1 else ""
    text += speed_table(timings, ceilings, measured)
    text += peers_line(gaps, baseline.name)
    data = reading_seconds([baseline, *others])
    loop = loop_seconds(baseline.settings.trainer.log_every_steps)
    text += "\n" + parts_table(timings, data, loop)
    stated: dict[str, Any] = {
        "baseline": baseline.name,
        "measured": measured,
        "config": settings.config,
        "overrides": {c.name: list(c.overrides) for c in (baseline, *others)},
        "ceilings": {name: dataclasses.asdict(ceiling) for name, ceiling in ceilings.items()},
        "costs": {name: dataclasses.asdict(cost) for name, cost in costs.items()},
        "timings": {name: {**dataclasses.asdict(t), "ratio": t.quartiles()[1]} for name, t in timings.items()},
        "peer_loss_gaps": gaps,
        "data_seconds": data,
        "loop_seconds": loop,
    }
    write_atomic(job.folder / "bench.json", json.dumps(stated, indent=2) + "\n")
    bench_figure(stated, job.folder / "bench.png")
    write_atomic(job.folder / "table.md", text)
    log.info("%s", text)
    if other := [name for name, gap in gaps.items() if gap is not None and not gap <= LOSS_TOLERANCE]:
        return TaskEnd(
            FAILED, f"{other[0]} does not compute what {baseline.name} does; {job.folder / 'table.md'}"
        )
    return TaskEnd(COMPLETED, f"benched {len(timings) - 1} beside {baseline.name}; {job.folder / 'table.md'}")


def count_strategies(contestants: list[Contestant]) -> dict[str, Cost]:
    """What those that are strategies by name cost at GPT-2 Medium."""
    costs = {}
    for one in contestants:
        if one.residual is not None:
            costs[one.residual] = count(one.settings)
            log.info("%s: %s parameters of its own at GPT-2 Medium", one.name, f"{costs[one.name].n_params:,}")
    return costs


def count(settings: Settings) -> Cost:
    """What a strategy costs at GPT-2 Medium, eight sequences at a time."""
    medium_file = OmegaConf.load(CONF / "model" / "gpt2_medium.yaml")
    medium = GPTConfig(**cast(dict[str, Any], OmegaConf.to_container(medium_file)))
    subject = Subject(
        lambda config, seed: build_gpt(dataclasses.replace(settings, model=config, seed=seed)), medium
    )
    kept, n_params, flops = kept_bytes(subject, medium, MEDIUM_BATCH)
    with torch.device("meta"):
        residual = subject.make(medium, 0).residual
    own = sum(p.numel() for p in residual.parameters())
    return Cost(own, n_params, flops, kept, residual.init_equivalent)


def reading_seconds(contestants: list[Contestant]) -> dict[str, float | None]:
    """What a micro-batch takes to read; configurations that read alike are measured once."""
    known: dict[str, float | None] = {}
    seconds = {}
    for one in contestants:
        model = one.settings.model
        key = json.dumps([one.settings.config["data"], model.block_size, model.vocab_size])
        if key not in known:
            with TemporaryDirectory() as folder:
                known[key] = data_seconds(one.settings, Path(folder))
        seconds[one.name] = known[key]
    return seconds


def measured_ceiling(settings: Settings) -> Ceiling:
    """What the device can do at the configured precision."""
    bf16 = settings.trainer.precision == "bf16-mixed"
    return ceiling_of(device_of(settings), bf16=bf16)
