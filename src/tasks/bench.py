"""task=bench: measure what configurations cost over a baseline in parameters, FLOPs, memory and time per step.

Whole optimizer steps are timed in one process, alternating with the baseline (`src.bench.timing`), at the size, device,
precision and `trainer.compile` of each configuration. For the strategies named by `bench.residual`, parameters, FLOPs and
the memory kept for the backward are also counted at GPT-2 Medium, on fake tensors.

Writes bench.json, table.md and bench.png into the run folder.
"""

import dataclasses
import itertools
import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from omegaconf import DictConfig

from src.bench import tables
from src.bench.candidates import (
    Candidate,
    device_of,
    read_configuration,
    read_strategy,
    require_one_process,
    require_unique_names,
)
from src.bench.device_peak import measure_ceiling
from src.bench.host_overhead import measure_data_seconds, measure_loop_seconds
from src.bench.peers import LOSS_TOLERANCE, Peer, load_function, read_peers
from src.bench.timing import time_in_turns
from src.bounds import PositiveFloat, PositiveInt
from src.checks.cost import count_kept_bytes, read_medium
from src.checks.quick import build_subject
from src.errors import UserError
from src.files import write_atomic, write_json
from src.launch.job import COMPLETED, FAILED, Job, TaskEnd
from src.launch.suggestions import nearest, options
from src.reporting.bench_figure import draw_bench
from src.settings.read import Settings, read_settings
from src.settings.sections import read_section
from src.training.process import prepare_process

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class BenchKeys:
    """Section `bench`: strategies by the names of their options (`lns+resformer`), configurations by their overrides."""

    residual: str | list[str] | None
    configurations: list[str]
    baseline: str
    peer: str | list[str]
    rounds: PositiveInt
    at_once: PositiveInt
    suite: str | None
    suite_runner: str
    budget_s: PositiveFloat | None

    def strategies(self) -> list[str]:
        """Return the names of the selected strategies without the baseline.

        Raises:
            ValueError: a name is not a shipped strategy.
        """
        shipped = options("residual")
        requested = "all" if self.residual is None and not self.configurations else self.residual
        requested = shipped if requested == "all" else requested or []
        requested = [requested] if isinstance(requested, str) else [str(name) for name in requested]
        named = [*requested, *([] if "=" in self.baseline else [self.baseline])]
        for name in itertools.chain.from_iterable(name.split("+") for name in named):  # parts of compositions
            if name not in shipped:
                raise ValueError(
                    f"bench.residual={name} is not a strategy{nearest(name, shipped)}; all, or {', '.join(shipped)}"
                )
        return [name for name in requested if name != self.baseline]


