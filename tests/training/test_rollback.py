"""A rollback returns to the newest checkpoint before the divergence; `tests/robust/test_guard.py` has whole runs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from src.callbacks.checkpoints import link_over
from src.training.resume import set_aside_after
from src.training.rollback import find_before
from src.training.run import Resume


def run_with(folder: Path, resume: Resume | None, *steps: int) -> Any:
    for step in steps:
        (folder / f"step{step:08d}.ckpt").write_text(str(step))
    return SimpleNamespace(checkpoints=folder, resume=resume)


@pytest.mark.parametrize(("began", "step"), [(5, 4), (9, 8), (13, 12), (99, 12)])
def test_the_newest_checkpoint_before_the_divergence_is_taken(began: int, step: int, tmp_path: Path) -> None:
    found = find_before(run_with(tmp_path, None, 4, 8, 12), began)
    assert found == Resume(tmp_path / f"step{step:08d}.ckpt", step)


def test_no_checkpoint_before_the_divergence_is_found(tmp_path: Path) -> None:
    assert find_before(run_with(tmp_path, None, 4, 8), 4) is None


def test_a_last_ckpt_that_was_linked_again_since_the_resume_is_not_the_one_resumed_from(tmp_path: Path) -> None:
    run = run_with(tmp_path, Resume(tmp_path / "last.ckpt", 100), 198, 200)
    link_over(tmp_path / "step00000200.ckpt", tmp_path / "last.ckpt")
    assert find_before(run, 197) is None


def test_a_folder_with_nothing_but_last_ckpt_returns_to_it(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_text("100")
    resume = Resume(tmp_path / "last.ckpt", 100)
    assert find_before(run_with(tmp_path, resume), 105) == resume


@pytest.mark.parametrize("is_folder", [False, True])
def test_the_best_checkpoint_keeps_its_weights_when_it_is_set_aside(is_folder: bool, tmp_path: Path) -> None:
    paths = [tmp_path / f"step{step:08d}.ckpt" for step in (4, 8)]
    for path in paths:
        if is_folder:
            path.mkdir()
        (path / "plain.pt" if is_folder else path).write_text(path.name)
    link_over(paths[1], tmp_path / "best.ckpt")
    link_over(paths[1], tmp_path / "last.ckpt")
    set_aside_after(tmp_path, 4, paths[0])
    best, last = (tmp_path / name / ("plain.pt" if is_folder else "") for name in ("best.ckpt", "last.ckpt"))
    assert (best.read_text(), last.read_text()) == (paths[1].name, paths[0].name)


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_step_that_is_set_aside_again_replaces_the_one_before(is_folder: bool, tmp_path: Path) -> None:
    good, later = (tmp_path / f"step{step:08d}.ckpt" for step in (4, 8))
    good.touch()
    for text in ("first", "second"):
        if is_folder:
            later.mkdir()
        (later / "plain.pt" if is_folder else later).write_text(text)
        set_aside_after(tmp_path, 4, good)
    aside = tmp_path / "step00000008.ckpt.refused"
    assert (aside / "plain.pt" if is_folder else aside).read_text() == "second"
    assert not later.exists()
