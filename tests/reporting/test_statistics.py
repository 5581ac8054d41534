"""Tests and intervals equal those of scipy; Holm's correction and the pooled deviation are computed by hand."""

import math

import pandas as pd
import pytest
from scipy import stats

from src.reporting.leaderboard import compare_systems
from src.reporting.statistics import (
    compare,
    correct_holm,
    pooled_sd,
    state_difference,
    state_untested,
    visible_difference,
)
from src.reporting.systems import System

A, B = {1: 3.10, 2: 3.05, 3: 3.20}, {1: 3.30, 2: 3.22, 3: 3.45}


def test_shared_seeds_are_compared_by_the_paired_t_test() -> None:
    found, test = compare(A, B), stats.ttest_rel(list(A.values()), list(B.values()))
    low, high = test.confidence_interval(0.95)
    assert (found["test"], found["pairs"]) == ("paired t", 3)
    assert (found["p"], found["low"], found["high"]) == pytest.approx((test.pvalue, low, high))


def test_other_seeds_are_compared_by_welchs_t_test() -> None:
    found = compare(A, {seed + 10: value for seed, value in B.items()})
    test = stats.ttest_ind(list(A.values()), list(B.values()), equal_var=False)
    assert (found["test"], found["p"]) == ("Welch t", pytest.approx(test.pvalue))
    assert (found["low"], found["high"]) == pytest.approx(tuple(test.confidence_interval(0.95)))
    fewer = compare({1: 3.0, 2: 3.2}, {11: 3.0, 12: 3.1, 13: 3.2})
    assert fewer["pairs"] == 2
    assert fewer["sd of difference"] == pytest.approx(math.sqrt((0.02 + 0.01) / 2))


def test_one_seed_has_no_test_and_equal_runs_have_p_1() -> None:
    assert compare({1: 3.0}, B)["p"] is None
    assert compare(A, A)["p"] == 1.0
    assert compare({k: v - 0.5 for k, v in {1: 1.0, 2: 2.0}.items()}, {1: 1.0, 2: 2.0})["p"] == 0.0


def test_holm_multiplies_the_ith_smallest_of_m_by_m_minus_i() -> None:
    def corrected(*p_values: float | None) -> list[float]:
        return correct_holm(pd.Series(p_values)).tolist()

    assert corrected(0.01, None, 0.04, 0.03) == pytest.approx([0.03, math.nan, 0.06, 0.06], nan_ok=True)
    assert corrected(0.9, 0.8) == [1.0, 1.0]
    planned = correct_holm(pd.Series([0.01, None, 0.04, 0.03]), n_tests=5).tolist()
    assert planned == pytest.approx([0.05, math.nan, 0.12, 0.12], nan_ok=True)
    assert corrected(None) == pytest.approx([math.nan], nan_ok=True)


def test_the_pooled_deviation_weights_groups_by_their_freedom() -> None:
    assert pooled_sd([[1.0, 3.0], [2.0, 2.0, 2.0], [5.0]]) == (pytest.approx(math.sqrt(2 / 3)), 3)
    assert pooled_sd([[1.0]]) is None
    # t(0.975, 10) = 2.228 by the table
    assert visible_difference(0.1, 10, 5) == pytest.approx(2.228 * 0.1 * math.sqrt(2 / 5), rel=1e-3)


def test_a_summary_of_one_seed_has_no_deviation() -> None:
    values = [("one", 1, "val loss", 2.0), ("two", 1, "val loss", 1.0), ("two", 2, "val loss", 3.0)]
    frame = pd.DataFrame(values, columns=["system", "seed", "metric", "value"])
    rows = compare_systems(frame, [System("one", ()), System("two", ())], None)
    assert rows["n"].tolist() == [1, 2]
    assert rows["sd"].tolist() == pytest.approx([math.nan, math.sqrt(2)], nan_ok=True)


def test_a_difference_is_stated_with_its_side_or_as_not_distinguishable() -> None:
    row = compare(A, B)
    better = state_difference("x", "vanilla", {**row, "p (Holm)": 0.01})
    assert better.startswith("x is 0.2067 nats better than vanilla")
    unresolved = state_difference("x", "vanilla", {**row, "p (Holm)": 0.2})
    assert unresolved.startswith("x minus vanilla: -0.2067 nats")  # the sign of the interval beside it
    assert "not distinguishable once p is corrected" in unresolved
    assert state_untested([], "vanilla") == []
    assert "x (-0.1000)" in state_untested([("x", -0.1)], "vanilla")[0]
    with pytest.raises(ValueError, match="use state_untested"):
        state_difference("x", "vanilla", {**compare({1: 3.0}, B), "p (Holm)": None})
