"""Finished runs in a file: another machine, whose folder is empty, continues with the same verdict."""

import dataclasses
import json
import shutil
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from src.errors import UserError
from src.study.finished_runs import MAX_BYTES, _read_run, keep_finished, read_finished, write_finished
from src.study.page import write_verdict
from src.study.phases import RunSpec, next_runs
from src.study.record import StudyRecord, open_record, read_record, read_results
from tests.reporting.folders import write_run
from tests.study.test_verdict import COSTS, PLAN, loss_of, write_spec, write_study


def overrides(spec: RunSpec) -> list[str]:
    return [f"residual={spec.system}", f"seed={spec.seed}"]


def other_machine(folder: Path) -> StudyRecord:
    record = StudyRecord("made", PLAN, COSTS)
    folder.mkdir()
    record.write(folder)
    return record


def test_another_machine_reaches_the_same_verdict(tmp_path: Path) -> None:
    here, there, file = tmp_path / "here", tmp_path / "there", tmp_path / "runs.jsonl"
    record = write_study(here)
    n = write_finished(file, here, record)
    assert n == len(read_results(here)) > 30
    assert file.stat().st_size < MAX_BYTES / 2
    assert str(tmp_path) not in file.read_text()  # no place of this machine
    elsewhere = other_machine(there)
    assert read_finished(file, there, elsewhere, overrides) == n
    assert read_results(there) == read_results(here)
    elsewhere.write(there)
    assert elsewhere.frozen == record.frozen
    assert next_runs(PLAN, COSTS, read_results(there)) is None
    assert write_verdict(there, there)[1] == write_verdict(here, here)[1]
    assert (there / "contrasts.csv").read_text() == (here / "contrasts.csv").read_text()
    first = next(iter(read_results(there)))
    assert OmegaConf.load(there / first / ".hydra" / "overrides.yaml") == overrides_of(first)
    write_finished(tmp_path / "again.jsonl", there, elsewhere)
    assert (tmp_path / "again.jsonl").read_text() == file.read_text()


def overrides_of(folder: str) -> list[str]:
    system, _, rest = folder.rpartition("/")[2].partition("-lr")
    return [f"residual={system}", f"seed={rest.rpartition('seed')[2]}"]


def test_a_study_continues_where_the_file_ends(tmp_path: Path) -> None:
    here, there, file = tmp_path / "here", tmp_path / "there", tmp_path / "runs.jsonl"
    record = write_study(here, stop="confirmation")
    write_finished(file, here, record)
    elsewhere = other_machine(there)
    read_finished(file, there, elsewhere, overrides)
    due = next_runs(PLAN, COSTS, read_results(there))
    assert due == next_runs(PLAN, COSTS, read_results(here))
    assert due is not None
    assert due[0] == "confirmation"
    write_spec(there, elsewhere, due[1][0], 2.5)
    result = json.loads((there / due[1][0].folder / "result.json").read_text())
    (there / due[1][0].folder / "result.json").write_text(json.dumps({**result, "machine": "another"}))
    write_finished(file, there, elsewhere)
    assert read_finished(file, here, record, overrides) == 1
    assert json.loads((here / due[1][0].folder / "result.json").read_text())["machine"] == "another"
    assert read_results(here)[due[1][0].folder].loss == 2.5


def test_own_runs_are_kept_and_a_diverged_run_stays_diverged(tmp_path: Path) -> None:
    here, there, file = tmp_path / "here", tmp_path / "there", tmp_path / "runs.jsonl"
    record = write_study(here, lambda spec: float("inf") if spec.lr > 3e-3 else loss_of(spec), stop="confirmation")
    write_finished(file, here, record)
    elsewhere = other_machine(there)
    first, *_ = read_results(here)
    shutil.copytree(here / first, there / first)
    before = (there / first / "result.json").stat().st_mtime_ns
    read_finished(file, there, elsewhere, overrides)
    assert (there / first / "result.json").stat().st_mtime_ns == before
    assert read_results(there) == read_results(here)


def test_a_file_of_the_plan_before_an_amendment_is_read(tmp_path: Path) -> None:
    here, file = tmp_path / "here", tmp_path / "runs.jsonl"
    n = write_finished(file, here, write_study(here))
    first, *_ = read_results(here)
    shutil.rmtree(here / first)
    stored = (here / "plan.json").read_text()
    wider = dataclasses.replace(PLAN, margin=0.02)
    record = open_record(here, "made", wider, COSTS, "a wider margin")
    assert read_finished(file, here, record, overrides) == 1
    assert (here / "plan.json").read_text() == stored  # a rejected file would leave the plan as it was
    assert write_finished(file, here, record) == n
    record.write(here)
    assert [change["reason"] for change in read_record(here).changes] == ["a wider margin"]
    again = open_record(here, "made", wider, COSTS, None)
    assert read_finished(file, here, again, overrides) == 0


