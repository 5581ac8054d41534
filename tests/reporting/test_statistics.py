"""Tests and intervals equal those of scipy; Holm's correction and the pooled deviation are computed by hand."""

import math

import pytest
from scipy import stats

from src.reporting.statistics import (
    compare,
    correct_holm,
    pooled_sd,
    state_difference,
    state_untested,
    summarize,
    visible_difference,
)

A, B = {1: 3.10, 2: 3.05, 3: 3.20}, {1: 3.30, 2: 3.22, 3: 3.45}


def test_shared_seeds_are_compared_by_the_paired_t_test() -> None:
    found, test = compare(A, B), stats.ttest_rel(list(A.values()), list(B.values()))
    low, high = test.confidence_interval(0.95)
    assert (found.test, found.n) == ("paired t", 3)
    assert (found.p, found.low, found.high) == pytest.approx((test.pvalue, low, high))


def test_other_seeds_are_compared_by_welchs_t_test() -> None:
    found = compare(A, {seed + 10: value for seed, value in B.items()})
    test = stats.ttest_ind(list(A.values()), list(B.values()), equal_var=False)
    assert (found.test, found.p) == ("Welch t", pytest.approx(test.pvalue))


def test_one_seed_has_no_test_and_equal_runs_have_p_1() -> None:
    assert compare({1: 3.0}, B).p is None
    assert compare(A, A).p == 1.0
    assert compare({k: v - 0.5 for k, v in {1: 1.0, 2: 2.0}.items()}, {1: 1.0, 2: 2.0}).p == 0.0


def test_holm_multiplies_the_ith_smallest_of_m_by_m_minus_i() -> None:
    assert correct_holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, *[pytest.approx(0.06)] * 2]
    assert correct_holm([0.9, 0.8]) == [1.0, 1.0]
    assert correct_holm([None]) == [None]


def test_the_pooled_deviation_weights_groups_by_their_freedom() -> None:
    assert pooled_sd([[1.0, 3.0], [2.0, 2.0, 2.0], [5.0]]) == (pytest.approx(math.sqrt(2 / 3)), 3)
    assert pooled_sd([[1.0]]) is None
    # t(0.975, 10) = 2.228 by the table
    assert visible_difference(0.1, 10, 5) == pytest.approx(2.228 * 0.1 * math.sqrt(2 / 5), rel=1e-3)


def test_a_summary_of_one_seed_has_no_deviation() -> None:
    assert summarize([2.0]).sd is None
    assert summarize([1.0, 3.0]).sd == pytest.approx(math.sqrt(2))


def test_a_difference_is_stated_with_its_side_or_as_not_distinguishable() -> None:
    difference = compare(A, B)
    assert state_difference("x", "vanilla", difference, 0.01).startswith("x is 0.2067 nats better than vanilla")
    assert "not distinguishable once p is corrected" in state_difference("x", "vanilla", difference, 0.2)
    assert state_untested([], "vanilla") == []
    assert "x (-0.1000)" in state_untested([("x", -0.1)], "vanilla")[0]
    with pytest.raises(ValueError, match="use state_untested"):
        state_difference("x", "vanilla", compare({1: 3.0}, B), None)
