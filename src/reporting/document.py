"""A report as a page: its sections, and the files report.md, report.html, leaderboard.csv and comparison.csv."""

from pathlib import Path

from src.files import write_atomic
from src.reporting import curves
from src.reporting.leaderboard import BUDGETS, at_budget, common_budget, curves_over_evaluations
from src.reporting.page import Document, Picture, Section, to_html, to_markdown
from src.reporting.report import Report
from src.reporting.runs import Run
from src.reporting.statistics import pooled_sd, visible_difference
from src.reporting.systems import System
from src.reporting.tables import (
    board_table,
    budget_table,
    failures_table,
    omitted_table,
    runs_table,
    unfair_table,
)

#: Figures that a run may leave on how its stream mixes.
GALLERY = "stream_*.png"
#: Up to this ratio the speeds of a system's seeds are alike.
STEADY = 1.1


def write_report(report: Report, folder: Path) -> Path:
    """Write the four files into `folder`; returns the page's path."""
    document = to_document(report)
    write_atomic(folder / "report.md", to_markdown(document))
    write_atomic(folder / "report.html", to_html(document))
    write_atomic(folder / "leaderboard.csv", report.board.to_csv(index=False))
    write_atomic(folder / "comparison.csv", report.compared.to_csv(index=False))
    return folder / "report.html"


def to_document(report: Report) -> Document:
    """The page."""
    systems = report.found.systems
    n_runs = sum(len(system.runs) for system in systems)
    title = f"{len(systems)} systems, {n_runs} completed runs"
    sections = [_verdict(report)]
    if systems:
        sections += [
            _board(report),
            _budgets(report),
            _curves(report),
            *_evaluations(report),
            *_gallery(systems),
        ]
    sections += _left_out(report)
    if systems:
        sections.append(_provenance(systems))
    return Document(title, sections, ("Written by reslab, task=report.",))


def _verdict(report: Report) -> Section:
    warnings = []
    keys = sorted({f"{u.key} ({u.system})" for u in report.unfair if u.what == "loss"})
    if keys:
        warnings.append(f"Unfair comparison: more than the compared axis differs: {', '.join(keys)}.")
    others = sorted(
        {f"{u.what}: {u.key} ({u.system})" for u in report.unfair if u.what not in ("loss", "software")}
    )
    if others:
        warnings.append(f"Not measured alike, so these columns do not compare: {', '.join(others)}.")
    software = sorted({f"{u.key} ({u.system})" for u in report.unfair if u.what == "software"})
    if software:
        warnings.append(f"Not run by the same code and libraries: {', '.join(software)}.")
    warnings += _unsteady(report.found.systems)
    n_failed = len(report.found.failures)
    if n_failed:
        warnings.append(f"{n_failed} of the runs found are in no mean; the table of failures says why.")
    if not report.found.systems:
        return Section("In words", ["No run is completed, so there is nothing to compare."], warnings=warnings)
    if report.baseline is None:
        return Section("In words", ["No baseline was named, so nothing is compared."], warnings=warnings)
    intro = (
        f"Final validation loss against {report.baseline.label}. A difference counts as one where p, corrected for "
        "the number of systems (Holm), is below 5 %."
    )
    return Section(
        "In words",
        [intro, *_seed_spread(report)],
        report.sentences() or ["There is only the baseline."],
        warnings,
    )


def _unsteady(systems: list[System]) -> list[str]:
    """Systems whose own seeds ran at different speeds: there, time measures the machine's load as well."""
    found = []
    for system in systems:
        speeds = [run.result["tokens_per_s"] for run in system.runs]
        if max(speeds) > STEADY * min(speeds):
            found.append(f"{system.label} ({min(speeds):,.0f} to {max(speeds):,.0f} tokens/s)")
    if not found:
        return []
    return [
        f"Seeds of one system ran at different speeds, so costs and times do not compare: {', '.join(found)}."
    ]


def _seed_spread(report: Report) -> list[str]:
    """The spread between seeds that this report itself measures."""
    losses = [[run.result["val_loss"] for run in system.runs] for system in report.found.systems]
    spread = pooled_sd(losses)
    if spread is None:
        return ["Each system has one seed, so nothing here tells a difference from noise."]
    sd, freedom = spread
    n = max(len(values) for values in losses)
    return [
        f"Between seeds of one system the validation loss has an sd of {sd:.4f} nats (pooled, {freedom} degrees of "
        f"freedom); two systems of {n} unpaired seeds each would have to be {visible_difference(sd, freedom, n):.4f} "
        "nats apart."
    ]


