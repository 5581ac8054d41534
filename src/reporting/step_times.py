"""Step times of `task=bench` in a report: measured alternately in one process, unlike the speeds of runs."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

#: Columns of the leaderboard: the median ratio and its quartiles.
COLUMNS = ("step", "step low", "step high")


@dataclass(frozen=True)
class StepTimes:
    """Ratios of step times by round for each configuration, by its name in `task=bench`."""

    baseline: str
    measured: str
    ratios: dict[str, list[float]]

    def join(self, board: pd.DataFrame, baseline: str | None) -> pd.DataFrame:
        """Return the leaderboard with `COLUMNS` after the costs; systems that were not timed have empty cells.

        Raises:
            ValueError: the report has another baseline, or no system was timed.
        """
        if baseline != self.baseline:
            raise ValueError(
                f"bench was measured over {self.baseline} and baseline={baseline}; give baseline={self.baseline}, or a "
                "bench of your baseline"
            )
        known = [label for label in board["system"] if label in self.ratios]
        if known in ([], [self.baseline]):
            raise ValueError(
                f"bench has none of the systems {', '.join(board['system'])}, only {', '.join(sorted(self.ratios))}; "
                "give its configurations the runs' names: 'bench.configurations=[\"<name>: <overrides>\"]'"
            )
        quartiles = [
            np.percentile(self.ratios[label], [50, 25, 75]) if label in self.ratios else [np.nan] * 3
            for label in board["system"]
        ]
        joined = board.copy()
        at = 1 + joined.columns.get_loc("cost %")
        for offset, (column, values) in enumerate(zip(COLUMNS, zip(*quartiles, strict=True), strict=True)):
            joined.insert(at + offset, column, values)
        return joined


def read_step_times(path: Path) -> StepTimes:
    """Read a bench.json, or the one in a folder.

    Raises:
        ValueError: the file does not exist or is not as task=bench writes it.
    """
    file = path / "bench.json" if path.is_dir() else path
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        ratios = {str(name): [float(r) for r in t["ratios"]] for name, t in results["timings"].items()}
        return StepTimes(str(results["baseline"]), str(results["measured"]), ratios)
    except FileNotFoundError:
        raise ValueError(f"bench={path}: no bench.json there; give the folder of a task=bench, or null") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"bench={path} is not a bench.json as task=bench writes it: {error!r}") from error
