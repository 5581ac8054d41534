"""Measurements at size, rehearsed on small inputs: what they write is what a run and task=prepare write."""

from pathlib import Path

from benchmarks.at_size import build_module, write_runs, write_sparse_shards
from src.reporting.report import build_report


def test_sparse_shards_are_opened_by_their_manifest(tmp_path: Path) -> None:
    write_sparse_shards(tmp_path, 4, 5_000_000)
    data = build_module(tmp_path, "shuffled")
    assert data.train_batch(1_000_000, 0, 1).shape == (16, 32, 1025)
    identity = data.identity()
    assert identity["train_tokens"] == 15_000_000
    assert identity["n_shards"] == {"val": 1, "train": 3}


def test_written_runs_are_grouped_by_seed(tmp_path: Path) -> None:
    write_runs(tmp_path, 4, 20, 2, one_name=False)
    report = build_report([tmp_path], "vanilla", ["residual"])
    assert sorted(report.board["n seeds"]) == [2, 2]
    assert not report.found.failures
