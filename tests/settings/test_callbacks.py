"""Sections `callbacks` and `profiler`: any Lightning callback, several at once; a profiler with its folder."""

from pathlib import Path

import pytest
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor
from lightning.pytorch.profilers import PyTorchProfiler, SimpleProfiler

from src.callbacks.profilers import TraceProfiler
from src.errors import UserError
from tests.support import composed_settings, options


def test_no_callbacks_and_no_profiler_are_the_default() -> None:
    settings = composed_settings()
    assert settings.callbacks == []
    assert settings.profiler is None
    assert not {"callbacks", "profiler"} & set(settings.config)


def test_every_shipped_callback_is_built() -> None:
    for name in options("callbacks"):
        (make,) = composed_settings(f"callbacks={name}").callbacks
        assert type(make()).__module__.startswith("lightning.pytorch.callbacks")


def test_several_callbacks_and_one_by_target() -> None:
    by_target = "+callbacks.mine._target_=lightning.pytorch.callbacks.LearningRateMonitor"
    settings = composed_settings(
        "callbacks=[early_stopping,ema]", by_target, "callbacks.early_stopping.patience=7"
    )
    stopping, _, monitor = (make() for make in settings.callbacks)
    assert isinstance(stopping, EarlyStopping)
    assert stopping.patience == 7
    assert isinstance(monitor, LearningRateMonitor)


@pytest.mark.parametrize(("name", "kind"), [("simple", SimpleProfiler), ("pytorch", TraceProfiler)])
def test_a_profiler_is_built_with_its_folder(name: str, kind: type, tmp_path: Path) -> None:
    make = composed_settings(f"profiler={name}").profiler
    assert make is not None
    profiler = make(tmp_path)
    assert type(profiler) is kind
    assert profiler.dirpath == tmp_path
    assert isinstance(profiler, PyTorchProfiler | SimpleProfiler)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+callbacks.a._target_=os.system"], "trusted_targets=[os]"),
        (["+callbacks.a._target_=torch.nn.Linear"], "must be a lightning.pytorch.callbacks.callback.Callback"),
        (
            ["callbacks=early_stopping", "+callbacks.early_stopping.patiense=1"],
            "patiense is not a key, did you mean",
        ),
        (
            ["callbacks=early_stopping", "~callbacks.early_stopping.monitor"],
            "early_stopping.monitor is missing",
        ),
        (["+callbacks.a=3"], "callbacks.a must be"),
    ],
)
def test_a_wrong_callback_is_named(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError) as error:
        composed_settings(*overrides)
    assert words in str(error.value)
