"""Verdict of a study: what its completed runs show, as numbers; `page.py` writes them down.

A part whose runs are missing is absent here and named on the page.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from src.reporting.config_keys import is_within
from src.reporting.runs import Run, read_run
from src.reporting.systems import Difference, System, find_differences
from src.study.phases import PHASES, Choice, Phase, Results, choose_rate, compared_runs, list_phase, next_runs
from src.study.plan import Kind, StudyPlan, override_key
from src.study.power import detectable_difference
from src.study.record import StudyRecord, read_record, read_results
from src.study.scaling import Scaling, build_scaling, read_losses
from src.study.statistics import (
    BlockError,
    block_error,
    compare_contrasts,
    compare_variances,
    complete_table,
)

#: Keys in which systems differ because the search chose a rate for each.
SEARCHED = ("optimizer.lr", "optimizer.min_lr")
#: Keys that follow from a budget in FLOPs or seconds.
BUDGETED = ("trainer.max_steps", "optimizer.warmup_steps")
#: p value of `compare_variances` below which the words give the verdicts of the paired tests too.
UNEQUAL = 0.01


@dataclass(frozen=True)
class Comparison:
    """Systems at one equal budget and size.

    Args:
        losses: losses by system and seed, infinite where a run diverged.
        runs: completed runs by system.
        contrasts: the planned contrasts, see `compare_contrasts`.
        against_baseline: every system against the baseline, in the same form.
        error: block error; None without two systems and seeds.
        p_variances: p value of `compare_variances`, None where it has none.
        detectable: difference that the first of Holm's tests detects with the planned power.
        n_ended: runs that ended, completed or diverged.
        n_planned: runs that were planned.
    """

    size: str
    kind: Kind
    losses: dict[str, dict[int, float]]
    runs: dict[str, list[Run]]
    contrasts: pd.DataFrame
    against_baseline: pd.DataFrame
    error: BlockError | None
    p_variances: float | None
    detectable: float | None
    n_ended: int
    n_planned: int

    @property
    def is_complete(self) -> bool:
        """Return whether every planned run has ended; before that there are differences, but no verdicts."""
        return self.n_ended == self.n_planned

    @property
    def has_unequal_variances(self) -> bool:
        """Return whether some systems vary more over seeds than others, so that the pooled error is that of none."""
        return self.is_complete and self.p_variances is not None and self.p_variances < UNEQUAL

    @property
    def seconds(self) -> dict[str, float]:
        """Return the mean seconds that the training steps of a system's runs took, by system."""
        return {
            system: sum(run.result["tokens"] / run.result["tokens_per_s"] for run in runs) / len(runs)
            for system, runs in self.runs.items()
            if runs
        }


@dataclass(frozen=True)
class Verdict:
    """Content of the page of a study."""

    folder: Path
    record: StudyRecord
    results: Results
    progress: dict[Phase, tuple[int, int]]
    choices: dict[str, Choice]
    comparisons: dict[Kind, Comparison]
    scaling: Scaling | None
    explained: list[Difference]
    unexplained: list[Difference]
    other_plans: list[str]
    missing: list[str] = field(default_factory=list)

    @property
    def plan(self) -> StudyPlan:
        """Return the plan in force."""
        return self.record.plan

    @property
    def main(self) -> Comparison | None:
        """Return the comparison at the planned budget."""
        return self.comparisons.get(self.plan.budget.kind)

    def list_systems(self) -> list[System]:
        """Return the systems with all runs of the comparisons; equal budgets share some."""
        found: dict[str, dict[Path, Run]] = {}
        for comparison in self.comparisons.values():
            for name, runs in comparison.runs.items():
                found.setdefault(name, {}).update({run.folder: run for run in runs})
        return [System(name, tuple(runs.values())) for name, runs in found.items() if runs]


def is_study(folder: Path) -> bool:
    """Return whether a folder is that of a study."""
    return (folder / "plan.json").is_file()


def build_verdict(folder: Path) -> Verdict:
    """Read a study's folder and compute what its runs show.

    Raises:
        ValueError: the record or a run cannot be read, or the timing phase is not complete.
    """
    record = read_record(folder)
    plan, costs, results = record.plan, record.costs, read_results(folder)
    due = next_runs(plan, costs, results)
    phase = None if due is None else due[0]
    if phase == "timing":
        raise ValueError(f"{folder}: the study's timing phase is not complete; run the study before its report")
    progress = _count_progress(record, results, phase)
    choices, comparisons, scaling, missing = {}, {}, None, []
    explained: list[Difference] = []
    unexplained: list[Difference] = []
    missing += [f"{name}: {done} of {n} runs" for name, (done, n) in progress.items() if done < n]
    if phase not in ("pilot", "search"):
        choices = {s: choose_rate(plan, costs, results, plan.first_size, s) for s in plan.systems}
        for kind in plan.budget.kinds:
            comparisons[kind] = _compare(folder, record, results, plan.first_size, kind)
        explained, unexplained = _sort_differences(plan, comparisons[plan.budget.kind])
        scaling = build_scaling(folder, record, results)
    else:
        later = PHASES[PHASES.index(phase) + 1 :]
        missing += [f"{name}: not begun" for name in later]
    return Verdict(
        folder,
        record,
        results,
        progress,
        choices,
        comparisons,
        scaling,
        explained,
        unexplained,
        _find_other_plans(folder, record, comparisons),
        missing,
    )


