"""Statistics of a study on simulated data with known truth; Monte-Carlo errors are four standard errors."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from src.study.power import detectable_difference
from src.study.statistics import (
    Array,
    Fit,
    block_error,
    compare_contrasts,
    compare_variances,
    complete_table,
    fit_scaling,
    percentile_interval,
    resample_means,
)

REPLICATES = 4000


def simulate(effects: list[float], n: int, sd: float, seed: int, replicates: int = REPLICATES) -> Array:
    """Losses of systems with given effects, seeds with effects of their own, and noise, one table per replicate."""
    rng = np.random.default_rng(seed)
    seeds = rng.normal(0, 3 * sd, (replicates, 1, n))
    return 4 + np.array(effects)[None, :, None] + seeds + rng.normal(0, sd, (replicates, len(effects), n))


def close(share: float, truth: float, replicates: int = REPLICATES) -> bool:
    """Return whether a share of replicates is the true one within Monte-Carlo error."""
    return abs(share - truth) < 4 * math.sqrt(truth * (1 - truth) / replicates)


def pooled_tests(tables: Array, pair: tuple[int, int] = (1, 0)) -> tuple[Array, Array]:
    """Difference of two systems and its standard error in every replicate, by `block_error`."""
    n = tables.shape[2]
    sd = np.array([block_error(table).sd for table in tables])
    return tables[:, pair[0]].mean(axis=1) - tables[:, pair[1]].mean(axis=1), sd * math.sqrt(2 / n)


def named(table: Array) -> dict[str, dict[int, float]]:
    return {f"s{i}": dict(enumerate(row.tolist())) for i, row in enumerate(table)}


def test_the_block_error_is_unbiased_and_ignores_seed_effects() -> None:
    variances = [block_error(table).sd ** 2 for table in simulate([0, 1, 2], 5, 0.01, 1)]
    # Var of the mean square: 2 sigma^4 / df.
    assert abs(np.mean(variances) - 1e-4) < 4 * 1e-4 * math.sqrt(2 / 8 / REPLICATES)


def test_the_block_error_equals_the_residual_of_a_two_way_analysis_by_hand() -> None:
    table = np.array([[1.0, 2.0, 4.0], [2.0, 3.0, 3.0]])
    # Paired differences of the rows: -1, -1, 1 with a sample variance of 4/3, twice the block variance.
    found = block_error(table)
    assert found.freedom == 2
    assert found.sd == pytest.approx(math.sqrt(2 / 3))


def test_intervals_cover_the_true_difference_as_often_as_they_state() -> None:
    difference, se = pooled_tests(simulate([0, -0.01, 0.02, 0.0], 4, 0.01, 2))
    half = stats.t.isf(0.025, 9) * se
    assert close(float((abs(difference + 0.01) < half).mean()), 0.95)


def test_the_intervals_of_a_contrast_are_those_of_the_simulation() -> None:
    table = simulate([0, -0.01, 0.02, 0.0], 4, 0.01, 2, replicates=1)
    difference, se = pooled_tests(table)
    row = compare_contrasts(named(table[0]), [["s1", "s0"]], 0.05, 0.0).iloc[0]
    half = stats.t.isf(0.025, 9) * se[0]
    assert (row["difference"], row["low"], row["high"]) == pytest.approx(
        (difference[0], difference[0] - half, difference[0] + half)
    )
    paired = stats.ttest_rel(table[0][1], table[0][0])
    assert row["p (paired)"] == pytest.approx(paired.pvalue)
    assert row["paired low"] == pytest.approx(paired.confidence_interval(0.95).low)


def test_equal_variances_are_doubted_as_rarely_as_stated_whatever_the_effects_of_seeds() -> None:
    tables = simulate([0, 5, 1, 2], 5, 0.01, 8, replicates=600)
    found = np.array([compare_variances(table, 400) for table in tables])
    for level in (0.05, 0.5):
        assert close(float((found < level).mean()), level, replicates=600)


@pytest.mark.parametrize("unstable", [[0], [1, 4]])
def test_systems_that_vary_more_are_found(unstable: list[int]) -> None:
    tables = simulate([0] * 7, 5, 0.01, 9, replicates=200)
    apart = tables.copy()
    apart[:, unstable] += np.random.default_rng(10).normal(0, 0.15, (200, len(unstable), 5))
    for found, share in ((tables, 0.05), (apart, 0.95)):
        p = np.array([compare_variances(table, 400) for table in found])
        assert (float((p < 0.01).mean()) > share) == (share == 0.95)


def test_variances_are_compared_from_three_systems_and_two_seeds_on() -> None:
    table = simulate([0, 1, 2], 4, 0.01, 11, replicates=1)[0]
    found = compare_variances(table)
    assert found is not None
    assert compare_variances(1000 * table + table.mean(axis=0)) == pytest.approx(
        found
    )  # of other units, with other effects of seeds
    for few in (table[:2], table[:, :1], np.ones((3, 4))):
        assert compare_variances(few) is None


def test_a_system_that_equals_another_is_no_exception_whatever_the_rounding() -> None:
    table = simulate([0, 0, 2], 4, 0.01, 11, replicates=1)[0]
    for shift in (0.0, 0.7):
        table[1] = table[0] + shift
        assert compare_variances(table) == pytest.approx(1 / 2001)


def test_a_paired_verdict_is_that_of_the_two_systems_alone() -> None:
    """s2 varies so much that the pooled error hides what s1 and s0 show, and s2's own difference is pooled away."""
    losses = named(simulate([0, -0.05, -0.2], 5, 0.001, 12, replicates=1)[0])
    losses["s2"] = {
        seed: loss + wild for (seed, loss), wild in zip(losses["s2"].items(), (1, -1, 2, 0, -2), strict=True)
    }
    pairs = [["s1", "s0"], ["s2", "s0"]]
    rows = compare_contrasts(losses, pairs, 0.05, 0.0)
    assert rows["verdict"].tolist() == ["unresolved", "unresolved"]
    assert rows["verdict (paired)"].tolist() == ["better", "unresolved"]
    first, second = rows["p (paired)"]
    assert rows["p (paired, Holm)"].tolist() == pytest.approx([2 * first, second])
    # Equal: the paired interval lies within the margin, the pooled one does not.
    losses["s1"] = {seed: loss + 0.001 * (-1) ** seed for seed, loss in losses["s0"].items()}
    equal = compare_contrasts(losses, [["s1", "s0"]], 0.01, 0.1).iloc[0]
    assert (equal["verdict"], equal["verdict (paired)"]) == ("unresolved", "equal")


