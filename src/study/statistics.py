"""Statistics of a study: block error, planned contrasts, and scaling fits.

    y_ij = m + system_i + seed_j + e_ij,   s^2 = sum e_ij^2 / ((k - 1)(n - 1))
    difference of two systems:             t = (mean_a - mean_b) / (s sqrt(2 / n)),  (k - 1)(n - 1) degrees of freedom

The seeds are blocks: runs of one seed share data order and initial weights. Pooling over k systems gives the error
(k - 1)(n - 1) degrees of freedom where a paired t test has n - 1; it assumes one error variance for all systems, which
`compare_variances` tests, so the paired test stands beside it.

    L(N) = E + A / N^a,   E >= 0, A >= 0, by least squares; intervals by resampling seeds

Source: Fisher 1935 for randomized blocks; Bartlett 1937 for variances; Holm 1979; Hoffmann et al. 2022 (arXiv
2203.15556) for the form of the fit; Efron and Tibshirani 1993 for percentile intervals.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from scipy import stats

from src.reporting.statistics import correct_holm

Array = np.ndarray[Any, np.dtype[np.float64]]
#: Exponents a of the fit that are tried; beyond them the data does not determine a.
EXPONENTS = np.geomspace(0.01, 3.0, 600)
REPLICATES = 2000
#: Simulated tables of losses that are held in memory at once.
BATCH = 100


class BlockError(NamedTuple):
    """Standard deviation of a run after the effects of system and seed are removed, and its degrees of freedom."""

    sd: float
    freedom: int


def block_error(losses: Array) -> BlockError:
    """Return the block error of a table of losses, one row per system and one column per seed.

    Raises:
        ValueError: there are fewer than two systems or seeds.
    """
    k, n = losses.shape
    if min(k, n) < 2:
        raise ValueError(f"a block error needs 2 systems and 2 seeds, got {k} and {n}")
    rows, columns = losses.mean(axis=1, keepdims=True), losses.mean(axis=0, keepdims=True)
    residuals = losses - rows - columns + losses.mean()
    freedom = (k - 1) * (n - 1)
    return BlockError(math.sqrt(float((residuals**2).sum()) / freedom), freedom)


def compare_variances(losses: Array, replicates: int = 2000) -> float | None:
    """Test whether all differences between two systems vary alike over seeds, from a table as in `block_error`.

    The pooled error assumes it. The statistic is Bartlett's for the variances of the differences of all pairs. It depends
    neither on the effects of systems and seeds nor on the scale, so normal tables of the same shape, which are
    simulated, have its distribution if the assumption holds and errors are normal; one run far from the others makes p
    small too.

    Returns:
        The p value, or None with fewer than 3 systems or 2 seeds, or where no difference varies.
    """
    k, n = losses.shape
    if k < 3 or n < 2:
        return None
    variances = _pair_variances(losses)
    if not variances.any():
        return None
    found = _bartlett(variances)
    rng = np.random.default_rng(0)
    sizes = [*[BATCH] * (replicates // BATCH), replicates % BATCH]
    n_above = sum((_bartlett(_pair_variances(rng.normal(size=(size, k, n)))) >= found).sum() for size in sizes)
    return float((1 + n_above) / (1 + replicates))


def _pair_variances(tables: Array) -> Array:
    """Return the variance over seeds of the difference of every pair of systems, [..., pairs], of tables [..., k, n]."""
    ours, theirs = np.triu_indices(tables.shape[-2], 1)
    variances: Array = (tables[..., ours, :] - tables[..., theirs, :]).var(axis=-1, ddof=1)
    return variances


def _bartlett(variances: Array) -> Array:
    """Return the logarithm of the mean of variances [..., pairs] minus their mean logarithm."""
    shares = variances / variances.mean(axis=-1, keepdims=True)
    # Equal systems have a difference that does not vary, but for rounding.
    statistic: Array = -np.log(np.maximum(shares, 1e-12)).mean(axis=-1)
    return statistic


# ---- contrasts

COLUMNS = (
    *("system", "against", "n_seeds", "difference", "low", "high", "p", "p (Holm)", "verdict"),
    *("paired low", "paired high", "p (paired)", "p (paired, Holm)", "verdict (paired)"),
)


def compare_contrasts(
    losses: Mapping[str, Mapping[int, float]], contrasts: Sequence[Sequence[str]], alpha: float, margin: float
) -> pd.DataFrame:
    """Return one row of `COLUMNS` per planned contrast.

    Args:
        losses: losses by system and seed; only finite ones count.
        contrasts: pairs of a system and the one that it is compared with.
        alpha: level of all contrasts together; the intervals have the level 1 - alpha each.
        margin: nats within which systems are called equal.

    Returns:
        One row per contrast; Holm counts them all, tested or not. `verdict`, by the pooled error, and `verdict
        (paired)`, by the two systems alone, are better, worse, equal (the interval lies within the margin), unresolved,
        or not tested.
    """
    table = complete_table(losses)
    error = block_error(table.to_numpy()) if min(table.shape) > 1 else None
    rows = []
    for system, against in contrasts:
        row: dict[str, Any] = dict.fromkeys(COLUMNS, None)  # cells of several kinds
        row |= {"system": system, "against": against}
        if error is not None and {system, against} <= set(table.index):
            row |= {"n_seeds": table.shape[1]}
            row |= _compare_pair(table.loc[system].to_numpy(), table.loc[against].to_numpy(), error, alpha)
        rows.append(row)
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    frame["n_seeds"] = frame["n_seeds"].astype("Int64")  # with rows that have none
    for p, corrected, verdict, low, high in (
        ("p", "p (Holm)", "verdict", "low", "high"),
        ("p (paired)", "p (paired, Holm)", "verdict (paired)", "paired low", "paired high"),
    ):
        frame[corrected] = correct_holm(frame[p], len(contrasts))
        columns = (frame[column] for column in (corrected, "difference", low, high))
        frame[verdict] = [_judge(cells, alpha, margin) for cells in zip(*columns, strict=True)]
    return frame


def complete_table(losses: Mapping[str, Mapping[int, float]]) -> pd.DataFrame:
    """Return the finite losses of systems (rows) by seed; systems with fewer than all seeds are left out."""
    seeds = sorted({seed for values in losses.values() for seed in values})
    whole = {
        system: [values[seed] for seed in seeds]
        for system, values in losses.items()
        if values.keys() == {*seeds} and all(math.isfinite(loss) for loss in values.values())
    }
    return pd.DataFrame.from_dict(whole, orient="index", columns=seeds, dtype=float)


def _compare_pair(ours: Array, theirs: Array, error: BlockError, alpha: float) -> dict[str, float]:
    n = len(ours)
    difference = float(ours.mean() - theirs.mean())
    row = {"difference": difference}
    paired = float((ours - theirs).std(ddof=1)) / math.sqrt(n)
    pooled = error.sd * math.sqrt(2 / n)
    for se, freedom, (low, high, p) in (
        (pooled, error.freedom, ("low", "high", "p")),
        (paired, n - 1, ("paired low", "paired high", "p (paired)")),
    ):
        half = float(stats.t.isf(alpha / 2, freedom)) * se
        row |= {low: difference - half, high: difference + half}
        row[p] = float(2 * stats.t.sf(abs(difference) / se, freedom)) if se else float(difference == 0)
    return row


def _judge(cells: tuple[float, float, float, float], alpha: float, margin: float) -> str:
    p, difference, low, high = cells
    if pd.isna(p):
        return "not tested"
    if p < alpha:
        return "better" if difference < 0 else "worse"
    return "equal" if -margin <= low and high <= margin else "unresolved"


# ---- scaling fits


@dataclass(frozen=True)
class Fit:
    """Fit L(N) = E + A / N^a, as arrays over replicates; the first is the fit itself."""

    floor: Array
    scale: Array
    exponent: Array
    reference: float  # N is measured in this unit, so that A is a loss

    def loss(self, size: float) -> Array:
        """Return L(N)."""
        return self.floor + self.scale * (size / self.reference) ** -self.exponent

    def size_for(self, loss: Array) -> Array:
        """Return the N at which the fit has a loss; infinite at or below E, NaN where either is."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            size = self.reference * (self.scale / (loss - self.floor)) ** (1 / self.exponent)
        reachable = (loss > self.floor) & (self.scale > 0)
        return np.where(reachable | np.isnan(loss - self.floor), size, np.inf)


