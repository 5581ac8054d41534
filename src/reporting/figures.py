"""Figures from run records, drawn without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

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
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    figure.savefig(part)
    part.replace(path)
    return figure
