"""Best-effort output: an error is one warning, and a wrapped logger behaves like the other one."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger

from src.callbacks.best_effort import BestEffort, BestEffortLogger


class Broken(CSVLogger):
    """A logger that starts and then fails."""

    def log_metrics(self, *_: Any, **__: Any) -> None:
        raise OSError("no space left")

    def finalize(self, status: str) -> None:
        raise OSError("no space left")


class CannotStart(CSVLogger):
    """A logger that fails to open its files."""

    @property
    def experiment(self) -> Any:
        raise OSError("no such server")


def test_each_part_that_fails_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    best_effort = BestEffort()
    for part in ("figures", "figures", "stream.jsonl"):
        with best_effort.attempt(part):
            raise ValueError("two\nlines")
    assert [record.getMessage() for record in caplog.records] == [
        f"{part} failed and may be incomplete; the run continues: ValueError: two lines"
        for part in ("figures", "stream.jsonl")
    ]


def test_an_interruption_is_not_suppressed() -> None:
    with pytest.raises(KeyboardInterrupt), BestEffort().attempt("figures"):
        raise KeyboardInterrupt


def test_a_logger_that_fails_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (logger,) = BestEffort().wrap_loggers([Broken(tmp_path)])
    logger.log_metrics({"x": 1.0}, step=1)
    logger.log_metrics({"x": 1.0}, step=2)
    logger.finalize("success")
    assert caplog.text.count("Broken failed and may be incomplete; the run continues: OSError") == 1


def test_a_logger_that_cannot_start_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert BestEffort().wrap_loggers([CannotStart(tmp_path)]) == []
    assert "CannotStart failed" in caplog.text


def test_a_wrapped_logger_passes_calls_and_attributes_on(tmp_path: Path) -> None:
    inner = CSVLogger(tmp_path, name="csv", version="v")
    (logger,) = BestEffort().wrap_loggers([inner])
    assert isinstance(logger, Logger)
    assert isinstance(logger, BestEffortLogger)
    assert logger.wrapped is inner
    for name in ("name", "version", "save_dir", "root_dir", "log_dir", "experiment"):
        assert getattr(logger, name) == getattr(inner, name)
    logger.log_hyperparams({"lr": 0.1})
    logger.log_metrics({"x": 1.5}, step=3)
    logger.save()
    assert "1.5" in (tmp_path / "csv/v/metrics.csv").read_text()
    with pytest.raises(AttributeError):
        _ = logger.no_such_attribute
