"""Which losses are compared at which budgets; `test_report.py` has whole leaderboards."""

import json
from pathlib import Path
from typing import Any

import pytest

from src.reporting.leaderboard import choose_loss, find_common_budget
from src.reporting.runs import Run, read_run
from src.reporting.systems import System
from tests.reporting.folders import STEP_TOKENS, write_run


def make_run(folder: Path, n_losses: int, **result: Any) -> Run:
    return read_run(write_run(folder, name=folder.name, seed=1, losses=[3.0] * n_losses, **result))


def test_the_common_budget_is_the_end_of_the_shortest_run(tmp_path: Path) -> None:
    long, short = make_run(tmp_path / "long", 4), make_run(tmp_path / "short", 2)
    assert find_common_budget([long, short], "tokens") == 4 * STEP_TOKENS
    assert find_common_budget([], "tokens") is None


def test_curves_that_do_not_overlap_or_lack_a_budget_have_none_in_common(tmp_path: Path) -> None:
    short, late = make_run(tmp_path / "short", 1), write_run(tmp_path / "late", name="late", seed=1, losses=[3.0] * 4)
    rows = [json.loads(line) for line in (late / "metrics.jsonl").read_text().splitlines()]
    for n in (4, 8):  # validated from step 6 on, where the short run has ended at step 2; then not at all
        for row in rows[:n]:
            row.pop("val/loss", None)
        (late / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert find_common_budget([short, read_run(late)], "tokens") is None
    unknown = make_run(tmp_path / "unknown", 2, scores={"flops_per_token": None})
    assert find_common_budget([short, unknown], "flops") is None


@pytest.mark.parametrize(("bpb", "loss"), [(1.2, "val bpb"), (None, "val loss")])
def test_bits_per_byte_are_compared_where_every_run_has_them(bpb: float | None, loss: str, tmp_path: Path) -> None:
    systems = []
    for name, value in (("gpt2", 1.1), ("small", bpb)):
        data = {"hash": name, "tokenizer": {"name": name, "sha256": name[0] * 64, "n_vocab": 300}}
        systems.append(System(name, (make_run(tmp_path / name, 2, data=data, val_bpb=value),)))
    assert choose_loss(systems) == loss