def test_power_at_the_detectable_difference_is_the_planned_one() -> None:
    n, k, sd, alpha, power = 5, 3, 0.01, 0.01, 0.8
    effect = detectable_difference(sd * math.sqrt(2 / n), (k - 1) * (n - 1), alpha, power)
    difference, se = pooled_tests(simulate([0, -effect, 0], n, sd, 3))
    p = 2 * stats.t.sf(abs(difference) / se, (k - 1) * (n - 1))
    assert close(float((p < alpha).mean()), power)


@pytest.mark.parametrize(("sd", "alpha", "n", "tabled"), [(0.003, 0.01, 5, 0.008), (0.005, 0.01, 10, 0.007)])
def test_detectable_differences_of_paired_tests_are_those_of_tables(
    sd: float, alpha: float, n: int, tabled: float
) -> None:
    found = detectable_difference(sd / math.sqrt(n), n - 1, alpha, 0.8)
    assert found == pytest.approx(tabled, abs=0.0005)


def known(difference: float) -> dict[str, dict[int, float]]:
    """Systems s1 and s2 above s0 by a difference; the residuals of s1 and s2 are 1 and -1, those of s0 are 0."""
    noise, seeds = np.array([1.0, -1.0, 1.0, -1.0]), np.array([5.0, 7.0, 6.0, 9.0])
    return named(np.stack([seeds, seeds + difference + noise, seeds + difference - noise]))


def test_a_contrast_that_holm_does_not_resolve_has_no_verdict() -> None:
    # s^2 = 8 / 6 with 6 degrees of freedom, so that a difference has the error s sqrt(2 / 4).
    pairs = [["s1", "s0"], ["s2", "s0"]]
    for p, verdict in ((0.04, "unresolved"), (0.02, "worse")):
        difference = float(stats.t.isf(p / 2, 6)) * math.sqrt(8 / 6) * math.sqrt(2 / 4)
        rows = compare_contrasts(known(difference), pairs, 0.05, 0.0)
        assert rows["p"].tolist() == pytest.approx([p, p])
        assert rows["p (Holm)"].tolist() == pytest.approx([2 * p, 2 * p])
        assert rows["verdict"].tolist() == [verdict] * 2


