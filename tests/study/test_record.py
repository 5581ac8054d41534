"""Record of a study: what is frozen stays as it was, and an amended plan is frozen again."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from src.errors import UserError
from src.study.page import write_verdict
from src.study.record import freeze, list_outdated, open_record, read_record, read_results
from tests.study.test_verdict import COSTS, PLAN, write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_study(folder)
    return folder


def set_result(folder: Path, **changes: float) -> None:
    path = folder / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_results_that_change_what_is_frozen_are_named(study: Path, tmp_path: Path) -> None:
    changed = tmp_path / "s"
    shutil.copytree(study, changed)
    assert not list_outdated(read_record(changed), read_results(changed))
    other = read_record(changed)
    assert other.frozen is not None
    other.frozen["rates"]["small"]["better"] = 0.001
    rate = "the rate of better at size small (0.001, now 0.002)"
    assert list_outdated(other, read_results(changed)) == [rate]
    set_result(changed / "search/small/better-lr0.004-steps4-seed201", val_loss=1.0)  # the edge of the grid
    record = read_record(changed)
    assert not list_outdated(record, read_results(changed))  # the search is not complete: it would be extended
    set_result(changed / "search/small/better-lr0.001-steps4-seed201", val_loss=0.5)
    set_result(changed / "timing/small/same-lr0.002-steps4-seed201", tokens_per_s=1000.0)
    steps = "the steps of same at size small and equal seconds (4, now 8)"
    assert list_outdated(record, read_results(changed)) == [steps]
    write_verdict(changed, tmp_path)
    assert f"By the results of now these are not the frozen values: {steps}" in (tmp_path / "report.md").read_text()


def test_an_amended_plan_is_frozen_again_under_the_time_of_the_first(study: Path) -> None:
    first = read_record(study)
    assert first.is_frozen
    assert first.frozen is not None
    wider = dataclasses.replace(PLAN, margin=0.02)
    with pytest.raises(
        UserError, match=r"changed after its confirmation began on 2026-01-01.*margin was 0.01, is 0.02"
    ):
        open_record(study, "made", wider, COSTS, None)
    record = open_record(study, "made", wider, COSTS, "a wider margin")
    assert not record.is_frozen
    assert not list_outdated(record, {})
    record.frozen = freeze(record, read_results(study))
    assert record.is_frozen
    assert record.frozen == {**first.frozen, "of": record.hash}
