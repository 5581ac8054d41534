"""Records are read as they were written; a process killed within a row costs that row alone."""

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.callbacks.run_record import RunRecord, read_metrics, read_result
from src.reporting.runs import read_run

numbers = st.floats() | st.integers() | st.sampled_from([10**300, -(2**64), 5e-324, math.nan, math.inf])
names = st.text(max_size=8)
plain = st.none() | st.booleans() | numbers | st.text()
trees = st.recursive(plain, lambda t: st.lists(t, max_size=3) | st.dictionaries(names, t, max_size=3), max_leaves=6)
rows = st.lists(st.dictionaries(names.filter(lambda name: name != "step"), numbers, max_size=4), max_size=5)
quickly = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def same(a: Any, b: Any) -> bool:
    """Equal, type and sign of zero included, where NaN equals NaN."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and repr(a) == repr(b)


def written(folder: Path, values: list[dict[str, Any]]) -> list[dict[str, Any]]:
    record = RunRecord(folder, writes=True)
    for step, row in enumerate(values, 1):
        record.note(step, row)
        record.close_row()
    return [{"step": step, **row} for step, row in enumerate(values, 1)]


@given(rows)
@quickly
def test_rows_come_back_as_they_were_written(values: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        expected = written(Path(place), values)
        assert same(read_metrics(Path(place)), expected)
        RunRecord(Path(place), writes=True).keep_until(len(values))
        assert same(read_metrics(Path(place)), expected)


@given(rows.filter(bool), st.data())
@quickly
def test_a_row_cut_anywhere_costs_itself_alone(values: list[dict[str, Any]], data: Any) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        expected = written(folder, values)
        path = folder / "metrics.jsonl"
        raw = path.read_bytes()
        whole = raw[: raw[:-1].rfind(b"\n") + 1]
        left = data.draw(st.integers(len(whole), len(raw)))
        path.write_bytes(raw[:left] + data.draw(st.sampled_from([b"", b"\0" * 9, b"\xff", b"{"])))
        found = read_metrics(folder)
        assert same(found, expected[: len(found)])
        assert len(found) >= len(expected) - 1
        RunRecord(folder, writes=True).keep_until(len(values))
        record = RunRecord(folder, writes=True)
        record.note(99, {"x": 1})
        record.close_row()
        assert same(read_metrics(folder), [*found, {"step": 99, "x": 1}])


@given(st.dictionaries(names, trees, max_size=4))
@quickly
def test_a_result_comes_back_as_it_was_stated(values: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as place:
        record = RunRecord(Path(place), writes=True)
        record.result.update(values)
        record.finish("failed", "é\u2028\ud800")
        assert same(read_result(Path(place)), {**values, "status": "failed", "reason": "é\u2028\ud800"})


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"3", b"\xff", b"\0\0\0", b"[" * 100_000])
def test_a_damaged_result_is_named_by_every_reader(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_bytes(raw)
    (tmp_path / "config.yaml").write_text("name: x\n")
    for read in (read_result, read_run, lambda folder: RunRecord(folder, writes=True)):
        with pytest.raises(ValueError, match=r"result\.json is not a JSON object"):
            read(tmp_path)


def test_an_invalid_row_in_the_middle_is_named(tmp_path: Path) -> None:
    for row in ("[]", '{"loss": 1}', '{"step": "2"}', '{"step": true}'):
        (tmp_path / "metrics.jsonl").write_text(f"{json.dumps({'step': 1})}\n{row}\n{json.dumps({'step': 3})}\n")
        with pytest.raises(ValueError, match="line 2"):
            read_metrics(tmp_path)
