"""Loss curves of systems: validation in bold, its seeds' mean where they validated alike; training thin."""

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from src.reporting.leaderboard import validations
from src.reporting.systems import System

matplotlib.use("Agg")

#: Points of a training curve that are drawn.
MOST_POINTS = 300
#: Validations up to which each is marked.
MOST_MARKERS = 40
COLOURS = [matplotlib.colormaps["tab20"](i) for i in (*range(0, 20, 2), *range(1, 20, 2))]
AXES = {
    "step": "optimizer steps",
    "tokens": "tokens",
    "seconds": "training time (s)",
    "flops": "training FLOPs",
}


def loss_figure(systems: Sequence[System], axis: str) -> Figure:
    """Loss against one of `AXES`, a colour a system."""
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    for system, colour in zip(systems, _colours(len(systems)), strict=True):
        _draw(axes, system, axis, colour)
    _focus(axes, systems)
    axes.set_xlabel(AXES[axis])
    axes.set_ylabel("loss (nats/token)")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, ncols=1 if len(systems) <= 8 else 2)
    return figure


def _colours(n: int) -> list[tuple[float, float, float, float]]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


def _draw(axes: Axes, system: System, axis: str, colour: tuple[float, float, float, float]) -> None:
    curves = [validations(run) for run in system.runs]
    for run, curve in zip(system.runs, curves, strict=True):
        rows = run.rows[run.rows["train/loss"].notna()]
        rows = rows.iloc[:: max(1, len(rows) // MOST_POINTS)]
        axes.plot(rows[axis], rows["train/loss"], color=colour, lw=0.6, alpha=0.25)
        axes.plot(curve[axis], curve["val/loss"], color=colour, lw=0.8, alpha=0.5)
    alike = all(curve["step"].tolist() == curves[0]["step"].tolist() for curve in curves)
    shown = curves if not alike else [_mean(curves)]
    for i, curve in enumerate(shown):
        label = f"{system.label} ({len(curves)})" if i == 0 else None
        marker = "o" if len(curve) <= MOST_MARKERS else None
        axes.plot(curve[axis], curve["val/loss"], color=colour, lw=1.6, marker=marker, ms=3, label=label)


def _mean(curves: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([curve.reset_index(drop=True) for curve in curves]).groupby(level=0).mean()


def _focus(axes: Axes, systems: Sequence[System]) -> None:
    """Leave the steep first sixth above the top, where the curves cannot be told apart anyway."""
    curves = [validations(run)["val/loss"].to_numpy() for system in systems for run in system.runs]
    shown = np.concatenate([losses[len(losses) // 6 :] for losses in curves])
    if shown.size:
        margin = 0.05 * float(shown.max() - shown.min()) or 0.1
        axes.set_ylim(float(shown.min()) - margin, float(shown.max()) + margin)


def lead_figure(systems: Sequence[System], baseline: System) -> Figure:
    """Each system's validation loss minus the baseline's, over the steps at which both validated."""
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    reference = _by_step(baseline)
    for system, colour in zip(systems, _colours(len(systems)), strict=True):
        if system is not baseline:
            lead = (_by_step(system) - reference).dropna()
            lead = lead.iloc[len(lead) // 6 :]
            marker = "o" if len(lead) <= MOST_MARKERS else None
            axes.plot(lead.index, lead, color=colour, lw=1.4, marker=marker, ms=3, label=system.label)
    axes.axhline(0, color="0.4", lw=1)
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel(f"validation loss minus {baseline.label}'s")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, ncols=1 if len(systems) <= 8 else 2)
    return figure


def _by_step(system: System) -> pd.Series:
    """The mean validation loss of a system's seeds by step, where all of them validated."""
    curves = [validations(run).set_index("step")["val/loss"] for run in system.runs]
    return pd.concat(curves, axis=1, join="inner").mean(axis=1)


def difference_figure(board: pd.DataFrame) -> Figure:
    """Each system's difference to the baseline, with its interval."""
    shown = board[board["difference"].notna()].iloc[::-1]
    figure = Figure(figsize=(7.2, 0.9 + 0.34 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for place, (_, row) in enumerate(shown.iterrows()):
        known = pd.notna(row["95 % low"])
        if known:
            axes.plot([row["95 % low"], row["95 % high"]], [place, place], color="C0", lw=1.5)
        axes.plot(row["difference"], place, "o", color="C0", mfc="C0" if known else "white")
    axes.axvline(0, color="0.4", lw=1)
    axes.set_yticks(range(len(shown)), shown["system"])
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.set_xlabel("validation loss minus the baseline's (nats; left is better)")
    axes.grid(axis="x", alpha=0.25)
    return figure


def evaluation_figure(points: pd.DataFrame, metric: str) -> Figure:
    """One metric of evaluated checkpoints against their steps."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    shown = points[points["metric"] == metric]
    for (system, seed), part in shown.groupby(["system", "seed"], sort=False):
        axes.plot(part["step"], part["value"], marker="o", ms=3, label=f"{system} seed {seed}")
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel(metric)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    return figure


def svg(figure: Figure) -> str:
    """The figure as an SVG element, the same bytes for the same figure."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "reslab", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    drawn = text.getvalue()
    return drawn[drawn.index("<svg") :]
