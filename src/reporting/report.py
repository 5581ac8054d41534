"""What a report says, before it is written: runs read, grouped and compared."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from src.reporting.leaderboard import comparison, leaderboard, scores_frame
from src.reporting.runs import find_runs
from src.reporting.statistics import Difference, sentence, untested_sentence
from src.reporting.step_times import StepTimes, read_step_times
from src.reporting.systems import Sorted, System, Unfair, sort_runs, unfair


@dataclass(frozen=True)
class Report:
    """Everything that a report says, before it is written."""

    found: Sorted
    baseline: System | None
    frame: pd.DataFrame
    compared: pd.DataFrame
    board: pd.DataFrame
    unfair: list[Unfair]
    step_times: StepTimes | None = None

    def sentences(self) -> list[str]:
        """The differences in validation loss, in words, best system first."""
        if self.baseline is None:
            return []
        losses = self.compared[self.compared["metric"] == "val loss"].set_index("system")
        said, untested = [], []
        for label in self.board["system"]:
            row = losses.loc[label].astype(object).where(losses.loc[label].notna(), None)
            if label == self.baseline.label:
                continue
            d = Difference(
                row["difference"],
                row["low"],
                row["high"],
                row["p"],
                row["test"],
                int(row["pairs"]),
                row["sd of difference"],
            )
            if d.p is None:
                untested.append((label, d.mean))
            else:
                said.append(sentence(label, self.baseline.label, d, row["p (Holm)"]))
        return [*said, *untested_sentence(untested, self.baseline.label)]


def make_report(
    folders: list[Path], baseline: str | None, axis: list[str], bench: Path | None = None
) -> Report:
    """Read, group and compare the runs below `folders`; `bench` is a task=bench that has their step times.

    Raises:
        ValueError: no runs, no system of the baseline's name, or a bench of other systems.
    """
    found = sort_runs(find_runs(folders))
    reference = None if baseline is None else _baseline(found, baseline)
    frame = scores_frame(found.systems)
    compared = comparison(frame, found.systems, reference)
    board = leaderboard(compared, reference)
    against = reference or (found.systems[0] if found.systems else None)
    flagged = unfair(found.systems, against, axis) if against else []
    step_times = None if bench is None else read_step_times(bench)
    if step_times is not None and found.systems:
        board = step_times.join(board, reference.label if reference else None)
    return Report(found, reference, frame, compared, board, flagged, step_times)


def _baseline(found: Sorted, baseline: str) -> System | None:
    if not found.systems:
        return None  # a page of failures
    exact = [system for system in found.systems if system.label == baseline]
    named = exact or [system for system in found.systems if system.name == baseline]
    if len(named) == 1:
        return named[0]
    labels = ", ".join(sorted(f"'{system.label}'" for system in named or found.systems))
    if named:
        raise ValueError(f"baseline={baseline} fits several systems; give one of {labels}, in quotes")
    raise ValueError(f"baseline={baseline} has no completed run; give one of {labels}, or baseline=null")
