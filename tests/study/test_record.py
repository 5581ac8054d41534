"""Record of a study: what is frozen stays as it was, and an amended plan is frozen again."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest

from src.errors import UserError
from src.study.page import write_verdict
from src.study.phases import RunSpec
from src.study.record import freeze, job_overrides, list_outdated, open_record, read_record, read_results
from tests.study.test_verdict import COSTS, PLAN, write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_study(folder)
    return folder


def set_result(folder: Path, **changes: float | str) -> None:
    path = folder / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_results_that_change_what_is_frozen_are_named(study: Path, tmp_path: Path) -> None:
    changed = tmp_path / "s"
    shutil.copytree(study, changed)
    assert not list_outdated(read_record(changed), read_results(changed))
    other = read_record(changed)
    assert other.frozen is not None
    for rates in other.frozen["rates"].values():  # of one search at the first size, which is named once
        rates["better"] = 0.001
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
    longer = dataclasses.replace(PLAN, common=(*PLAN.common, "optimizer.weight_decay=0"))
    with pytest.raises(UserError, match=r": common: added \['optimizer\.weight_decay=0'\]; restore it"):
        open_record(study, "made", longer, COSTS, None)
    record = open_record(study, "made", wider, COSTS, "a wider margin")
    assert not record.is_frozen
    assert not list_outdated(record, {})
    record.frozen = freeze(record, read_results(study))
    assert record.is_frozen
    assert record.frozen == {**first.frozen, "of": record.hash}


def test_an_edited_plan_is_rejected(study: Path, tmp_path: Path) -> None:
    text = (study / "plan.json").read_text()
    assert '"margin": 0.01' in text
    (tmp_path / "plan.json").write_text(text.replace('"margin": 0.01', '"margin": 0.02'))
    with pytest.raises(ValueError, match=r"plan\.json was edited: its plan has the hash"):
        read_record(tmp_path)


def test_every_amendment_stays_in_the_record(study: Path, tmp_path: Path) -> None:
    shutil.copyfile(study / "plan.json", tmp_path / "plan.json")
    hashes = {read_record(study).hash}
    for margin in (0.02, 0.03):
        record = open_record(tmp_path, "made", dataclasses.replace(PLAN, margin=margin), COSTS, f"margin {margin}")
        record.write(tmp_path)
        hashes.add(record.hash)
    assert [change["reason"] for change in read_record(tmp_path).changes] == ["margin 0.02", "margin 0.03"]
    assert read_record(tmp_path).hashes == hashes


def test_another_order_of_the_sizes_changes_where_rates_are_searched_and_confirmed(study: Path) -> None:
    other = dataclasses.replace(PLAN, sizes=dict(reversed(PLAN.sizes.items())))
    with pytest.raises(UserError, match="first size was small, is large"):
        open_record(study, "made", other, COSTS, None)
    record = open_record(study, "made", other, COSTS, "the large size first")
    assert record.hash == read_record(study).hash
    assert not record.is_frozen


def test_a_run_of_other_overrides_is_no_result(study: Path) -> None:
    names = [*read_results(study)][:3]
    for name, own in zip(names, (["model.n_layer=3"], [], ["study.margin=1", "hydra.job.name=x"]), strict=True):
        assert (name in read_results(study, {name: own})) == (own != ["model.n_layer=3"])


def test_a_diverged_run_has_an_infinite_loss_whatever_it_validated_before(study: Path, tmp_path: Path) -> None:
    name = next(name for name in read_results(study) if name.startswith("search/"))
    shutil.copytree(study / name, tmp_path / name)
    assert math.isfinite(read_results(tmp_path)[name].loss)
    set_result(tmp_path / name, status="diverged")
    assert read_results(tmp_path)[name].loss == math.inf


def test_the_system_decides_over_the_size_and_the_size_over_what_is_common() -> None:
    plan = dataclasses.replace(
        PLAN,
        common=["model.n_embd=1", "mlp=gelu", "optimizer.warmup_steps=5"],
        sizes={"small": ["model.n_embd=2", "mlp=swiglu"]},
        systems={"vanilla": ["mlp=relu2"]},
    )
    found = job_overrides(plan, RunSpec("search", "small", "vanilla", 1e-3, 8, 201))
    own = ["name=vanilla", "seed=201", "optimizer.lr=0.001", "trainer.max_steps=8"]
    assert found == ["model.n_embd=2", "mlp=relu2", "optimizer.warmup_steps=5", *own, "check=off"]
    timing = job_overrides(plan, RunSpec("timing", "small", "vanilla", 1e-3, 40, 201))
    assert timing[2:4] == ["optimizer.warmup_steps=0", "evaluation=none"]
    assert "check=off" not in timing
    assert timing[-1] == "trainer.log_every_steps=4"
