"""Record of a study: what is frozen decides from then on, and an amended plan frees what it changes."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from src.errors import UserError
from src.study.page import write_verdict
from src.study.phases import next_runs
from src.study.record import freeze, open_record, read_record, read_results
from tests.study.test_verdict import COSTS, PLAN, write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_study(folder)
    return folder


def set_result(folder: Path, **changes: float) -> None:
    path = folder / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_frozen_rates_and_steps_decide_when_the_results_change(study: Path, tmp_path: Path) -> None:
    changed = tmp_path / "s"
    shutil.copytree(study, changed)
    set_result(changed / "search/small/better-lr0.004-steps4-seed201", val_loss=1.0)  # the edge of the grid
    set_result(changed / "timing/small/same-lr0.002-steps4-seed201", tokens_per_s=1000.0)
    record, results = read_record(changed), read_results(changed)
    assert next_runs(PLAN, COSTS, results, record.frozen) is None
    expected = write_verdict(study, tmp_path)[1]
    assert write_verdict(changed, tmp_path)[1] == expected
    text = (tmp_path / "report.md").read_text()
    assert (
        "another value would have been frozen: the rate of better at size small (0.002, now 0.004); the steps" in text
    )
    assert "the steps of same at size small and equal seconds (4, now 8)" in text
    assert "| better | 0.002 | 0.001, 0.002, 0.004 |" in text


def test_an_amendment_frees_rates_and_steps_only_if_it_changes_what_decides_them(study: Path) -> None:
    frozen = read_record(study).frozen
    assert frozen is not None
    judged = dataclasses.replace(PLAN, margin=0.02)
    assert open_record(study, "made", judged, COSTS, "a wider margin").frozen == frozen
    with pytest.raises(
        UserError, match=r"changed after its confirmation began on 2026-01-01.*margin was 0.01, is 0.02"
    ):
        open_record(study, "made", judged, COSTS, None)
    longer = dataclasses.replace(PLAN, budget=dataclasses.replace(PLAN.budget, search_share=1.0))
    record = open_record(study, "made", longer, COSTS, "a longer search")
    assert record.frozen is not None
    assert record.frozen.keys() == {"time", "hash", "sd"}
    again = freeze(dataclasses.replace(record, plan=PLAN), read_results(study))
    assert again == frozen  # the time of the first freeze
