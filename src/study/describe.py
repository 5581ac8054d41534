"""Plan of a study in words: its runs by phase, hours, and the smallest difference that it can detect."""

import math
from collections.abc import Sequence

from src.study.phases import (
    Costs,
    Phase,
    Results,
    RunSpec,
    count_steps,
    list_phase,
    middle_rate,
    read_speed,
    timing_run,
)
from src.study.plan import UNITS, StudyPlan, plan_hash
from src.study.power import count_runs, estimate_seconds, pilot_sd, planned_difference


def describe_plan(name: str, plan: StudyPlan, costs: Costs, results: Results) -> list[str]:
    """Return the plan as lines of text; the results must have those of the timing phase."""
    counts = count_runs(plan)
    hours = {phase: _phase_hours(plan, costs, results, phase) for phase in counts}
    return [
        f"study {name}, plan {plan_hash(plan)}",
        f"  {count_noun(len(plan.systems), 'system')}: {', '.join(plan.systems)}; "
        f"{count_noun(len(plan.sizes), 'size')}: {', '.join(plan.sizes)}",
        f"  budget {plan.budget.amount(plan.first_size):,.12g} {UNITS[plan.budget.kind]} a run at {plan.first_size}; "
        f"equal {', '.join(UNITS[kind] for kind in plan.budget.kinds)}",
        *(f"  {phase:14}{counts[phase]:5} runs {hours[phase]:9.2f} h" for phase in counts),
        f"  {'in all':14}{sum(counts.values()):5} runs {sum(hours.values()):9.2f} h one after the other at the "
        f"measured speeds; up to {_count_extensions(plan)} more if the search is extended",
        *_describe_speeds(plan, results),
        describe_power(plan, costs, results),
    ]


def count_noun(n: int, noun: str) -> str:
    """Return a number with its noun, such as `1 size` or `2 sizes`."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _phase_hours(plan: StudyPlan, costs: Costs, results: Results, phase: Phase) -> float:
    """Return the expected hours of a phase with the middle rate for the rates that are not known yet."""
    if phase in ("timing", "pilot", "search"):
        specs = list_phase(plan, costs, results, phase)
        return sum(estimate_seconds(plan, costs, results, spec) for spec in specs) / 3600
    lr = middle_rate(plan)
    sizes = [plan.first_size] if phase == "confirmation" else [*plan.sizes][1:]
    kinds = plan.budget.kinds if phase == "confirmation" else [plan.budget.kind]
    seeds = plan.seeds.confirmation if phase == "confirmation" else plan.seeds.ladder
    lengths = {
        (size, system, count_steps(plan, costs, results, size, system, kind))
        for size in sizes
        for system in plan.systems
        for kind in kinds
    }
    specs = [RunSpec("confirmation", size, system, lr, steps, 0) for size, system, steps in lengths]
    return len(seeds) * sum(estimate_seconds(plan, costs, results, spec) for spec in specs) / 3600


def _count_extensions(plan: StudyPlan) -> int:
    return len(plan.search_sizes) * len(plan.systems) * plan.rates.max_extensions * len(plan.seeds.search)


def _describe_speeds(plan: StudyPlan, results: Results) -> list[str]:
    lines = []
    for size in plan.sizes:
        known = [s for s in plan.systems if results[timing_run(plan, size, s).folder].tokens_per_s is not None]
        speeds = ", ".join(f"{system} {read_speed(plan, results, size, system):,.0f}" for system in known)
        lines.append(f"  tokens/s at {size}: {speeds}")
    return lines


def describe_power(plan: StudyPlan, costs: Costs, results: Results) -> str:
    """Return the detectable difference as one line."""
    sd = pilot_sd(plan, costs, results)
    source = "assumed" if sd is None else "measured by the pilot"
    sd = plan.sd if sd is None else sd
    first, last = (planned_difference(plan, sd, n) for n in (len(plan.contrasts), 1))
    k, n = len(plan.systems), len(plan.seeds.confirmation)
    more = f" ({last:.4f} for the last of {len(plan.contrasts)} in Holm's order)" if len(plan.contrasts) > 1 else ""
    return (
        f"  detectable: {first:.4f} nats{more} with power {plan.power:g} at alpha {plan.alpha:g}, {n} seeds, "
        f"{(k - 1) * (n - 1)} degrees of freedom, sd of a run {sd:.4f} nats ({source})"
    )


def describe_phase(phase: str, specs: list[RunSpec]) -> str:
    """Return one line on the runs that are launched next."""
    systems = ", ".join(dict.fromkeys(spec.system for spec in specs))
    return f"{phase}: {len(specs)} runs of {systems}"


def format_loss(loss: float) -> str:
    """Return a loss with four digits, or `diverged`."""
    return f"{loss:.4f}" if math.isfinite(loss) else "diverged"


def join_words(words: Sequence[str]) -> str:
    """Return words as a list in a sentence: `a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