@pytest.mark.parametrize("status", ["interrupted", "running"])
def test_a_finished_run_of_the_file_replaces_an_unfinished_one(status: str, tmp_path: Path) -> None:
    here, there, file = tmp_path / "here", tmp_path / "there", tmp_path / "runs.jsonl"
    write_finished(file, here, write_study(here, stop="confirmation"))
    before = file.read_text()
    elsewhere = other_machine(there)
    first, *_ = read_results(here)
    (there / first / "checkpoints").mkdir(parents=True)
    (there / first / "result.json").write_text(json.dumps({"status": status, "steps": 2}))
    read_finished(file, there, elsewhere, overrides)
    assert read_results(there) == read_results(here)
    assert not (there / first / "checkpoints").exists()
    with keep_finished(file, there, elsewhere):
        pass
    assert file.read_text() == before


def test_writing_keeps_runs_of_the_file_that_the_folder_lacks(tmp_path: Path) -> None:
    here, file = tmp_path / "here", tmp_path / "runs.jsonl"
    record = write_study(here, stop="confirmation")
    n = write_finished(file, here, record)
    before = file.read_text()
    first, *_ = read_results(here)
    shutil.rmtree(here / first)
    assert write_finished(file, here, record) == n
    assert file.read_text() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda head, run: head.update(plan="0" * 16), r"of study made, plan 0{16}, and this is study made, plan"),
        (lambda head, run: head.update(study="other"), "is of study other"),
        (lambda head, run: run.update(run="search/small/newer-lr0.001-steps4-seed201"), "is not a run of study made"),
        (lambda head, run: head.pop("common"), "is not as a study writes it"),
    ],
)
def test_records_of_another_plan_are_rejected(change: object, words: str, tmp_path: Path) -> None:
    here, file = tmp_path / "here", tmp_path / "runs.jsonl"
    write_finished(file, here, write_study(here, stop="search"))
    head, run, *_ = map(json.loads, file.read_text().splitlines())
    change(head, run)  # type: ignore[operator]
    file.write_text(json.dumps(head) + "\n" + json.dumps(run) + "\n")
    with pytest.raises(UserError, match=words):
        read_finished(file, tmp_path / "there", other_machine(tmp_path / "there"), overrides)


def test_records_of_a_study_with_another_first_size_are_rejected(tmp_path: Path) -> None:
    here, there, file = tmp_path / "here", tmp_path / "there", tmp_path / "runs.jsonl"
    write_finished(file, here, write_study(here))
    other = StudyRecord("made", dataclasses.replace(PLAN, sizes=dict(reversed(PLAN.sizes.items()))), COSTS)
    with pytest.raises(UserError, match=r"the first size small, and the first of study\.sizes is large; restore"):
        read_finished(file, there, other, overrides)


def test_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"runs\.jsonl cannot be read"):
        read_finished(tmp_path / "runs.jsonl", tmp_path / "there", other_machine(tmp_path / "there"), overrides)
    assert read_finished(tmp_path / "none.jsonl", tmp_path / "there", StudyRecord("made", PLAN, COSTS), overrides) == 0


def test_the_file_grows_while_runs_end(tmp_path: Path) -> None:
    here, file = tmp_path / "here", tmp_path / "deep" / "runs.jsonl"
    record = write_study(here, stop="pilot")
    with keep_finished(file, here, record, every_s=0.01):
        deadline = time.monotonic() + 30
        while not file.is_file() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(file.read_text().splitlines()) == 1 + len(read_results(here))
        pilot = next_runs(PLAN, COSTS, read_results(here))
        assert pilot is not None
        write_spec(here, record, pilot[1][0], 2.0)
    assert len(file.read_text().splitlines()) == 1 + len(read_results(here))
    with keep_finished(None, here, record):
        pass


def test_a_file_of_runs_that_an_amendment_made_others_is_rejected(tmp_path: Path) -> None:
    here, file = tmp_path / "here", tmp_path / "runs.jsonl"
    write_finished(file, here, write_study(here))
    for key, value in (("common", ["trainer=cpu"]), ("sizes", {**PLAN.sizes, "small": ["model.n_embd=9"]})):
        plan = dataclasses.replace(PLAN, **{key: value})  # type: ignore[arg-type]  # two kinds of values
        record = open_record(here, "made", plan, COSTS, "other runs")
        with pytest.raises(UserError, match=rf"runs\.jsonl has runs from before {key}.* changed.*give another file"):
            read_finished(file, here, record, overrides)


def test_of_a_run_in_folder_and_file_the_folders_is_written(tmp_path: Path) -> None:
    here, there, file = tmp_path / "here", tmp_path / "there", tmp_path / "runs.jsonl"
    record = write_study(here, stop="pilot")
    write_finished(file, here, record)
    first, *_ = read_results(here)
    result = json.loads((here / first / "result.json").read_text())
    (here / first / "result.json").write_text(json.dumps({**result, "val_loss": 1.25}))
    write_finished(file, here, record)
    read_finished(file, there, other_machine(there), overrides)
    assert read_results(there)[first].loss == 1.25


def test_of_a_long_curve_at_most_ten_rows_at_equal_distances_are_kept_with_the_last(tmp_path: Path) -> None:
    write_run(tmp_path / "r", name="x", seed=1, losses=[3.0] * 26)  # validated at steps 2, 4, ..., 52
    assert [row[0] for row in _read_run(tmp_path / "r")["rows"]] == [4, 10, 16, 22, 28, 34, 40, 46, 52]
