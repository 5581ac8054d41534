"""Power of a study: the smallest difference that it detects, and what its runs cost.

    T = (difference - 0) / se,  se = sd * sqrt(2 / n),  T ~ noncentral t with (k - 1)(n - 1) degrees of freedom

n seeds, k systems, sd of a run after the effects of system and seed are removed (block error). The first of m planned
contrasts that Holm's method tests has the level alpha / m.

Source: Cohen 1988 for the power of t tests; Holm 1979.
"""

import math
from statistics import fmean

import numpy as np
from scipy import optimize, stats

from src.study.phases import Costs, Phase, Results, RunSpec, initial_grid, pilot_runs, read_speed, timing_run
from src.study.plan import StudyPlan


def power_of_test(noncentrality: float, freedom: int, alpha: float) -> float:
    """Return the power of a two-sided t test."""
    bound = stats.t.isf(alpha / 2, freedom)
    wrong_side = stats.nct.cdf(-bound, freedom, noncentrality)  # scipy gives NaN where it is below 1e-16
    return float(stats.nct.sf(bound, freedom, noncentrality) + np.nan_to_num(wrong_side))


def detectable_difference(se: float, freedom: int, alpha: float, power: float) -> float:
    """Return the difference that a two-sided t test at level `alpha` detects with probability `power`.

    Args:
        se: standard error of the difference.
        freedom: degrees of freedom of its estimate.
    """
    upper = 10.0
    while power_of_test(upper, freedom, alpha) < power:
        upper *= 2
    return se * float(optimize.brentq(lambda ncp: power_of_test(ncp, freedom, alpha) - power, 0.0, upper))


def planned_difference(plan: StudyPlan, sd: float, n_tests: int) -> float:
    """Return the detectable difference of the confirmation at level alpha / `n_tests`, for an sd over seeds."""
    n, k = len(plan.seeds.confirmation), len(plan.systems)
    return detectable_difference(sd * math.sqrt(2 / n), (k - 1) * (n - 1), plan.alpha / n_tests, plan.power)


def pilot_sd(plan: StudyPlan, costs: Costs, results: Results) -> float | None:
    """Return the sd over the pilot's seeds; None without a complete pilot of at least two finite losses."""
    specs = pilot_runs(plan, costs, results)
    losses = [results[spec.folder].loss for spec in specs if spec.folder in results]
    if len(losses) < max(2, len(specs)) or not all(map(math.isfinite, losses)):
        return None
    mean = fmean(losses)
    return math.sqrt(sum((loss - mean) ** 2 for loss in losses) / (len(losses) - 1))


def count_runs(plan: StudyPlan) -> dict[Phase, int]:
    """Return the number of runs by phase, without extensions of the grid; equal budgets at most."""
    k, sizes, seeds = len(plan.systems), len(plan.sizes), plan.seeds
    n_compared = k + (k - 1) * (len(plan.budget.kinds) - 1)  # the baseline's run is the same in every unit
    return {
        "timing": k * sizes,
        "pilot": len(seeds.pilot),
        "search": len(plan.search_sizes) * k * len(initial_grid(plan)) * len(seeds.search),
        "confirmation": n_compared * len(seeds.confirmation),
        "ladder": k * (sizes - 1) * len(seeds.ladder),
    }


def estimate_seconds(plan: StudyPlan, costs: Costs, results: Results, spec: RunSpec) -> float:
    """Return the expected duration of a run: its tokens at the measured speed, and what the timing run took besides."""
    timed = results[timing_run(plan, spec.size, spec.system).folder]
    speed = read_speed(plan, results, spec.size, spec.system)
    besides = max(0.0, (timed.seconds or 0.0) - timed.tokens / speed)
    return spec.steps * costs[spec.size, spec.system].tokens_per_step / speed + besides
