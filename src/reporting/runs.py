"""Run folders as a report reads them: configuration, status, curve and scores.

A run folder holds `config.yaml`, `result.json` and `metrics.jsonl`; later evaluations are in `evaluations/*.json`. Time
on a curve is the time of training steps, integrated from the logged speeds, without validations, evaluations and pauses
between sessions.
"""

import logging
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from omegaconf._utils import get_yaml_loader

from src.errors import one_line
from src.files import flatten, read_object
from src.reporting.columns import read_columns

log = logging.getLogger(__name__)

#: Rows of a training curve that are kept, besides those with a validation loss.
MAX_ROWS = 500
#: Keys of result.json that a comparison needs.
REQUIRED = ("name", "seed", "steps", "tokens", "val_loss", "tokens_per_s", "flops_per_token")


@dataclass(frozen=True)
class Score:
    """Score, and what identifies its measurement (hash of the token file, protocol, number of items)."""

    value: float
    identity: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Run:
    """Record of one run folder: flattened configuration, result, curve and later evaluations."""

    folder: Path
    config: dict[str, Any]
    result: dict[str, Any]
    rows: pd.DataFrame  # the curve, thinned
    evaluations: tuple[dict[str, Any], ...]

    @property
    def name(self) -> str:
        """Name of the run, or of its folder if the record has none."""
        return str(self.result.get("name", self.folder.name))

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.result["seed"])

    @cached_property
    def validations(self) -> pd.DataFrame:
        """Rows of the curve that have a validation loss."""
        return self.rows[self.rows["val/loss"].notna()]

    def failure(self) -> str | None:
        """Return why the run's numbers cannot be compared, or None if they can."""
        status = self.result.get("status")
        if status != "completed":
            return f"{status}: {self.result.get('reason') or 'no reason was recorded'}"
        missing = [key for key in REQUIRED if self.result.get(key) is None]
        if missing:
            return f"its result.json lacks {', '.join(missing)}"
        if not math.isfinite(self.result["val_loss"]):
            return f"completed with a validation loss of {self.result['val_loss']}"
        return None


def find_runs(folders: list[Path]) -> list[Run]:
    """Read every run at or below `folders` once, sorted by path.

    Raises:
        ValueError: a folder does not exist or holds no run.
    """
    found: dict[Path, Run] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"runs={folder}: no such folder; give one or more that hold run folders")
        parents = sorted(path.parent for path in folder.rglob("result.json"))
        runs = [path.resolve() for path in parents if (path / "config.yaml").is_file()]
        if not runs:
            raise ValueError(
                f"runs={folder} holds no run (no result.json with a config.yaml); give the folder of a run or sweep"
            )
        found.update((path, _read_or_list(path)) for path in runs if path not in found)
    return [found[path] for path in sorted(found)]


def _read_or_list(folder: Path) -> Run:
    """Read a run; one whose record cannot be read has the status `unreadable`, and the others are still compared."""
    try:
        return read_run(folder)
    except (ValueError, OSError, yaml.YAMLError) as error:
        reason = one_line(error)
        log.warning("%s cannot be read: %s", folder, reason)
        return Run(folder, {}, {"status": "unreadable", "reason": reason}, pd.DataFrame(), ())


class _Loader(yaml.CSafeLoader):  # type: ignore[misc]  # yaml has no types here
    """OmegaConf's reading of scalars (1e-3 is a number) by libyaml, which is ten times as fast."""

    yaml_implicit_resolvers = get_yaml_loader().yaml_implicit_resolvers


def read_run(folder: Path) -> Run:
    """Read the record of one run folder.

    Raises:
        ValueError: a file of the record is not as this project writes it.
    """
    result = read_object(folder / "result.json")
    config = yaml.load((folder / "config.yaml").read_bytes(), _Loader)  # a subclass of the safe loader
    if not isinstance(config, dict):
        raise ValueError(f"{folder / 'config.yaml'} is not a mapping; restore it or leave the folder out")
    evaluations = tuple(read_object(path) for path in sorted((folder / "evaluations").glob("*.json")))
    columns = read_columns(folder / "metrics.jsonl", ("step", "tokens", "train/loss", "val/loss", "tokens_per_s"))
    rows = _add_budgets(pd.DataFrame(columns), result)
    flat = flatten({str(k): v for k, v in config.items()})
    return Run(folder, flat, result, _thin(rows), evaluations)


def _thin(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the validated rows and at most twice `MAX_ROWS` others at equal distances, as many as a figure shows."""
    distance = max(1, len(rows) // MAX_ROWS)
    return rows[rows["val/loss"].notna() | (np.arange(len(rows)) % distance == 0)]


def _add_budgets(rows: pd.DataFrame, result: dict[str, Any]) -> pd.DataFrame:
    """Append the columns `seconds` (training time) and `flops` to the rows."""
    logged = rows[rows["tokens_per_s"].notna()]
    tokens = np.concatenate(([0.0], logged["tokens"]))
    seconds = np.concatenate(([0.0], np.cumsum(np.diff(tokens) / logged["tokens_per_s"].to_numpy())))
    flops = rows["tokens"] * float(result.get("flops_per_token") or math.nan)
    return rows.assign(seconds=np.interp(rows["tokens"], tokens, seconds), flops=flops)


# ---- scores


def final_scores(run: Run) -> tuple[dict[str, Score], dict[str, str]]:
    """Return the run's complete scores at its last step by column, and why other sets are limited or skipped.

    If the run's own evaluation was limited, a complete later one of the same step's weights replaces it.
    """
    scores = {"val loss": Score(float(run.result["val_loss"]), ())}
    if run.result.get("val_bpb") is not None:
        scores["val bpb"] = Score(float(run.result["val_bpb"]), ())
    omitted: dict[str, str] = {}
    later = [e["scores"] for e in run.evaluations if e.get("step") == run.result["steps"]]
    for tree in (run.result, *later):
        for metric, entry in list_entries(tree):
            reason = entry.get("limited") or entry.get("skipped")
            if reason:
                omitted.setdefault(metric, str(reason))
            else:
                for column, score in read_scores(metric, entry).items():
                    scores.setdefault(column, score)
    complete = {column.rpartition(" ")[0] for column in scores}
    return scores, {metric: reason for metric, reason in omitted.items() if metric not in complete}


def list_entries(tree: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the score entries of a result or an evaluation with the names of their sets."""
    return [(name, e) for part in ("perplexity", "lm_eval") for name, e in (tree.get(part) or {}).items()]


def read_scores(metric: str, entry: dict[str, Any]) -> dict[str, Score]:
    """Return the scores of one entry by column name.

    Scores per token are of one measurement where the tokens are, those per word or byte where the texts are.
    """
    known = ("sha256", "protocol", "block_size", "stride", "metric", "num_fewshot", "task_version", "items")
    identity = tuple((key, str(entry[key])) for key in known if entry.get(key) is not None)
    if "score" in entry:
        return {f"{metric} {entry['metric']}": Score(float(entry["score"]), identity)}
    text = entry.get("text_sha256", entry.get("sha256"))
    of_text = tuple((key, str(text) if key == "sha256" else value) for key, value in identity)
    per_token = str(entry.get("protocol", "")).endswith("token level")
    found = {f"{metric} ppl": Score(float(entry["ppl"]), identity if per_token else of_text)}
    if "bits_per_byte" in entry:
        found[f"{metric} bits/byte"] = Score(float(entry["bits_per_byte"]), of_text)
    if "acc" in entry:
        found[f"{metric} acc"] = Score(100 * float(entry["acc"]), identity)
    return found