def _count_progress(record: StudyRecord, results: Results, due: Phase | None) -> dict[Phase, tuple[int, int]]:
    """Count the ended and the planned runs of each phase, up to the one that is due."""
    phases = PHASES if due is None else PHASES[: PHASES.index(due) + 1]
    if due == "confirmation":  # the search is complete, so the ladder's runs are known as well
        phases = PHASES
    progress: dict[Phase, tuple[int, int]] = {}
    for phase in phases:
        specs = list_phase(record.plan, record.costs, results, phase)
        progress[phase] = (sum(spec.folder in results for spec in specs), len(specs))
    return progress


def _compare(folder: Path, record: StudyRecord, results: Results, size: str, kind: Kind) -> Comparison:
    plan = record.plan
    losses, runs = read_losses(folder, record, results, size, kind)
    n_ended = sum(map(len, losses.values()))
    n_planned = sum(len(compared_runs(plan, record.costs, results, size, system, kind)) for system in plan.systems)
    is_complete = n_ended == n_planned
    table = complete_table(losses)
    error = block_error(table.to_numpy()) if min(table.shape) > 1 else None
    detectable = None
    if error is not None and error.sd > 0 and is_complete:
        se = error.sd * math.sqrt(2 / table.shape[1])
        detectable = detectable_difference(se, error.freedom, plan.alpha / len(plan.contrasts), plan.power)
    contrasts = compare_contrasts(losses, plan.contrasts, plan.alpha, plan.margin)
    if not is_complete:
        tests = ("p", "p (Holm)", "p (paired)", "p (paired, Holm)")
        verdicts = dict.fromkeys(("verdict", "verdict (paired)"), "not complete")
        contrasts = contrasts.assign(**dict.fromkeys(tests), **verdicts)
    others = [[system, plan.baseline] for system in plan.systems if system != plan.baseline]
    against = compare_contrasts(losses, others, plan.alpha, plan.margin)
    p_variances = compare_variances(table.to_numpy()) if is_complete else None
    return Comparison(size, kind, losses, runs, contrasts, against, error, p_variances, detectable, n_ended, n_planned)


def _sort_differences(plan: StudyPlan, comparison: Comparison) -> tuple[list[Difference], list[Difference]]:
    """Return the differences that the search or the budget explains, and the others."""
    systems = [System(name, tuple(runs)) for name, runs in comparison.runs.items() if runs]
    reference = next((system for system in systems if system.label == plan.baseline), None)
    if reference is None:
        return [], []
    planned = [override_key(text) for overrides in plan.systems.values() for text in overrides]
    found = find_differences(systems, reference, planned)
    keys = [*SEARCHED, *(BUDGETED if comparison.kind != "tokens" else ())]
    explained = [one for one in found if is_within(one.key, keys) and one.what == "loss"]
    return explained, [one for one in found if one not in explained]


def _find_other_plans(folder: Path, record: StudyRecord, comparisons: dict[Kind, Comparison]) -> list[str]:
    """Return the plans, other than the one in force, that runs of the comparisons were made under."""
    found = {
        str(run.config.get("study.plan"))
        for comparison in comparisons.values()
        for runs in comparison.runs.values()
        for run in runs
    }
    return sorted(found - {record.hash})


def list_diverged(verdict: Verdict) -> list[tuple[str, str]]:
    """Return the runs that diverged with the reasons that their records state."""
    found: list[tuple[str, str]] = []
    for name, result in verdict.results.items():
        if math.isinf(result.loss):
            run = read_run(verdict.folder / name)
            found.append((name, str(run.result.get("reason") or "its validation loss is not finite")))
    return found


def pick_figures(verdict: Verdict, patterns: Sequence[str]) -> list[tuple[str, Path]]:
    """Return the figures of the mechanism with captions: those of each system's first confirmation run that has any."""
    found: list[tuple[str, Path]] = []
    for system, runs in (verdict.main.runs if verdict.main else {}).items():
        for run in runs:
            paths = sorted({path for pattern in patterns for path in run.folder.glob(pattern)})
            if paths:
                found += [(f"{system}, seed {run.seed}: {path.stem}", path) for path in paths]
                break
    return found
