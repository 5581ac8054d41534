"""Losses of a study over its ladder of sizes: fits and compute multipliers."""

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from src.reporting.runs import Run, read_run
from src.study.phases import Results, RunSpec, compared_runs
from src.study.plan import Kind, StudyPlan
from src.study.record import StudyRecord
from src.study.statistics import Array, Fit, fit_scaling, percentile_interval, resample_means


@dataclass(frozen=True)
class Scaling:
    """Losses over the ladder, the fit of every system, and how much more compute the baseline needs.

    Args:
        points: one row per system and size: `parameters`, `loss`, `flops`, `tokens_per_s`, `depth`, `width`, `n`.
        fits: fits by system with at least three sizes.
        multipliers: one row per system and size: `compute`, `with throughput`, with their 95 % intervals, `beyond`;
            an interval is NaN where a size of the fit or the point itself has one seed.
        diverged: systems and sizes that are left out, since a run of them diverged.
    """

    points: pd.DataFrame
    fits: dict[str, Fit]
    multipliers: pd.DataFrame
    diverged: list[tuple[str, str]]


def read_losses(
    folder: Path, record: StudyRecord, results: Results, size: str, kind: Kind
) -> tuple[dict[str, dict[int, float]], dict[str, list[Run]]]:
    """Return the losses by system and seed, and the completed runs by system."""
    losses: dict[str, dict[int, float]] = {}
    runs: dict[str, list[Run]] = {}
    for system in record.plan.systems:
        specs: list[RunSpec] = compared_runs(record.plan, record.costs, results, size, system, kind)
        ended = [spec for spec in specs if spec.folder in results]
        if ended:
            losses[system] = {spec.seed: results[spec.folder].loss for spec in ended}
            runs[system] = [read_run(folder / s.folder) for s in ended if math.isfinite(results[s.folder].loss)]
    return losses, runs


def build_scaling(folder: Path, record: StudyRecord, results: Results) -> Scaling | None:
    """Return the losses over the ladder with fits and multipliers; None for one size or without a completed run."""
    plan = record.plan
    if len(plan.sizes) < 2:
        return None
    rows: list[dict[str, Any]] = []  # cells of several kinds
    losses: dict[tuple[str, str], dict[int, float]] = {}
    diverged: list[tuple[str, str]] = []
    for size in plan.sizes:
        values, runs = read_losses(folder, record, results, size, plan.budget.kind)
        for system in values:
            if any(map(math.isinf, values[system].values())):
                diverged.append((system, size))  # the mean of the others would be another quantity
                continue
            losses[system, size] = values[system]
            first = runs[system][0]
            speeds = sorted(float(run.result["tokens_per_s"]) for run in runs[system])
            rows.append(
                {
                    "system": system,
                    "size": size,
                    "parameters": float(first.result["n_params"]),
                    "loss": fmean(values[system].values()),
                    "n": len(values[system]),
                    "tokens": float(first.result["tokens"]),
                    "flops": float(first.result["tokens"]) * float(first.result["flops_per_token"]),
                    "tokens_per_s": speeds[len(speeds) // 2],
                    "depth": int(first.config["model.n_layer"]),
                    "width": int(first.config["model.n_embd"]),
                }
            )
    points = pd.DataFrame(rows)
    if points.empty:
        return None
    rng = np.random.default_rng(0)  # the same page for the same runs
    replicates = resample_means(losses, rng)
    fits = {}
    for system, part in points.groupby("system", sort=False):
        if part["parameters"].nunique() >= 3:
            columns = np.stack([replicates[str(system), size] for size in part["size"]], axis=1)
            fits[str(system)] = fit_scaling(part["parameters"].to_numpy(), columns)
    return Scaling(points, fits, _build_multipliers(plan, points, fits, replicates), diverged)


def _build_multipliers(
    plan: StudyPlan, points: pd.DataFrame, fits: dict[str, Fit], replicates: dict[tuple[str, str], Array]
) -> pd.DataFrame:
    """Invert the baseline's fit at every system's loss.

    N_b is the size at which the baseline has the system's loss, and F_b ~ N^g the FLOPs of its runs by size. It needs
    F_b(N_b) / F_s times the FLOPs of the system's run, and (F_b(N_b) / F_b(N)) * (T_b / T_s) times its seconds.
    """
    columns = ["system", "size", "compute", "low", "high", "with throughput", "time low", "time high", "beyond"]
    fit = fits.get(plan.baseline)
    if fit is None:
        return pd.DataFrame(columns=columns)
    base = points[points["system"] == plan.baseline].set_index("size")
    growth = float(np.polyfit(np.log(base["parameters"]), np.log(base["flops"]), 1)[0])
    rows = []
    for point in points.to_dict("records"):
        size = str(point["size"])
        if size not in base.index:
            continue
        own = base.loc[size]
        needed = fit.size_for(replicates[str(point["system"]), size])
        ratio = (needed / own["parameters"]) ** growth  # F_b(N_b) / F_b(N)
        compute = ratio * own["flops"] / point["flops"]
        seconds = (own["tokens"] / own["tokens_per_s"]) / (point["tokens"] / point["tokens_per_s"])
        time = ratio * seconds
        is_beyond = not base["loss"].min() <= point["loss"] <= base["loss"].max()
        values = [compute[0], *percentile_interval(compute), time[0], *percentile_interval(time)]
        rows.append([point["system"], size, *values, "yes" if is_beyond else "no"])
    return pd.DataFrame(rows, columns=columns)
