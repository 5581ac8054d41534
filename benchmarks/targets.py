"""Bars: a figure that a suite of benches has to reach, what was measured, and whether it did.

A ratio of times is the median of the rounds' own quotients with the 95 % interval of that median (bootstrap, of builds
and then of their rounds: a model keeps its place in memory, lucky or not, for as long as it is there), and a bar is met
where the interval's worse end reaches it. Memory is state and step together (`src.bench.timing`).
"""

import dataclasses
import itertools
import random
import statistics
from collections.abc import Callable, Mapping, Sequence

from src.bench.timing import Timing

RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Figure:
    """A measured value and the ends of its interval, the same three times where it has none."""

    value: float
    low: float
    high: float


#: All timings of a suite by round and name, and single figures by name.
@dataclasses.dataclass(frozen=True)
class Measured:
    """What a suite has found so far."""

    timings: dict[str, dict[str, Timing]]
    single: dict[str, float]


Measure = Callable[[Measured], Figure]


@dataclasses.dataclass(frozen=True)
class Bar:
    """A figure and its bound: at most that, or at least."""

    name: str
    measure: Measure  # KeyError: what it needs has not been measured
    bound: float
    unit: str
    at_most: bool = True

    def judge(self, measured: Measured) -> dict[str, object]:
        """The bar's row: the bound, what was measured, met, missed or not measured."""
        row: dict[str, object] = {"bar": self.name, "wanted": self.wanted()}
        try:
            figure = self.measure(measured)
        except KeyError as missing:
            return row | {"measured": None, "verdict": f"not measured: {missing.args[0]}"}
        met = figure.high <= self.bound if self.at_most else figure.low >= self.bound
        return row | {"measured": dataclasses.asdict(figure), "verdict": "met" if met else "missed"}

    def wanted(self) -> str:
        """The bound in words."""
        return f"{'at most' if self.at_most else 'at least'} {self.bound:g} {self.unit}"


def overhead(where: str, name: str, over: str) -> Measure:
    """Percent of time a token more than another's."""
    return _of_rounds(where, (name, over), lambda ours, theirs: 100 * (ours / theirs - 1))


def times_as_fast(where: str, name: str, peer: str) -> Measure:
    """The peer's time over ours."""
    return _of_rounds(where, (name, peer), lambda ours, theirs: theirs / ours)


def share_of_overhead(where: str, name: str, peer: str, over: str) -> Measure:
    """Our overhead over the peer's overhead, both over the same."""
    return _of_rounds(where, (name, peer, over), lambda ours, theirs, base: (ours - base) / (theirs - base))


def memory_ratio(where: str, name: str, over: str) -> Measure:
    """State and step together, over another's."""

    def measure(measured: Measured) -> Figure:
        ours, theirs = (_timing(measured, where, n) for n in (name, over))
        ratio = (ours.state_bytes + ours.step_bytes) / (theirs.state_bytes + theirs.step_bytes)
        return Figure(ratio, ratio, ratio)

    return measure


def memory_more(where: str, name: str, over: str) -> Measure:
    """GB that a step takes more than another's (1e9 bytes)."""

    def measure(measured: Measured) -> Figure:
        ours, theirs = (_timing(measured, where, n) for n in (name, over))
        more = (ours.step_bytes - theirs.step_bytes) / 1e9
        return Figure(more, more, more)

    return measure


def mfu(where: str, name: str) -> Measure:
    """Percent of the chip's published peak at the median step."""

    def measure(measured: Measured) -> Figure:
        timing, peak = _timing(measured, where, name), _single(measured, "peak FLOP/s")
        rates = [100 * timing.tokens * timing.flops_per_token / (s * peak) for s in timing.seconds]
        return interval(rates, timing.builds)

    return measure


def single(name: str) -> Measure:
    """A figure that stands alone."""

    def measure(measured: Measured) -> Figure:
        value = _single(measured, name)
        return Figure(value, value, value)

    return measure


def _of_rounds(where: str, names: Sequence[str], of: Callable[..., float]) -> Measure:
    def measure(measured: Measured) -> Figure:
        # By time a token over the baseline's in the same round, since two may come from different groups.
        timings = [_timing(measured, where, name) for name in names]
        rows = zip(*(timing.ratios for timing in timings), strict=True)
        return interval([of(*row) for row in rows], timings[0].builds)

    return measure


def _timing(measured: Measured, where: str, name: str) -> Timing:
    try:
        return measured.timings[where][name]
    except KeyError:
        raise KeyError(measured_not(name)) from None


def _single(measured: Measured, name: str) -> float:
    if name not in measured.single:
        raise KeyError(measured_not(name))
    return measured.single[name]


def measured_not(name: str) -> str:
    """Why a bar has no figure."""
    return f"{name} was not run"


def interval(values: Sequence[float], builds: int = 1) -> Figure:
    """The median and the 95 % interval of the median, of values that come in `builds` equal parts."""
    draw, size = random.Random(0), len(values) // builds
    if size * builds != len(values):
        raise ValueError(f"{len(values)} values are not {builds} equal parts")
    parts = [values[at : at + size] for at in range(0, len(values), size)]

    def drawn() -> float:
        some = draw.choices(parts, k=builds)
        return statistics.median(itertools.chain.from_iterable(draw.choices(part, k=size) for part in some))

    medians = sorted(drawn() for _ in range(RESAMPLES))
    low, high = medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES)]
    return Figure(statistics.median(values), low, high)


def bars_table(rows: Sequence[Mapping[str, object]], title: str) -> str:
    """Each bar beside its figure, as Markdown; the title alone where there is none."""
    if not rows:
        return f"{title}\n"
    met = sum(row["verdict"] == "met" for row in rows)
    lines = [
        f"{title}: {met} of {len(rows)} bars met. Medians [95 % interval]; the interval's worse end has to reach a bar.",
        "",
        "| bar | wanted | measured | |",
        "|---|---|---|---|",
    ]
    for row in rows:
        found = row["measured"]
        words = "-"
        if isinstance(found, dict):
            words = f"{found['value']:.3g}"
            if found["low"] != found["high"]:
                words += f" [{found['low']:.3g}, {found['high']:.3g}]"
        lines.append(f"| {row['bar']} | {row['wanted']} | {words} | {row['verdict']} |")
    return "\n".join(lines) + "\n"
