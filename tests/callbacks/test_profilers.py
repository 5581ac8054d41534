"""Profilers are built with the folder of their files."""

from pathlib import Path

import pytest
from lightning.pytorch.profilers import PyTorchProfiler, SimpleProfiler

from src.callbacks.profilers import TraceProfiler
from tests.support import composed_settings


@pytest.mark.parametrize(("name", "kind"), [("simple", SimpleProfiler), ("pytorch", TraceProfiler)])
def test_a_profiler_is_built_with_its_folder(name: str, kind: type, tmp_path: Path) -> None:
    make = composed_settings(f"profiler={name}").profiler
    assert make is not None
    profiler = make(tmp_path)
    assert type(profiler) is kind
    assert profiler.dirpath == tmp_path
    assert isinstance(profiler, PyTorchProfiler | SimpleProfiler)
