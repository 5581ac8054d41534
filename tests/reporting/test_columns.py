"""Columns of metrics.jsonl: values where a row has them, and as many rows as a figure shows."""

import json
import math
from pathlib import Path

import numpy as np

from src.reporting.columns import read_columns, thin
from src.reporting.figures import MAX_POINTS, draw_loss_curves
from src.reporting.runs import MAX_ROWS, read_run
from tests.reporting.folders import write_run


def write_rows(path: Path, n_rows: int) -> None:
    rows = [{"step": i, "tokens": 10 * i, "train/loss": 1 / i} for i in range(1, n_rows + 1)]
    for row in rows[99::100]:
        row["val/loss"] = row["train/loss"] + 1
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_column_has_one_value_per_row(tmp_path: Path) -> None:
    (tmp_path / "m").write_text('{"step": 1, "a": 2}\n{"step": 2}\n{"step": 3, "a": NaN, "b": 0.5}\n{"ste')
    found = read_columns(tmp_path / "m", ("a", "b"))
    assert found["a"].tolist()[0] == 2
    assert np.isnan(found["a"]).tolist() == [False, True, True]
    assert found["b"].tolist()[-1] == 0.5
    assert read_columns(tmp_path / "none", ("a",))["a"].shape == (0,)


def test_thinned_rows_are_at_equal_distances(tmp_path: Path) -> None:
    write_rows(tmp_path / "m", 1000)
    columns = read_columns(tmp_path / "m", ("tokens", "val/loss"))
    assert thin(columns, "val/loss", 5)["tokens"].tolist() == [1000, 3000, 5000, 7000, 9000]
    assert thin(columns, "val/loss", 99)["tokens"].tolist() == list(range(1000, 10_001, 1000))


def test_a_long_curve_is_drawn_with_a_bounded_number_of_points(tmp_path: Path) -> None:
    n_rows = 10 * MAX_POINTS
    write_rows(tmp_path / "m", n_rows)
    columns = read_columns(tmp_path / "m", ("tokens", "train/loss", "val/loss"))
    train, val = draw_loss_curves({"x": columns}, tmp_path / "loss.png").axes[0].lines
    assert len(train.get_xdata()) == MAX_POINTS
    assert val.get_xdata().tolist() == [10 * i for i in range(100, n_rows + 1, 100)]


def test_a_report_keeps_every_validation_and_a_bounded_number_of_other_rows(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", name="vanilla", seed=1, losses=[3.0 + 1 / i for i in range(1, 3001)])
    whole = read_columns(run / "metrics.jsonl", ("step", "tokens", "tokens_per_s"))
    rows = read_run(run).rows
    assert rows["val/loss"].notna().sum() == 3000
    assert rows["val/loss"].isna().sum() <= 2 * MAX_ROWS
    # The time is that of all rows: 128 tokens each at 1000 a second, the first at half of it.
    assert len(whole["step"]) == 6000
    assert math.isclose(rows["seconds"].iloc[-1], 6001 * 0.128)
