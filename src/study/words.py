"""Verdict of a study in sentences that claim no more than its numbers."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from src.reporting.tables import format_cell
from src.study.describe import join_words
from src.study.plan import UNITS
from src.study.statistics import complete_table
from src.study.verdict import Comparison, Verdict


def format_interval(low: float | None, high: float | None) -> str:
    """Return the bounds of an interval, or a dash without them."""
    return "-" if low is None or pd.isna(low) else f"{low:+.4f} to {high:+.4f}"


def state_verdict(verdict: Verdict) -> list[str]:
    """State what the study shows, one sentence each."""
    main = verdict.main
    if main is None:
        return ["The confirmation has not begun, so the study shows nothing yet."]
    if not main.is_complete:
        return [
            f"The confirmation is not complete: {main.n_ended} of {main.n_planned} runs, so there is no verdict yet."
        ]
    plan = verdict.plan
    n = len(plan.seeds.confirmation)
    sentences = [
        f"At size {main.size}, with {plan.budget.amount(main.size):,.12g} {UNITS[main.kind]} a run, a learning rate "
        f"searched for each system and {n} fresh seeds:"
    ]
    sentences += [_state_contrast(row, verdict, main) for row in main.contrasts.to_dict("records")]
    sentences += _state_variances(main)
    sentences += _state_budgets(verdict)
    sentences += _state_scaling(verdict)
    sentences.append("Other sizes, budgets and data may differ.")
    return sentences


def _state_contrast(row: Mapping[str, Any], verdict: Verdict, main: Comparison) -> str:
    alpha, margin = verdict.plan.alpha, verdict.plan.margin
    names = f"{row['system']} and {row['against']}"
    if row["verdict"] == "not tested":
        pair = (row["system"], row["against"])
        reasons = [f"{name} diverged at every rate of the search" for name in pair if verdict.choices[name].lr is None]
        some = [name for name in pair if any(map(math.isinf, main.losses.get(name, {}).values()))]
        reasons += [f"a run of {' and '.join(some)} diverged"] if some else []
        return f"{names} are not tested, since {' and '.join(reasons)}."
    size, p = f"{abs(row['difference']):.4f} nats", format_cell("p", row["p (Holm)"])
    facts = f"({100 * (1 - alpha):g} % interval {format_interval(row['low'], row['high'])}, p {p} after Holm)"
    if row["verdict"] in ("better", "worse"):
        return f"{row['system']} is {size} {row['verdict']} than {row['against']} {facts}."
    if row["verdict"] == "equal":
        return f"{names} are equal within the margin of {margin:g} nats {facts}."
    seen = (
        ""
        if main.detectable is None
        else f"; a difference of {main.detectable:.4f} nats would be seen with the planned power"
    )
    return f"{names} are not distinguished {facts}{seen}."


def _state_variances(main: Comparison) -> list[str]:
    """State what the paired tests find where the data speak against the pooled error."""
    if not main.has_unequal_variances:
        return []
    table = complete_table(main.losses)
    sds = {
        f"{one} and {other}": float((table.loc[one] - table.loc[other]).std())
        for one, other in itertools.combinations(table.index, 2)
    }
    least, most = min(sds, key=sds.__getitem__), max(sds, key=sds.__getitem__)
    changed = [
        f"{row['system']} against {row['against']} is {row['verdict (paired)']}"
        for row in main.contrasts.to_dict("records")
        if row["verdict (paired)"] != row["verdict"]
    ]
    found = f"by the paired tests, {join_words(changed)}" if changed else "the paired tests give the same ones"
    return [
        "These verdicts assume that the differences of all pairs of systems vary alike over seeds, which the runs speak "
        f"against (sd {sds[least]:.4f} of {least} to {sds[most]:.4f} of {most}; p "
        f"{format_cell('p', main.p_variances)}): {found}."
    ]


def _state_budgets(verdict: Verdict) -> list[str]:
    """State which of the planned contrasts come out otherwise at the other equal budgets."""
    main = verdict.main
    sentences = []
    for kind, comparison in verdict.comparisons.items():
        if main is None or comparison is main or not comparison.is_complete:
            continue
        changed = [
            f"{ours['system']} against {ours['against']} is {ours['verdict']}{_state_size(ours['difference'])}"
            for ours, theirs in zip(
                comparison.contrasts.to_dict("records"), main.contrasts.to_dict("records"), strict=True
            )
            if ours["verdict"] != theirs["verdict"]
        ]
        if changed:
            sentences.append(f"At equal {UNITS[kind]}, {', '.join(changed)}.")
        else:
            sentences.append(f"At equal {UNITS[kind]} the verdicts are the same.")
    return sentences


def _state_size(difference: float | None) -> str:
    return "" if pd.isna(difference) else f" ({difference:+.4f} nats)"


def _state_scaling(verdict: Verdict) -> list[str]:
    if verdict.scaling is None or verdict.scaling.multipliers.empty:
        return []
    largest = verdict.scaling.points.sort_values("parameters")["size"].iloc[-1]
    sentences = []
    for row in verdict.scaling.multipliers.to_dict("records"):
        if row["size"] != largest or row["system"] == verdict.plan.baseline:
            continue
        if any(math.isinf(row[key]) for key in ("compute", "low", "high")):
            sentences.append(
                f"By its own fit {verdict.plan.baseline} may not reach {row['system']}'s loss at size {largest}."
            )
            continue
        facts = [] if math.isnan(row["low"]) else [f"95 % interval {row['low']:.2f} to {row['high']:.2f}"]
        facts += ["an extrapolation"] if row["beyond"] == "yes" else []
        note = f" ({', '.join(facts)})" if facts else ""
        if "seconds" in verdict.plan.budget.kinds:
            note += f", and {row['with throughput']:.2f} times its seconds"
        sentences.append(
            f"At size {largest} {verdict.plan.baseline} would need {row['compute']:.2f} times the compute of "
            f"{row['system']}{note}."
        )
    return sentences
