"""Trackio's run behind a Lightning logger, with a stand-in for the package."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from src.callbacks.trackio_logger import TrackioLogger


def test_metrics_configuration_and_end_reach_the_run_that_is_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    run = SimpleNamespace(
        log=lambda metrics, step: calls.append((metrics, step)), config={}, finish=lambda: calls.append("finish")
    )

    def init(**keys: Any) -> Any:
        calls.append((keys["project"], keys["name"], keys["resume"]))
        return run

    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(init=init))  # type: ignore[arg-type]
    logger = TrackioLogger(project="p", run_name="r", space_id=None)
    assert (logger.name, logger.version, calls) == ("p", "r", [])
    logger.log_hyperparams({"optimizer.lr": 0.1})
    logger.log_metrics({"train/loss": 1.0}, step=3)
    logger.finalize("success")
    logger.finalize("success")
    assert calls == [("p", "r", "allow"), ({"train/loss": 1.0}, 3), "finish"]
    assert run.config == {"optimizer.lr": 0.1}
