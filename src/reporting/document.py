"""Page of a report: its sections, and the files report.md, report.html, leaderboard.csv and comparison.csv."""

from pathlib import Path

from src.files import write_atomic
from src.reporting import curves, tables
from src.reporting.analysis import build_analysis_sections
from src.reporting.conditions import warn_of_conditions
from src.reporting.leaderboard import BUDGETS, budget_metric, collect_evaluations, find_common_budget
from src.reporting.page import Picture, Section, to_html, to_markdown
from src.reporting.report import Report
from src.reporting.statistics import pooled_sd, visible_difference
from src.reporting.systems import System, list_tokenizers

#: Most systems whose curves are drawn: as many as there are colors.
MAX_DRAWN = len(curves.COLORS)
#: Figures of the stream in a run folder.
STREAM_FIGURES = "stream_*.png"


def write_report(report: Report, folder: Path) -> Path:
    """Write the four files into `folder` and return the path of report.html."""
    title, sections = build_document(report)
    write_atomic(folder / "report.md", to_markdown(title, sections))
    write_atomic(folder / "report.html", to_html(title, sections))
    write_atomic(folder / "leaderboard.csv", report.board.to_csv(index=False))
    write_atomic(folder / "comparison.csv", report.compared.to_csv(index=False))
    return folder / "report.html"


def build_document(report: Report) -> tuple[str, list[Section]]:
    """Build the title and the sections of a report."""
    systems = report.found.systems
    n_runs = sum(len(system.runs) for system in systems)
    title = f"{len(systems)} systems, {n_runs} completed runs"
    sections = [_summarize(report)]
    if systems:
        sections += [
            _build_board(report),
            _compare_budgets(report),
            _draw_curves(report),
            *_draw_evaluations(report),
            *_collect_stream_figures(systems),
            *build_analysis_sections(systems),
        ]
    sections += _list_exclusions(report)
    if systems:
        sections.append(Section("Runs", [f"{n_runs} runs, one row each."], tables=[tables.build_runs_table(systems)]))
    return title, sections


def _summarize(report: Report) -> Section:
    warnings = []
    tokenizers = list_tokenizers(report.found.systems)
    if len(tokenizers) > 1:
        by_byte = (
            "systems are compared in bits per byte, and their losses and perplexities per token are not"
            if report.loss == "val bpb"
            else "and some runs have no bits per byte to compare instead"
        )
        names = " and ".join(sorted(tokenizers.values()))
        warnings.append(
            f"Unfair comparison: the runs have different tokenizers, {names}, so losses per token do not compare; "
            f"{by_byte}."
        )
    keys = sorted({f"{u.key} ({u.system})" for u in report.differences if u.what == "loss"})
    if keys:
        warnings.append(f"Unfair comparison: more than the compared axis differs: {', '.join(keys)}.")
    warnings += warn_of_conditions(report.differences, report.found.systems)
    n_failed = len(report.found.failures)
    if n_failed:
        warnings.append(f"{n_failed} of the runs found are in no mean; the table of failures says why.")
    if report.baseline is None:
        none = "There is no baseline, so nothing is compared."
        text = none if report.found.systems else "No run is completed, so there is nothing to compare."
        return Section("In words", [text], warnings=warnings)
    what = "Final validation loss" if report.loss == "val loss" else "Final bits per byte of the validation text"
    intro = (
        f"{what} against {report.baseline.label}. Systems are called different if p, corrected "
        "for the number of systems (Holm), is below 5 %."
    )
    sentences = report.sentences() or ["There is only the baseline."]
    return Section("In words", [intro, _state_seed_spread(report)], sentences, warnings)


def _state_seed_spread(report: Report) -> str:
    """State the spread between seeds, pooled over the systems of this report."""
    key = report.loss.replace(" ", "_")
    losses = [[run.result[key] for run in system.runs] for system in report.found.systems]
    spread = pooled_sd(losses)
    if spread is None:
        return "Each system has one seed, so no difference can be distinguished from noise."
    sd, freedom = spread
    n = max(len(values) for values in losses)
    return (
        f"Between seeds of one system the validation loss has an sd of {sd:.4f} {report.unit} (pooled, {freedom} degrees "
        f"of freedom); two systems of {n} unpaired seeds each would have to be {visible_difference(sd, freedom, n):.4f} "
        f"{report.unit} apart."
    )


