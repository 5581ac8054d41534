"""task=evaluate: score weights that are there already, with what a run is scored with at its end.

    python run.py task=evaluate run=<run folder> [checkpoint=last|best|all] evaluation=full
    python run.py task=evaluate checkpoint=<file> or [<file>,...]
    python run.py task=evaluate hf=<folder of task=export, or Hugging Face GPT-2 folder>

The scores of a run's checkpoint go into the run's own `evaluations/`, one file a checkpoint and suite, named
after the step and both hashes; of other weights, and as a copy, into `evaluation.json` of the task's folder.
Several checkpoints make a curve: `evaluation.json` is then a list by step, and `curve.csv` its headlines.
Model, seed and schedule are the checkpoint's; evaluation and trainer are the command line's.
"""

import csv
import hashlib
import io
import json
import logging
from pathlib import Path
from typing import Any

import lightning as L
import torch

from src.artefacts import write_atomic
from src.callbacks.final_evaluation import headline
from src.launch import COMPLETED, Job, TaskEnd
from src.mistakes import UserError, one_line
from src.tasks import run_files
from src.tasks.provenance import device_name, git_commit, versions
from src.tasks.settings import Settings
from src.tasks.subjects import Subject, subjects

log = logging.getLogger(__name__)


def run(job: Job) -> TaskEnd:
    """Score, and write the scores down beside the weights' step and hash.

    Raises:
        UserError: nothing or too much was named, or the weights are missing, damaged or foreign.
    """
    records: list[dict[str, Any]] = []
    places: list[Path] = []
    try:
        for subject in subjects(job.config):
            scores = _scores(subject)
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
    stated = job.folder / "evaluation.json"
    records.sort(key=lambda record: record["step"] or 0)
    write_atomic(stated, _text(records if len(records) > 1 else records[0]))
    if len(records) > 1:
        write_atomic(job.folder / "curve.csv", _curve(records))
    line = f"scores in {places[0] if len(places) == 1 else stated}"
    log.info("%s", line)
    return TaskEnd(COMPLETED, line)


def _scores(subject: Subject) -> dict[str, Any]:
    settings = subject.settings
    settings.evaluation.check(settings.model.vocab_size, settings.model.block_size)
    torch.set_num_threads(settings.trainer.threads)
    fabric = L.Fabric(
        accelerator=settings.trainer.accelerator,
        devices=1,
        precision=settings.trainer.precision,  # type: ignore[arg-type]  # settings allow Lightning's names only
    )
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
