"""Data frames of a report: scores by system and seed, their comparison with the baseline, losses at equal budgets.

Equal budgets: each run's validation curve is interpolated linearly at the largest budget that every run reached. The
learning-rate schedule of a run that trained further was not finished there, so its loss is higher than that of a run
planned for the budget.
"""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pandas as pd

from src.reporting.runs import Run, final_scores, list_entries, read_scores
from src.reporting.statistics import compare, correct_holm
from src.reporting.systems import System, list_tokenizers

#: Columns of the published tables in their order; other sets follow.
FIRST = ("val loss", "val bpb", "wikitext2 ppl", "lambada ppl", "sec")
TASKS = ("arc_easy", "hellaswag", "piqa", "winogrande")
#: Kinds of budget: the curve's column and its unit.
BUDGETS = {"tokens": "tokens", "flops": "FLOPs", "seconds": "s of training"}
#: Columns on the cost of a run: the keys of its result.json.
COSTS = {
    "sec": "seconds",
    "parameters": "n_params",
    "FLOPs/token": "flops_per_token",
    "tokens/s": "tokens_per_s",
    "peak memory": "peak_memory_bytes",
}


def choose_loss(systems: list[System]) -> str:
    """Return the metric by which systems are compared: bits per byte where their tokenizers differ."""
    per_byte = all(run.result.get("val_bpb") is not None for system in systems for run in system.runs)
    return "val bpb" if len(list_tokenizers(systems)) > 1 and per_byte else "val loss"


def build_scores(systems: list[System]) -> pd.DataFrame:
    """Build one row per system, seed and metric: final scores, costs, and the loss at each common budget."""
    runs = [run for system in systems for run in system.runs]
    budgets = {axis: find_common_budget(runs, axis) for axis in BUDGETS}
    rows = []
    for system in systems:
        for run in system.runs:
            values = {column: score.value for column, score in final_scores(run)[0].items()}
            values.update({c: float(run.result[k]) for c, k in COSTS.items() if run.result.get(k) is not None})
            for axis, budget in budgets.items():
                if budget is not None:
                    curve = run.validations
                    values[budget_metric(axis)] = float(np.interp(budget, curve[axis], curve["val/loss"]))
            rows += [(system.label, run.seed, metric, value) for metric, value in values.items()]
    return pd.DataFrame(rows, columns=["system", "seed", "metric", "value"])


def budget_metric(axis: str) -> str:
    """Return the metric's name of the validation loss at the common budget."""
    return f"val loss at equal {axis}"


def find_common_budget(runs: Sequence[Run], axis: str) -> float | None:
    """Return the largest budget at which every run has a validated curve, or None if the curves do not overlap."""
    points = [run.validations[axis] for run in runs]
    if not points or any(p.empty or p.isna().any() for p in points):
        return None
    reached = float(min(p.iloc[-1] for p in points))
    return reached if all(p.iloc[0] <= reached for p in points) else None


def compare_systems(frame: pd.DataFrame, systems: list[System], baseline: System | None) -> pd.DataFrame:
    """Build one row per system and metric: n, mean, sd, and the difference to the baseline with interval and test."""
    by_seed = {
        key: dict(zip(part["seed"], part["value"], strict=True))
        for key, part in frame.groupby(["metric", "system"], sort=False)
    }
    rows: list[dict[str, Any]] = []  # cells of several kinds
    for metric in order_metrics(frame["metric"].unique()):
        reference = by_seed.get((metric, baseline.label)) if baseline else None
        for system in systems:
            values = by_seed.get((metric, system.label))
            if values is None:
                continue
            sd = stdev(values.values()) if len(values) > 1 else None
            row = {"metric": metric, "system": system.label, "n": len(values), "mean": fmean(values.values())}
            compared = compare(values, reference) if reference is not None and system is not baseline else {}
            rows.append({**row, "sd": sd, **compared})
    columns = ["metric", "system", "n", "mean", "sd", "difference", "low", "high", "p", "p (Holm)", "test"]
    frame = pd.DataFrame(rows, columns=[*columns, "pairs", "sd of difference"])
    frame["p (Holm)"] = frame.groupby("metric")["p"].transform(correct_holm)
    return frame


def order_metrics(metrics: Sequence[str]) -> list[str]:
    """Sort metrics into the order of the published tables."""
    tasks = [m for name in TASKS for m in metrics if m.partition(" ")[0] == name]
    costs = [m for m in COSTS if m in metrics and m != "sec"]
    budgets = [m for m in map(budget_metric, BUDGETS) if m in metrics]
    first = [m for m in FIRST if m in metrics]
    rest = sorted(set(metrics) - {*first, *tasks, *costs, *budgets})
    return [*first, *tasks, *rest, *costs, *budgets]


def build_leaderboard(compared: pd.DataFrame, baseline: System | None, loss: str = "val loss") -> pd.DataFrame:
    """Build one row per system, best first: mean of every metric, sd and comparison of the loss.

    Args:
        compared: the frame of `compare_systems`.
        baseline: the system that the others are compared with.
        loss: metric of the order and the comparison (`choose_loss`).
    """
    if compared.empty:
        return pd.DataFrame(columns=["system", "n seeds", "val loss", "sd"])
    means = compared.pivot(index="system", columns="metric", values="mean")
    sds = compared.pivot(index="system", columns="metric", values="sd")
    losses = compared[compared["metric"] == loss].set_index("system")
    metrics = [m for m in order_metrics(list(means.columns)) if not m.startswith("val loss at")]
    board = pd.DataFrame({"n seeds": losses["n"], loss: means[loss], "sd": losses["sd"]})
    if baseline is not None:
        comparison = losses[["difference", "low", "high", "p", "p (Holm)", "test"]]
        board = board.join(comparison.rename(columns={"low": "95 % low", "high": "95 % high"}))
        speeds = means["tokens/s"]
        board["cost %"] = 100 * (speeds[baseline.label] / speeds - 1)
    for metric in metrics:
        if metric == loss:
            continue
        board[metric] = means[metric]
        if metric not in COSTS:
            board[f"{metric} sd"] = sds[metric]
    return board.sort_values(loss).rename_axis("system").reset_index()


def collect_evaluations(systems: list[System]) -> pd.DataFrame:
    """Build one row per run, step and metric of the evaluated checkpoints; limited scores are marked."""
    rows = []
    for system in systems:
        for run in system.runs:
            for evaluation in run.evaluations:
                for metric, entry in list_entries(evaluation["scores"]):
                    scores = {} if "skipped" in entry else read_scores(metric, entry)
                    for column, score in scores.items():
                        note = entry.get("limited") or ""
                        rows.append((system.label, run.seed, evaluation["step"], column, score.value, note))
    columns = ["system", "seed", "step", "metric", "value", "limited"]
    return pd.DataFrame(rows, columns=columns).sort_values(columns[:4], ignore_index=True)
