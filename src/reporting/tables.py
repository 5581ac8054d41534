"""Tables of a report: the digits, the unit and the placeholder of each cell."""

from collections.abc import Callable
from dataclasses import replace

import pandas as pd

from src.files import format_bytes
from src.reporting.page import Table
from src.reporting.runs import Run, final_scores
from src.reporting.step_times import COLUMNS
from src.reporting.systems import Difference, System

NOTHING = "-"


def _p(value: float) -> str:
    return "<0.0001" if value < 1e-4 else f"{value:.4f}"


def _si(value: float) -> str:
    for scale, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.4g} {letter}"
    return f"{value:.4g}"


FORMATS: dict[str, Callable[[float], str]] = {
    "n seeds": "{:,.0f}".format,
    **dict.fromkeys(("val loss", "val bpb", "sd"), "{:.4f}".format),
    **dict.fromkeys(("difference", "95 % low", "95 % high"), "{:+.4f}".format),
    **dict.fromkeys(("p", "p (Holm)"), _p),
    **dict.fromkeys(COLUMNS, "{:.3f}".format),
    "cost %": "{:+.1f}".format,
    **dict.fromkeys(("sec", "tokens/s"), "{:,.0f}".format),
    **dict.fromkeys(("parameters", "FLOPs/token"), _si),
    "peak memory": format_bytes,
}


def format_cell(column: str, value: object) -> str:
    """Format one value of a column."""
    if value is None or value is pd.NA or (isinstance(value, float) and pd.isna(value)):
        return NOTHING
    if isinstance(value, int | float):
        return FORMATS.get(column, "{:.2f}".format)(value)
    return str(value)


def build_board_table(board: pd.DataFrame, baseline: System | None) -> Table:
    """Build the leaderboard's table: a metric's sd in brackets after its mean, the bounds of an interval in one cell."""
    rows = []
    for record in board.to_dict("records"):
        cells = {column: format_cell(column, value) for column, value in record.items()}
        row = {}
        for column, text in cells.items():
            if column == COLUMNS[0]:
                low, high = (cells[bound] for bound in COLUMNS[1:])
                row["step time"] = text if text == NOTHING else f"{text} [{low}, {high}]"
            elif column == "95 % low":
                row["95 % interval"] = text if text == NOTHING else f"{text} to {cells['95 % high']}"
            elif not column.endswith(" sd") and column not in ("95 % high", *COLUMNS[1:]):
                spread = cells.get(f"{column} sd", NOTHING)
                row[column] = text if spread == NOTHING else f"{text} ({spread})"
        rows.append(row)
    marked = baseline.label if baseline else None
    return Table(list(rows[0]), [list(row.values()) for row in rows], marked)


def build_budget_table(part: pd.DataFrame, title: str, baseline: System | None) -> Table:
    """Build the table of one budget's comparison, best system first."""
    names = {"n": "n seeds", "mean": "val loss", "low": "95 % low", "high": "95 % high"}
    shown = ["system", "n", "mean", "sd", "difference", "low", "high", "p", "p (Holm)"]
    table = build_board_table(part.sort_values("mean")[shown].rename(columns=names), baseline)
    return replace(table, columns=[title if column == "val loss" else column for column in table.columns])


def build_differences_table(differences: list[Difference]) -> Table:
    """Build the table of differences outside the compared axis by system and key."""
    rows = [[u.system, u.what, u.key, u.theirs, u.baseline] for u in differences]
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
            for metric, reason in final_scores(run)[1].items():
                seeds.setdefault((system.label, metric, reason), []).append(run.seed)
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
                    " / ".join(f"{score:.2f}" for score in (r.get("spike_score") or {}).values()) or NOTHING,
                    f"{r.get('device', NOTHING)} x{r.get('world_size', NOTHING)}, {r.get('precision', NOTHING)}",
                    str(r.get("config_hash", NOTHING))[:12],
                    str((r.get("data") or {}).get("hash", NOTHING))[:12],
                    str(r.get("git") or NOTHING)[:12],
                    run.folder.name,
                ]
            )
    columns = ["system", "seed", "val loss", "steps", "tokens", "sec", "tokens/s", "spike % (loss / grad)", "on"]
    return Table([*columns, "config", "data", "code", "folder"], rows)
