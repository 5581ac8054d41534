"""Comparison of two systems over seeds: difference, 95 % interval, p value, and the sentence that states them.

    paired (at least two seeds on both sides):  d_i = a_i - b_i,  t = mean d / (sd d / sqrt n)
    otherwise (at least two seeds each):        Welch's t

p values of one metric are corrected for the number of systems compared (Holm). Runs of one seed are a pair because
the seed fixes the trunk's initial weights and the order of the data.

Source: Student 1908; Welch 1947; Holm 1979; the tests and their intervals are those of scipy.stats.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE


@dataclass(frozen=True)
class Summary:
    """Number of seeds, mean and sample standard deviation of one metric; the latter is None for a single seed."""

    n: int
    mean: float
    sd: float | None


@dataclass(frozen=True)
class Difference:
    """System minus the baseline on one metric; what needs more than one seed is None.

    `n` counts pairs, or the seeds of the side that has fewer; `sd` is that of the paired differences, or the root mean
    square of the two sides' standard deviations.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    test: str
    n: int
    sd: float | None


def summarize(values: Sequence[float]) -> Summary:
    """Return count, mean and sample standard deviation."""
    return Summary(len(values), fmean(values), stdev(values) if len(values) > 1 else None)


def compare(ours: Mapping[int, float], baseline: Mapping[int, float]) -> Difference:
    """Compare two systems' values by seed, paired if they share at least two seeds."""
    shared = sorted(ours.keys() & baseline.keys())
    if len(shared) > 1:
        a, b = [ours[seed] for seed in shared], [baseline[seed] for seed in shared]
        sd, test = stdev(x - y for x, y in zip(a, b, strict=True)), "paired t"
    else:
        a, b = list(ours.values()), list(baseline.values())
        if min(len(a), len(b)) < 2:
            return Difference(fmean(a) - fmean(b), None, None, None, "none (one seed)", 1, None)
        sd, test = math.sqrt((stdev(a) ** 2 + stdev(b) ** 2) / 2), "Welch t"
    mean, n = fmean(a) - fmean(b), min(len(a), len(b))
    if sd == 0:  # equal, or apart by a constant: the t statistic is 0 / 0 or infinite
        return Difference(mean, mean, mean, 0.0 if mean else 1.0, test, n, sd)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # differences that are constant up to rounding
        result = stats.ttest_rel(a, b) if test == "paired t" else stats.ttest_ind(a, b, equal_var=False)
    low, high = map(float, result.confidence_interval(CONFIDENCE))
    return Difference(mean, low, high, float(result.pvalue), test, n, sd)


def pooled_sd(groups: Sequence[Sequence[float]]) -> tuple[float, int] | None:
    """Return the pooled standard deviation over groups and its degrees of freedom, or None without any."""
    freedom = sum(len(values) - 1 for values in groups)
    if freedom == 0:
        return None
    squares = sum((len(values) - 1) * stdev(values) ** 2 for values in groups if len(values) > 1)
    return math.sqrt(squares / freedom), freedom


def visible_difference(sd: float, freedom: int, n: int) -> float:
    """Return the smallest difference of two systems of n unpaired seeds each whose 95 % interval excludes zero."""
    return float(stats.t.isf(ALPHA / 2, freedom)) * sd * math.sqrt(2 / n)


def correct_holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return the p values corrected for their number by Holm's method, in the same order; None stays None."""
    known = [p for p in p_values if p is not None]
    if not known:
        return list(p_values)
    # The i-th smallest of m is multiplied by m - i, then made monotone and cut at 1.
    order = np.argsort(known, kind="stable")
    raised = np.maximum.accumulate([(len(known) - i) * known[k] for i, k in enumerate(order)])
    corrected = dict(zip(order.tolist(), np.minimum(raised, 1.0).tolist(), strict=True))
    indices = iter(range(len(known)))
    return [None if p is None else corrected[next(indices)] for p in p_values]


def state_difference(system: str, baseline: str, d: Difference, p_corrected: float | None) -> str:
    """State in one sentence what the validation losses show about a system that was tested.

    Raises:
        ValueError: the difference has no test, since one side has one seed.
    """
    size = f"{abs(d.mean):.4f} nats"
    if d.p is None or d.low is None or d.high is None or d.sd is None:
        raise ValueError(f"{system} has one seed; use state_untested")
    if d.mean == 0 and d.sd == 0:
        return f"{system} equals {baseline} in each of {d.n} seeds."
    seeds = f"{d.n} seeds, sd {d.sd:.4f}"
    p = "< 0.0001" if d.p < 1e-4 else f"= {d.p:.4f}"
    interval = f"95 % interval {d.low:+.4f} to {d.high:+.4f}, {d.test}, p {p}"
    if p_corrected is not None and p_corrected < ALPHA:
        side = "better than" if d.mean < 0 else "worse than"
        return f"{system} is {size} {side} {baseline} ({seeds}; {interval})."
    after = " once p is corrected for the number of comparisons" if d.p < ALPHA else ""
    return f"{system} and {baseline}: {size}, {seeds}: not distinguishable{after} ({interval})."


def state_untested(systems: Sequence[tuple[str, float]], baseline: str) -> list[str]:
    """State the differences of systems of one seed in one sentence; no sentence without such systems."""
    if not systems:
        return []
    each = ", ".join(f"{system} ({mean:+.4f})" for system, mean in systems)
    return [f"With one seed no test is possible, so not distinguishable from {baseline}, in nats: {each}."]