def test_equal_means_that_both_ends_of_the_pooled_interval_are_within_the_margin() -> None:
    # Half widths: 2.447 * 0.8165 = 1.998 pooled, 3.182 * 0.5774 = 1.837 paired.
    for difference, margin, verdict in (
        (0.0, 1.9, "unresolved"),
        (0.0, 2.1, "equal"),
        (0.2, 2.1, "unresolved"),
        (-0.2, 2.1, "unresolved"),
    ):
        rows = compare_contrasts(known(difference), [["s1", "s0"]], 0.05, margin)
        assert rows["verdict"].tolist() == [verdict]


def test_a_system_that_lacks_a_seed_is_not_tested_and_leaves_the_others_theirs() -> None:
    losses = known(3.0)
    del losses["s2"][3]
    rows = compare_contrasts(losses, [["s1", "s0"], ["s2", "s0"]], 0.05, 0.0)
    assert rows["verdict"].tolist()[1] == "not tested"
    assert rows["n_seeds"].iloc[0] == 4
    assert rows["difference"].iloc[0] == pytest.approx(3.0)


def test_equal_systems_are_called_equal_only_within_the_margin() -> None:
    table = simulate([0, 0.0001, 0.5], 6, 0.001, 5, replicates=1)[0]
    rows = compare_contrasts(named(table), [["s1", "s0"], ["s2", "s0"]], 0.05, 0.01)
    assert rows["verdict"].tolist() == ["equal", "worse"]
    assert compare_contrasts(named(table), [["s1", "s0"]], 0.05, 0.0)["verdict"].tolist() == ["unresolved"]


def test_runs_that_do_not_vary_are_equal_or_apart_for_certain() -> None:
    same, apart = ({"s0": {1: 3.0, 2: 4.0}, "s1": {1: 3.0 + d, 2: 4.0 + d}} for d in (0.0, 0.5))
    for losses, p, verdict in ((same, 1.0, "equal"), (apart, 0.0, "worse")):
        row = compare_contrasts(losses, [["s1", "s0"]], 0.05, 0.0).iloc[0]
        assert (row["p"], row["p (paired)"], row["verdict"]) == (p, p, verdict)


def test_a_system_with_a_diverged_run_is_not_tested_and_leaves_the_others_their_error() -> None:
    losses = named(simulate([0, -1, 0], 4, 0.01, 6, replicates=1)[0])
    losses["s2"][1] = math.inf
    rows = compare_contrasts(losses, [["s1", "s0"], ["s2", "s0"]], 0.05, 0.0)
    assert rows["verdict"].tolist() == ["better", "not tested"]
    assert list(complete_table(losses).index) == ["s0", "s1"]
    assert pd.isna(rows["p"].iloc[1])
    assert rows["n_seeds"].iloc[0] == 4
    assert pd.isna(rows["n_seeds"].iloc[1])


def test_holm_counts_planned_contrasts_that_were_not_tested() -> None:
    losses = named(simulate([0, -0.008, -0.03, 0, 0], 4, 0.01, 7, replicates=1)[0])
    losses["s3"][1] = math.inf
    contrasts = [[f"s{i}", "s0"] for i in (1, 2, 3, 4)]
    p = compare_contrasts(losses, contrasts, 0.05, 0.0).set_index("system")
    first, second, third = p["p"].dropna().sort_values()
    # Four are planned, three tested: the smallest counts fourfold, not threefold.
    expected = [4 * first, max(4 * first, 3 * second), max(4 * first, 3 * second, 2 * third)]
    assert p["p (Holm)"].dropna().sort_values().tolist() == pytest.approx(np.minimum(expected, 1).tolist())
    assert 0 < 4 * first < 1


def test_a_fit_recovers_the_curve_that_made_the_losses() -> None:
    sizes = np.array([1e5, 3e5, 1e6, 3e6])
    losses = 2.0 + 1.5 * (sizes / 1e6) ** -0.3
    fit = fit_scaling(sizes, losses[None])
    assert fit.floor[0] == pytest.approx(2.0, abs=0.05)
    assert fit.exponent[0] == pytest.approx(0.3, rel=0.03)
    assert np.concatenate([fit.loss(size) for size in sizes]) == pytest.approx(losses, abs=1e-3)
    assert fit.size_for(np.array([losses[1]]))[0] == pytest.approx(3e5, rel=0.02)
    assert fit.size_for(np.array([1.5]))[0] == math.inf


def test_a_fit_without_a_trend_has_no_size_for_another_loss() -> None:
    fit = fit_scaling(np.array([1.0, 2.0, 4.0]), np.array([[3.0, 3.1, 3.2]]))
    assert (fit.floor[0], fit.scale[0]) == (pytest.approx(3.1), 0)
    assert [fit.size_for(np.array([loss]))[0] for loss in (2.9, 3.3)] == [math.inf] * 2
    with pytest.raises(ValueError, match="needs three sizes, got 2"):
        fit_scaling(np.array([1.0, 2.0]), np.array([[3.0, 2.0]]))


