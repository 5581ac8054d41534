"""The report's frames as tables of text: how many digits, which unit, what stands where nothing is known."""

from collections.abc import Callable

import pandas as pd

from src.files import format_bytes
from src.reporting.page import Table
from src.reporting.runs import Run, final_scores
from src.reporting.step_times import COLUMNS
from src.reporting.systems import System, Unfair

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


def cell(column: str, value: object) -> str:
    """One value as it is shown."""
    if value is None or value is pd.NA or (isinstance(value, float) and pd.isna(value)):
        return NOTHING
    if isinstance(value, int | float):
        return FORMATS.get(column, _digits(2))(value)
    return str(value)


def board_table(board: pd.DataFrame, baseline: System | None) -> Table:
    """The leaderboard; a metric's sd stands in brackets behind it, interval bounds together."""
    rows = []
    for record in board.to_dict("records"):
        row = {}
        for column, value in record.items():
            if column.endswith(" sd") or column in ("95 % high", *COLUMNS[1:]):
                continue
            if column == COLUMNS[0]:
                low, high = (cell(column, record[bound]) for bound in COLUMNS[1:])
                row["step time"] = NOTHING if pd.isna(value) else f"{cell(column, value)} [{low}, {high}]"
                continue
            if column == "95 % low":
                pair = (value, record["95 % high"])
                known = not any(pd.isna(v) for v in pair)
                row["95 % interval"] = " to ".join(cell(column, v) for v in pair) if known else NOTHING
                continue
            spread = record.get(f"{column} sd")
            brackets = f" ({cell(column, spread)})" if spread is not None and not pd.isna(spread) else ""
            row[column] = cell(column, value) + brackets
        rows.append(row)
    columns = list(rows[0])
    return Table(columns, [list(row.values()) for row in rows], marked=baseline.label if baseline else None)


def budget_table(part: pd.DataFrame, title: str, baseline: System | None) -> Table:
    """One budget's comparison, best first."""
    rows = []
    for record in part.sort_values("mean").to_dict("records"):
        known = pd.notna(record["low"])
        bounds = " to ".join(cell("difference", record[k]) for k in ("low", "high")) if known else NOTHING
        rows.append(
            [
                record["system"],
                cell("n seeds", record["n"]),
                cell("val loss", record["mean"]),
                cell("sd", record["sd"]),
                cell("difference", record["difference"]),
                bounds,
                cell("p", record["p"]),
                cell("p", record["p (Holm)"]),
            ]
        )
    columns = ["system", "n seeds", title, "sd", "difference", "95 % interval", "p", "p (Holm)"]
    return Table(columns, rows, marked=baseline.label if baseline else None)


def unfair_table(flagged: list[Unfair]) -> Table:
    """What differs, by system and key."""
    rows = [[u.system, u.what, u.key, u.theirs, u.baseline] for u in flagged]
    return Table(["system", "touches", "key", "its value", "the baseline's"], rows)


def failures_table(failures: list[tuple[Run, str]]) -> Table:
    """Runs that are in no mean, and why."""
    rows = []
    for run, reason in failures:
        steps = f"{run.result.get('steps', NOTHING)} of {run.result.get('max_steps', NOTHING)}"
        rows.append([run.name, str(run.result.get("seed", NOTHING)), steps, reason, run.folder.name])
    return Table(["system", "seed", "steps", "why", "folder"], rows)


def omitted_table(systems: list[System]) -> Table:
    """Scores that are in no mean because they are limited or were left out, seeds together."""
    seeds: dict[tuple[str, str, str], list[int]] = {}
    for system in systems:
        for run in system.runs:
            for omitted in final_scores(run)[1]:
                seeds.setdefault((system.label, omitted.metric, omitted.reason), []).append(run.seed)
    rows = [[*key, ", ".join(map(str, found))] for key, found in seeds.items()]
    return Table(["system", "set", "why", "seeds"], rows)


def runs_table(systems: list[System]) -> Table:
    """Every run that entered, with what identifies it."""
    rows = []
    for system in systems:
        for run in system.runs:
            r = run.result
            rows.append(
                [
                    system.label,
                    str(run.seed),
                    cell("val loss", r["val_loss"]),
                    f"{r['steps']:,}",
                    f"{r['tokens']:,}",
                    cell("sec", r.get("seconds")),
                    cell("tokens/s", r["tokens_per_s"]),
                    f"{r.get('device', NOTHING)} x{r.get('world_size', NOTHING)}, {r.get('precision', NOTHING)}",
                    str(r.get("config_hash", NOTHING))[:12],
                    str((r.get("data") or {}).get("hash", NOTHING))[:12],
                    str(r.get("git") or NOTHING)[:12],
                    run.folder.name,
                ]
            )
    columns = ["system", "seed", "val loss", "steps", "tokens", "sec", "tokens/s", "on"]
    return Table([*columns, "config", "data", "code", "folder"], rows)
