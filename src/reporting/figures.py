"""Figures from run records, drawn without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

matplotlib.use("Agg")

Rows = Sequence[Mapping[str, float]]


def loss_curves(runs: Mapping[str, Rows], path: Path) -> Figure:
    """Training (thin) and validation (marked) loss against tokens, a colour a run; written to `path`."""
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for i, (name, rows) in enumerate(runs.items()):
        colour = f"C{i % 10}"
        for key, style in (("train/loss", {"lw": 0.8, "alpha": 0.6}), ("val/loss", {"marker": "o", "ms": 4})):
            points = [(row["tokens"], row[key]) for row in rows if key in row]
            if points:
                x, y = zip(*points, strict=True)
                axes.plot(x, y, color=colour, label=f"{name} {key.partition('/')[0]}", **style)
    axes.set_xlabel("tokens")
    axes.set_ylabel("loss (nats/token)")
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path)
    return figure


def visit_order(layers: Sequence[int], title: str) -> Figure:
    """The layer against the visit, a mark a visit; a layer visited again is drawn open."""
    figure = Figure(figsize=(min(2 + 0.35 * len(layers), 12), 4), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.plot(range(len(layers)), layers, color="0.75", lw=1, zorder=1)
    again = [layer in layers[:i] for i, layer in enumerate(layers)]
    for repeated, face, label in ((False, "C0", "first"), (True, "w", "again")):
        points = [(i, layer) for i, layer in enumerate(layers) if again[i] is repeated]
        if points:
            x, y = zip(*points, strict=True)
            axes.scatter(x, y, s=60, zorder=2, label=label, facecolors=face, edgecolors="C0", linewidths=2)
    axes.set_xlabel("visit")
    axes.set_ylabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    axes.set_title(title, fontsize=9, wrap=True)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Draw to a file in one piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    figure.savefig(part)
    part.replace(path)
