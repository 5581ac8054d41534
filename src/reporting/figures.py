"""Figures of run records, drawn without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from src.reporting.columns import Columns, thin

matplotlib.use("Agg")

#: Maximum number of points drawn of a curve is below twice this.
MAX_POINTS = 2000


def draw_loss_curves(runs: Mapping[str, Columns], path: Path) -> Figure:
    """Draw training (thin) and validation (marked) loss against tokens, one color per run, and write it to `path`."""
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for i, (name, columns) in enumerate(runs.items()):
        color = f"C{i % 10}"
        for key, style in (("train/loss", {"lw": 0.8, "alpha": 0.6}), ("val/loss", {"marker": "o", "ms": 4})):
            shown = thin(columns, key, MAX_POINTS)
            if len(shown[key]):
                label = f"{name} {key.partition('/')[0]}"
                axes.plot(shown["tokens"], shown[key], color=color, label=label, **style)
    axes.set(xlabel="tokens", ylabel="loss (nats/token)")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)
    return figure


def draw_visit_order(layers: Sequence[int], title: str) -> Figure:
    """Draw the layer of each visit; visits to a layer after its first have open markers."""
    figure = Figure(figsize=(min(2 + 0.35 * len(layers), 12), 4), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.plot(range(len(layers)), layers, color="0.75", lw=1, zorder=1)
    repeated = [layer in layers[:i] for i, layer in enumerate(layers)]
    for is_repeated, face, label in ((False, "C0", "first"), (True, "w", "again")):
        points = [(i, layer) for i, layer in enumerate(layers) if repeated[i] is is_repeated]
        if points:
            x, y = zip(*points, strict=True)
            axes.scatter(x, y, s=60, zorder=2, label=label, facecolors=face, edgecolors="C0", linewidths=2)
    axes.set(xlabel="visit", ylabel="layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    axes.set_title(title, fontsize=9, wrap=True)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure to a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    figure.savefig(part)
    part.replace(path)
