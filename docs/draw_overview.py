"""Draw docs/assets/overview.png: a measured mixing map beside validation losses, from finished run folders.

    python -m docs.draw_overview <run folder of the map> <run folder> ...

The figure of the home page is from three runs of 2026-11-29 on a CPU: `residual=vanilla,attnres,hyperconn seed=1
model=tiny model.block_size=128 data.micro_batch_size=8 data.global_batch_size=8 trainer.max_steps=120
trainer.val_every_steps=20`. One seed of 120 steps ranks nothing; it shows what a run draws.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from src.callbacks.run_record import read_metrics, read_result
from src.files import ROOT

matplotlib.use("Agg")


def draw_overview(mapped: Path, folders: list[Path]) -> Figure:
    """Return the figure: the last mixing map of `mapped`, and each system's mean validation loss by tokens."""
    figure = Figure(figsize=(11, 4.6), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))

    # Left: rows are readers (sites, then the head), columns are sources (the embedding, then the sites' outputs).
    last = json.loads((mapped / "stream.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    weights = np.array(last["mixing_KJ"])
    masked = np.ma.masked_where(np.triu(np.ones_like(weights, dtype=bool), k=1), weights)
    image = left.imshow(masked, cmap="Blues", vmin=0.0, interpolation="nearest")
    left.set_xlabel("source: embedding, then outputs of the sublayers")
    left.set_ylabel("reader: sublayers, then the head")
    left.set_title(f"residual={read_name(mapped)}: weights of the sources, step {last['step']}", fontsize=10)
    figure.colorbar(image, ax=left, shrink=0.85)

    # Right: a thin line per seed, a thick one for their mean.
    curves = defaultdict(list)
    for folder in folders:
        rows = [row for row in read_metrics(folder) if "val/loss" in row]
        curves[read_name(folder)].append([(row["tokens"], row["val/loss"]) for row in rows])
    for color, (name, seeds) in zip(("C7", "C0", "C1", "C2"), curves.items(), strict=False):
        points = np.array(seeds)
        right.plot(points[..., 0].T, points[..., 1].T, color=color, lw=0.6, alpha=0.6)
        right.plot(
            points[0, :, 0],
            points[..., 1].mean(0),
            color=color,
            lw=2,
            label=f"{name} ({len(seeds)} seed{'s' if len(seeds) > 1 else ''})",
        )
    right.set_xlabel("training tokens")
    right.set_ylabel("validation loss, nats per token")
    right.grid(alpha=0.3)
    right.legend(fontsize=9)
    right.set_title("validation loss, tiny model on the embedded text", fontsize=10)
    return figure


def read_name(folder: Path) -> str:
    """Return the name of a run."""
    return str((read_result(folder) or {})["name"])


if __name__ == "__main__":
    mapped, *folders = map(Path, sys.argv[1:])
    target = ROOT / "docs" / "assets" / "overview.png"
    target.parent.mkdir(exist_ok=True)
    draw_overview(mapped, folders).savefig(target)
