"""Figures of one analysis: the measurements of a checkpoint by depth, its heads, and the sources of its reads.

An analysis is the content of `analysis/step<n>.json`; measurements that it omits have no panel, and a note says why.
"""

import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

from src.reporting.stream_figures import draw_mixing_map

matplotlib.use("Agg")

Analysis = Mapping[str, Any]
KINDS = {"attn": "C0", "mlp": "C1"}


def by_depth(analysis: Analysis, family: str, name: str) -> list[float] | None:
    """Return the means of a measurement by depth, over heads where it has any; None where it is omitted."""
    if family == "sources":
        shares = analysis[family]["shares"]
        return None if shares is None else list(shares[name])
    found = analysis[family][name]
    if found is None:
        return None
    return [float(np.mean(value)) for value in found["mean"]]


def draw_analysis(analysis: Analysis) -> dict[str, Figure]:
    """Draw one checkpoint: `depth` (all measurements by depth), `heads` of attention, and weights of `sources`."""
    figures = {"depth": _draw_depth(analysis), "sources": _draw_sources(analysis)}
    if analysis["attention"]["entropy"] is not None:
        figures["heads"] = _draw_heads(analysis)
    return figures


# ---- one checkpoint by depth


def _draw_depth(analysis: Analysis) -> Figure:
    panels: list[Callable[[Axes], None]] = []

    def add(draw: Callable[[Axes, Analysis], None], *needed: str) -> None:
        if any(_has(analysis, key) for key in needed):
            panels.append(lambda axes: draw(axes, analysis))

    add(_draw_effects, "leave_out.sublayer")
    add(_draw_cosines, "cosine.reads")
    add(_draw_lens, "logit_lens.loss")
    add(_draw_rank, "activations.effective_rank")
    add(_draw_kurtosis, "activations.token_kurtosis", "activations.channel_kurtosis")
    add(_draw_massive, "activations.largest_over_median")
    add(_draw_attention, "attention.entropy")
    add(_draw_streams, "streams.cosine", "streams.spread")
    add(_draw_gains, "streams.composed_forward")
    add(_draw_shares, "sources.shares")
    notes: dict[str, list[str]] = {}
    for key, reason in analysis["omitted"].items():
        notes.setdefault(reason, []).append(key)
    lines = [line for why, keys in notes.items() for line in textwrap.wrap(f"No {', '.join(keys)}: {why}.", 150)]
    n_row = -(-len(panels) // 3)
    heights = [3.1 * n_row + 0.5, 0.17 * len(lines) + 0.02]
    figure = Figure(figsize=(13, sum(heights)), dpi=110, layout="constrained")
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
    grid = upper.subplots(n_row, 3, squeeze=False).flat
    for axes, draw in zip(grid, panels, strict=False):
        draw(axes)
        axes.grid(alpha=0.25)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(which="both", labelsize=8)
        if axes.get_legend_handles_labels()[0]:
            has_twin = len(axes.get_shared_x_axes().get_siblings(axes)) > 1  # whose lines "best" does not see
            axes.legend(fontsize=7, loc="center right" if has_twin else "best")
    for axes in upper.axes[len(panels) : 3 * n_row]:
        axes.set_visible(False)
    loss, tokens = analysis["leave_out"]["loss"]["mean"], analysis["tokens"]
    title = f"{analysis['name']}, step {analysis['step']}: loss {loss:.4f} on {tokens['sequences']} sequences"
    upper.suptitle(f"{title} of {tokens['length']} tokens; bands and bars: two standard errors", fontsize=11)
    lower.text(0.01, 0.98, "\n".join(lines), fontsize=7, color="0.35", va="top")
    return figure


def _has(analysis: Analysis, key: str) -> bool:
    family, _, name = key.partition(".")
    return analysis[family][name] is not None


def _line(axes: Axes, analysis: Analysis, family: str, name: str, **style: Any) -> None:
    """Plot the means by depth with a band of two standard errors, if the measurement exists."""
    values = by_depth(analysis, family, name)
    if values is None:
        return
    x, mean = np.arange(len(values)), np.asarray(values)
    (line,) = axes.plot(x, mean, **{"marker": "o", "ms": 3, "lw": 1.2, **style})
    error = analysis[family][name]["se"]
    if error is not None and np.ndim(error) == 1:
        wide = 2 * np.asarray(error)
        axes.fill_between(x, mean - wide, mean + wide, color=line.get_color(), alpha=0.15, lw=0)


def set_log_scale(axes: Axes) -> None:
    """Make the y axis logarithmic, labeled by plain numbers."""
    axes.set_yscale("log")
    for write in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        write(LogFormatter(minor_thresholds=(1.5, 0.4)))


def set_title(axes: Axes, title: str, x: str) -> None:
    """Set the title of a panel and the label of its x axis."""
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x, fontsize=8)