def fit_scaling(sizes: Array, losses: Array) -> Fit:
    """Fit L(N) = E + A / N^a to each row of losses by least squares.

    Args:
        sizes: N of each column, at least three distinct ones.
        losses: one row per replicate, one column per size; a row with NaN has a fit of NaN.

    Raises:
        ValueError: there are fewer than three sizes.
    """
    if len(set(sizes.tolist())) < 3:
        raise ValueError(f"a fit of three numbers needs three sizes, got {len(set(sizes.tolist()))}")
    reference = float(np.exp(np.log(sizes).mean()))
    powers = (sizes / reference)[None] ** -EXPONENTS[:, None]  # one row per exponent
    # For a fixed exponent the fit is linear: slope and intercept, then the bounds.
    centered = powers - powers.mean(axis=1, keepdims=True)
    scale = losses @ centered.T / (centered**2).sum(axis=1)
    floor = losses.mean(axis=1, keepdims=True) - scale * powers.mean(axis=1)
    through_zero = losses @ powers.T / (powers**2).sum(axis=1)
    scale = np.where(floor < 0, through_zero, scale)
    floor = np.where(floor < 0, 0.0, floor)
    is_rising = scale < 0
    floor = np.where(is_rising, losses.mean(axis=1, keepdims=True), floor)
    scale = np.where(is_rising, 0.0, scale)
    predicted = floor[..., None] + scale[..., None] * powers
    best = ((losses[:, None, :] - predicted) ** 2).sum(axis=2).argmin(axis=1)
    rows = np.arange(len(losses))
    exponent = np.where(np.isnan(losses).any(axis=1), np.nan, EXPONENTS[best])
    return Fit(floor[rows, best], scale[rows, best], exponent, reference)


Key = TypeVar("Key")


def resample_means(
    losses: Mapping[Key, Mapping[int, float]], rng: np.random.Generator, replicates: int = REPLICATES
) -> dict[Key, Array]:
    """Return the mean over seeds of each entry: first the mean itself, then resampled ones, NaN for a single seed.

    Entries of the same seeds get the same draws of them, since seeds are blocks.
    """
    draws: dict[tuple[int, ...], np.ndarray[Any, np.dtype[np.int64]]] = {}
    means = {}
    for key, by_seed in losses.items():
        seeds = tuple(sorted(by_seed))
        if seeds not in draws:
            draws[seeds] = rng.integers(0, len(seeds), (replicates, len(seeds)))
        values = np.array([by_seed[seed] for seed in seeds])
        drawn = values[draws[seeds]].mean(axis=1) if len(seeds) > 1 else np.full(replicates, np.nan)
        means[key] = np.concatenate(([values.mean()], drawn))
    return means


def percentile_interval(values: Array, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of the replicates after the first; NaN where there are none."""
    if np.isnan(values[1:]).any():
        return math.nan, math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # infinite replicates
        low, high = np.quantile(values[1:], [(1 - level) / 2, (1 + level) / 2], method="nearest")
    return float(low), float(high)
