"""Branch: a new run that continues another one from a step (`branch_from=<run folder> at=<step>`).

Weights, optimizer, data position and the state of callbacks are those of the run's checkpoint at that step. The
configuration is the stored one, and may differ only in what has no effect before the step: the schedule's later rates,
the length, evaluation, validation, logging and safety. A branch thus equals a run that was trained with its
configuration from step 0, bit for bit.

The folder of a branch begins with the rows of metrics.jsonl up to the step and with the checkpoint, a second name of
the same file or a copy of a sharded one. Its steps, tokens, FLOPs and seconds count from step 0, so its curve and its
costs compare with those of a run that was trained alone. `branched_from` in result.json states the run, the step, the
hash of the checkpoint, and the tokens and seconds that were not spent again.
"""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from src.callbacks.checkpoints import (
    hash_path,
    identifying_file,
    link_over,
    list_steps,
    read_checkpoint,
    step_of,
)
from src.callbacks.run_record import Row, read_metrics, read_result
from src.callbacks.sharded_checkpoint import replace_checkpoint
from src.errors import UserError, one_line
from src.files import sha256_file, write_atomic
from src.launch.arguments import escape_references
from src.models.gpt import GPT
from src.models.optim.schedule import Schedule
from src.reporting.config_keys import EXECUTION_KEYS, is_within
from src.settings.optimizer import read_optimizer, read_schedule
from src.settings.read import Settings
from src.training.resume import check_stored, find_differences
from src.training.run import Resume, Run

log = logging.getLogger(__name__)

#: Sections and keys in which a branch may differ from its run. Rates before the step are compared themselves.
MAY_DIFFER = (*EXECUTION_KEYS, "guard", "schedule", "optimizer.min_lr", "data.epochs", "trainer.max_steps")
#: Steps before the branch at which the strategy's schedule is compared, at most.
COMPARED_STEPS = 64


def find_branch(settings: Settings, data_identity: dict[str, Any]) -> Resume:
    """Return the checkpoint that a branch starts from, read and verified.

    Raises:
        UserError: the run has no checkpoint of the step, or the branch changes more than what comes after it.
        ValueError: the checkpoint is damaged.
    """
    folder, step = Path(settings.config["branch_from"]), int(settings.config["at"])
    path = _find_checkpoint(folder, step)
    checkpoint = read_checkpoint(path)
    stored = check_stored(path, checkpoint, settings, data_identity, _reject_differences)
    if step >= settings.trainer.max_steps:
        raise UserError(
            f"at={step} must be less than trainer.max_steps={settings.trainer.max_steps}, the end of the branch; "
            "train longer or branch earlier"
        )
    _reject_other_rates(_read_schedule(stored["config"], settings), settings.schedule, step)
    log.info("branching from %s at step %d", folder, step)
    return Resume(path, step, checkpoint)


def _find_checkpoint(folder: Path, step: int) -> Path:
    found = {step_of(path): path for path in list_steps(folder / "checkpoints")}
    if step not in found:
        there = ", ".join(map(str, found)) or "none"
        raise UserError(
            f"branch_from={folder} has no checkpoint of step {step} (it has {there}); give one of these as at=, or "
            f"train the run again with trainer.keep_steps=[{step}]"
        )
    return found[step]


def _reject_differences(then: dict[str, Any], now: dict[str, Any]) -> None:
    for key, (old, new) in find_differences(then, now).items():
        if not is_within(key, MAY_DIFFER):
            hint = f"leave {key} out" if old is None else f"give {key}={old}"
            raise UserError(
                f"branch_from: {key} was {old}, is {new}, and a branch keeps the method and the data of its run; it "
                "may change the decay (schedule, optimizer.min_lr, trainer.max_steps), evaluation, validation, logging "
                f"and safety; {hint}, or start a new run"
            )


def _read_schedule(config: dict[str, Any], settings: Settings) -> Schedule:
    """Return the schedule of a stored configuration."""
    stored = OmegaConf.create(escape_references(config))
    assert isinstance(stored, DictConfig)  # a mapping
    trusted, max_steps = settings.config.get("trusted_targets") or [], stored.trainer.max_steps
    optimizer = read_optimizer(stored.optimizer, max_steps, trusted)
    return read_schedule(stored.get("schedule"), optimizer, max_steps, trusted)


