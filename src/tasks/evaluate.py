"""task=evaluate: score weights that are there already, with what a run is scored with at its end.

    python run.py task=evaluate run=<run folder> [checkpoint=last|best|all] evaluation=full
    python run.py task=evaluate checkpoint=<file> or [<file>,...]
    python run.py task=evaluate hf=<folder of task=export, or Hugging Face GPT-2 folder>

The scores of a run's checkpoint go into the run's own `evaluations/`, one file a checkpoint and suite, named
after the step and both hashes; of other weights, and as a copy, into `evaluation.json` of the task's folder.
Several checkpoints make a curve: `evaluation.json` is then a list by step, and `curve.csv` its headlines.
Model, seed and schedule are the checkpoint's; evaluation and trainer are the command line's. With several devices
(`trainer.devices`) the ranks share out the work.
"""

import contextlib
import csv
import hashlib
import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf

from src.callbacks.final_evaluation import headline
from src.errors import UserError, one_line
from src.files import write_atomic
from src.launch.job import COMPLETED, Job, TaskEnd
from src.launch.ranks import other_ranks
from src.settings.components import read_section
from src.settings.read import Settings
from src.settings.trainer import TrainerKeys, TrainerSettings, settle_trainer
from src.training import run_folder as run_files
from src.training.process import prepare_process
from src.training.provenance import device_name, git_commit, versions
from src.training.saved_weights import Subject, subjects, with_files

log = logging.getLogger(__name__)


def run(job: Job) -> TaskEnd:
    """Score, and write the scores down beside the weights' step and hash.

    Raises:
        UserError: nothing or too much was named, or the weights are missing, damaged or foreign.
    """
    records: list[dict[str, Any]] = []
    places: list[Path] = []
    try:
        trainer = settle_trainer(read_section("trainer", job.config.trainer, TrainerKeys))
        settled = with_files(job.config)
        with _ranks(job, settled, trainer.devices):
            fabric = _fabric(trainer)
            for subject in subjects(settled):
                scores = _scores(subject, fabric)
                if job.rank:
                    continue
                record = _record(subject, scores)
                records.append(record)
                if subject.folder is not None:
                    places.append(_into_run(subject.folder, record))
                lines = run_files.score_lines(scores)
                log.info("%s", "\n".join([f"{subject.identity['checkpoint']['file']} scored", *lines]))
    except UserError:
        raise
    except (ValueError, OSError) as error:
        raise UserError(one_line(error)) from error
    if job.rank:
        return TaskEnd(COMPLETED, "completed")
    stated = job.folder / "evaluation.json"
    records.sort(key=lambda record: record["step"] or 0)
    write_atomic(stated, _text(records if len(records) > 1 else records[0]))
    if len(records) > 1:
        write_atomic(job.folder / "curve.csv", _curve(records))
    line = f"scores in {places[0] if len(places) == 1 else stated}"
    log.info("%s", line)
    return TaskEnd(COMPLETED, line)


@contextlib.contextmanager
def _ranks(job: Job, config: DictConfig, n: int) -> Iterator[None]:
    """The other ranks beside the block; they score what the keys name now, whatever appears meanwhile."""
    if n > 1 and job.rank == 0:
        write_atomic(job.folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))

    def lost(reason: str) -> None:
        log.error("failed: %s", reason)

    def interrupted(signum: int) -> None:
        os.kill(os.getpid(), signum)

    timeout_s = float(config.safety.rank_timeout_s)
    with other_ranks(
        job.folder, n, resumes=False, timeout_s=timeout_s, on_lost=lost, on_interrupted=interrupted
    ):
        yield


def _fabric(trainer: TrainerSettings) -> L.Fabric:
    fabric = L.Fabric(
        accelerator=trainer.accelerator,
        devices=trainer.devices,
        strategy="ddp" if trainer.devices > 1 else "auto",
        precision=trainer.precision,  # type: ignore[arg-type]  # settings allow Lightning's names only
    )
    prepare_process(trainer)
    fabric.launch()
    return fabric


def _scores(subject: Subject, fabric: L.Fabric) -> dict[str, Any]:
    """The suite's scores; ranks share the work, and all get them.

    Raises:
        UserError: the ranks read different weights.
    """
    if fabric.world_size > 1:
        hashes: list[str | None] = [None] * fabric.world_size
        torch.distributed.all_gather_object(hashes, subject.identity["checkpoint"]["sha256"])
        if len(set(hashes)) > 1:
            file = subject.identity["checkpoint"]["file"]
            raise UserError(f"{file} was replaced while the ranks read it; try again, or give checkpoint=best")
    settings = subject.settings
    settings.evaluation.check(settings.model.vocab_size, settings.model.block_size)
    gpt = subject.gpt.to(fabric.device).eval()
    with torch.no_grad(), fabric.autocast():
        scores: dict[str, Any] = settings.evaluation.run(gpt, lambda: None)
    return scores


def _record(subject: Subject, scores: dict[str, Any]) -> dict[str, Any]:
    settings: Settings = subject.settings
    return {
        **subject.identity,
        "name": settings.name,
        "scores": scores,
        "evaluation": settings.config["evaluation"],
        "device": device_name(settings.trainer.accelerator),
        "world_size": settings.trainer.devices,
        "precision": settings.trainer.precision,
        "versions": versions(),
        "git": git_commit(),
    }


def _text(tree: object) -> str:
    return json.dumps(tree, indent=2) + "\n"


def _into_run(folder: Path, record: dict[str, Any]) -> Path:
    suite = hashlib.sha256(json.dumps(record["evaluation"], sort_keys=True).encode()).hexdigest()
    sha256 = record["checkpoint"]["sha256"]
    place = folder / "evaluations"
    place.mkdir(exist_ok=True)
    path = place / f"step{record['step']:08d}-{sha256[:12]}-{suite[:12]}.json"
    write_atomic(path, _text(record))
    return path


def _curve(records: list[dict[str, Any]]) -> str:
    """One row a checkpoint, by step: the headlines of its scores."""
    rows = [
        {"name": r["name"], "step": r["step"], **headline(r["scores"]), "file": r["checkpoint"]["file"]}
        for r in records
    ]
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
