"""Sections of a study's page on its ladder: fits, compute multipliers, depth and width."""

import math

from src.reporting.curves import render_svg
from src.reporting.page import Picture, Section, Table
from src.study import figures
from src.study.comparison_sections import format_signed
from src.study.statistics import percentile_interval
from src.study.verdict import Verdict

# ---- scaling


def build_scaling_sections(verdict: Verdict) -> list[Section]:
    """Build the section on the ladder: fits, compute multipliers, losses by depth and width."""
    scaling = verdict.scaling
    if scaling is None:
        return []
    texts, shown = [], []
    n_sizes = scaling.points["size"].nunique()
    if scaling.fits:
        texts.append(
            "L(n) = E + A / n^a by least squares, n the parameters over the geometric mean of the sizes. 95 % "
            "intervals resample seeds; with few seeds they are too short, where a size has one seed there is none, "
            "and with three sizes the fit goes through all points."
        )
        rows = []
        for system, fit in scaling.fits.items():
            values = [f"{v[0]:.3f} [{_bounds(percentile_interval(v))}]" for v in (fit.floor, fit.scale, fit.exponent)]
            rows.append([system, *values])
        shown.append(Table(["system", "E", "A", "a"], rows, verdict.plan.baseline))
    else:
        texts.append(
            f"There is no fit of L(N) and no compute multiplier: they need three sizes, and {n_sizes} have runs."
        )
    if not scaling.multipliers.empty:
        has_seconds = "seconds" in verdict.plan.budget.kinds
        seconds = "With throughput: the same in seconds at the speeds of the compared runs. " if has_seconds else ""
        texts.append(
            f"Compute multiplier: the FLOPs that {verdict.plan.baseline} needs for the system's loss by its own fit, "
            f"over the system's FLOPs. {seconds}Beyond: the loss is outside of the losses that the "
            "baseline's fit was made from, so the number extrapolates."
        )
        times = ["with throughput", "95 % interval"] if has_seconds else []
        rows = [
            [
                str(row["system"]),
                str(row["size"]),
                _times(row["compute"]),
                _times_between(row["low"], row["high"]),
                *([_times(row["with throughput"]), _times_between(row["time low"], row["time high"])] if times else []),
                str(row["beyond"]),
            ]
            for row in scaling.multipliers.to_dict("records")
        ]
        shown.append(Table(["system", "size", "compute multiplier", "95 % interval", *times, "beyond"], rows))
    if scaling.diverged:
        cells = ", ".join(f"{system} at size {size}" for system, size in scaling.diverged)
        texts.append(f"Left out, since a run of it diverged: {cells}.")
    shown.append(_build_grid(verdict))
    texts.append(
        f"The last table has each system's loss minus {verdict.plan.baseline}'s by depth (model.n_layer) and width "
        "(model.n_embd); a dash where the ladder has no such size."
    )
    svg = render_svg(figures.draw_scaling(scaling.points, scaling.fits))
    return [Section("Over sizes", texts, tables=shown, pictures=[Picture("Loss against parameters", svg=svg)])]


def _bounds(interval: tuple[float, float]) -> str:
    return "-" if math.isnan(interval[0]) else f"{interval[0]:.3f}, {interval[1]:.3f}"


def _times(value: float) -> str:
    return "unreached" if math.isinf(value) else f"{value:.2f}x"


def _times_between(low: float, high: float) -> str:
    return "-" if math.isnan(low) else f"{_times(low)} to {_times(high)}"


def _build_grid(verdict: Verdict) -> Table:
    """Build the table of differences to the baseline by depth and width."""
    assert verdict.scaling is not None  # the caller has it
    points = verdict.scaling.points
    base = points[points["system"] == verdict.plan.baseline].set_index("size")["loss"]
    widths = sorted(points["width"].unique())
    rows = []
    for system, part in points.groupby("system", sort=False):
        for depth, layer in part.groupby("depth"):
            cells = []
            for width in widths:
                found = layer[layer["width"] == width]
                known = [
                    row["loss"] - base[row["size"]] for row in found.to_dict("records") if row["size"] in base.index
                ]
                cells.append(format_signed(known[0]) if known else "-")
            rows.append([str(system), str(depth), *cells])
    return Table(["system", "depth", *(f"width {width}" for width in widths)], rows)
