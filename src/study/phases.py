"""Phases of a study as a pure function: from the plan and the results so far to the runs that are due next.

A run is known by its phase, size, system, rate, steps and seed, which name its folder; so the same command finds what
it has done before. Equal budgets differ in steps alone, so a run that two comparisons share is made once.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from src.study.plan import Kind, StudyPlan

Phase = Literal["timing", "pilot", "search", "confirmation", "ladder"]
PHASES: tuple[Phase, ...] = ("timing", "pilot", "search", "confirmation", "ladder")


@dataclass(frozen=True)
class RunSpec:
    """One planned run."""

    phase: Phase
    size: str
    system: str
    lr: float
    steps: int
    seed: int

    @property
    def folder(self) -> str:
        """Return the path of its folder in the study's."""
        return f"{self.phase}/{self.size}/{self.system}-lr{self.lr:g}-steps{self.steps}-seed{self.seed}"


def parse_folder(folder: str) -> RunSpec | None:
    """Return the run with this folder, or None if no run has it."""
    found = re.fullmatch(rf"({'|'.join(PHASES)})/([^/]+)/([^/]+)-lr([\d.e+-]+)-steps(\d+)-seed(\d+)", folder)
    if found is None:
        return None
    phase = next(phase for phase in PHASES if phase == found[1])
    return RunSpec(phase, found[2], found[3], float(found[4]), int(found[5]), int(found[6]))


@dataclass(frozen=True)
class RunResult:
    """End of a run: its validation loss, infinite if it diverged, and its speed and whole duration if known."""

    loss: float
    tokens_per_s: float | None = None
    seconds: float | None = None
    tokens: float = 0.0


@dataclass(frozen=True)
class Cost:
    """Costs of a system at a size, and the warm-up that its configuration states, if it states one."""

    tokens_per_step: int
    flops_per_token: float
    warmup_steps: int | None = None


Results = Mapping[str, RunResult]  # by the run's folder
Costs = Mapping[tuple[str, str], Cost]  # by size and system


class Choice(NamedTuple):
    """Rate that the search chose for a system at a size.

    Args:
        lr: the best rate; None if every run diverged.
        curve: mean loss over the search's seeds by rate; infinite where one of them diverged.
        is_edge: the best rate is the smallest or the largest that was tried.
    """

    lr: float | None
    curve: dict[float, float]
    is_edge: bool


def initial_grid(plan: StudyPlan) -> list[float]:
    """Return the rates that every system is searched at, smallest first."""
    grid = sorted(plan.rates.grid)
    if len(grid) == 1:
        grid = [grid[0] / plan.rates.factor, grid[0], grid[0] * plan.rates.factor]
    return [_round(lr) for lr in grid]


