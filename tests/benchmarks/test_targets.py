"""Targets: what each measures, which end of its interval decides, and the words where a measurement is missing."""

from dataclasses import replace

import pytest

from benchmarks.targets import (
    Measured,
    Target,
    median_interval,
    memory_more,
    memory_ratio,
    mfu,
    overhead,
    share_of_overhead,
    single,
    targets_table,
    times_as_fast,
)
from src.bench.timing import Timing

BASE = Timing([1.0, 2.0, 1.0], [1.0, 1.0, 1.0], 1.0, 10, 1000, 5, int(2e9), int(8e9), {})
OURS = replace(BASE, seconds=[1.1, 2.4, 1.1], ratios=[1.1, 1.2, 1.1], step_bytes=int(9e9))
PEER = replace(BASE, seconds=[1.5, 3.0, 1.5], ratios=[1.5, 1.5, 1.5])
MEASURED = Measured({"t": {"base": BASE, "ours": OURS, "peer": PEER}}, {"loop ms": 0.4, "peak FLOP/s": 5e4})


@pytest.mark.parametrize(
    ("measure", "value"),
    [
        (overhead("t", "ours", "base"), 10),
        (times_as_fast("t", "ours", "peer"), 1.5 / 1.1),
        (share_of_overhead("t", "ours", "peer", "base"), 0.2),
        (memory_ratio("t", "ours", "base"), 1.1),
        (memory_more("t", "ours", "base"), 1),
        (mfu("t", "base"), 20),
        (single("loop ms"), 0.4),
    ],
)
def test_each_measure_has_the_value_computed_by_hand(measure, value: float) -> None:  # type: ignore[no-untyped-def]
    assert measure(MEASURED).value == pytest.approx(value)


def test_the_worse_end_of_the_interval_decides() -> None:
    ours = overhead("t", "ours", "base")  # 10 % in two rounds, 20 % in one
    assert ours(MEASURED).high == pytest.approx(20)
    assert Target("b", ours, 15, "%").judge(MEASURED)["verdict"] == "missed"
    assert Target("b", ours, 20.1, "%").judge(MEASURED)["verdict"] == "met"
    speed = times_as_fast("t", "ours", "peer")
    assert Target("b", speed, 1.3, "x", at_most=False).judge(MEASURED)["verdict"] == "missed"
    assert Target("b", speed, 1.2, "x", at_most=False).judge(MEASURED)["verdict"] == "met"


def test_the_table_of_a_suite_without_targets_is_its_title() -> None:
    assert targets_table([], "scaling") == "scaling\n"


def test_the_interval_is_that_of_the_median() -> None:
    figure = median_interval([1.0] * 20 + [5.0])
    assert (figure.value, figure.low, figure.high) == (1, 1, 1)


def test_builds_that_differ_widen_the_interval() -> None:
    values = [1.0, 1.01, 0.99] * 3 + [1.1, 1.11, 1.09] * 3
    rounds, builds = median_interval(values), median_interval(values, builds=2)
    assert rounds.value == builds.value == pytest.approx(1.05, abs=0.001)
    assert builds.low < 1.01
    assert builds.high > 1.09
    many = [value for part in range(12) for value in ([1.0] * 3 if part % 2 else [1.1] * 3)]
    assert median_interval(many, builds=12).high - median_interval(many, builds=12).low > 0
    with pytest.raises(ValueError, match="equal parts"):
        median_interval(values, builds=5)


def test_a_missing_measurement_is_named_in_the_verdict() -> None:
    rows = [
        Target("one", single("loop ms"), 0.5, "ms").judge(MEASURED),
        Target("two", overhead("t", "theirs", "base"), 2, "%").judge(MEASURED),
    ]
    text = targets_table(rows, "cpu")
    assert "1 of 2 targets met" in text
    assert text.splitlines()[-2:] == [
        "| one | at most 0.5 ms | 0.4 | met |",
        "| two | at most 2 % | - | not measured: theirs was not run |",
    ]
