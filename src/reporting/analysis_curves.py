"""Figures of several analyses: of systems beside each other by depth, and of one run over its steps."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from src.reporting.analysis_figures import Analysis, by_depth, set_log_scale, set_title

matplotlib.use("Agg")

STEP = "optimizer step"

#: Panels over systems and over steps: title, family, name, and whether the axis is logarithmic.
PANELS = (
    ("effect of leaving out a block (nats)", "leave_out", "block", False),
    ("effect of leaving out a sublayer (nats)", "leave_out", "sublayer", False),
    ("cosine of consecutive states", "cosine", "states", False),
    ("loss of the logit lens (nats)", "logit_lens", "loss", False),
    ("effective rank of what is read", "activations", "effective_rank", False),
    ("kurtosis over channels", "activations", "token_kurtosis", True),
    ("largest / median activation", "activations", "largest_over_median", True),
    ("attention entropy (1: uniform)", "attention", "entropy", False),
    ("attention to the first token", "attention", "sink_mass", False),
    ("cosine between streams", "streams", "cosine", False),
    ("gain of the composed mixing", "streams", "composed_forward", True),
    ("sources that are effectively read", "sources", "count", False),
)


def draw_systems(analyses: Mapping[str, Analysis]) -> Figure:
    """Draw each measurement over the share of the depth, one line per system."""
    shown = [panel for panel in PANELS if any(by_depth(a, panel[1], panel[2]) is not None for a in analyses.values())]
    figure, grid = _open_grid(len(shown))
    for axes, (title, family, name, is_log) in zip(grid, shown, strict=False):
        for i, (label, analysis) in enumerate(analyses.items()):
            values = by_depth(analysis, family, name)
            if values is not None:
                x = np.linspace(0, 1, len(values)) if len(values) > 1 else [0.5]
                axes.plot(x, values, color=f"C{i % 10}", lw=1.2, marker="o", ms=2.5, label=label)
        _finish(axes, title, "share of the depth", is_log)
    handles = [axes.get_legend_handles_labels() for axes in grid[: len(shown)]]
    by_label = {label: handle for found in handles for handle, label in zip(*found, strict=True)}
    figure.legend(by_label.values(), by_label.keys(), loc="outside lower center", ncols=6, fontsize=8)
    return figure


def draw_over_steps(analyses: Sequence[Analysis]) -> Figure:
    """Draw each measurement against the optimizer step, one line for each position, colored by its share of the depth."""
    newest, steps = analyses[-1], [analysis["step"] for analysis in analyses]
    shown = [panel for panel in PANELS if by_depth(newest, panel[1], panel[2]) is not None]
    figure, grid = _open_grid(len(shown) + 1)
    colors = matplotlib.colormaps["viridis"]
    grid[0].plot(steps, [a["leave_out"]["loss"]["mean"] for a in analyses], "k", marker="o", ms=3, lw=1.2)
    _finish(grid[0], "loss (nats/token)", STEP, False)
    for axes, (title, family, name, is_log) in zip(grid[1:], shown, strict=False):
        curves = [by_depth(analysis, family, name) for analysis in analyses]
        n = max(len(values) for values in curves if values is not None)
        for i in range(n):  # repeated visits may start in the course of a run
            points = [(s, v[i]) for s, v in zip(steps, curves, strict=True) if v is not None and i < len(v)]
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=colors(i / max(1, n - 1)), lw=1, marker="o", ms=2.5)
        _finish(axes, title, STEP, is_log)
    scale = ScalarMappable(Normalize(0, 1), colors)
    figure.colorbar(scale, ax=list(grid), location="bottom", aspect=60, shrink=0.5, label="share of the depth")
    figure.suptitle(f"{newest['name']} over its checkpoints", fontsize=11)
    return figure


def _open_grid(n: int) -> tuple[Figure, list[Axes]]:
    """Return a figure of three columns with `n` panels."""
    n_row = -(-n // 3)
    figure = Figure(figsize=(13, 2.8 * n_row + 1), dpi=110, layout="constrained")
    grid = list(figure.subplots(n_row, 3, squeeze=False).flat)
    for axes in grid[n:]:
        axes.set_visible(False)
    return figure, grid


def _finish(axes: Axes, title: str, x: str, is_log: bool) -> None:
    if is_log:
        set_log_scale(axes)
    else:
        axes.ticklabel_format(axis="y", useOffset=False)  # an entropy of 0.99998, not of 8e-5 + 0.9999
    if x == STEP:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    set_title(axes, title, x)
    axes.grid(alpha=0.25)
    axes.tick_params(which="both", labelsize=8)
