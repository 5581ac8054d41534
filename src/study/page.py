"""Page of a study's verdict: report.md, report.html, contrasts.csv, scaling.csv."""

import math
from pathlib import Path

import pandas as pd

from src.files import write_atomic
from src.reporting import tables
from src.reporting.conditions import warn_of_conditions
from src.reporting.page import Picture, Section, Table, to_html, to_markdown
from src.reporting.systems import Difference, System
from src.study.comparison_sections import build_budgets, build_contrasts, build_search, join_numbers
from src.study.describe import count_noun, describe_power
from src.study.record import list_outdated
from src.study.scaling_sections import build_scaling_sections
from src.study.verdict import Verdict, build_verdict, list_diverged, pick_figures
from src.study.words import state_verdict

#: Figures of a run's mechanism: of the stream, and of task=analyze.
MECHANISM = ("figures/stream_*.png", "analysis/*.png")
#: Relative difference above which runs at equal seconds are reported as unequal.
SECONDS_TOLERANCE = 0.1


def write_verdict(study: Path, folder: Path) -> tuple[Path, list[str]]:
    """Write the page of a study into `folder`; return the path of report.html and the verdict's sentences.

    Raises:
        ValueError: the study's record or a run cannot be read, or nothing has been timed yet.
    """
    verdict = build_verdict(study)
    counts = [count_noun(len(verdict.plan.systems), "system"), count_noun(len(verdict.plan.sizes), "size")]
    title = f"Study {verdict.record.name}: {', '.join(counts)}"
    sections = build_sections(verdict)
    write_atomic(folder / "report.md", to_markdown(title, sections))
    write_atomic(folder / "report.html", to_html(title, sections))
    if verdict.comparisons:
        frames = [c.contrasts.assign(equal=kind, size=c.size) for kind, c in verdict.comparisons.items()]
        write_atomic(folder / "contrasts.csv", pd.concat(frames).to_csv(index=False))
    if verdict.scaling is not None:
        write_atomic(folder / "scaling.csv", verdict.scaling.points.to_csv(index=False))
    return folder / "report.html", state_verdict(verdict)


def build_sections(verdict: Verdict) -> list[Section]:
    """Build the sections of the page; what is missing is named in the first."""
    sections = [_summarize(verdict), _describe_plan(verdict)]
    if verdict.main is not None:
        sections += [
            build_contrasts(verdict, verdict.main),
            build_search(verdict, verdict.main),
            build_budgets(verdict),
            *build_scaling_sections(verdict),
            *_build_mechanism(verdict),
            *_list_differences(verdict),
        ]
    return [*sections, *_list_diverged(verdict), *_list_runs(verdict)]


# ---- words


def _summarize(verdict: Verdict) -> Section:
    warnings = []
    if verdict.missing:
        warnings.append(f"The study is not complete. Missing: {'; '.join(verdict.missing)}.")
    for change in verdict.record.changes:
        changed = ", ".join(f"{key} was {old}, is {new}" for key, (old, new) in change["keys"].items())
        warnings.append(
            f"The plan changed on {change['time']}, after the confirmation began: {changed}. {change['reason']}."
        )
    if verdict.other_plans:
        warnings.append(f"Compared runs were made under another plan: {', '.join(verdict.other_plans)}.")
    if outdated := list_outdated(verdict.record, verdict.results):
        warnings.append(f"By the results of now these are not the frozen values: {'; '.join(outdated)}.")
    edges = [system for system, choice in verdict.choices.items() if choice.is_edge and choice.lr is not None]
    if edges:
        warnings.append(
            "The best rate is at the edge of those that were tried, so a better one may lie beyond it: "
            f"{', '.join(edges)}."
        )
    if never := [system for system, choice in verdict.choices.items() if choice.lr is None]:
        warnings.append(f"Diverged at every rate of the search, so not compared: {', '.join(never)}.")
    keys = sorted({f"{one.key} ({one.system})" for one in verdict.unexplained if one.what == "loss"})
    if keys:
        warnings.append(f"Differs besides what the plan states, so the comparison is unfair in it: {', '.join(keys)}.")
    warnings += warn_of_conditions(verdict.unexplained, verdict.list_systems())
    if unequal := _find_unequal_seconds(verdict):
        warnings.append(
            f"The runs at equal seconds did not take equal seconds ({', '.join(unequal)}): the machine's speed changed "
            "after the timing phase, so that comparison does not hold."
        )
    return Section("In words", [" ".join(state_verdict(verdict))], warnings=warnings)


