"""Figure of a benchmark: time over the baseline's with quartiles, the parts of a step, and memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from src.reporting.figures import save_figure

MIB = 2**20
#: Parts of a step in their order; the whole step of a peer is "not split".
PARTS = ("data", "forward", "loss", "backward", "optimizer", "loop", "not split")


def draw_bench(results: Mapping[str, Any], path: Path) -> Figure:
    """Draw three panels side by side, one row per configuration, the baseline on top, and write them to `path`.

    `results` is the content of bench.json.
    """
    timings = results["timings"]
    names = list(timings)
    longest = max(map(len, names))
    figure = Figure(figsize=(11 + 0.07 * min(longest, 60), 1.9 + 0.34 * len(names)), dpi=110, layout="constrained")
    ratio, parts, memory = figure.subplots(1, 3, sharey=True, width_ratios=(1, 1.3, 1))
    _draw_ratios(ratio, timings)
    _draw_parts(parts, results)
    rows = range(len(names))
    state = [t["state_bytes"] / MIB for t in timings.values()]
    memory.barh(rows, state, color="0.7", label="weights and optimizer")
    within = [t["step_bytes"] / MIB for t in timings.values()]
    memory.barh(rows, within, left=state, color="C9", label="within a step")
    memory.set_xlabel("memory (MiB)")
    ratio.set_yticks(rows, [name if len(name) <= 60 else f"{name[:59]}\u2026" for name in names])
    ratio.invert_yaxis()
    for axes in (ratio, parts, memory):
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    for axes, columns in ((parts, 4), (memory, 1)):
        axes.legend(fontsize=8, ncols=columns, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    figure.suptitle(results["measured"], fontsize=9)
    save_figure(figure, path)
    return figure


def _draw_ratios(axes: Axes, timings: Mapping[str, Any]) -> None:
    for row, timing in enumerate(timings.values()):
        low, middle, high = np.percentile(timing["ratios"], [25, 50, 75])
        spread = [[middle - low], [high - middle]]
        axes.errorbar([middle], [row], xerr=spread, fmt="o", ms=5, color="C0", ecolor="C0", capsize=3)
    axes.axvline(1.0, color="0.4", lw=1)
    axes.set_xlabel("time per token over the baseline's, quartiles")


def _draw_parts(axes: Axes, results: Mapping[str, Any]) -> None:
    data, loop = results["data_seconds"], results["loop_seconds"]
    rows = []
    for name, timing in results["timings"].items():
        parts = timing["parts"]
        seconds = sum(timing["seconds"]) / len(timing["seconds"])
        around = {"data": data.get(name) or 0.0, "loop": loop} if parts else {"not split": seconds}
        rows.append({**parts, **around})
    left = [0.0] * len(rows)
    for number, part in enumerate(PARTS):
        widths = [1e3 * row.get(part, 0.0) for row in rows]
        if any(widths):
            axes.barh(range(len(rows)), widths, left=left, color=f"C{number}", label=part)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_xlabel("parts of a step (ms)")
