"""Progress on standard error: the bar of a terminal, and the lines of a pipe or a file."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from src.callbacks.progress import ProgressBar, ProgressLines, format_duration
from src.callbacks.run_record import RunRecord
from tests.callbacks.test_training_log import OUTPUTS, Clock, trainer_at
from tests.runs import SMALL, make_shards, run


def test_the_bar_shows_step_loss_and_speed_and_draws_by_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    bar: Any = ProgressBar(tokens_per_step=64, every_s=0.5)
    bar.setup(trainer_at(6), None, "fit")  # resumed at step 6
    bar.on_train_start(trainer_at(6))
    for step, seconds in ((7, 0.1), (8, 0.9)):
        clock.now += seconds
        bar.on_train_batch_end(trainer_at(step), None, OUTPUTS, None, step - 1)
    bar.on_train_end()
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "6/10" in shown.err
    assert "7/10" not in shown.err
    assert "8/10" in shown.err
    assert "loss=6.2500, tokens/s=128" in shown.err


def test_the_validation_bar_knows_its_length(capsys: pytest.CaptureFixture[str]) -> None:
    bar: Any = ProgressBar(tokens_per_step=64, every_s=0.5)
    loaders = [SimpleNamespace(n_batches=7), SimpleNamespace(n_batches=11)]
    trainer = trainer_at(0, sanity_checking=False, num_val_batches=[float("inf")] * 2, val_dataloaders=loaders)
    bar.setup(trainer, None, "fit")
    bar.on_validation_start(trainer, None)
    totals = []
    for loader in (0, 1):
        for batch in (0, 1):
            bar.on_validation_batch_start(trainer, None, None, batch, loader)
            totals.append(bar.val_progress_bar.total)
    assert totals == [7, 7, 11, 11]


def test_the_bar_is_closed_by_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    bar: Any = ProgressBar(tokens_per_step=64, every_s=0.5)
    bar.setup(trainer_at(0), None, "fit")
    bar.on_exception(trainer_at(0), None, RuntimeError())  # before training
    bar.on_train_start(trainer_at(0))
    bar.on_exception(trainer_at(0), None, RuntimeError())
    assert capsys.readouterr().err.endswith("\n")


def lines_at(step: int, **attributes: Any) -> Any:
    """A trainer that validates after no step."""
    return trainer_at(step, val_check_batch=100, should_stop=False, enable_validation=True, **attributes)


def test_a_line_has_step_losses_speed_and_the_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock, record = Clock(monkeypatch), RunRecord(tmp_path, writes=False)
    lines: Any = ProgressLines(record)
    lines.on_train_start(lines_at(4), None)  # resumed at step 4
    clock.now += 8.0
    record.note(6, {"train/loss": 6.25, "lr": 1e-3, "tokens_per_s": 1234.4, "spike_score/loss": 0.5, "val/loss": 6.5})
    record.close_row()
    with caplog.at_level(logging.INFO):
        lines.on_step_end(lines_at(6), None)
        lines.on_step_end(lines_at(7), None)  # a step without a row
    # 8 s for 2 of the 6 steps of this session: 4 steps left are 16 s.
    assert caplog.messages == ["step 6/10  train/loss 6.2500  val/loss 6.5000  1,234 tokens/s  0:00:16 left"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3725, "1:02:05"), (2 * 86400 + 7, "2d 0:00:07")]
)
def test_a_duration_has_days_where_there_are_any(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_pipe_gets_a_line_for_each_logged_step_and_no_carriage_return(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards")
    few = ["trainer.max_steps=6", "trainer.log_every_steps=2", "trainer.val_every_steps=3", "check=off"]
    done = run(*SMALL, *few, f"data.path={shards}", "hydra.run.dir=r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "\r" not in done.stderr
    steps = [line.split()[1] for line in done.stderr.splitlines() if line.startswith("step ")]
    assert steps == ["2/6", "3/6", "4/6", "6/6"]