def _reject_other_rates(then: Schedule, now: Schedule, step: int) -> None:
    for s in range(step):
        if then.lr(s) != now.lr(s):
            raise UserError(
                f"branch_from: step {s + 1} ran at a learning rate of {then.lr(s):g}, and the branch's schedule says "
                f"{now.lr(s):g}; the rates up to at={step} must stay, so branch a schedule=wsd in its stable phase "
                "and give schedule.decay_steps"
            )


def check_strategy(gpt: GPT, run: Run) -> None:
    """Reject a branch of another length where the strategy or the recurrence depends on the length before the step.

    Raises:
        UserError: a buffer that the steps set had another value.
    """
    assert run.resume is not None  # a branch starts from a checkpoint
    assert run.resume.checkpoint is not None  # find_branch has read it
    stored = run.resume.checkpoint["reslab"]["config"]
    then, now, step = int(stored["trainer"]["max_steps"]), run.settings.trainer.max_steps, run.resume.step
    for s in sorted({step - 1 - i * step // COMPARED_STEPS for i in range(COMPARED_STEPS)}):
        if s >= 0 and then != now and _state_at(gpt, s, then) != _state_at(gpt, s, now):
            raise UserError(
                f"branch_from: trainer.max_steps was {then}, is {now}, and the strategy or the recurrence follows it: "
                f"step {s + 1} would have been another; keep trainer.max_steps, or start a new run"
            )


def _state_at(gpt: GPT, step: int, max_steps: int) -> list[Any]:
    gpt.follow(step, max_steps)
    return [gpt.recurs, *(buffer.tolist() for buffer in gpt.buffers() if torch.numel(buffer) <= 4096)]


# ---- the folder


def begin_branch(run: Run) -> None:
    """Give the folder of a branch its first checkpoint and its rows, and the record where they come from.

    Raises:
        UserError: the checkpoint was deleted since it was read.
    """
    assert run.resume is not None  # a branch starts from a checkpoint
    folder, source, step = Path(run.settings.config["branch_from"]), run.resume.path, run.resume.step
    rows = [row for row in read_metrics(folder) if row["step"] <= step]
    write_atomic(run.job.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    target = run.checkpoints / source.name
    try:
        _link_or_copy(source, target)
    except FileNotFoundError as error:
        raise UserError(
            f"{source} was deleted meanwhile ({one_line(error)}); keep it with trainer.keep_steps=[{step}] of its run"
        ) from error
    link_over(target, run.checkpoints / "last.ckpt")
    run.resume = run.resume._replace(path=target)
    parent = read_result(folder) or {}
    seconds = training_seconds(rows, step * run.tokens_per_step)
    run.record.start_after(
        seconds,
        branched_from={
            "folder": str(folder),
            "step": step,
            "sha256": sha256_file(identifying_file(target)),
            "tokens": step * run.tokens_per_step,
            "seconds": seconds,
        },
        code=parent.get("code", []),
        rollbacks=run.rollbacks,
    )


def earlier_rollbacks(settings: Settings) -> list[Any]:
    """Return the rollbacks that the run of a branch had behind it at the step: they shift its data position."""
    result = read_result(Path(settings.config["branch_from"])) or {}
    return [event for event in result.get("rollbacks", []) if event["to"] <= settings.config["at"]]


def training_seconds(rows: list[Row], tokens: float) -> float:
    """Return the time of training on the first `tokens` tokens, by the speeds that the rows log."""
    seconds, done, speed = 0.0, 0.0, 0.0
    for row in rows:
        if "tokens_per_s" in row:
            speed = float(row["tokens_per_s"])
            seconds, done = seconds + (row["tokens"] - done) / speed, row["tokens"]
    return seconds + (tokens - done) / speed if speed else seconds


def _link_or_copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    if source.is_dir():  # a sharded checkpoint, which can have no second name in another folder
        shutil.rmtree(part, ignore_errors=True)  # left by a kill during the copy
        shutil.copytree(source, part)
        replace_checkpoint(part, target)
        return
    try:
        link_over(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, part)
        part.replace(target)
        if hash_path(source).exists():
            shutil.copyfile(hash_path(source), hash_path(target))
