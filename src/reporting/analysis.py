"""Analyses of checkpoints in run folders, and their section of a report."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.files import read_object
from src.reporting.analysis_curves import draw_systems
from src.reporting.analysis_figures import by_depth
from src.reporting.curves import render_svg
from src.reporting.page import Picture, Section, Table
from src.reporting.systems import System

#: Folder of a run's analyses.
FOLDER = "analysis"
Analysis = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """Column of the table: a measurement by family and name, and the number that is shown of its values by depth."""

    title: str
    family: str
    name: str
    reduce: Callable[[list[float]], float]
    form: str


def _last(values: list[float]) -> float:
    return values[-1]


def _first(values: list[float]) -> float:
    return values[0]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


COLUMNS = (
    Column("least effect of a block", "leave_out", "block", min, "{:.4f}"),
    Column("cosine of states", "cosine", "states", _mean, "{:.4f}"),
    Column("rank at the end", "activations", "effective_rank", _last, "{:.1f}"),
    Column("largest kurtosis", "activations", "token_kurtosis", max, "{:.1f}"),
    Column("largest / median", "activations", "largest_over_median", max, "{:.1f}"),
    Column("entropy", "attention", "entropy", _mean, "{:.3f}"),
    Column("sink mass", "attention", "sink_mass", _mean, "{:.3f}"),
    Column("stream cosine at the end", "streams", "cosine", _last, "{:.4f}"),
    Column("composed gain", "streams", "composed_forward", _first, "{:.3f}"),
    Column("sources read at the end", "sources", "count", _last, "{:.1f}"),
)


def read_analyses(folder: Path) -> list[Analysis]:
    """Return the analyses in a run's folder of analyses, by step.

    Raises:
        ValueError: a file is not a JSON object.
    """
    return [read_object(path) for path in sorted(folder.glob("step*.json"))]


def build_analysis_sections(systems: list[System]) -> list[Section]:
    """Build the section on the newest analysis of each system's first seed that has any; none without analyses."""
    found: dict[str, tuple[Path, list[Analysis]]] = {}
    for system in systems:
        for run in system.runs:
            analyses = read_analyses(run.folder / FOLDER)
            if analyses and system.label not in found:
                found[system.label] = run.folder / FOLDER, analyses
    if not found:
        return []
    newest = {label: analyses[-1] for label, (_, analyses) in found.items()}
    text = (
        "From task=analyze, on the newest analyzed checkpoint of one seed of each system. Effects are losses without a "
        "block minus the model's, in nats per token; means are over depth and heads. docs/analysis.md defines every "
        "number."
    )
    pictures = [Picture("By share of the depth", svg=render_svg(draw_systems(newest)))]
    for label, (folder, analyses) in found.items():
        step = analyses[-1]["step"]
        paths = [folder / f"step{step:08d}_depth.png", folder / f"step{step:08d}_heads.png", folder / "curves.png"]
        caption = f"{label}, seed {analyses[-1]['seed']}"
        pictures += [Picture(f"{caption}: {path.stem}", file=path) for path in paths if path.is_file()]
    warnings = []
    if len({json.dumps(one.get("tokens"), sort_keys=True) for one in newest.values()}) > 1:
        warnings.append(
            "The systems were analyzed on different tokens, so their losses and effects are not comparable; analyze them "
            "again with the same data and sequences."
        )
    table = _build_table(newest)
    return [Section("Analysis of checkpoints", [text], warnings=warnings, tables=[table], pictures=pictures)]


def _build_table(newest: dict[str, Analysis]) -> Table:
    """Return one row for each system; columns that no system has are left out."""
    shown = [c for c in COLUMNS if any(by_depth(a, c.family, c.name) is not None for a in newest.values())]
    rows = []
    for label, analysis in newest.items():
        values = [by_depth(analysis, column.family, column.name) for column in shown]
        cells = [
            "-" if value is None else column.form.format(column.reduce(value))
            for column, value in zip(shown, values, strict=True)
        ]
        rows.append([label, str(analysis["step"]), f"{analysis['leave_out']['loss']['mean']:.4f}", *cells])
    return Table(["system", "step", "loss", *(column.title for column in shown)], rows)
