"""Figures of a study: loss against learning rate, contrasts with their intervals, equal budgets, scaling."""

import math
from collections.abc import Mapping
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from src.reporting.curves import COLORS
from src.study.phases import Choice
from src.study.statistics import Fit

WIDTH = 7.2


def draw_rates(choices: Mapping[str, Choice]) -> Figure:
    """Draw the search: loss against rate on a logarithmic axis, the chosen rate filled, diverged rates at the top."""
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    finite = [loss for choice in choices.values() for loss in choice.curve.values() if math.isfinite(loss)]
    top = max(finite, default=1.0) + 0.06 * ((max(finite) - min(finite)) if finite else 1.0)
    for (system, choice), color in zip(choices.items(), cycle(COLORS), strict=False):
        curve = {lr: loss for lr, loss in choice.curve.items() if math.isfinite(loss)}
        axes.plot(list(curve), list(curve.values()), color=color, lw=1.4, marker="o", ms=5, mfc="white", label=system)
        if choice.lr is not None:
            axes.plot(choice.lr, choice.curve[choice.lr], "o", color=color, ms=8)
        for lr in choice.curve.keys() - curve.keys():
            axes.plot(lr, top, "x", color=color, ms=8, mew=2)
    rates = sorted({lr for choice in choices.values() for lr in choice.curve})
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(rates))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda lr, _: f"{lr:g}"))
    axes.set(xlabel="learning rate", ylabel="validation loss of the search (nats/token)")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, ncols=1 if len(choices) <= 8 else 2)
    return figure


def draw_losses(losses: Mapping[str, Mapping[int, float]]) -> Figure:
    """Draw the loss of every completed run, a row per system, a color per seed, and means over all seeds."""
    figure = Figure(figsize=(WIDTH, 1.3 + 0.36 * len(losses)), layout="constrained")
    axes = figure.subplots()
    seeds = sorted({seed for by_seed in losses.values() for seed in by_seed})
    for seed, color in zip(seeds, cycle(COLORS), strict=False):
        found = {y: by_seed.get(seed, math.inf) for y, by_seed in enumerate(losses.values())}
        shown = {y: loss for y, loss in found.items() if math.isfinite(loss)}
        axes.plot([*shown.values()], [*shown], "o", color=color, ms=5, alpha=0.8, label=str(seed))
    for y, by_seed in enumerate(losses.values()):
        if len(by_seed) == len(seeds) and all(map(math.isfinite, by_seed.values())):
            axes.plot([sum(by_seed.values()) / len(seeds)] * 2, [y - 0.3, y + 0.3], color="0.3", lw=1.5)
    axes.set_yticks(range(len(losses)), list(losses))
    axes.set_ylim(len(losses) - 0.5, -0.5)
    axes.set_xlabel("validation loss (nats/token)")
    axes.grid(axis="x", alpha=0.25)
    axes.legend(title="seed", fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def draw_contrasts(contrasts: pd.DataFrame, margin: float, detectable: float | None) -> Figure:
    """Draw the planned contrasts with intervals, the margin within which systems are equal, and what is detectable."""
    shown = contrasts[contrasts["difference"].notna()].iloc[::-1]
    figure = Figure(figsize=(WIDTH, 1.3 + 0.42 * len(shown)), layout="constrained")
    axes = figure.subplots()
    if margin:
        axes.axvspan(-margin, margin, color="0.9", lw=0, label=f"margin, {margin:g} nats")
    if detectable is not None:
        for side in (-detectable, detectable):
            label = f"detectable, {detectable:.4f} nats" if side > 0 else None
            axes.axvline(side, color="0.5", lw=1, ls=":", label=label)
    for y, row in enumerate(shown.to_dict("records")):
        is_shown = row["verdict"] in ("better", "worse")
        axes.plot([row["paired low"], row["paired high"]], [y - 0.18] * 2, color="0.6", lw=1)
        axes.plot([row["low"], row["high"]], [y, y], color="C0", lw=2)
        axes.plot(row["difference"], y, "o", color="C0", ms=7, mfc="C0" if is_shown else "white")
    axes.axvline(0, color="0.3", lw=1)
    axes.set_yticks(range(len(shown)), [f"{a} - {b}" for a, b in zip(shown["system"], shown["against"], strict=True)])
    axes.set_ylim(-0.7, len(shown) - 0.4)
    axes.set_xlabel("difference in validation loss (nats; left is better)")
    axes.grid(axis="x", alpha=0.25)
    if margin or detectable is not None:
        axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    return figure


def draw_budgets(tables: Mapping[str, pd.DataFrame], baseline: str) -> Figure:
    """Draw every system's difference to the baseline at equal tokens, FLOPs and seconds."""
    systems = list(dict.fromkeys(name for table in tables.values() for name in table["system"]))
    figure = Figure(figsize=(WIDTH, 1.3 + 0.5 * len(systems)), layout="constrained")
    axes = figure.subplots()
    for number, (kind, table) in enumerate(tables.items()):
        offset = 0.22 * (number - (len(tables) - 1) / 2)
        shown = table[table["difference"].notna()]
        y = [len(systems) - 1 - systems.index(name) - offset for name in shown["system"]]
        spread = [shown["difference"] - shown["low"], shown["high"] - shown["difference"]]
        axes.errorbar(shown["difference"], y, xerr=spread, fmt="o", ms=5, lw=1.5, color=f"C{number}", label=kind)
    axes.axvline(0, color="0.3", lw=1)
    axes.set_yticks(range(len(systems)), systems[::-1])
    axes.set_ylim(-0.7, len(systems) - 0.3)
    axes.set_xlabel(f"validation loss minus {baseline}'s (nats; left is better)")
    axes.grid(axis="x", alpha=0.25)
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    return figure


def draw_scaling(points: pd.DataFrame, fits: Mapping[str, Fit]) -> Figure:
    """Draw loss against parameters, one color per system, with the fits and the band of their 95 % intervals."""
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    axes = figure.subplots()
    sizes = np.geomspace(points["parameters"].min() * 0.9, points["parameters"].max() * 1.1, 60)
    for (system, part), color in zip(points.groupby("system", sort=False), cycle(COLORS), strict=False):
        fit = fits.get(str(system))
        label = str(system)
        if fit is not None:
            curves = np.stack([fit.loss(size) for size in sizes], axis=1)
            low, high = np.quantile(curves[1:], [0.025, 0.975], axis=0)
            axes.fill_between(sizes, low, high, color=color, alpha=0.15, lw=0)
            axes.plot(sizes, curves[0], color=color, lw=1.4)
            label = f"{system}: {fit.floor[0]:.2f} + {fit.scale[0]:.2f} n^-{fit.exponent[0]:.2f}"
        axes.plot(part["parameters"], part["loss"], "o", color=color, ms=5, ls="-" if fit is None else "", label=label)
    axes.set_xscale("log")
    known = sorted(points["parameters"].unique())
    # One tick a size: systems of one size differ in few parameters.
    ticks = [n for i, n in enumerate(known) if i == 0 or n > 1.15 * known[i - 1]]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n / 1e6:.3g} M" if n >= 1e6 else f"{n / 1e3:.3g} k"))
    axes.set(xlabel="parameters", ylabel="validation loss (nats/token)")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    return figure
