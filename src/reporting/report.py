"""Content of a report: runs read, grouped and compared."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from src.reporting.leaderboard import build_leaderboard, build_scores, choose_loss, compare_systems
from src.reporting.runs import find_runs
from src.reporting.statistics import state_difference, state_untested
from src.reporting.step_times import StepTimes, read_step_times
from src.reporting.systems import Difference, GroupedRuns, System, find_differences, group_runs


@dataclass(frozen=True)
class Report:
    """Data of a report: grouped runs, data frames, how systems differ besides, the compared loss, step times."""

    found: GroupedRuns
    baseline: System | None
    compared: pd.DataFrame
    board: pd.DataFrame
    differences: list[Difference]
    loss: str = "val loss"
    step_times: StepTimes | None = None

    @property
    def unit(self) -> str:
        """Return the unit of the compared loss."""
        return "nats" if self.loss == "val loss" else "bits per byte"

    def sentences(self) -> list[str]:
        """State the differences in validation loss in sentences, best system first."""
        if self.baseline is None:
            return []
        losses = self.compared[self.compared["metric"] == self.loss].set_index("system")
        sentences, untested = [], []
        for label in self.board["system"]:
            row = losses.loc[label]
            if label == self.baseline.label:
                continue
            if pd.isna(row["p"]):
                untested.append((label, row["difference"]))
            else:
                sentences.append(state_difference(label, self.baseline.label, row, self.unit))
        return [*sentences, *state_untested(untested, self.baseline.label, self.unit)]


def build_report(folders: list[Path], baseline: str | None, axis: list[str], bench: Path | None = None) -> Report:
    """Read, group and compare the runs below `folders`; `bench` is the folder of a task=bench with their step times.

    Raises:
        ValueError: there are no runs, no system has the baseline's name, or the bench has other systems.
    """
    found = group_runs(find_runs(folders))
    reference = None if baseline is None else _find_baseline(found, baseline)
    compared = compare_systems(build_scores(found.systems), found.systems, reference)
    loss = choose_loss(found.systems)
    board = build_leaderboard(compared, reference, loss)
    against = reference or (found.systems[0] if found.systems else None)
    differences = find_differences(found.systems, against, axis) if against else []
    step_times = None if bench is None else read_step_times(bench)
    if step_times is not None and found.systems:
        board = step_times.join(board, reference.label if reference else None)
    return Report(found, reference, compared, board, differences, loss, step_times)


def _find_baseline(found: GroupedRuns, baseline: str) -> System | None:
    if not found.systems:
        return None  # the report lists failures only
    exact = [system for system in found.systems if system.label == baseline]
    named = exact or [system for system in found.systems if system.name == baseline]
    if len(named) == 1:
        return named[0]
    labels = ", ".join(sorted(_name_baseline(system.label) for system in named or found.systems))
    if named:
        raise ValueError(f"baseline={baseline} fits several systems; give one of {labels}")
    raise ValueError(f"baseline={baseline} has no completed run; give one of {labels} or baseline=null")


def _name_baseline(label: str) -> str:
    """Return the argument that names a system as baseline, quoted where Hydra or a shell would misread its label."""
    is_plain = re.fullmatch(r"[A-Za-z]\w*", label) is not None
    return f"baseline={label}" if is_plain else shlex.quote(f'baseline="{label}"')