def _build_board(report: Report) -> Section:
    text = (
        "Means over seeds, sd in brackets. Differences are the system's minus the baseline's, with 95 % intervals: "
        "paired t if at least two seeds are shared, otherwise Welch's. Cost is the baseline's tokens/s over the "
        "system's, minus one. Limited evaluations are in no column. Peak memory is that of the GPU, or on a CPU that of "
        "the process, which the jobs of one sweep share."
    )
    texts = [text]
    if report.step_times is not None:
        texts.append(
            f"Step time: the time of an optimizer step over {report.step_times.baseline}'s, median and quartiles of "
            f"alternating rounds in one process ({report.step_times.measured})."
        )
    pictures = []
    if report.baseline is not None and report.board["difference"].notna().any():
        picture = curves.render_svg(curves.draw_intervals(report.board, report.unit))
        pictures.append(Picture(f"Difference to {report.baseline.label}, 95 % intervals", svg=picture))
    table = tables.build_board_table(report.board, report.baseline)
    return Section("Leaderboard", texts, tables=[table], pictures=pictures)


def _compare_budgets(report: Report) -> Section:
    title = "At equal tokens, FLOPs and time"
    if len(list_tokenizers(report.found.systems)) > 1:
        return Section(title, ["Left out: losses per token of different tokenizers do not compare."])
    runs = [run for system in report.found.systems for run in system.runs]
    shown, texts = [], []
    for axis, unit in BUDGETS.items():
        budget = find_common_budget(runs, axis)
        part = report.compared[report.compared["metric"] == budget_metric(axis)]
        if budget is None or part.empty:
            texts.append(f"Equal {axis}: the curves do not overlap, so there is no common budget.")
        else:
            amount = f"{budget:,.0f}" if axis == "tokens" else f"{budget:.4g}"
            shown.append(tables.build_budget_table(part, f"val loss at {amount} {unit}", report.baseline))
    text = (
        "The validation loss at the largest budget that all runs reached, interpolated linearly between two "
        "validations. A run that trained further had not finished its learning-rate schedule there. Time is that of "
        "training steps, without validation and evaluation."
    )
    return Section(title, [text, *texts], tables=shown)


def _draw_curves(report: Report) -> Section:
    by_label = {system.label: system for system in report.found.systems}
    best_first = [by_label[label] for label in report.board["system"]]
    text = "Validation is bold, the mean of the seeds (their number in brackets); seeds and the training loss are thin."
    if len(best_first) > MAX_DRAWN:
        text += f" Of {len(best_first)} systems, the {MAX_DRAWN} with the lowest loss and the baseline are drawn."
        best_first = [s for i, s in enumerate(best_first) if i < MAX_DRAWN or s is report.baseline]
    pictures = [
        Picture(f"Loss against {label}", svg=curves.render_svg(curves.draw_losses(best_first, axis)))
        for axis, label in curves.AXES.items()
        if axis != "tokens"
    ]
    if report.baseline is not None and len(best_first) > 1:
        svg = curves.render_svg(curves.draw_differences(best_first, report.baseline))
        pictures.append(Picture(f"Validation loss minus {report.baseline.label}'s (means of seeds)", svg=svg))
    return Section("Loss curves", [text], pictures=pictures)


def _draw_evaluations(report: Report) -> list[Section]:
    points = collect_evaluations(report.found.systems)
    whole = points[points["limited"] == ""]
    several = [m for m in whole["metric"].unique() if whole[whole["metric"] == m]["step"].nunique() > 1]
    pictures = [Picture(f"{m} by step", svg=curves.render_svg(curves.draw_evaluations(whole, m))) for m in several]
    return [Section("Evaluated checkpoints", pictures=pictures)] if pictures else []


def _collect_stream_figures(systems: list[System]) -> list[Section]:
    """Collect the stream figures of each system's first seed that has any."""
    pictures = []
    for system in systems:
        found = {run.seed: sorted((run.folder / "figures").glob(STREAM_FIGURES)) for run in system.runs}
        seed = next((seed for seed, paths in found.items() if paths), None)
        if seed is not None:
            caption = f"{system.label}, seed {seed}"
            pictures += [Picture(f"{caption}: {path.stem}", file=path) for path in found[seed]]
    return [Section("The stream over depth", pictures=pictures)] if pictures else []


def _list_exclusions(report: Report) -> list[Section]:
    listed = {
        "Differences besides the compared axis": tables.build_differences_table(report.differences),
        "Failures and excluded runs": tables.build_failures_table(report.found.failures),
        "Limited or skipped evaluations (in no mean)": tables.build_omitted_table(report.found.systems),
    }
    return [Section(title, tables=[table]) for title, table in listed.items() if table.rows]
