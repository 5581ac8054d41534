"""Scored items of lm-eval's tasks as files, one JSON object a line.

Rows are those of `lm_eval --log_samples`: the item, its requests and their results, the metrics, and hashes of item,
prompt and target.

Source: EleutherAI/lm-evaluation-harness 0.4.13, loggers/evaluation_tracker.py.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.utils import handle_non_serializable, sanitize_list

from src.files import write_atomic


def write_samples(folder: Path, samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write `samples_<task>.jsonl` for each task, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, rows in samples.items():
        write_atomic(folder / f"samples_{task}.jsonl", "".join(_format(row) + "\n" for row in rows))


def _format(row: Mapping[str, Any]) -> str:
    arguments = {
        f"gen_args_{i}": {f"arg_{j}": part for j, part in enumerate(request)}
        for i, request in enumerate(row["arguments"])
    }
    results = {key: sanitize_list(row[key]) for key in ("resps", "filtered_resps")}
    readable = {**row, "arguments": arguments, **results, "target": str(row["target"])}
    return json.dumps(readable, default=handle_non_serializable, ensure_ascii=False)