def _draw_effects(axes: Axes, analysis: Analysis) -> None:
    sites, found = analysis["sites"], analysis["leave_out"]
    for kind, color in KINDS.items():
        at = [k for k, site in enumerate(sites) if site["kind"] == kind]
        mean = [found["sublayer"]["mean"][k] for k in at]
        error = None if found["sublayer"]["se"] is None else [2 * found["sublayer"]["se"][k] for k in at]
        axes.bar(at, mean, yerr=error, color=color, label=kind, width=0.8, error_kw={"lw": 0.8})
    if found["block"] is not None:
        blocks = [site["block"] for site in sites]
        centers = [np.mean([k for k, b in enumerate(blocks) if b == block]) for block in dict.fromkeys(blocks)]
        axes.plot(centers, found["block"]["mean"], "k_", ms=14, mew=1.5, label="whole block")
    axes.axhline(0, color="0.4", lw=0.8)
    set_title(axes, "loss without it minus the loss (nats/token)", "site")


def _draw_cosines(axes: Axes, analysis: Analysis) -> None:
    _line(axes, analysis, "cosine", "states", label="states")
    _line(axes, analysis, "cosine", "reads", label="reads", ls="--", ms=2)
    set_title(axes, "cosine with the next state or read", "site")


def _draw_lens(axes: Axes, analysis: Analysis) -> None:
    _line(axes, analysis, "logit_lens", "loss", label="loss")
    axes.axhline(analysis["leave_out"]["loss"]["mean"], color="0.4", lw=0.8, ls=":")
    set_title(axes, "logit lens: loss (nats/token), agreement (right)", "blocks before it")
    if _has(analysis, "logit_lens.agreement"):
        right = axes.twinx()
        _line(right, analysis, "logit_lens", "agreement", color="C2", ls="--", ms=2)
        right.set_ylim(0, 1.03)
        right.tick_params(labelsize=8, colors="C2")
        axes.plot([], [], color="C2", ls="--", label="agreement with the model")


def _draw_rank(axes: Axes, analysis: Analysis) -> None:
    _line(axes, analysis, "activations", "effective_rank")
    axes.set_ylim(bottom=0)
    set_title(axes, "effective rank of the read", "read (the last is the end)")


def _draw_kurtosis(axes: Axes, analysis: Analysis) -> None:
    _line(axes, analysis, "activations", "token_kurtosis", label="of a token, over channels")
    _line(axes, analysis, "activations", "channel_kurtosis", label="of the channels' RMS", color="C3")
    axes.axhline(3, color="0.4", lw=0.8, ls=":")
    set_log_scale(axes)
    set_title(axes, "kurtosis of the read (dotted: Gaussian)", "read (the last is the end)")


def _draw_massive(axes: Axes, analysis: Analysis) -> None:
    _line(axes, analysis, "activations", "largest_over_median", label="largest / median")
    _line(axes, analysis, "activations", "largest", label="largest", ls="--", ms=2)
    set_log_scale(axes)
    counts = by_depth(analysis, "activations", "massive") or [0.0]
    set_title(axes, f"largest |x| of the read (massive: at most {max(counts):.4g})", "read (the last is the end)")