def middle_rate(plan: StudyPlan) -> float:
    """Return the rate of the timing and the pilot: the middle of the initial grid."""
    grid = initial_grid(plan)
    return grid[(len(grid) - 1) // 2]


def _round(lr: float) -> float:
    return float(f"{lr:.6g}")  # as the folder's name has it


# ---- length of a run


def count_steps(plan: StudyPlan, costs: Costs, results: Results, size: str, system: str, kind: Kind) -> int:
    """Return the optimizer steps whose cost is nearest to a system's budget at a size, at least 1."""
    amount = plan.budget.amount(size)
    if kind != plan.budget.kind:  # what the baseline's run costs in the other unit
        steps = count_steps(plan, costs, results, size, plan.baseline, plan.budget.kind)
        amount = steps * _step_cost(plan, costs, results, size, plan.baseline, kind)
    return max(1, round(amount / _step_cost(plan, costs, results, size, system, kind)))


def _step_cost(plan: StudyPlan, costs: Costs, results: Results, size: str, system: str, kind: Kind) -> float:
    cost = costs[size, system]
    if kind == "tokens":
        return cost.tokens_per_step
    if kind == "flops":
        return cost.tokens_per_step * cost.flops_per_token
    return cost.tokens_per_step / read_speed(plan, results, size, system)


def read_speed(plan: StudyPlan, results: Results, size: str, system: str) -> float:
    """Return a system's tokens/s at a size as the timing phase measured it.

    Raises:
        ValueError: the timing run has no speed.
    """
    timed = results.get(timing_run(plan, size, system).folder)
    if timed is None or timed.tokens_per_s is None:
        raise ValueError(
            f"{system} at size {size} has no measured speed, since its timing run did not complete; lower "
            "study.rates.grid, or leave the system out"
        )
    return timed.tokens_per_s


def check_lengths(plan: StudyPlan, costs: Costs, results: Results, kinds: Sequence[Kind]) -> None:
    """Check that every run is longer than a warm-up that the configuration states.

    Raises:
        ValueError: a run would end in its warm-up.
    """
    for (size, system), cost in costs.items():
        for kind in kinds if size == plan.first_size else kinds[:1]:
            steps = count_steps(plan, costs, results, size, system, kind)
            is_searched = kind == plan.budget.kind and size in plan.search_sizes
            shortest = search_length(plan, steps) if is_searched else steps
            if cost.warmup_steps is not None and cost.warmup_steps >= shortest:
                raise ValueError(
                    f"study.budget.{plan.budget.kind}={plan.budget.amount(size):g} gives {system} at size {size} runs "
                    f"of {shortest} steps{' in the search' if is_searched else ''}, which must exceed "
                    f"optimizer.warmup_steps={cost.warmup_steps}; raise study.budget.{plan.budget.kind}"
                )


def search_length(plan: StudyPlan, steps: int) -> int:
    """Return the steps of a run of the search, given those of a whole run."""
    return max(1, math.floor(steps * plan.budget.search_share + 1e-9))


# ---- runs by phase


def timing_run(plan: StudyPlan, size: str, system: str) -> RunSpec:
    """Return the run that measures a system's throughput at a size."""
    return RunSpec("timing", size, system, middle_rate(plan), plan.timing_steps, plan.seeds.search[0])


def pilot_runs(plan: StudyPlan, costs: Costs, results: Results) -> list[RunSpec]:
    """Return the runs of the pilot."""
    size, system = plan.first_size, plan.baseline
    steps = count_steps(plan, costs, results, size, system, plan.budget.kind) if plan.seeds.pilot else 0
    return [RunSpec("pilot", size, system, middle_rate(plan), steps, seed) for seed in plan.seeds.pilot]


def search_runs(plan: StudyPlan, costs: Costs, results: Results, size: str, system: str) -> dict[float, list[RunSpec]]:
    """Return the runs of one system's search by rate, as far as the results so far ask for them."""
    whole = count_steps(plan, costs, results, size, system, plan.budget.kind)
    steps = search_length(plan, whole)

    def of_rate(lr: float) -> list[RunSpec]:
        return [RunSpec("search", size, system, lr, steps, seed) for seed in plan.seeds.search]

    runs = {lr: of_rate(lr) for lr in initial_grid(plan)}
    for _ in range(plan.rates.max_extensions):
        losses = {lr: loss for lr, specs in runs.items() if (loss := mean_loss(specs, results)) is not None}
        if len(losses) < len(runs):
            break
        best, lowest, highest = _best_rate(losses), min(runs), max(runs)
        if best not in (lowest, highest):
            break
        # Where every rate diverged the smallest counts as the best, so the search continues downwards.
        added = _round(best / plan.rates.factor if best == lowest else best * plan.rates.factor)
        runs[added] = of_rate(added)
    return dict(sorted(runs.items()))


def choose_rate(plan: StudyPlan, costs: Costs, results: Results, size: str, system: str) -> Choice:
    """Return the rate with the smallest mean loss of the search that holds for a size; of equal ones the smaller.

    Raises:
        ValueError: the search is not complete.
    """
    searched = size if size in plan.search_sizes else plan.first_size
    runs = search_runs(plan, costs, results, searched, system)
    curve = {}
    for lr, specs in runs.items():
        loss = mean_loss(specs, results)
        if loss is None:
            raise ValueError(f"the search of {system} at size {searched} is not complete; run the study again")
        curve[lr] = loss
    best = _best_rate(curve)
    return Choice(best if math.isfinite(curve[best]) else None, curve, best in (min(curve), max(curve)))


def _best_rate(losses: Mapping[float, float]) -> float:
    return min(sorted(losses), key=lambda lr: losses[lr])


def mean_loss(specs: list[RunSpec], results: Results) -> float | None:
    """Return the mean loss of runs, infinite if one diverged, or None if one has no result."""
    losses = [results[spec.folder].loss for spec in specs if spec.folder in results]
    return sum(losses) / len(specs) if len(losses) == len(specs) else None


def compared_runs(plan: StudyPlan, costs: Costs, results: Results, size: str, system: str, kind: Kind) -> list[RunSpec]:
    """Return a system's runs of the confirmation or the ladder at one equal budget; none without a rate."""
    lr = choose_rate(plan, costs, results, size, system).lr
    if lr is None:
        return []
    phase: Phase = "confirmation" if size == plan.first_size else "ladder"
    seeds = plan.seeds.confirmation if phase == "confirmation" else plan.seeds.ladder
    steps = count_steps(plan, costs, results, size, system, kind)
    return [RunSpec(phase, size, system, lr, steps, seed) for seed in seeds]


def list_phase(plan: StudyPlan, costs: Costs, results: Results, phase: Phase) -> list[RunSpec]:
    """Return the runs of a phase, without repetition; those of the earlier phases must have ended."""
    if phase == "timing":
        return [timing_run(plan, size, system) for size in plan.sizes for system in plan.systems]
    if phase == "pilot":
        return pilot_runs(plan, costs, results)
    if phase == "search":
        return [
            spec
            for size in plan.search_sizes
            for system in plan.systems
            for specs in search_runs(plan, costs, results, size, system).values()
            for spec in specs
        ]
    is_first = phase == "confirmation"
    found = [
        spec
        for size in ([plan.first_size] if is_first else [*plan.sizes][1:])
        for kind in (plan.budget.kinds if is_first else [plan.budget.kind])
        for system in plan.systems
        for spec in compared_runs(plan, costs, results, size, system, kind)
    ]
    return list(dict.fromkeys(found))


def next_runs(plan: StudyPlan, costs: Costs, results: Results) -> tuple[Phase, list[RunSpec]] | None:
    """Return the phase that is not complete and its missing runs, or None at the end of the study."""
    for phase in PHASES:
        missing = [spec for spec in list_phase(plan, costs, results, phase) if spec.folder not in results]
        if missing:
            return phase, missing
    return None
