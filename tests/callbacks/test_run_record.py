"""metrics.jsonl and result.json."""

import json
from pathlib import Path

import pytest

from src.callbacks.run_record import RunRecord, read_metrics, read_result


def test_a_row_collects_the_values_of_its_step(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, writes=True)
    record.note(10, {"train/loss": 0.1 + 0.2})
    record.note(10, {"val/loss": 3.0})
    record.close_row()
    assert record.close_row() == {}
    assert read_metrics(tmp_path) == [{"step": 10, "train/loss": 0.1 + 0.2, "val/loss": 3.0}]


def test_a_row_cannot_mix_two_steps(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, writes=True)
    record.note(10, {"a": 1})
    with pytest.raises(RuntimeError, match="not closed before step 11"):
        record.note(11, {"a": 1})


def test_a_resume_drops_later_rows_and_a_torn_line(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, writes=True)
    for step in (10, 20, 30):
        record.note(step, {"loss": step / 7})
        record.close_row()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')
    RunRecord(tmp_path, writes=True).keep_until(20)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == json.dumps({"step": 10, "loss": 10 / 7}) + "\n" + json.dumps({"step": 20, "loss": 20 / 7}) + "\n"


def test_a_torn_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_metrics(tmp_path)


def test_the_result_keeps_the_fields_of_earlier_sessions(tmp_path: Path) -> None:
    RunRecord(tmp_path, writes=True).update(seconds=100.0, seed=7)
    record = RunRecord(tmp_path, writes=True)
    record.finish("interrupted", "stopped by SIGTERM")
    assert read_result(tmp_path) == {
        "seconds": 100.0,
        "seed": 7,
        "status": "interrupted",
        "reason": "stopped by SIGTERM",
    }
    assert record.seconds() >= 100.0


def test_only_the_writing_rank_writes(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, writes=False)
    record.note(1, {"loss": 1.0})
    record.close_row()
    record.update(status="running")
    assert list(tmp_path.iterdir()) == []


def test_a_row_of_a_diverged_step_is_dropped_with_those_after_it(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, writes=True)
    record.note(7, {"train/loss": 1.0})
    record.keep_until(4)
    record.note(5, {"train/loss": 2.0})
    assert record.close_row() == {"step": 5, "train/loss": 2.0}
