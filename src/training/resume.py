"""Starting point of a job: skipped or resumed in a sweep, resumed in its own folder, and from which checkpoint.

A job of a sweep is known by the hash of its configuration. Below the sweep's folder, a completed record with that hash
stands for the job; a stopped run with that hash in the job's own folder is resumed; a diverged one would diverge again.
"""

import dataclasses
import logging
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from src.callbacks.checkpoints import hash_path, link_over, list_steps, read_checkpoint, step_of
from src.callbacks.run_record import read_result
from src.callbacks.sharded_checkpoint import replace_checkpoint
from src.datamodules.tokenization.base import Statement, describe, identify
from src.errors import UserError
from src.files import flatten, scan_rows
from src.launch.arguments import RANKS
from src.launch.job import COMPLETED, DIVERGED, Job, TaskEnd
from src.settings.read import Settings
from src.training.provenance import (
    ARCHITECTURE,
    NOT_COMPUTED,
    config_hash,
    reject_changed_methods,
    warn_about_other_code,
)
from src.training.run import Resume

log = logging.getLogger(__name__)

#: Keys that say where the data are, not what they are.
PLACES = ("data.path", "data.cache")
#: Keys that say which sequences a step reads; with `model.block_size` they also count the tokens of a step.
STEP_DATA = ("data.global_batch_size", "trainer.overfit_batches")


# ---- which job


def continue_or_skip(job: Job, settings: Settings) -> Job | TaskEnd:
    """Return the job, set to resume if it was stopped before, or the end of an earlier run that stands for it.

    Raises:
        UserError: the job's folder holds another run, or a completed one that an override would change.
    """
    if job.resumes:
        earlier = read_result(job.folder) or {}
        end = earlier.get("max_steps", earlier.get("steps", 0))  # a callback may have stopped the run before it
        if earlier.get("status") == "completed" and end >= settings.trainer.max_steps:
            _reject_changes(job, settings)
            log.info("%s is completed; nothing to do (a larger trainer.max_steps continues it)", job.folder)
            return TaskEnd(COMPLETED, "completed earlier")
        return job
    if job.sweep is None:
        return job
    wanted = config_hash({**settings.config, "resume": None})
    # A study reads each run from its own folder, also where two of its systems are equal.
    completed = _find_completed(job.folder if settings.config.get("study") else job.sweep, wanted)
    if completed is not None:
        return completed
    here = read_result(job.folder)
    if here is None or (here.get("status") == "interrupted" and "config_hash" not in here):  # before it began
        return job
    if here.get("config_hash") != wanted:
        raise UserError(
            f"{job.folder} holds another run; give a new hydra.sweep.dir, or move that folder out of the sweep's"
        )
    if here["status"] == "diverged":
        return TaskEnd(DIVERGED, f"diverged earlier: {here['reason']}")
    log.info("%s was %s at step %s; resuming", job.folder, here["status"], here["steps"])
    return dataclasses.replace(job, resumes=True)


def _reject_changes(job: Job, settings: Settings) -> None:
    """Reject overrides of the command line that a completed run, which is not run again, was not run with.

    Raises:
        UserError: names them.
    """
    stored = OmegaConf.to_container(OmegaConf.load(job.folder / "config.yaml"), resolve=True)
    assert isinstance(stored, dict)  # of a completed run
    differences = find_differences({str(key): value for key, value in stored.items()}, settings.config)
    given, changed = [], []
    for override in job.overrides:
        key = override.lstrip("+~").partition("=")[0]
        found = [f"{k} {then}" for k, (then, _) in differences.items() if k == key or k.startswith(f"{key}.")]
        # Neither is a value of the run, and resuming itself adds ranks.
        if found and key not in ("resume", "trusted_targets") and override not in RANKS:
            given.append(override)
            changed += found
    if changed:
        keys = " ".join(given)
        again = shlex.join([f"from_run={job.folder}", *given])
        hint = f"{again} runs it in a new folder, a larger trainer.max_steps continues it"
        if all(override.lstrip("+~").startswith("evaluation.") for override in given):
            run = shlex.quote(f"run={job.folder}")
            hint = f"task=evaluate {run} with these keys and evaluation=<option> scores its weights"
        raise UserError(f"{job.folder} is completed with {', '.join(changed)}, so {keys} is not applied; {hint}")


def _find_completed(sweep: Path, wanted: str) -> TaskEnd | None:
    for path in sorted(sweep.rglob("result.json")):
        try:
            result = read_result(path.parent) or {}
        except ValueError as error:  # mostly another job's; this job's own is read below
            log.warning("%s", error)
            continue
        if result.get("config_hash") == wanted and result.get("status") == "completed":
            log.info("%s is completed with this configuration; the job is skipped", path.parent)
            line = f"completed earlier in {path.parent}, val_loss {result['val_loss']:.4f}"
            return TaskEnd(COMPLETED, line, result["val_loss"])
    return None


# ---- which checkpoint


def find_resume(folder: Path, settings: Settings, data_identity: dict[str, Any]) -> Resume | None:
    """Return the checkpoint that the run in `folder` continues from, read and verified; None before its first one.

    Raises:
        UserError: the checkpoint is gone, or belongs to another model, other data or steps of other data.
        ValueError: all checkpoints are damaged.
    """
    found = newest_whole(folder / "checkpoints")
    if found is None:
        reached = max((row["step"] for _, row in scan_rows(folder / "metrics.jsonl")), default=0)
        if reached > settings.trainer.checkpoint_every_steps:
            raise UserError(
                f"{folder / 'checkpoints/last.ckpt'} is gone, though the run had passed step {reached}; "
                "put it back or start a new run"
            )
        log.warning("no checkpoint in %s yet: starting again at step 0", folder)
        return None
    path, checkpoint = found
    stored = check_stored(path, checkpoint, settings, data_identity, _reject_differences)
    for key, (then, now) in find_differences(stored["config"], settings.config).items():
        if key.partition(".")[0] not in NOT_COMPUTED:
            log.warning("changed on resume: %s %s -> %s", key, then, now)
    log.info("resuming from step %d", stored["step"])
    return Resume(path, int(stored["step"]), checkpoint)


