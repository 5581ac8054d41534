"""Data frames of runs, for notebooks: a row for each run, and a row for each logged step.

from src.reporting.frames import read_curves, read_runs
runs = read_runs("multirun/2026-11-29")            # status, losses, scores, speed, configuration
curves = read_curves("multirun/2026-11-29")        # losses over steps, tokens, seconds and FLOPs
"""

import os
from pathlib import Path

import pandas as pd

from src.reporting.runs import Run, final_scores, find_runs

#: Columns of `read_runs` that come first; the configuration's keys follow the scores.
FIRST = ("name", "seed", "status", "steps", "tokens", "n_params", "n_params_residual", "flops_per_token")


def read_runs(*folders: str | os.PathLike[str], config: bool = True) -> pd.DataFrame:
    """Return a row for each run at or below `folders`, indexed by its folder and sorted by it.

    Columns: what result.json records of the run (`FIRST`), its last validation loss in nats per token (`val loss`) and
    its complete final scores, training tokens per second, and the keys of its configuration (`optimizer.lr`).

    Args:
        folders: run folders, or folders that hold some.
        config: whether to add the keys of the configuration.

    A run whose record cannot be read has the status `unreadable`, and a warning says why.

    Raises:
        ValueError: a folder does not exist or holds no run.
    """
    rows = {}
    for run in find_runs([Path(folder) for folder in folders]):
        row = {key: run.result.get(key) for key in FIRST} | {"name": run.name}
        if run.failure() is None:
            row |= {column: score.value for column, score in final_scores(run)[0].items()}
        row["tokens_per_s"] = run.result.get("tokens_per_s")
        rows[str(run.folder)] = row | (run.config if config else {})
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index.name = "folder"
    return frame


def read_curves(*folders: str | os.PathLike[str]) -> pd.DataFrame:
    """Return a row for each logged step of each run at or below `folders` that can be read.

    Long curves are thinned to 1,000 rows.

    Columns: `folder`, `name`, `seed`, `step`, `tokens`, `seconds` of training, `flops`, `train/loss`, `val/loss` (nats
    per token, NaN where a step has none), `tokens_per_s`.

    Raises:
        ValueError: a folder does not exist or holds no run, or no run that can be read.
    """
    runs = [run for run in find_runs([Path(folder) for folder in folders]) if run.result["status"] != "unreadable"]
    if not runs:
        raise ValueError(f"no run at or below {', '.join(map(str, folders))} can be read")
    return pd.concat([_label(run) for run in runs], ignore_index=True)


def _label(run: Run) -> pd.DataFrame:
    frame = run.rows.copy()
    for place, (column, value) in enumerate((("folder", str(run.folder)), ("name", run.name), ("seed", run.seed))):
        frame.insert(place, column, value)
    return frame
