"""Columns of metrics.jsonl: arrays instead of one object a row, so a run of a million rows takes 8 bytes a value."""

from array import array
from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from src.files import scan_rows

Columns = Mapping[str, NDArray[np.float64]]


def read_columns(path: Path, names: Sequence[str]) -> Columns:
    """Return columns of a JSON lines file by name, each with one value per row, NaN where the row has none.

    Raises:
        ValueError: a row other than the last is not a JSON object with a `step`.
    """
    found = {name: array("d") for name in names}
    for _, row in scan_rows(path):
        for name, values in found.items():
            values.append(row.get(name, nan))
    return {name: np.array(values) for name, values in found.items()}


def thin(columns: Columns, key: str, n_points: int) -> Columns:
    """Return the rows that have a value of `key`, at most `2 n_points - 1` of them at equal distances."""
    rows = np.flatnonzero(~np.isnan(columns[key]))
    rows = rows[:: max(1, len(rows) // n_points)]
    return {name: values[rows] for name, values in columns.items()}