def check_stored(
    path: Path,
    checkpoint: dict[str, Any],
    settings: Settings,
    data_identity: dict[str, Any],
    reject_differences: Callable[[dict[str, Any], dict[str, Any]], None],
) -> dict[str, Any]:
    """Return what a checkpoint states about its run, after comparing it with the run that continues from it.

    Args:
        reject_differences: raises an error for what the configurations, the stored one first, must have in common.

    Raises:
        UserError: the checkpoint is not of this project, or of another model, method or data.
    """
    stored: dict[str, Any] | None = checkpoint.get("reslab")
    if stored is None:
        raise UserError(f"{path} is not a checkpoint of this project; resume needs one that it wrote")
    reject_differences(stored["config"], settings.config)
    reject_changed_methods(stored, settings, path)
    _compare_data(stored, data_identity["hash"], settings)
    _compare_tokenizers(stored.get("tokenizer"), data_identity.get("tokenizer"))
    warn_about_other_code(stored.get("code"))
    return stored


def _compare_data(stored: dict[str, Any], now: str, settings: Settings) -> None:
    then = stored["data_hash"]
    if then == now:
        return
    keys = find_differences({"data": stored["config"]["data"]}, {"data": settings.config["data"]})
    changed = [f"{key} was {old}, is {new}" for key, (old, new) in keys.items() if key not in PLACES]
    line = f"data.path holds other data than the run was trained on: {now[:12]} now, {then[:12]} then"
    if changed:
        line = f"the run was trained on other data: {'; '.join(changed)}"
    if not settings.config["data"].get("accept_changed", False):
        restore = "restore these keys" if changed else "restore the shards"
        raise UserError(f"{line}; {restore}, start a new run or give data.accept_changed=true")
    log.warning("%s; accepted", line)


def _compare_tokenizers(then: Statement | None, now: Statement | None) -> None:
    if None not in (identify(then), identify(now)) and identify(then) != identify(now):
        assert then is not None  # it was identified
        assert now is not None
        raise UserError(
            f"data.path has the tokens of {describe(now)}, and the run was trained on those of {describe(then)}; "
            "restore the shards or start a new run"
        )


def _reject_differences(then: dict[str, Any], now: dict[str, Any]) -> None:
    found = {key: f"{key} was {old}, is {new}" for key, (old, new) in find_differences(then, now).items()}
    changed = [line for key, line in found.items() if key.partition(".")[0] in ARCHITECTURE]
    if changed:
        raise UserError(f"a resumed run keeps its model: {'; '.join(changed)}; start a new run to change it")
    changed = [found[key] for key in STEP_DATA if key in found]
    if changed:
        raise UserError(
            f"a resumed run keeps the data of its steps: {'; '.join(changed)}; restore the key or start a new run "
            "(init_from=<folder of task=export> starts it from these weights)"
        )


def find_differences(then: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the dotted keys in which two configurations differ, each with its values; null and absent are equal."""
    old, new = flatten(then), flatten(now)
    return {key: (old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)}


def newest_whole(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest undamaged checkpoint of a folder and its content; None where the folder has none.

    Raises:
        ValueError: there are some, and all are damaged.
    """
    damaged: list[str] = []
    for path in newest_first(folder):
        try:
            checkpoint = read_checkpoint(path)
        except ValueError as error:
            damaged.append(str(error))
            log.warning("checkpoint rejected: %s", error)
            continue
        if damaged:
            log.warning(
                "resuming from the older checkpoint %s, step %s", path, checkpoint.get("reslab", {}).get("step")
            )
        return path, checkpoint
    if damaged:  # a fresh start would lose the run
        raise ValueError(f"no whole checkpoint is left in {folder}: {damaged[0]}")
    return None


def newest_first(folder: Path) -> list[Path]:
    """List the checkpoints that a run can resume from, in the order in which to try them."""
    steps = list_steps(folder)[::-1]
    last = folder / "last.ckpt"
    if not last.exists():
        if steps:
            log.warning("checkpoint rejected: %s is gone", last)
        return steps
    if not steps or last.stat().st_mtime >= steps[0].stat().st_mtime:
        return [last, *(path for path in steps if not path.samefile(last))]
    return [*steps, last]


def set_aside_after(folder: Path, step: int, good: Path) -> None:
    """Rename the checkpoints after `step` to `*.refused`, and point `last.ckpt` to `good`.

    `best.ckpt` keeps the weights that it has; the symbolic link to a folder gets the folder's new name.
    """
    best = folder / "best.ckpt"
    for path in list_steps(folder):
        if step_of(path) > step:
            is_best = best.is_symlink() and best.readlink().name == path.name
            aside = path.with_name(f"{path.name}.refused")
            replace_checkpoint(path, aside)
            hash_path(path).unlink(missing_ok=True)
            if is_best:
                link_over(aside, best)
    last = folder / "last.ckpt"
    if not (last.exists() and last.samefile(good)):
        link_over(good, last)
