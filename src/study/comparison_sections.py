"""Sections of a study's page on its comparisons: planned contrasts, the search, equal budgets."""

import math
from statistics import fmean, stdev

import pandas as pd

from src.reporting.curves import render_svg
from src.reporting.page import Picture, Section, Table
from src.reporting.tables import format_cell
from src.study import figures
from src.study.describe import format_loss, join_words
from src.study.plan import UNITS
from src.study.verdict import Comparison, Verdict
from src.study.words import format_interval


def join_numbers(numbers: list[int]) -> str:
    """Return numbers separated by commas, or `none`."""
    return ", ".join(map(str, numbers)) or "none"


# ---- contrasts


def build_contrasts(verdict: Verdict, main: Comparison) -> Section:
    """Build the section of the planned contrasts."""
    level = f"{100 * (1 - verdict.plan.alpha):g} %"
    texts = [
        f"Final validation loss at size {main.size} and equal {UNITS[main.kind]}; the difference is the first "
        f"system's minus the second's. Intervals ({level}) and p values use the error pooled over all systems and "
        "seeds, and so does the verdict; the paired ones use the two systems alone, and hold if systems differ in "
        "their variance."
    ]
    if not main.is_complete:
        texts.append(f"{main.n_ended} of {main.n_planned} runs have ended: differences without tests and verdicts.")
    elif main.error is not None:
        found = "no difference is too small to detect, as no run varies"
        if main.detectable is not None:
            found = f"with it, {main.detectable:.4f} nats are detected with power {verdict.plan.power:g}"
        texts.append(
            f"Block error: sd {main.error.sd:.4f} nats with {main.error.freedom} degrees of freedom; {found} at the "
            "first level of Holm's method."
        )
        if main.p_variances is not None:
            p = format_cell("p", main.p_variances)
            texts.append(f"Test that differences of all pairs vary alike over seeds: p {p} (Bartlett, normal errors).")
    table = _contrast_table(main.contrasts, level)
    pictures = []
    if main.contrasts["difference"].notna().any():
        svg = render_svg(figures.draw_contrasts(main.contrasts, verdict.plan.margin, main.detectable))
        pictures.append(Picture(f"Planned contrasts with {level} intervals (thin: paired; filled: different)", svg=svg))
    return Section("Planned contrasts", texts, tables=[table], pictures=pictures)


def _contrast_table(frame: pd.DataFrame, level: str) -> Table:
    columns = ["system", "against", "seeds", "difference", f"{level} interval", "p", "p (Holm)", "verdict"]
    rows = [
        [
            str(row["system"]),
            str(row["against"]),
            format_cell("n seeds", row["n_seeds"]),
            format_signed(row["difference"]),
            format_interval(row["low"], row["high"]),
            format_cell("p", row["p"]),
            format_cell("p", row["p (Holm)"]),
            str(row["verdict"]),
            format_interval(row["paired low"], row["paired high"]),
            format_cell("p", row["p (paired, Holm)"]),
            str(row["verdict (paired)"]),
        ]
        for row in frame.to_dict("records")
    ]
    return Table([*columns, "paired interval", "p (paired, Holm)", "verdict (paired)"], rows)


def format_signed(value: float | None) -> str:
    """Return a difference with its sign and four digits, or a dash without one."""
    return "-" if value is None or pd.isna(value) else f"{value:+.4f}"


# ---- search


def build_search(verdict: Verdict, main: Comparison) -> Section:
    """Build the section of the search: chosen rates, the losses confirmed, loss against rate."""
    plan = verdict.plan
    tokens = f"{plan.budget.search_share:.0%} of the budget"
    text = (
        f"Each system at the rate with the smallest mean loss of the search (seeds {join_numbers(plan.seeds.search)}, "
        f"{tokens}, size {main.size}), then run with fresh seeds. Losses of the search enter no comparison."
    )
    rows = []
    for system, choice in verdict.choices.items():
        losses = main.losses.get(system, {})
        n_diverged = sum(map(math.isinf, losses.values()))
        rows.append(
            [
                system,
                "-" if choice.lr is None else f"{choice.lr:g}",
                ", ".join(f"{lr:g}" for lr in choice.curve),
                "yes" if choice.is_edge else "no",
                "-" if choice.lr is None else format_loss(choice.curve[choice.lr]),
                format_loss(fmean(losses.values())) if losses else "-",
                f"{stdev(losses.values()):.4f}" if len(losses) > 1 and not n_diverged else "-",
                str(len(losses)),
                str(n_diverged),
            ]
        )
    columns = [
        "system",
        "rate",
        "tried",
        "at the edge",
        "loss of the search",
        "loss confirmed",
        "sd",
        "seeds",
        "diverged",
    ]
    svg = render_svg(figures.draw_rates(verdict.choices))
    pictures = [Picture("Search: loss against learning rate; filled: chosen, x: diverged", svg=svg)]
    if any(map(math.isfinite, (loss for losses in main.losses.values() for loss in losses.values()))):
        svg = render_svg(figures.draw_losses(main.losses))
        pictures.append(
            Picture("Confirmation: loss of every completed run; bar: mean of a system without a diverged run", svg=svg)
        )
    return Section("Best against best", [text], tables=[Table(columns, rows, plan.baseline)], pictures=pictures)


# ---- equal budgets


def build_budgets(verdict: Verdict) -> Section:
    """Build the section of the equal budgets, a table each; seconds are stated where the plan compares by them."""
    plan = verdict.plan
    units = [UNITS[kind] for kind in plan.budget.kinds]
    text = f"Every run's learning-rate schedule ends at its budget of {units[0]}."
    if len(units) > 1:
        text += f" In another unit a system gets what {plan.baseline}'s run costs in it."
    has_seconds = "seconds" in plan.budget.kinds
    if has_seconds:
        text += (
            " Seconds are those of training steps at the speed that the timing phase measured; the column states what "
            "the runs took."
        )
    shown = []
    level = f"{100 * (1 - plan.alpha):g} %"
    for kind, comparison in verdict.comparisons.items():
        rows = []
        against = comparison.against_baseline.set_index("system")
        for system, runs in comparison.runs.items():
            if not runs:
                continue
            first, losses = runs[0].result, comparison.losses[system].values()
            row = against.loc[system].to_dict() if system in against.index else None
            rows.append(
                [
                    system,
                    f"{first['steps']:,}",
                    f"{first['tokens']:,}",
                    f"{first['tokens'] * first['flops_per_token']:.4g}",
                    *([f"{comparison.seconds[system]:,.4g}"] if has_seconds else []),
                    str(len(losses)),
                    format_loss(fmean(losses)),
                    "-" if row is None else format_signed(row["difference"]),
                    "-" if row is None else format_interval(row["low"], row["high"]),
                ]
            )
        if rows:
            costs = ["steps", "tokens", "FLOPs", *(["seconds"] if has_seconds else []), "seeds"]
            found = [f"loss at equal {UNITS[kind]}", "difference", f"{level} interval"]
            shown.append(Table(["system", *costs, *found], rows, plan.baseline))
    pictures = []
    frames = {f"equal {UNITS[kind]}": c.against_baseline for kind, c in verdict.comparisons.items()}
    if len(frames) > 1 and any(frame["difference"].notna().any() for frame in frames.values()):
        svg = render_svg(figures.draw_budgets(frames, plan.baseline))
        pictures.append(Picture(f"Differences to {plan.baseline} with {level} intervals", svg=svg))
    return Section(f"At equal {join_words(units)}", [text], tables=shown, pictures=pictures)
