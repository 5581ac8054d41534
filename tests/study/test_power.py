"""Power and costs of a plan, by hand; `test_statistics.py` simulates the power of its tests."""

import math

import pytest

from src.study.phases import RunResult, RunSpec, pilot_runs, timing_run
from src.study.power import count_runs, estimate_seconds, pilot_sd, power_of_test
from tests.study.test_phases import COSTS, make_plan


def test_without_a_difference_both_sides_of_a_test_together_reject_at_its_level() -> None:
    assert power_of_test(0.0, 10, 0.05) == pytest.approx(0.05)


def test_the_sd_of_the_pilot_needs_all_its_runs_finite() -> None:
    plan = make_plan(seeds__pilot=[101, 102, 103])
    folders = [spec.folder for spec in pilot_runs(plan, COSTS, {})]
    results = {folder: RunResult(loss) for folder, loss in zip(folders, (3.0, 3.1, 3.5), strict=True)}
    # Mean 3.2: (0.04 + 0.01 + 0.09) / 2.
    assert pilot_sd(plan, COSTS, results) == pytest.approx(math.sqrt(0.07))
    assert pilot_sd(plan, COSTS, {**results, folders[0]: RunResult(math.inf)}) is None
    del results[folders[0]]
    assert pilot_sd(plan, COSTS, results) is None


def test_runs_are_counted_by_phase_with_the_baseline_once_in_all_units() -> None:
    # Two systems, two sizes, two rates; of three equal budgets the baseline needs one run.
    assert count_runs(make_plan()) == {"timing": 4, "pilot": 2, "search": 4, "confirmation": 4 * 2, "ladder": 2}


def test_a_run_takes_its_tokens_at_the_measured_speed_and_what_the_timing_run_took_besides() -> None:
    plan = make_plan()
    results = {timing_run(plan, "small", "new").folder: RunResult(3.0, 1000.0, 10.0, 500.0)}
    spec = RunSpec("confirmation", "small", "new", 1e-3, 32, 1)
    assert estimate_seconds(plan, COSTS, results, spec) == pytest.approx(32 * 100 / 1000 + (10 - 500 / 1000))
