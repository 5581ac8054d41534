"""Checks before a training: its numbers are counted and its disk has space for the checkpoints."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from src.callbacks.checkpoints import link_over
from src.errors import UserError
from src.models.gpt import GPT
from src.settings.read import Settings
from src.training.preflight import check_disk, check_library_parts, count_numbers
from src.training.run import build_gpt
from tests.runs import SMALL
from tests.support import composed_settings


def test_a_checkpoint_has_the_parameters_and_two_moments_of_each() -> None:
    # 2 layers of 12 D^2 and 2 D of norms, tables of 512 + 32 rows, and the last norm
    n_params = 2 * (12 * 32**2 + 2 * 32) + (512 + 32) * 32 + 32
    counted = count_numbers(composed_settings(*SMALL))
    assert 3 * n_params <= counted < 3 * n_params + 100  # and a step count for each parameter


def test_free_space_and_present_checkpoints_must_hold_what_the_run_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = 4 * 2**18 + 2**20
    needed = (3 + 2) * one + 16 * 2**20
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(UserError, match=r"\(3 \+ 2 checkpoints of 2\.0 MiB\); make room"):
        check_disk(tmp_path, n_numbers=2**18, keep=3)
    (tmp_path / "checkpoints/last.ckpt").write_bytes(b"x")
    check_disk(tmp_path, n_numbers=2**18, keep=3)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


def test_a_checkpoint_with_several_names_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = (3 + 2) * (4 * 2**18 + 2**20) + 16 * 2**20
    path = tmp_path / "checkpoints/step00000004.ckpt"
    path.parent.mkdir()
    path.write_bytes(bytes(1000))
    for name in ("last.ckpt", "best.ckpt"):
        link_over(path, path.with_name(name))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1001))
    with pytest.raises(UserError, match="make room"):
        check_disk(tmp_path, n_numbers=2**18, keep=3)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1000))
    check_disk(tmp_path, n_numbers=2**18, keep=3)


def test_a_folder_that_cannot_be_written_to_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written to"):
        check_disk(tmp_path / "file", n_numbers=1, keep=1)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("callbacks.early_stopping.mode=mim", "callbacks cannot be built: .*mim"),
        (
            "callbacks.early_stopping.monitor=val/los",
            "EarlyStopping monitors val/los, which is not logged; use val/loss",
        ),
    ],
)
def test_a_callback_with_a_wrong_argument_is_an_error_before_training(
    override: str, words: str, tmp_path: Path
) -> None:
    settings = composed_settings(*SMALL, "callbacks=[early_stopping,ema]", "profiler=pytorch")
    check_library_parts(settings, tmp_path)
    with pytest.raises(UserError, match=words):
        check_library_parts(composed_settings(*SMALL, "callbacks=early_stopping", override), tmp_path)


def test_a_model_that_reads_values_is_counted_on_real_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = composed_settings(*SMALL)
    expected = count_numbers(settings)

    def build_and_read(settings: Settings) -> GPT:
        gpt = build_gpt(settings)
        next(gpt.parameters()).sum().item()
        return gpt

    monkeypatch.setattr("src.training.preflight.build_gpt", build_and_read)
    assert count_numbers(settings) == expected
