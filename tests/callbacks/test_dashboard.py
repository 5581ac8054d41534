"""Sample text and the layout of TensorBoard's charts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import loggers
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from src.callbacks.dashboard import LAYOUT, SampleKeys, TensorBoardLogger
from src.settings.sections import read_section


def test_the_layout_names_tags_that_a_run_writes() -> None:
    tags = {tag for charts in LAYOUT.values() for _, found in charts.values() for tag in found}
    assert tags >= {"train/loss", "val/loss", "lr", "grad_norm", "tokens_per_s"}


ROWS: list[dict[str, Any]] = [{"train/loss": 6.25, "lr": 1e-3, "tokens": 64}, {"train/loss": 6.0, "lr": 2e-3}]


def log_rows(board: loggers.TensorBoardLogger) -> tuple[dict[str, list[tuple[int, float]]], int]:
    """Return the scalars by tag after `ROWS` are logged, and the number of events."""
    for step, row in enumerate(ROWS, 10):
        board.log_metrics(row, step=step)
    board.finalize("success")
    found: Any = EventAccumulator(board.log_dir)
    found.Reload()
    tags = {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    (path,) = Path(board.log_dir).glob("events*")
    return tags, sum(1 for _ in EventFileLoader(str(path)).Load())


def test_a_row_is_one_event_that_shows_what_lightnings_would(tmp_path: Path) -> None:
    ours, n_ours = log_rows(TensorBoardLogger(tmp_path, name="ours", default_hp_metric=False))
    theirs, n_theirs = log_rows(loggers.TensorBoardLogger(tmp_path, name="theirs", default_hp_metric=False))
    assert ours == theirs
    assert n_theirs - n_ours == sum(len(row) - 1 for row in ROWS)


def test_a_value_that_is_no_number_is_written_by_lightning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(loggers.TensorBoardLogger, "log_metrics", lambda self, *args: seen.append(args))
    board = TensorBoardLogger(tmp_path, name="ours", default_hp_metric=False)
    board.log_metrics({"x": torch.tensor(1.0)}, 3)  # type: ignore[dict-item]  # Lightning's takes it
    board.experiment.file_writer = None
    board.log_metrics({"x": 1.0}, 4)
    assert [step for _, step in seen] == [3, 4]


@pytest.mark.parametrize(
    ("prompt", "tokens", "words"), [("x", -1, "samples.tokens"), ("", 3, "samples.prompt")]
)
def test_a_wrong_key_is_named(prompt: str, tokens: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_section("samples", OmegaConf.create({"prompt": prompt, "tokens": tokens}), SampleKeys)