def test_a_fit_has_no_floor_below_zero() -> None:
    """Losses that fall faster than a power of the size: the nearest curve with E >= 0 is A / N^a with E = 0."""
    sizes, losses = np.array([1.0, 2.0, 4.0]), np.array([3.0, 2.0, 0.5])
    fit = fit_scaling(sizes, losses[None])
    assert fit.floor[0] == 0
    error, step = losses - np.concatenate([fit.loss(size) for size in sizes]), 1e-3
    for floor, scale in ((0.0, step), (0.0, -step), (step, 0.0)):
        moved = Fit(fit.floor + floor, fit.scale + scale, fit.exponent, fit.reference)
        other = losses - np.concatenate([moved.loss(size) for size in sizes])
        assert (error**2).sum() < (other**2).sum()


def test_a_percentile_interval_leaves_the_first_value_out() -> None:
    assert percentile_interval(np.array([1e9, *range(1001)]), 0.9) == (50.0, 950.0)


def test_resampling_draws_the_same_seeds_for_all_entries_and_none_from_one() -> None:
    by_seed = {1: 1.0, 2: 2.0, 3: 4.0}
    shifted = {seed: loss + 0.5 for seed, loss in by_seed.items()}
    means = resample_means({"a": by_seed, "b": shifted, "one": {1: 3.0}}, np.random.default_rng(0), 100)
    assert np.allclose(means["b"] - means["a"], 0.5)
    assert means["a"].std() > 0
    assert means["one"][0] == 3.0
    assert np.isnan(means["one"][1:]).all()
    assert all(map(math.isnan, percentile_interval(means["one"])))
    fit = fit_scaling(np.array([1.0, 2.0, 4.0]), np.stack([means["a"] + 2, means["a"] + 1, means["one"]], axis=1))
    for values in (fit.floor, fit.scale, fit.exponent, fit.size_for(means["a"] + 1.5), fit.loss(2.0)):
        assert np.isfinite(values[0])
        assert np.isnan(values[1:]).all()


def test_intervals_of_a_multiplier_cover_the_truth_and_ignore_the_effects_of_seeds() -> None:
    """The baseline needs 1.5 times the size for the other's loss; seeds shift both alike, by 10 times the noise."""
    sizes, replicates, n, shift, noise = np.array([1e5, 3e5, 1e6]), 200, 16, 0.02, 0.002

    def truth(size: float) -> float:
        return float(2.0 + 1.5 * (size / 1e6) ** -0.3)

    rng = np.random.default_rng(8)
    covered, widths = 0, []
    for _ in range(replicates):
        seeds = rng.normal(0, shift, n)
        cells = {("base", size): truth(size) for size in sizes} | {("other", 3e5): truth(1.5 * 3e5)}
        losses = {key: dict(enumerate(mean + seeds + rng.normal(0, noise, n))) for key, mean in cells.items()}
        means = resample_means(losses, rng, 200)
        fit = fit_scaling(sizes, np.stack([means["base", size] for size in sizes], axis=1))
        low, high = percentile_interval(fit.size_for(means["other", 3e5]) / 3e5)
        covered += low < 1.5 < high
        widths.append(high - low)
    assert 0.87 < covered / replicates < 0.99
    # d ln N / dL = 1 / (0.3 * 1.5 * 0.45^-0.3) = 1.75: an error of 0.002 sqrt(2 / 16) is 0.0012, four of them 0.008;
    # the effects of seeds alone would make it ten times as wide.
    assert np.median(widths) < 0.03


def test_bootstrap_intervals_of_a_prediction_cover_the_truth() -> None:
    """With 8 seeds a percentile interval is a little too short: its normal counterpart has n / (n - 1) less variance."""
    sizes, replicates, n = np.array([1e5, 3e5, 1e6]), 150, 8
    truth = 2.0 + 1.5 * (sizes / 1e6) ** -0.3
    rng = np.random.default_rng(7)
    covered = 0
    for _ in range(replicates):
        losses = {mean: dict(enumerate(rng.normal(mean, 0.02, n))) for mean in truth}
        fit = fit_scaling(sizes, np.stack([*resample_means(losses, rng, 200).values()], axis=1))
        low, high = percentile_interval(fit.loss(sizes[1]))
        covered += low < truth[1] < high
    assert 0.85 < covered / replicates < 0.98