def _find_unequal_seconds(verdict: Verdict) -> list[str]:
    """Return the systems whose runs at equal seconds took other seconds than the baseline's, the baseline first."""
    comparison = verdict.comparisons.get("seconds")
    seconds = {} if comparison is None else comparison.seconds
    reference = seconds.get(verdict.plan.baseline)
    if reference is None:
        return []
    others = {system: s for system, s in seconds.items() if abs(s / reference - 1) > SECONDS_TOLERANCE}
    return [f"{system} {s:,.3g} s" for system, s in {verdict.plan.baseline: reference, **others}.items() if others]


def _describe_plan(verdict: Verdict) -> Section:
    plan, frozen = verdict.plan, verdict.record.frozen
    fixed = f"frozen on {frozen['time']}, before the first confirmation run" if frozen else "not frozen yet"
    rows = [
        [phase, str(n), str(done), str(_count_diverged(verdict, phase))]
        for phase, (done, n) in verdict.progress.items()
    ]
    pairs = ", ".join(f"{a} - {b}" for a, b in plan.contrasts)
    texts = [
        f"Plan {verdict.record.hash}, {fixed}. Planned contrasts: {pairs}, at alpha {plan.alpha:g} in total (Holm); "
        f"equal means that the interval lies within {plan.margin:g} nats.",
        f"Power at the planning: {describe_power(plan, verdict.record.costs, verdict.results).strip()}.",
        f"Seeds: pilot {join_numbers(plan.seeds.pilot)}; search {join_numbers(plan.seeds.search)}; confirmation "
        f"{join_numbers(plan.seeds.confirmation)}; ladder {join_numbers(plan.seeds.ladder)}.",
    ]
    return Section("Plan", texts, tables=[Table(["phase", "planned runs", "ended", "diverged"], rows)])


def _count_diverged(verdict: Verdict, phase: str) -> int:
    return sum(math.isinf(r.loss) for name, r in verdict.results.items() if name.startswith(f"{phase}/"))


# ---- mechanism, differences, runs


def _build_mechanism(verdict: Verdict) -> list[Section]:
    found = pick_figures(verdict, MECHANISM)
    if not found:
        text = (
            "No run of the confirmation has figures of its stream (trainer.stream_pictures) or of task=analyze, so "
            "there is no mechanism to show."
        )
        return [Section("Mechanism", [text])]
    return [Section("Mechanism", pictures=[Picture(caption, file=path) for caption, path in found])]


def _list_differences(verdict: Verdict) -> list[Section]:
    sections = []
    baseline = "the baseline's"
    if verdict.explained:
        rows = [[one.system, one.key, one.theirs, one.baseline, _explain(one)] for one in verdict.explained]
        table = Table(["system", "key", "its value", baseline, "explained, since"], rows)
        sections.append(Section("Differences that the plan explains", tables=[table]))
    if verdict.unexplained:
        table = tables.build_differences_table(verdict.unexplained)
        sections.append(Section("Differences besides the plan", tables=[table]))
    return sections


def _explain(one: Difference) -> str:
    return "chosen by the search" if one.key.startswith("optimizer.") and "lr" in one.key else "follows from the budget"


def _list_diverged(verdict: Verdict) -> list[Section]:
    rows = [[name, reason] for name, reason in list_diverged(verdict)]
    text = (
        "A diverged run counts as an infinite loss in the search; a system with one is not tested in the confirmation."
    )
    return [Section("Diverged runs", [text], tables=[Table(["run", "reason"], rows)])] if rows else []


def _list_runs(verdict: Verdict) -> list[Section]:
    """List every run of the comparisons once."""
    systems = [
        System(f"{system.label} ({run.result['steps']} steps)", (run,))
        for system in verdict.list_systems()
        for run in system.runs
    ]
    return [Section("Runs of the comparisons", tables=[tables.build_runs_table(systems)])] if systems else []
