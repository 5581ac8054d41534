"""Tables of a report: the digits, the unit and the placeholder of each cell."""

from collections.abc import Callable

import pandas as pd

from src.files import format_bytes
from src.reporting.page import Table
from src.reporting.runs import Run, final_scores
from src.reporting.step_times import COLUMNS
from src.reporting.systems import System, UnfairKey

NOTHING = "-"


def _digits(n: int, sign: str = "") -> Callable[[float], str]:
    return lambda value: f"{value:{sign}.{n}f}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _p(value: float) -> str:
    return "<0.0001" if value < 1e-4 else f"{value:.4f}"


def _si(value: float) -> str:
    for scale, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.4g} {letter}"
    return f"{value:.4g}"


FORMATS: dict[str, Callable[[float], str]] = {
    "n seeds": _count,
    "val loss": _digits(4),
    "sd": _digits(4),
    "difference": _digits(4, "+"),
    "95 % low": _digits(4, "+"),
    "95 % high": _digits(4, "+"),
    "p": _p,
    "p (Holm)": _p,
    "cost %": _digits(1, "+"),
    "step": _digits(3),
    "sec": _count,
    "parameters": _si,
    "FLOPs/token": _si,
    "tokens/s": _count,
    "peak memory": format_bytes,
}


def format_cell(column: str, value: object) -> str:
    """Format one value of a column."""
    if value is None or value is pd.NA or (isinstance(value, float) and pd.isna(value)):
        return NOTHING
    if isinstance(value, int | float):
        return FORMATS.get(column, _digits(2))(value)
    return str(value)


def build_board_table(board: pd.DataFrame, baseline: System | None) -> Table:
    """Build the leaderboard's table: a metric's sd in brackets after its mean, the bounds of an interval in one cell."""
    rows = []
    for record in board.to_dict("records"):
        row = {}
        for column, value in record.items():
            if column.endswith(" sd") or column in ("95 % high", *COLUMNS[1:]):
                continue
            if column == COLUMNS[0]:
                low, high = (format_cell(column, record[bound]) for bound in COLUMNS[1:])
                row["step time"] = (
                    NOTHING if pd.isna(value) else f"{format_cell(column, value)} [{low}, {high}]"
                )
                continue
            if column == "95 % low":
                pair = (value, record["95 % high"])
                known = not any(pd.isna(v) for v in pair)
                row["95 % interval"] = " to ".join(format_cell(column, v) for v in pair) if known else NOTHING
                continue
            spread = record.get(f"{column} sd")
            brackets = f" ({format_cell(column, spread)})" if spread is not None and not pd.isna(spread) else ""
            row[column] = format_cell(column, value) + brackets
        rows.append(row)
    columns = list(rows[0])
    return Table(columns, [list(row.values()) for row in rows], marked=baseline.label if baseline else None)


def build_budget_table(part: pd.DataFrame, title: str, baseline: System | None) -> Table:
    """Build the table of one budget's comparison, best system first."""
    rows = []
    for record in part.sort_values("mean").to_dict("records"):
        known = pd.notna(record["low"])
        bounds = (
            " to ".join(format_cell("difference", record[k]) for k in ("low", "high")) if known else NOTHING
        )
        rows.append(
            [
                record["system"],
                format_cell("n seeds", record["n"]),
                format_cell("val loss", record["mean"]),
                format_cell("sd", record["sd"]),
                format_cell("difference", record["difference"]),
                bounds,
                format_cell("p", record["p"]),
                format_cell("p", record["p (Holm)"]),
            ]
        )
    columns = ["system", "n seeds", title, "sd", "difference", "95 % interval", "p", "p (Holm)"]
    return Table(columns, rows, marked=baseline.label if baseline else None)


def build_unfair_table(unfair: list[UnfairKey]) -> Table:
    """Build the table of differences outside the compared axis by system and key."""
    rows = [[u.system, u.what, u.key, u.theirs, u.baseline] for u in unfair]
    return Table(["system", "affects", "key", "its value", "the baseline's"], rows)


def build_failures_table(failures: list[tuple[Run, str]]) -> Table:
    """Build the table of the runs that are in no mean, with the reasons."""
    rows = []
    for run, reason in failures:
        steps = f"{run.result.get('steps', NOTHING)} of {run.result.get('max_steps', NOTHING)}"
        rows.append([run.name, str(run.result.get("seed", NOTHING)), steps, reason, run.folder.name])
    return Table(["system", "seed", "steps", "reason", "folder"], rows)


def build_omitted_table(systems: list[System]) -> Table:
    """Build the table of the scores that are in no mean since they are limited or skipped, one row for all seeds."""
    seeds: dict[tuple[str, str, str], list[int]] = {}
    for system in systems:
        for run in system.runs:
            for omitted in final_scores(run)[1]:
                seeds.setdefault((system.label, omitted.metric, omitted.reason), []).append(run.seed)
    rows = [[*key, ", ".join(map(str, found))] for key, found in seeds.items()]
    return Table(["system", "set", "reason", "seeds"], rows)


def build_runs_table(systems: list[System]) -> Table:
    """Build the table of all compared runs with what identifies them."""
    rows = []
    for system in systems:
        for run in system.runs:
            r = run.result
            rows.append(
                [
                    system.label,
                    str(run.seed),
                    format_cell("val loss", r["val_loss"]),
                    f"{r['steps']:,}",
                    f"{r['tokens']:,}",
                    format_cell("sec", r.get("seconds")),
                    format_cell("tokens/s", r["tokens_per_s"]),
                    f"{r.get('device', NOTHING)} x{r.get('world_size', NOTHING)}, {r.get('precision', NOTHING)}",
                    str(r.get("config_hash", NOTHING))[:12],
                    str((r.get("data") or {}).get("hash", NOTHING))[:12],
                    str(r.get("git") or NOTHING)[:12],
                    run.folder.name,
                ]
            )
    columns = ["system", "seed", "val loss", "steps", "tokens", "sec", "tokens/s", "on"]
    return Table([*columns, "config", "data", "code", "folder"], rows)
