"""Checkpoint files, complete or rejected, and which steps are saved; `tests/training/test_trainer.py` has runs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from src.callbacks.checkpoints import (
    AtomicCheckpointIO,
    Checkpoints,
    checkpoint_path,
    hash_path,
    link_over,
    list_steps,
    read_checkpoint,
)
from src.callbacks.run_record import RunRecord


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('ran')",))


def saved(path: Path) -> Path:
    weight = torch.arange(5000.0)
    AtomicCheckpointIO().save_checkpoint({"weight": weight, "step": 3, "name": "x"}, path)
    return path


def test_a_checkpoint_loads_as_it_was_saved(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(saved(tmp_path / "deep" / "last.ckpt"))
    assert torch.equal(checkpoint["weight"], torch.arange(5000.0))
    assert checkpoint["step"] == 3
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["last.ckpt", "last.ckpt.sha256"]


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"last\.ckpt: no checkpoint there"):
        read_checkpoint(tmp_path / "last.ckpt")


@pytest.mark.parametrize("keep", [0, 1, 700, 0.5, 0.999])
def test_a_truncated_checkpoint_is_rejected(tmp_path: Path, keep: float) -> None:
    path = saved(tmp_path / "last.ckpt")
    raw = path.read_bytes()
    path.write_bytes(raw[: int(keep if keep >= 1 else keep * len(raw))])
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        read_checkpoint(path)


def test_a_flipped_bit_in_a_tensor_is_found_with_and_without_the_hash_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "last.ckpt")
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(ValueError, match="damaged, its SHA-256"):
        read_checkpoint(path)
    hash_path(path).unlink()
    with pytest.raises(ValueError, match="damaged at record"):
        read_checkpoint(path)


def test_a_held_checkpoint_is_returned_once_and_then_read_from_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "last.ckpt")
    files, held = AtomicCheckpointIO(), {"step": -1}
    files.hold(path, held)
    assert files.load_checkpoint(path) is held
    assert files.load_checkpoint(path)["step"] == 3


def test_a_pickle_that_would_run_code_is_rejected(tmp_path: Path) -> None:
    torch.save({"weight": Hostile()}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="cannot be loaded"):
        read_checkpoint(tmp_path / "last.ckpt")


def test_checkpoints_are_listed_by_step_however_many_digits_it_has(tmp_path: Path) -> None:
    for step in (10**8, 10**8 - 1):
        checkpoint_path(tmp_path, step).touch()
    for name in ("step=4.ckpt", "step00000004-v1.ckpt", "step4 (copy).ckpt"):  # of a ModelCheckpoint, and a copy
        (tmp_path / name).touch()
    assert [path.name for path in list_steps(tmp_path)] == ["step99999999.ckpt", "step100000000.ckpt"]


def test_a_second_name_replaces_the_old_file_and_outlives_the_first(tmp_path: Path) -> None:
    first, second = saved(tmp_path / "last.ckpt"), tmp_path / "best.ckpt"
    second.write_text("old best")
    link_over(first, second)
    AtomicCheckpointIO().save_checkpoint({"step": 4}, first)
    assert read_checkpoint(second)["step"] == 3
    assert read_checkpoint(first)["step"] == 4


def checkpoints(folder: Path, since: int = 0) -> Any:
    """Checkpoints that note what they check and save, every 100 steps."""
    noted: Any = SimpleNamespace(checked=[], saved=[])
    callback: Any = Checkpoints(
        folder,
        every_steps=100,
        keep=1,
        keep_steps=(),
        since=since,
        identity={},
        record=RunRecord(folder, writes=False),
        guard=SimpleNamespace(check_weights=lambda step, _: noted.checked.append(step)),  # type: ignore[arg-type]
        files=AtomicCheckpointIO(),
    )
    callback.noted = noted
    return callback


def validate(callback: Any, step: int, loss: float) -> None:
    trainer = SimpleNamespace(
        callback_metrics={"val/loss": torch.tensor(loss)}, global_step=step, max_steps=99, should_stop=False
    )
    trainer.save_checkpoint, trainer.is_global_zero = lambda path: callback.noted.saved.append(path.name), False
    callback.on_validation_end(trainer, None)


def test_a_lower_validation_loss_is_saved_after_its_weights_are_checked_and_an_equal_one_is_not(tmp_path: Path) -> None:
    callback = checkpoints(tmp_path)
    for step, loss in ((2, 3.0), (4, 3.0), (6, 2.5), (8, 2.75)):
        validate(callback, step, loss)
    assert callback.noted.saved == ["step00000002.ckpt", "step00000006.ckpt"]
    assert callback.noted.checked == [2, 6]
    assert callback.state_dict() == {"best_loss": 2.5, "best_step": 6}


@pytest.mark.parametrize(("best_step", "saved"), [(6, ["step00000010.ckpt"]), (9, [])])
def test_the_best_of_a_branch_is_its_own(best_step: int, saved: list[str], tmp_path: Path) -> None:
    callback = checkpoints(tmp_path, since=8)
    callback.load_state_dict({"best_loss": 1.0, "best_step": best_step})
    validate(callback, 10, 1.5)
    assert callback.noted.saved == saved
