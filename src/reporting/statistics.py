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
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE


def compare(ours: Mapping[int, float], baseline: Mapping[int, float]) -> dict[str, Any]:
    """Compare two systems' values by seed, paired if they share at least two seeds.

    Returns:
        The cells of a row: `difference`, ours minus the baseline's, with its interval `low` to `high`, `p` and `test`;
        `pairs`, or the seeds of the side that has fewer; `sd of difference`, that of the paired differences, or the root
        mean square of the two sides' standard deviations. What needs more than one seed is None.
    """
    sd: float | None = None
    shared = sorted(ours.keys() & baseline.keys())
    if len(shared) > 1:
        a, b = [ours[seed] for seed in shared], [baseline[seed] for seed in shared]
        sd, test = stdev(x - y for x, y in zip(a, b, strict=True)), "paired t"
    else:
        a, b = list(ours.values()), list(baseline.values())
        test = "none (one seed)"
        if min(len(a), len(b)) > 1:
            sd, test = math.sqrt((stdev(a) ** 2 + stdev(b) ** 2) / 2), "Welch t"
    mean = fmean(a) - fmean(b)
    row = {"difference": mean, "test": test, "pairs": min(len(a), len(b)), "sd of difference": sd}
    if sd is None:
        return {**row, "low": None, "high": None, "p": None}
    if sd == 0:  # equal, or apart by a constant: the t statistic is 0 / 0 or infinite
        return {**row, "low": mean, "high": mean, "p": 0.0 if mean else 1.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # differences that are constant up to rounding
        result = stats.ttest_rel(a, b) if test == "paired t" else stats.ttest_ind(a, b, equal_var=False)
    low, high = map(float, result.confidence_interval(CONFIDENCE))
    return {**row, "low": low, "high": high, "p": float(result.pvalue)}


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


def correct_holm(p_values: pd.Series, n_tests: int | None = None) -> pd.Series:
    """Return the p values corrected by Holm's method, in the same order; NaN stays NaN.

    Args:
        p_values: p values; NaN where a test was not made.
        n_tests: number of tests that were planned, at least that of the p values; None: those that were made.
    """
    ordered = p_values.astype(float).dropna().sort_values(kind="stable")
    m = len(ordered) if n_tests is None else n_tests
    # The i-th smallest of m is multiplied by m - i (i from 0), then made monotone and cut at 1.
    corrected = (ordered * (m - np.arange(len(ordered)))).cummax().clip(upper=1.0)
    return corrected.reindex(p_values.index)


def state_difference(system: str, baseline: str, row: Mapping[str, Any], unit: str = "nats") -> str:
    """State in one sentence what the validation losses show about a system that was tested.

    Args:
        system: its label.
        baseline: the baseline's label.
        row: the cells of `compare`, and `p (Holm)`.
        unit: unit of the losses.

    Raises:
        ValueError: the difference has no test, since one side has one seed.
    """
    if pd.isna(row["p"]):
        raise ValueError(f"{system} has one seed; use state_untested")
    mean, sd, p = row["difference"], row["sd of difference"], row["p"]
    size, n = f"{abs(mean):.4f} {unit}", int(row["pairs"])
    if mean == 0 and sd == 0:
        return f"{system} equals {baseline} in each of {n} seeds."
    seeds = f"{n} seeds, sd {sd:.4f}"
    p_text = "< 0.0001" if p < 1e-4 else f"= {p:.4f}"
    interval = f"95 % interval {row['low']:+.4f} to {row['high']:+.4f}, {row['test']}, p {p_text}"
    if row["p (Holm)"] < ALPHA:
        side = "better than" if mean < 0 else "worse than"
        return f"{system} is {size} {side} {baseline} ({seeds}; {interval})."
    after = " once p is corrected for the number of comparisons" if p < ALPHA else ""
    return f"{system} minus {baseline}: {mean:+.4f} {unit}, {seeds}: not distinguishable{after} ({interval})."


def state_untested(systems: Sequence[tuple[str, float]], baseline: str, unit: str = "nats") -> list[str]:
    """State the differences of systems of one seed in one sentence; no sentence without such systems."""
    if not systems:
        return []
    each = ", ".join(f"{system} ({mean:+.4f})" for system, mean in systems)
    return [f"With one seed no test is possible, so not distinguishable from {baseline}, in {unit}: {each}."]