def _board(report: Report) -> Section:
    text = (
        "Means over seeds, sd in brackets. Differences are minus the baseline, with 95 % intervals: paired t where "
        "two seeds or more are shared, else Welch's. Cost: the baseline's tokens/s over the system's, minus one. "
        "Limited evaluations enter no column. Peak memory is the GPU's, or on a CPU that of the process, which the "
        "jobs of one sweep share."
    )
    texts = [text]
    if report.step_times is not None:
        texts.append(
            f"Step time: an optimizer step's over {report.step_times.baseline}'s, median and quartiles of rounds that "
            f"took turns in one process ({report.step_times.measured})."
        )
    pictures = []
    if report.baseline is not None and report.board["difference"].notna().any():
        picture = curves.svg(curves.difference_figure(report.board))
        pictures.append(Picture(f"Difference to {report.baseline.label}, 95 % intervals", svg=picture))
    return Section("Leaderboard", texts, tables=[board_table(report.board, report.baseline)], pictures=pictures)


def _budgets(report: Report) -> Section:
    runs = [run for system in report.found.systems for run in system.runs]
    tables, texts = [], []
    for axis, unit in BUDGETS.items():
        budget = common_budget(runs, axis)
        part = report.compared[report.compared["metric"] == at_budget(axis)]
        if budget is None or part.empty:
            texts.append(f"Equal {axis}: the curves do not overlap, so there is no common budget.")
        else:
            tables.append(budget_table(part, f"val loss at {_amount(axis, budget)} {unit}", report.baseline))
    text = (
        "The validation loss where each run has spent the largest budget that all of them reached, read linearly "
        "between two validations. A run that went further had not finished its learning-rate schedule there. Time "
        "is that of training steps, without validation and evaluation."
    )
    return Section("At equal tokens, FLOPs and time", [text, *texts], tables=tables)


def _amount(axis: str, budget: float) -> str:
    return f"{budget:,.0f}" if axis == "tokens" else f"{budget:.4g}"


def _curves(report: Report) -> Section:
    by_label = {system.label: system for system in report.found.systems}
    best_first = [by_label[label] for label in report.board["system"]]
    pictures = [
        Picture(f"Loss against {label}", svg=curves.svg(curves.loss_figure(best_first, axis)))
        for axis, label in curves.AXES.items()
        if axis != "tokens"
    ]
    if report.baseline is not None and len(best_first) > 1:
        drawn = curves.svg(curves.lead_figure(best_first, report.baseline))
        pictures.append(Picture(f"Validation loss minus {report.baseline.label}'s (means of seeds)", svg=drawn))
    text = "Validation in bold (the mean of the seeds), its seeds and the training loss thin."
    return Section("Loss curves", [text], pictures=pictures)


def _evaluations(report: Report) -> list[Section]:
    points = curves_over_evaluations(report.found.systems)
    whole = points[points["limited"] == ""]
    several = [m for m in whole["metric"].unique() if whole[whole["metric"] == m]["step"].nunique() > 1]
    pictures = [Picture(f"{m} by step", svg=curves.svg(curves.evaluation_figure(whole, m))) for m in several]
    return [Section("Evaluated checkpoints", pictures=pictures)] if pictures else []


def _gallery(systems: list[System]) -> list[Section]:
    """The pictures of each system's first seed that has any."""
    pictures = []
    for system in systems:
        found = {run.seed: sorted((run.folder / "figures").glob(GALLERY)) for run in system.runs}
        seed = next((seed for seed, paths in found.items() if paths), None)
        if seed is not None:
            pictures += [
                Picture(f"{system.label}, seed {seed}: {path.stem}", file=path) for path in found[seed]
            ]
    return [Section("The stream over depth", pictures=pictures)] if pictures else []


def _left_out(report: Report) -> list[Section]:
    sections = []
    if report.unfair:
        sections.append(Section("What differs besides the compared axis", tables=[unfair_table(report.unfair)]))
    if report.found.failures:
        sections.append(Section("Failures and runs left out", tables=[failures_table(report.found.failures)]))
    omitted = omitted_table(report.found.systems)
    if omitted.rows:
        sections.append(Section("Evaluations limited or left out (in no mean)", tables=[omitted]))
    return sections


def _provenance(systems: list[System]) -> Section:
    runs: list[Run] = [run for system in systems for run in system.runs]
    return Section("Runs", tables=[runs_table(systems)], paragraphs=[f"{len(runs)} runs, a row each."])
