"""Record of a run: `metrics.jsonl`, one row per logged step, and `result.json`, its status and scores.

Rows are appended and flushed; result.json is replaced atomically, so a reader or a killed run never sees half of
it. Only rank 0 writes.
"""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from src.files import drop_rows_after, read_object, read_rows, write_json

Status = Literal["running", "completed", "diverged", "interrupted", "failed"]
Row = dict[str, float | int]


class RunRecord:
    """Writes metrics.jsonl and result.json of a run folder.

    Args:
        folder: the run folder.
        writes: this process is the one that writes (rank 0).

    `last_row` is the row that was closed last.
    """

    def __init__(self, folder: Path, *, writes: bool) -> None:
        self.folder = folder
        self.writes = writes
        self.result: dict[str, Any] = read_result(folder) or {}
        self._row: Row = {}
        self.last_row: Row = {}
        self._began = time.monotonic()
        self._earlier = float(self.result.get("seconds", 0.0))

    def seconds(self) -> float:
        """Return the wall-clock time of this run in seconds, recorded earlier sessions included."""
        return self._earlier + time.monotonic() - self._began

    def start_after(self, seconds: float, **values: object) -> None:
        """Begin the record of a run that continues another one, which took `seconds`, with fields of result.json."""
        self._earlier = seconds
        self.update(**values)

    # ---- metrics

    def note(self, step: int, values: Mapping[str, float | int]) -> None:
        """Add values to the row of `step` (completed optimizer steps).

        Raises:
            RuntimeError: the row of another step is still open.
        """
        if self._row.get("step", step) != step:
            raise RuntimeError(f"row of step {self._row['step']} was not closed before step {step}")
        self._row = {"step": step, **self._row, **values}

    def close_row(self) -> Row:
        """Append the open row to metrics.jsonl and return it; empty if there is none."""
        row, self._row = self._row, {}
        self.last_row = row or self.last_row
        if row and self.writes:
            with self._metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        return row

    def keep_until(self, step: int) -> None:
        """Drop the rows after `step` and a torn last line, before the run resumes at `step`."""
        self._row = {}  # that of a step which diverged
        if self.writes:
            drop_rows_after(self._metrics, step)

    def sync(self) -> None:
        """Flush the rows to disk, before a checkpoint that relies on them."""
        if self.writes and self._metrics.exists():
            with self._metrics.open("a") as file:
                os.fsync(file.fileno())

    @property
    def _metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    # ---- result

    def update(self, **values: object) -> None:
        """Set fields of result.json."""
        self.result.update(values)
        if self.writes:
            write_json(self.folder / "result.json", self.result)

    def finish(self, status: Status, reason: str | None) -> None:
        """Set the status and the reason with which the run ended."""
        self.update(status=status, reason=reason)


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return the folder's result.json, or None if there is none.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / "result.json"
    return read_object(path) if path.exists() else None


def read_metrics(folder: Path) -> list[Row]:
    """Return the rows of metrics.jsonl in order, without a torn last line (of a run killed while writing)."""
    return read_rows(folder / "metrics.jsonl")
