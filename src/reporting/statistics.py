"""How far two systems are apart, how sure that is, and the sentence that says so.

    paired (the same seeds on both sides, at least two):  d_i = a_i - b_i,  t = mean d / (sd d / sqrt n)
    otherwise (at least two seeds each):                  Welch's t

Intervals are 95 %; p values of one metric are corrected for the number of systems compared (Holm). Seeds
pair because a seed fixes the trunk's initial weights and the order of the data.

Source: Student 1908; Welch 1947; Holm 1979.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE


@dataclass(frozen=True)
class Summary:
    """n seeds of one system on one metric; sd (of the sample) is None for a single one."""

    n: int
    mean: float
    sd: float | None


@dataclass(frozen=True)
class Difference:
    """A system minus the baseline on one metric; what one seed cannot say is None.

    `n` counts pairs, or the seeds of the side that has fewer; `sd` is that of the paired differences, or the
    root mean square of the two sides' sds.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    test: str
    n: int
    sd: float | None


def summary(values: Sequence[float]) -> Summary:
    """Count, mean and sample standard deviation."""
    return Summary(len(values), fmean(values), stdev(values) if len(values) > 1 else None)


def difference(ours: Mapping[int, float], baseline: Mapping[int, float]) -> Difference:
    """Compare two systems' values by seed."""
    shared = sorted(ours.keys() & baseline.keys())
    if len(shared) > 1:
        d = [ours[seed] - baseline[seed] for seed in shared]
        sd = stdev(d)
        return _judged(fmean(d), sd / math.sqrt(len(d)), len(d) - 1, "paired t", len(d), sd)
    a, b = list(ours.values()), list(baseline.values())
    apart = fmean(a) - fmean(b)
    if min(len(a), len(b)) > 1:
        va, vb = stdev(a) ** 2 / len(a), stdev(b) ** 2 / len(b)
        spread = va**2 / (len(a) - 1) + vb**2 / (len(b) - 1)
        freedom = (va + vb) ** 2 / spread if spread else len(a) + len(b) - 2
        pooled = math.sqrt((stdev(a) ** 2 + stdev(b) ** 2) / 2)
        return _judged(apart, math.sqrt(va + vb), freedom, "Welch t", min(len(a), len(b)), pooled)
    return Difference(apart, None, None, None, "none (one seed)", 1, None)


def _judged(mean: float, error: float, freedom: float, test: str, n: int, sd: float) -> Difference:
    if error == 0:  # equal to the last bit, or apart by a constant
        return Difference(mean, mean, mean, 0.0 if mean else 1.0, test, n, sd)
    reach = float(stats.t.ppf(1 - ALPHA / 2, freedom)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, freedom))
    return Difference(mean, mean - reach, mean + reach, p, test, n, sd)


def pooled_sd(groups: Sequence[Sequence[float]]) -> tuple[float, int] | None:
    """The spread that seeds share, sqrt(sum of squares / degrees of freedom), and the degrees; None without any."""
    freedom = sum(len(values) - 1 for values in groups)
    if freedom == 0:
        return None
    squares = sum((len(values) - 1) * stdev(values) ** 2 for values in groups if len(values) > 1)
    return math.sqrt(squares / freedom), freedom


def visible_difference(sd: float, freedom: int, n: int) -> float:
    """What two systems of n unpaired seeds each must differ by for a 95 % interval to leave out zero."""
    return float(stats.t.ppf(1 - ALPHA / 2, freedom)) * sd * math.sqrt(2 / n)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P values corrected for their number, in their order; None stays None."""
    known = [p for p in p_values if p is not None]
    if not known:
        return list(p_values)
    order = np.argsort(known, kind="stable")
    raised = np.maximum.accumulate([(len(known) - i) * known[k] for i, k in enumerate(order)])
    corrected = dict(zip(order.tolist(), np.minimum(raised, 1.0).tolist(), strict=True))
    places = iter(range(len(known)))
    return [None if p is None else corrected[next(places)] for p in p_values]


def sentence(system: str, baseline: str, d: Difference, p_corrected: float | None) -> str:
    """What the validation losses say about a system that could be tested, in words."""
    size = f"{abs(d.mean):.4f} nats"
    if d.p is None or d.low is None or d.high is None or d.sd is None:
        raise ValueError(f"{system} has one seed: untested_sentence() is for it")
    if d.mean == 0 and d.sd == 0:
        return f"{system} equals {baseline} in each of {d.n} seeds."
    seeds = f"{d.n} seeds, sd {d.sd:.4f}"
    interval = f"95 % interval {d.low:+.4f} to {d.high:+.4f}, {d.test}, p {_p(d.p)}"
    if p_corrected is not None and p_corrected < ALPHA:
        return f"{system} is {size} {_side(d.mean)} {baseline} ({seeds}; {interval})."
    after = " once p is corrected for the number of comparisons" if d.p < ALPHA else ""
    return f"{system} and {baseline}: {size}, {seeds}: not distinguishable{after} ({interval})."


def untested_sentence(systems: Sequence[tuple[str, float]], baseline: str) -> list[str]:
    """Systems of one seed and their differences, in one sentence; nothing where there is none."""
    if not systems:
        return []
    each = ", ".join(f"{system} ({mean:+.4f})" for system, mean in systems)
    return [f"With one seed no test is possible, so not distinguishable from {baseline}, in nats: {each}."]


def _side(mean: float) -> str:
    return "better than" if mean < 0 else "worse than"


def _p(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"= {p:.4f}"
