"""The frames of a report: scores by system and seed, their comparison with the baseline, equal budgets.

Equal budgets: each run's validation curve is read, linearly between its points, where it has spent the
largest budget that every run reached. The learning rate of a run that went further had not come to its end
there, so its loss is higher than that of a run planned for the budget.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from src.reporting.runs import Run, entries, final_scores, read_scores
from src.reporting.statistics import difference, holm, summary
from src.reporting.systems import System

#: The columns of the published tables, in their order; other sets follow.
FIRST = ("val loss", "wikitext2 ppl", "lambada ppl", "sec")
TASKS = ("arc_easy", "hellaswag", "piqa", "winogrande")
#: What a budget is counted in: the curve's column and its unit.
BUDGETS = {"tokens": "tokens", "flops": "FLOPs", "seconds": "s of training"}
#: Columns on the cost of a run, out of its record.
COSTS = {
    "sec": "seconds",
    "parameters": "n_params",
    "FLOPs/token": "flops_per_token",
    "tokens/s": "tokens_per_s",
    "peak memory": "peak_memory_bytes",
}


def scores_frame(systems: list[System]) -> pd.DataFrame:
    """A row a system, seed and metric: final scores, costs, and the loss at each common budget."""
    runs = [run for system in systems for run in system.runs]
    budgets = {axis: common_budget(runs, axis) for axis in BUDGETS}
    rows = []
    for system in systems:
        for run in system.runs:
            values = {column: score.value for column, score in final_scores(run)[0].items()}
            values.update({c: float(run.result[k]) for c, k in COSTS.items() if run.result.get(k) is not None})
            for axis, budget in budgets.items():
                if budget is not None:
                    values[at_budget(axis)] = loss_at(run, axis, budget)
            rows += [(system.label, run.seed, metric, value) for metric, value in values.items()]
    return pd.DataFrame(rows, columns=["system", "seed", "metric", "value"])


def at_budget(axis: str) -> str:
    """The metric's name of the validation loss at the common budget."""
    return f"val loss at equal {axis}"


def validations(run: Run) -> pd.DataFrame:
    """The rows of a run's curve that have a validation loss."""
    return run.rows[run.rows["val/loss"].notna()]


def common_budget(runs: Sequence[Run], axis: str) -> float | None:
    """The largest budget that every run reached and validated by; None where their curves do not overlap."""
    points = [validations(run)[axis] for run in runs]
    if not points or any(p.empty or p.isna().any() for p in points):
        return None
    reached = float(min(p.iloc[-1] for p in points))
    return reached if all(p.iloc[0] <= reached for p in points) else None


def loss_at(run: Run, axis: str, budget: float) -> float:
    """The validation loss where the run has spent `budget`, linear between two validations."""
    curve = validations(run)
    return float(np.interp(budget, curve[axis], curve["val/loss"]))


def comparison(frame: pd.DataFrame, systems: list[System], baseline: System | None) -> pd.DataFrame:
    """A row a system and metric: n, mean, sd, and the difference to the baseline with interval and test."""
    by_seed = {
        key: dict(zip(part["seed"], part["value"], strict=True))
        for key, part in frame.groupby(["metric", "system"], sort=False)
    }
    rows: list[dict[str, Any]] = []  # cells of several kinds
    for metric in ordered(frame["metric"].unique()):
        reference = by_seed.get((metric, baseline.label)) if baseline else None
        first = len(rows)
        for system in systems:
            values = by_seed.get((metric, system.label))
            if values is None:
                continue
            s = summary(list(values.values()))
            row = {"metric": metric, "system": system.label, "n": s.n, "mean": s.mean, "sd": s.sd}
            if reference is not None and system is not baseline:
                d = difference(values, reference)
                row |= {"difference": d.mean, "low": d.low, "high": d.high, "p": d.p, "test": d.test}
                row |= {"pairs": d.n, "sd of difference": d.sd}
            rows.append(row)
        corrected = holm([row.get("p") for row in rows[first:]])
        for row, p in zip(rows[first:], corrected, strict=True):
            row["p (Holm)"] = p
    columns = ["metric", "system", "n", "mean", "sd", "difference", "low", "high", "p", "p (Holm)", "test"]
    return pd.DataFrame(rows, columns=[*columns, "pairs", "sd of difference"])


def ordered(metrics: Sequence[str]) -> list[str]:
    """Metrics in the order of the published tables."""
    tasks = [m for name in TASKS for m in metrics if m.partition(" ")[0] == name]
    costs = [m for m in COSTS if m in metrics and m != "sec"]
    budgets = [m for m in map(at_budget, BUDGETS) if m in metrics]
    first = [m for m in FIRST if m in metrics]
    rest = sorted(set(metrics) - {*first, *tasks, *costs, *budgets})
    return [*first, *tasks, *rest, *costs, *budgets]


def leaderboard(compared: pd.DataFrame, baseline: System | None) -> pd.DataFrame:
    """A row a system, best validation loss first: the mean of every metric, sd and comparison of the loss."""
    if compared.empty:
        return pd.DataFrame(columns=["system", "n seeds", "val loss", "sd"])
    means = compared.pivot(index="system", columns="metric", values="mean")
    sds = compared.pivot(index="system", columns="metric", values="sd")
    losses = compared[compared["metric"] == "val loss"].set_index("system")
    metrics = [m for m in ordered(list(means.columns)) if not m.startswith("val loss at")]
    board = pd.DataFrame({"n seeds": losses["n"], "val loss": means["val loss"], "sd": losses["sd"]})
    if baseline is not None:
        for column, source in (
            ("difference", "difference"),
            ("95 % low", "low"),
            ("95 % high", "high"),
            ("p", "p"),
            ("p (Holm)", "p (Holm)"),
            ("test", "test"),
        ):
            board[column] = losses[source]
        speeds = means["tokens/s"]
        board["cost %"] = 100 * (speeds[baseline.label] / speeds - 1)
    for metric in metrics[1:]:
        board[metric] = means[metric]
        if metric not in COSTS:
            board[f"{metric} sd"] = sds[metric]
    return board.sort_values("val loss").rename_axis("system").reset_index()


def curves_over_evaluations(systems: list[System]) -> pd.DataFrame:
    """Scores of every evaluated checkpoint: a row a run, step and set, limited ones marked."""
    rows = []
    for system in systems:
        for run in system.runs:
            for evaluation in run.evaluations:
                for metric, entry in entries(evaluation["scores"]):
                    if "skipped" in entry:
                        continue
                    for column, score in read_scores(metric, entry).items():
                        note = entry.get("limited") or ""
                        rows.append((system.label, run.seed, evaluation["step"], column, score.value, note))
    columns = ["system", "seed", "step", "metric", "value", "limited"]
    return pd.DataFrame(rows, columns=columns).sort_values(columns[:4], ignore_index=True)
