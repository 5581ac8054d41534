"""Checkpoints written in the background: of their own step, one at a time, loud when they fail."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from src.callbacks.background import BackgroundCheckpointIO, copy_to_host
from src.callbacks.checkpoints import AtomicCheckpointIO, read_checkpoint
from src.errors import CheckpointError


class Gate:
    """Blocks saves until `opened`, and lists the files written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened, self.written = threading.Event(), list[str]()
        real = AtomicCheckpointIO.save_checkpoint

        def save(io: AtomicCheckpointIO, checkpoint: dict[str, Any], path: Path, options: Any = None) -> None:
            assert self.opened.wait(20)
            real(io, checkpoint, path, options)
            self.written.append(path.name)

        monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", save)


def test_a_checkpoint_holds_the_values_at_the_time_of_the_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, files = Gate(monkeypatch), BackgroundCheckpointIO()
    weight = torch.arange(6.0).reshape(2, 3).t()
    files.save_checkpoint({"weight": weight, "deep": [{"step": torch.tensor(3)}]}, tmp_path / "a.ckpt")
    weight.zero_()  # the next step
    gate.opened.set()
    files.wait()
    found = read_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(found["weight"], torch.arange(6.0).reshape(2, 3).t())
    assert found["deep"][0]["step"] == 3


def test_links_are_made_after_the_file_is_in_place_and_the_next_save_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, files = Gate(monkeypatch), BackgroundCheckpointIO()
    files.save_checkpoint({"step": 1}, tmp_path / "a.ckpt")
    files.defer(lambda: gate.written.append("named"))
    files.raise_failures()  # none so far
    assert gate.written == []
    threading.Timer(0.1, gate.opened.set).start()
    files.save_checkpoint({"step": 2}, tmp_path / "b.ckpt")
    assert gate.written[:2] == ["a.ckpt", "named"]
    files.teardown()
    assert gate.written == ["a.ckpt", "named", "b.ckpt"]


def test_a_failed_save_is_raised_and_gets_no_second_name(tmp_path: Path) -> None:
    files = BackgroundCheckpointIO()
    (tmp_path / "b.ckpt").mkdir()  # nothing can be renamed over it
    (tmp_path / "b.ckpt" / "x").touch()
    named: list[str] = []
    files.save_checkpoint({"step": 1}, tmp_path / "a.ckpt")
    files.wait()
    files.save_checkpoint({"step": 2}, tmp_path / "b.ckpt")
    files.defer(lambda: named.append("b"))
    with pytest.raises(CheckpointError, match=r"b\.ckpt cannot be written"):
        files.wait()
    files.wait()
    assert named == []
    assert read_checkpoint(tmp_path / "a.ckpt")["step"] == 1


def test_an_error_in_flight_does_not_hide_the_error_of_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = BackgroundCheckpointIO()
    (tmp_path / "a.ckpt" / "x").mkdir(parents=True)
    files.save_checkpoint({"step": 1}, tmp_path / "a.ckpt")
    files.teardown()
    assert "a checkpoint in flight was lost" in caplog.text


def test_tensors_that_share_storage_share_it_in_the_copy() -> None:
    weight = torch.ones(3)
    copied = copy_to_host({"wte": weight, "head": weight.detach(), "other": weight[:2], "n": (1, "x", None)}, {})
    assert copied["wte"] is copied["head"]
    assert copied["wte"].data_ptr() != weight.data_ptr()
    assert copied["n"] == (1, "x", None)
