"""Curves of a report: losses of systems, differences to the baseline, scores of evaluated checkpoints."""

import io
import itertools
from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from src.reporting.systems import System

matplotlib.use("Agg")

#: Maximum number of points drawn of a training curve.
MAX_POINTS = 300
#: Maximum number of points with markers.
MAX_MARKERS = 40
COLORS = [matplotlib.colormaps["tab20"](i) for i in (*range(0, 20, 2), *range(1, 20, 2))]
Color = tuple[float, float, float, float]
AXES = {
    "step": "optimizer steps",
    "tokens": "tokens",
    "seconds": "training time (s)",
    "flops": "training FLOPs",
}


def draw_losses(systems: Sequence[System], axis: str) -> Figure:
    """Draw the loss against one of `AXES`, one color per system.

    Validation is bold, as the mean over seeds if they validated at the same steps; seeds and training loss are thin.
    """
    figure, axes = _open_axes(4.4, AXES[axis], "loss (nats/token)")
    for system, color in zip(systems, itertools.cycle(COLORS), strict=False):
        _draw_system(axes, system, axis, color)
    _zoom(axes, systems)
    axes.legend(loc="upper right", fontsize=8, ncols=1 if len(systems) <= 8 else 2)
    return figure


def _open_axes(height: float, x: str, y: str) -> tuple[Figure, Axes]:
    """Return a figure of the page's width and its axes with labels and a grid."""
    figure = Figure(figsize=(7.2, height), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y)
    axes.ticklabel_format(axis="y", useOffset=False)  # a loss of 7.4293, not of 2.93e-2 + 7.4
    axes.grid(alpha=0.25)
    return figure, axes


def _draw_system(axes: Axes, system: System, axis: str, color: Color) -> None:
    curves = [run.validations for run in system.runs]
    for run, curve in zip(system.runs, curves, strict=True):
        rows = run.rows[run.rows["train/loss"].notna()]
        rows = rows.iloc[:: max(1, len(rows) // MAX_POINTS)]
        axes.plot(rows[axis], rows["train/loss"], color=color, lw=0.6, alpha=0.25)
        axes.plot(curve[axis], curve["val/loss"], color=color, lw=0.8, alpha=0.5)
    same_steps = all(curve["step"].tolist() == curves[0]["step"].tolist() for curve in curves)
    mean = pd.concat([curve.reset_index(drop=True) for curve in curves]).groupby(level=0).mean()
    shown = [mean] if same_steps else curves
    for i, curve in enumerate(shown):
        label = f"{system.label} ({len(curves)})" if i == 0 else None
        marker = "o" if len(curve) <= MAX_MARKERS else None
        axes.plot(curve[axis], curve["val/loss"], color=color, lw=1.6, marker=marker, ms=3, label=label)


def _zoom(axes: Axes, systems: Sequence[System]) -> None:
    """Cut off the steep first sixth of the curves, where they are indistinguishable."""
    curves = [run.validations["val/loss"].to_numpy() for system in systems for run in system.runs]
    shown = np.concatenate([losses[len(losses) // 6 :] for losses in curves])
    if shown.size:
        margin = 0.05 * float(shown.max() - shown.min()) or 0.1
        axes.set_ylim(float(shown.min()) - margin, float(shown.max()) + margin)


def draw_differences(systems: Sequence[System], baseline: System) -> Figure:
    """Draw each system's validation loss minus the baseline's over the steps at which both validated."""
    figure, axes = _open_axes(4.4, "optimizer steps", f"validation loss minus {baseline.label}'s (nats/token)")
    reference = _mean_by_step(baseline)
    for system, color in zip(systems, itertools.cycle(COLORS), strict=False):
        if system is not baseline:
            difference = (_mean_by_step(system) - reference).dropna()
            difference = difference.iloc[len(difference) // 6 :]
            marker = "o" if len(difference) <= MAX_MARKERS else None
            axes.plot(difference.index, difference, color=color, lw=1.4, marker=marker, ms=3, label=system.label)
    axes.axhline(0, color="0.4", lw=1)
    axes.legend(fontsize=8, ncols=1 if len(systems) <= 8 else 2)
    return figure


def _mean_by_step(system: System) -> pd.Series:
    """Return the mean validation loss over seeds by step, at the steps at which all seeds validated."""
    curves = [run.validations.set_index("step")["val/loss"] for run in system.runs]
    return pd.concat(curves, axis=1, join="inner").mean(axis=1)


def draw_intervals(board: pd.DataFrame, unit: str) -> Figure:
    """Draw each system's difference to the baseline with its interval."""
    shown = board[board["difference"].notna()].iloc[::-1]
    figure = Figure(figsize=(7.2, 0.9 + 0.34 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for y, (_, row) in enumerate(shown.iterrows()):
        known = pd.notna(row["95 % low"])
        if known:
            axes.plot([row["95 % low"], row["95 % high"]], [y, y], color="C0", lw=1.5)
        axes.plot(row["difference"], y, "o", color="C0", mfc="C0" if known else "white")
    axes.axvline(0, color="0.4", lw=1)
    axes.set_yticks(range(len(shown)), shown["system"])
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.set_xlabel(f"validation loss minus the baseline's ({unit}; left is better)")
    axes.grid(axis="x", alpha=0.25)
    return figure


def draw_evaluations(points: pd.DataFrame, metric: str) -> Figure:
    """Draw one metric of the evaluated checkpoints against their steps."""
    figure, axes = _open_axes(3.6, "optimizer steps", metric)
    shown = points[points["metric"] == metric]
    for (system, seed), part in shown.groupby(["system", "seed"], sort=False):
        axes.plot(part["step"], part["value"], marker="o", ms=3, label=f"{system} seed {seed}")
    axes.legend(fontsize=8)
    return figure


def render_svg(figure: Figure) -> str:
    """Return the figure as an SVG element; equal figures give equal bytes."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "reslab", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
