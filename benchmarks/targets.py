"""Acceptance targets: a figure that a suite measures, its bound, and the verdict.

A ratio of times is the median of the rounds' own ratios with the 95 % bootstrap interval of that median, resampling
builds and then the rounds of each build, since a model's place in memory affects its speed as long as it exists. A
target is met if the worse end of the interval reaches the bound. Memory is that of state and step together
(`src.bench.timing`).
"""

import dataclasses
import itertools
import random
import statistics
from collections.abc import Callable, Mapping, Sequence

from src.bench.timing import Timing

N_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Figure:
    """Measured value and the ends of its 95 % interval; all three are equal where there is no interval."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Measured:
    """Measurements of a suite so far: timings by comparison and candidate, and single figures by name."""

    timings: dict[str, dict[str, Timing]]
    single: dict[str, float]


Measure = Callable[[Measured], Figure]


@dataclasses.dataclass(frozen=True)
class Target:
    """Figure and its upper bound, or its lower bound if `at_most` is false."""

    name: str
    measure: Measure  # raises KeyError if a measurement that it needs is missing
    bound: float
    unit: str
    at_most: bool = True

    def judge(self, measured: Measured) -> dict[str, object]:
        """Return the target's row: its bound, the measured figure and the verdict (met, missed, not measured)."""
        row: dict[str, object] = {"bar": self.name, "wanted": self.wanted()}
        try:
            figure = self.measure(measured)
        except KeyError as missing:
            return row | {"measured": None, "verdict": f"not measured: {missing.args[0]}"}
        met = figure.high <= self.bound if self.at_most else figure.low >= self.bound
        return row | {"measured": dataclasses.asdict(figure), "verdict": "met" if met else "missed"}

    def wanted(self) -> str:
        """Return the bound in words."""
        return f"{'at most' if self.at_most else 'at least'} {self.bound:g} {self.unit}"


def overhead(comparison: str, name: str, over: str) -> Measure:
    """Measure by how many percent the time per token of `name` exceeds that of `over`."""
    return _measure_rounds(comparison, (name, over), lambda ours, theirs: 100 * (ours / theirs - 1))


def times_as_fast(comparison: str, name: str, peer: str) -> Measure:
    """Measure the time per token of `peer` over that of `name`."""
    return _measure_rounds(comparison, (name, peer), lambda ours, theirs: theirs / ours)


def share_of_overhead(comparison: str, name: str, peer: str, over: str) -> Measure:
    """Measure the overhead of `name` over that of `peer`, both in time per token above `over`."""
    return _measure_rounds(comparison, (name, peer, over), lambda ours, theirs, base: (ours - base) / (theirs - base))


def memory_ratio(comparison: str, name: str, over: str) -> Measure:
    """Measure the memory of state and step of `name` over that of `over`."""

    def measure(measured: Measured) -> Figure:
        ours, theirs = (_timing(measured, comparison, n) for n in (name, over))
        ratio = (ours.state_bytes + ours.step_bytes) / (theirs.state_bytes + theirs.step_bytes)
        return Figure(ratio, ratio, ratio)

    return measure


def memory_more(comparison: str, name: str, over: str) -> Measure:
    """Measure by how many GB (1e9 bytes) the memory of a step of `name` exceeds that of `over`."""

    def measure(measured: Measured) -> Figure:
        ours, theirs = (_timing(measured, comparison, n) for n in (name, over))
        more = (ours.step_bytes - theirs.step_bytes) / 1e9
        return Figure(more, more, more)

    return measure


def mfu(comparison: str, name: str) -> Measure:
    """Measure the FLOP/s of the median step in percent of the device's published peak."""

    def measure(measured: Measured) -> Figure:
        timing, peak = _timing(measured, comparison, name), _single(measured, "peak FLOP/s")
        rates = [100 * timing.tokens * timing.flops_per_token / (s * peak) for s in timing.seconds]
        return median_interval(rates, timing.builds)

    return measure


def single(name: str) -> Measure:
    """Return a figure that was measured once, without an interval."""

    def measure(measured: Measured) -> Figure:
        value = _single(measured, name)
        return Figure(value, value, value)

    return measure


def _measure_rounds(comparison: str, names: Sequence[str], combine: Callable[..., float]) -> Measure:
    def measure(measured: Measured) -> Figure:
        # Combine times per token over the baseline's in the same round: two candidates may be of different groups.
        timings = [_timing(measured, comparison, name) for name in names]
        rows = zip(*(timing.ratios for timing in timings), strict=True)
        return median_interval([combine(*row) for row in rows], timings[0].builds)

    return measure


def _timing(measured: Measured, comparison: str, name: str) -> Timing:
    try:
        return measured.timings[comparison][name]
    except KeyError:
        raise KeyError(f"{name} was not run") from None


def _single(measured: Measured, name: str) -> float:
    if name not in measured.single:
        raise KeyError(f"{name} was not run")
    return measured.single[name]


def median_interval(values: Sequence[float], builds: int = 1) -> Figure:
    """Return the median of `values` and its 95 % bootstrap interval.

    The values are those of `builds` builds of equal size, one after the other. A resample draws builds, then values
    within each drawn build.

    Raises:
        ValueError: the values are not `builds` equal parts.
    """
    draw, size = random.Random(0), len(values) // builds
    if size * builds != len(values):
        raise ValueError(f"{len(values)} values are not {builds} equal parts")
    parts = [values[at : at + size] for at in range(0, len(values), size)]

    def resampled_median() -> float:
        drawn = draw.choices(parts, k=builds)
        return statistics.median(itertools.chain.from_iterable(draw.choices(part, k=size) for part in drawn))

    medians = sorted(resampled_median() for _ in range(N_RESAMPLES))
    low, high = medians[int(0.025 * N_RESAMPLES)], medians[int(0.975 * N_RESAMPLES)]
    return Figure(statistics.median(values), low, high)


def targets_table(rows: Sequence[Mapping[str, object]], title: str) -> str:
    """Format each target beside its measured figure as Markdown; the title alone if there are none."""
    if not rows:
        return f"{title}\n"
    met = sum(row["verdict"] == "met" for row in rows)
    lines = [
        f"{title}: {met} of {len(rows)} targets met. Medians [95 % interval]; the worse end of the interval has to "
        "reach the target.",
        "",
        "| target | wanted | measured | |",
        "|---|---|---|---|",
    ]
    for row in rows:
        figure = row["measured"]
        words = "-"
        if isinstance(figure, dict):
            words = f"{figure['value']:.3g}"
            if figure["low"] != figure["high"]:
                words += f" [{figure['low']:.3g}, {figure['high']:.3g}]"
        lines.append(f"| {row['bar']} | {row['wanted']} | {words} | {row['verdict']} |")
    return "\n".join(lines) + "\n"