def _draw_attention(axes: Axes, analysis: Analysis) -> None:
    for name, label in (("entropy", "entropy / ln t"), ("sink_mass", "mass on the first token")):
        found = analysis["attention"][name]
        if found is None:
            continue
        heads = np.asarray(found["mean"])
        (line,) = axes.plot(heads.mean(1), marker="o", ms=3, lw=1.2, label=label)
        axes.fill_between(range(len(heads)), heads.min(1), heads.max(1), color=line.get_color(), alpha=0.15, lw=0)
    axes.set_ylim(0, 1.03)
    set_title(axes, "attention: mean over heads, and their range", "attention site")


def _draw_streams(axes: Axes, analysis: Analysis) -> None:
    _line(axes, analysis, "streams", "cosine", label="mean cosine of two streams")
    _line(axes, analysis, "streams", "spread", label="share around their mean")
    set_title(axes, "spread of the streams", "state")


def _draw_gains(axes: Axes, analysis: Analysis) -> None:
    for name, color in (("forward", "C0"), ("backward", "C3")):
        _line(axes, analysis, "streams", f"composed_{name}", label=f"from here to the end, {name}", color=color)
        style = {"color": color, "ls": ":", "ms": 2, "alpha": 0.7}
        _line(axes, analysis, "streams", f"site_{name}", label=f"this site, {name}", **style)
    set_log_scale(axes)
    set_title(axes, "gain of the mixing of streams", "site")


def _draw_shares(axes: Axes, analysis: Analysis) -> None:
    shares = analysis["sources"]["shares"]
    for name, label in (("embedding", "share of the embedding"), ("newest", "share of the newest")):
        axes.plot(shares[name], marker="o", ms=3, lw=1.2, label=label)
    n = len(shares["count"])
    axes.plot(np.asarray(shares["count"]) / np.arange(1, n + 1), "k--", lw=1, label="effective number / number")
    axes.set_ylim(0, 1.03)
    set_title(axes, "sources of the read", "read (the last is the end)")


# ---- heads and sources of one checkpoint


def _draw_heads(analysis: Analysis) -> Figure:
    n_site, n_head = np.shape(analysis["attention"]["entropy"]["mean"])
    figure = Figure(figsize=(max(7.0, 1.6 + 0.7 * n_head), 2.0 + 0.24 * n_site), dpi=110, layout="constrained")
    names = {"entropy": ("entropy / ln t", "viridis"), "sink_mass": ("mass on the first token", "magma")}
    blocks = [site["block"] for site in analysis["sites"] if site["kind"] == "attn"]
    for axes, (name, (title, colors)) in zip(figure.subplots(1, 2), names.items(), strict=True):
        grid = np.asarray(analysis["attention"][name]["mean"])
        image = axes.imshow(grid, cmap=colors, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes.set(xlabel="head", ylabel="block")
        axes.set_title(title, fontsize=10)
        shown = range(0, n_site, max(1, n_site // 16))
        axes.set_yticks(shown, [str(blocks[i]) for i in shown], fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.colorbar(image, ax=axes, shrink=0.9)
    figure.suptitle(f"attention of {analysis['name']} at step {analysis['step']}", fontsize=10)
    return figure


def _draw_sources(analysis: Analysis) -> Figure:
    found, sites = analysis["sources"], analysis["sites"]
    labels = [f"{site['kind']} {site['block']}" for site in sites]
    names = [
        "x0" if s["site"] < 0 else f"+ {sites[s['site']]['block']}" if s["addition"] else labels[s["site"]]
        for s in found["sources"]
    ]
    origin = f"{found['origin']}; explain at least {min(found['explained']):.1%} of any input"
    title = f"weights of {analysis['name']} at step {analysis['step']} ({origin})"
    first = [s["first_reader"] for s in found["sources"]]
    return draw_mixing_map(found["weights"], [*labels, "end"], names, first, title)
