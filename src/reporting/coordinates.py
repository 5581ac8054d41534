"""Figure of a coordinate check: how far activations move in a few steps, by width and by depth."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from src.reporting.figures import save_figure


def draw_coordinates(tables: Sequence[Mapping[str, Any]], path: Path) -> Figure:
    """Draw one panel for each table of check.json's `coordinates`, and write them to `path`."""
    figure = Figure(figsize=(3.4 * len(tables), 3.4), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(tables), sharey=True)
    for axes, table in zip(panels, tables, strict=True):
        for name, values in table["moved"].items():
            axes.loglog(table["sizes"], values, marker="o", ms=3, label=name)
        axes.set_xticks(table["sizes"], [str(size) for size in table["sizes"]])
        axes.minorticks_off()
        axes.set_xlabel(table["axis"])
        axes.set_title(table["rule"], fontsize=9)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("rms of the change to init")
    panels[0].legend(fontsize=7)
    save_figure(figure, path)
    return figure
