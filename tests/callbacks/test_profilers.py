"""Profilers are built with the folder of their files."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.profilers import PyTorchProfiler, SimpleProfiler

from src.callbacks.profilers import TraceProfiler
from src.errors import UserError
from tests.support import composed_settings


@pytest.mark.parametrize(("name", "kind"), [("simple", SimpleProfiler), ("pytorch", TraceProfiler)])
def test_a_profiler_is_built_with_its_folder(name: str, kind: type, tmp_path: Path) -> None:
    make = composed_settings(f"profiler={name}").profiler
    assert make is not None
    profiler = make(tmp_path)
    assert type(profiler) is kind
    assert profiler.dirpath == tmp_path
    assert isinstance(profiler, PyTorchProfiler | SimpleProfiler)


@pytest.mark.parametrize(("wanted", "calls"), [("auto", [None, "memory-0.pickle", "off"]), ("false", [])])
def test_a_snapshot_of_a_gpu_is_written_once(
    wanted: str, calls: list[str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda.memory, "_record_memory_history", lambda **keys: seen.append("off" if keys else None)
    )
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", lambda path: seen.append(Path(path).name))
    make = composed_settings("profiler=pytorch", f"profiler.memory_snapshot={wanted}").profiler
    assert make is not None
    profiler = make(tmp_path)
    profiler.setup("fit", local_rank=0)
    profiler.teardown("fit")
    profiler.teardown("fit")
    assert seen == calls


def test_a_snapshot_on_a_cpu_is_rejected_in_one_sentence() -> None:
    with pytest.raises(UserError, match=r"^profiler\.memory_snapshot=true needs a GPU.*give auto or false$"):
        composed_settings("profiler=pytorch", "profiler.memory_snapshot=true")
