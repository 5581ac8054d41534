"""Which checkpoint a run goes on from: the newest that is whole."""

import logging
from pathlib import Path
from typing import Any

from src.callbacks.checkpoints import hash_file, link_over, read_checkpoint

log = logging.getLogger(__name__)


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints that a run can go on from, in the order in which to try them."""
    steps = sorted(folder.glob("step*.ckpt"), reverse=True)
    last = folder / "last.ckpt"
    if not last.exists():
        if steps:
            log.warning("checkpoint refused: %s is gone", last)
        return steps
    if not steps or last.stat().st_mtime >= steps[0].stat().st_mtime:
        return [last, *(path for path in steps if not path.samefile(last))]
    return [*steps, last]


def newest_good(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that is whole, and what it holds; None where the folder has none at all.

    Raises:
        ValueError: there are some, and all are damaged.
    """
    refused: list[str] = []
    for path in newest_first(folder):
        try:
            found = read_checkpoint(path)
        except ValueError as error:
            refused.append(str(error))
            log.warning("checkpoint refused: %s", error)
            continue
        if refused:
            log.warning("FALLING BACK to %s, step %s", path, found.get("reslab", {}).get("step"))
        return path, found
    if refused:  # a fresh start would throw the run away
        raise ValueError(f"no whole checkpoint is left in {folder}: {refused[0]}")
    return None


def forget_after(folder: Path, step: int, good: Path) -> None:
    """Set aside what lies beyond `step` (it was refused), and give `good` its second name again."""
    for path in folder.glob("step*.ckpt"):
        if int(path.stem.removeprefix("step")) > step:
            path.rename(path.with_name(f"{path.name}.refused"))
            hash_file(path).unlink(missing_ok=True)
    last = folder / "last.ckpt"
    if not (last.exists() and last.samefile(good)):
        link_over(good, last)
