"""Figures of a residual stream: mixing weights, magnitudes, and the strategy's parameters by depth."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

matplotlib.use("Agg")

Matrix = Sequence[Sequence[float]]


def draw_mixing_map(
    weights: Matrix, readers: Sequence[str], sources: Sequence[str], first_reader: Sequence[int], title: str
) -> Figure:
    """Draw a heat map of the weight of each source (column) in what each reader (row) reads.

    A source is hidden in the rows before its first reader. White is 0 if all weights are shares between 0 and 1, and
    otherwise 1, the weight in a vanilla stream.
    """
    grid = np.asarray(weights, dtype=float)
    n = len(grid)
    hidden = np.asarray(first_reader) > np.arange(n)[:, None]
    shown = np.ma.masked_where(hidden, grid)
    shares = float(shown.min()) >= -1e-6 and float(shown[-1].sum()) < 1.5
    center = 0.0 if shares else 1.0
    span = max(float(np.abs(shown - center).max()), 0.01)
    size = min(4 + 0.16 * n, 12)
    figure = Figure(figsize=(size + 1, size), dpi=110, layout="constrained")
    axes = figure.subplots()
    low = 0.0 if shares else center - span
    image = axes.imshow(
        shown, cmap="Blues" if shares else "RdBu_r", vmin=low, vmax=center + span, interpolation="nearest"
    )
    across, down = (range(0, len(names), max(1, -(-len(names) // 26))) for names in (sources, readers))
    axes.set_xticks(across, [sources[i] for i in across], rotation=90, fontsize=7)
    axes.set_yticks(down, [readers[i] for i in down], fontsize=7)
    axes.set(xlabel="source: the embedding, its later additions (+), the sites' outputs", ylabel="reader")
    axes.set_title(textwrap.fill(title, int(9 * size)), fontsize=10)  # a wider line would be cut at the edges
    figure.colorbar(image, ax=axes, shrink=0.8, label="weight")
    if len(sources) <= 14:
        for k in range(n):
            for j in np.flatnonzero(~hidden[k]).tolist():
                dark = abs(grid[k, j] - center) > 0.6 * span
                axes.text(j, k, f"{grid[k, j]:.2f}", ha="center", va="center", fontsize=6, color="w" if dark else "k")
    return figure


def draw_sizes(lines: Mapping[str, Sequence[float]], title: str) -> Figure:
    """Draw the RMS by site on a logarithmic axis, one line per quantity."""
    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    for name, values in lines.items():
        axes.plot(range(len(values)), values, marker="o", ms=3, lw=1.2, label=name)
    axes.set(yscale="log", ylabel="RMS")
    axes.set_xlabel("site (attention and MLP alternate; the last point of the stream is its end)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    axes.set_title(title, fontsize=10)
    return figure


def draw_scalars(tables: Mapping[str, Matrix], title: str) -> Figure:
    """Draw each of the strategy's parameters in a panel: one line per column over the rows (sites, layers or queries)."""
    n = len(tables)
    columns = min(n, 2)
    rows = -(-n // columns)
    figure = Figure(figsize=(4.5 * columns + 0.5, 2.4 * rows + 0.6), dpi=110, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, (name, table) in zip(panels, tables.items(), strict=False):
        for column, values in enumerate(zip(*table, strict=True)):
            axes.plot(range(len(values)), values, marker="o", ms=3, lw=1.2, label=f"[{column}]")
        if len(table[0]) > 1:
            axes.legend(fontsize=7)
        axes.set_title(name, fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=7)
    for axes in figure.axes[n:]:
        axes.set_visible(False)
    figure.suptitle(title, fontsize=10)
    figure.supxlabel("row of the parameter: a site, a layer or a query", fontsize=8)
    return figure
