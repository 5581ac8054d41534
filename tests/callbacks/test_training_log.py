"""Training metrics: rows at their steps, and speed without pauses."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from src.callbacks.run_record import RunRecord
from src.callbacks.training_log import TrainingLog

OUTPUTS = {"loss": torch.tensor(6.25), "grad_norm": torch.tensor(0.5), "lr": 1e-3}


#: Measures nothing.
NONE: Any = SimpleNamespace(measure=lambda *_: {})


class Clock:
    """A clock that the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def trainer_at(step: int, **attributes: Any) -> Any:
    return SimpleNamespace(global_step=step, max_steps=10, is_global_zero=True, **attributes)


def test_rows_are_those_of_every_nth_and_the_last_step(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, writes=False)
    log: Any = TrainingLog(record, every_steps=4, tokens_per_step=64, throughput=NONE)
    steps = []
    for step in range(1, 11):
        log.on_train_batch_end(trainer_at(step), None, OUTPUTS, None, step - 1)
        row = record.close_row()
        if row:
            steps.append(row["step"])
            assert (row["train/loss"], row["lr"], row["tokens"]) == (6.25, 1e-3, step * 64)
    assert steps == [4, 8, 10]


def test_the_speed_leaves_out_a_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, record = Clock(monkeypatch), RunRecord(tmp_path, writes=False)
    log: Any = TrainingLog(record, every_steps=2, tokens_per_step=64, throughput=NONE)
    log.on_train_start(trainer_at(0), None)
    clock.now += 1.0
    log.on_validation_start(trainer_at(1), None)
    clock.now += 50.0
    log.on_train_batch_start(trainer_at(1))
    clock.now += 1.0
    log.on_train_batch_end(trainer_at(2), None, OUTPUTS, None, 1)
    assert record.close_row()["tokens_per_s"] == 2 * 64 / 2.0


def test_each_row_has_the_speed_since_the_row_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, record = Clock(monkeypatch), RunRecord(tmp_path, writes=False)
    log: Any = TrainingLog(record, every_steps=2, tokens_per_step=64, throughput=NONE)
    log.on_train_start(trainer_at(6), None)  # of a resumed run
    for step, seconds in ((7, 1.0), (8, 1.0), (9, 4.0), (10, 4.0)):
        log.on_train_batch_start(trainer_at(step - 1))
        clock.now += seconds
        log.on_train_batch_end(trainer_at(step), None, OUTPUTS, None, step - 1)
        row = record.close_row()
        assert row.get("tokens_per_s") == {8: 2 * 64 / 2.0, 10: 2 * 64 / 8.0}.get(step)


def test_a_pause_lasts_from_its_first_cause_to_the_next_step_and_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, record = Clock(monkeypatch), RunRecord(tmp_path, writes=False)
    log: Any = TrainingLog(record, every_steps=2, tokens_per_step=64, throughput=NONE)
    log.on_train_start(trainer_at(0), None)
    log.on_validation_start(trainer_at(0), None)
    clock.now += 10.0
    log.pause()  # an evaluation after the validation
    clock.now += 5.0
    for step in (1, 2):
        log.on_train_batch_start(trainer_at(step - 1))
        clock.now += 2.0
        log.on_train_batch_end(trainer_at(step), None, OUTPUTS, None, step - 1)
    assert record.close_row()["tokens_per_s"] == 2 * 64 / 4.0