def run(job: Job) -> TaskEnd:
    """Compose, count and time the candidates, and write the tables; exit code 1 if a peer computes another loss."""
    settings = read_settings(job.config, own_keys=("bench",))
    try:
        keys = read_section("bench", cast(DictConfig, job.config.bench), BenchKeys)
        strategies = keys.strategies()
    except ValueError as error:
        raise UserError(str(error)) from error
    trusted = list(map(str, job.config.trusted_targets))
    if keys.suite is not None:
        run_suite = load_function("bench.suite_runner", keys.suite_runner, trusted)
        end: TaskEnd = run_suite(job, keys.suite, keys.rounds, keys.budget_s)
        return end
    candidates, peers = read_candidates(job, keys, strategies, trusted)
    baseline = candidates[0]
    prepare_process(baseline.settings.trainer)
    # Counts, losses of the peers, times.
    costs = count_strategies(candidates)
    gaps = {peer.name: peer.loss_gap() for peer in peers}
    timings = time_in_turns(
        {one.name: one.build for one in candidates} | {peer.name: peer.build for peer in peers},
        device=device_of(baseline.settings),
        rounds=keys.rounds,
        at_once=keys.at_once,
        seed=baseline.settings.seed,
    )
    ceilings = {
        one.name: measure_ceiling(device_of(one.settings), bf16=one.settings.trainer.precision == "bf16-mixed")
        for one in candidates
    }
    ceilings |= {peer.name: ceilings[baseline.name] for peer in peers}
    data = measure_reading(candidates)
    loop = measure_loop_seconds(baseline.settings.trainer.log_every_steps)
    # The files of the run folder.
    measured = tables.describe_settings(baseline.settings)
    text = tables.strategy_table(baseline.name, costs, timings, measured) + "\n" if len(costs) > 1 else ""
    text += tables.speed_table(timings, ceilings, measured)
    text += tables.format_loss_gaps(gaps, baseline.name)
    text += "\n" + tables.parts_table(timings, data, loop)
    results: dict[str, Any] = {
        "baseline": baseline.name,
        "measured": measured,
        "config": settings.config,
        "overrides": {one.name: list(one.overrides) for one in candidates},
        "ceilings": {name: dataclasses.asdict(ceiling) for name, ceiling in ceilings.items()},
        "costs": {name: dataclasses.asdict(cost) for name, cost in costs.items()},
        "timings": {name: {**dataclasses.asdict(t), "ratio": t.quartiles()[1]} for name, t in timings.items()},
        "peer_loss_gaps": gaps,
        "data_seconds": data,
        "loop_seconds": loop,
    }
    write_json(job.folder / "bench.json", results)
    draw_bench(results, job.folder / "bench.png")
    write_atomic(job.folder / "table.md", text)
    log.info("%s", text)
    if unequal := [name for name, gap in gaps.items() if gap is not None and not gap <= LOSS_TOLERANCE]:
        line = f"{unequal[0]} does not compute the losses of {baseline.name}; {job.folder / 'table.md'}"
        return TaskEnd(FAILED, line)
    return TaskEnd(COMPLETED, f"timed {len(timings) - 1} beside {baseline.name}; {job.folder / 'table.md'}")


def read_candidates(
    job: Job, keys: BenchKeys, strategies: list[str], trusted: list[str]
) -> tuple[list[Candidate], list[Peer]]:
    """Return the candidates, the baseline first, and the peers, which take the baseline's sizes.

    Raises:
        UserError: one cannot be composed or imported, differs in what a process has once, or two have one name.
    """
    read_baseline = read_configuration if "=" in keys.baseline else read_strategy
    candidates = [
        read_baseline(job, keys.baseline),
        *(read_strategy(job, name) for name in strategies),
        *(read_configuration(job, text) for text in keys.configurations),
    ]
    require_one_process(candidates)
    texts = [keys.peer] if isinstance(keys.peer, str) else keys.peer
    peers = read_peers(texts, candidates[0].settings, trusted)
    require_unique_names([*(one.name for one in candidates), *(peer.name for peer in peers)])
    return candidates, peers


def count_strategies(candidates: list[Candidate]) -> dict[str, tables.Cost]:
    """Return the costs at GPT-2 Medium of the candidates that are strategies by name."""
    costs = {}
    for one in candidates:
        if one.residual is not None:
            costs[one.residual] = count_cost(one.settings)
            log.info("%s: %s parameters of its own at GPT-2 Medium", one.name, f"{costs[one.name].n_params:,}")
    return costs


def count_cost(settings: Settings) -> tables.Cost:
    """Count a strategy's cost at GPT-2 Medium, for `tables.MEDIUM_BATCH` sequences at a time."""
    medium = read_medium()
    subject = build_subject(settings)
    kept, n_params, flops = count_kept_bytes(subject, medium, tables.MEDIUM_BATCH)
    with torch.device("meta"):
        residual = subject.make(medium, 0).residual
    own = sum(p.numel() for p in residual.parameters())
    return tables.Cost(own, n_params, flops, kept, residual.init_equivalent)


def measure_reading(candidates: list[Candidate]) -> dict[str, float | None]:
    """Return the seconds to read a micro-batch by candidate; equal data and sizes are measured once."""
    known: dict[str, float | None] = {}
    seconds = {}
    for one in candidates:
        model = one.settings.model
        key = json.dumps([one.settings.config["data"], model.block_size, model.vocab_size])
        if key not in known:
            with TemporaryDirectory() as folder:
                known[key] = measure_data_seconds(one.settings, Path(folder))
        seconds[one.name] = known[key]
    return seconds
