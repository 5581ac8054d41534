"""task=evaluate: score saved weights with the evaluation suite that scores a run at its end.

    python run.py task=evaluate run=<run folder> [checkpoint=last|best|all|<step>] evaluation=full
    python run.py task=evaluate checkpoint=<file> or [<file>,...]
    python run.py task=evaluate hf=<folder of task=export, or Hugging Face GPT-2 or Llama folder>

Scores are written to `evaluation.json` in the task's folder; scores of a run's checkpoint also to the run's
`evaluations/`, one file per checkpoint and suite, named by the step and both hashes. With `evaluation.log_samples=true`,
a folder of that name holds the scored items of lm-eval's tasks. For several checkpoints, `evaluation.json` is a list
ordered by step, and `curve.csv` has one row of headline scores per checkpoint. Model, seed and schedule are taken from
the checkpoint, evaluation and trainer from the command line. With several devices (`trainer.devices`) the ranks share
the work.
"""

import dataclasses
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch

from src.callbacks.evaluation import headline
from src.errors import UserError, raise_user_errors
from src.files import write_atomic, write_json
from src.launch.elastic import launch_ranks, launches_ranks
from src.launch.job import COMPLETED, Job, TaskEnd
from src.settings.read import Settings
from src.settings.sections import read_section
from src.settings.trainer import TrainerKeys, TrainerSettings, resolve_trainer
from src.training.cluster import build_environment
from src.training.process import prepare_process
from src.training.provenance import device_name, git_commit, versions
from src.training.run_folder import score_lines
from src.training.saved_weights import SavedWeights, load_saved_weights, resolve_checkpoints

log = logging.getLogger(__name__)


def run(job: Job) -> TaskEnd:
    """Score the weights and write the scores with the weights' step and hash.

    Raises:
        UserError: the keys name none or too many, or a file is missing, damaged or of another run.
    """
    records: list[dict[str, Any]] = []
    paths: list[Path] = []
    with raise_user_errors():
        trainer = resolve_trainer(read_section("trainer", job.config.trainer, TrainerKeys))
        config = resolve_checkpoints(job.config)
        if launches_ranks(trainer.devices, trainer.restarts):  # on the checkpoints that exist now (checkpoint=all)
            job = dataclasses.replace(job, config=config)
            return launch_ranks(
                job, devices=trainer.devices, restarts=trainer.restarts, grace_s=float(config.safety.grace_s)
            )
        fabric = _launch_fabric(trainer)
        for saved in load_saved_weights(config):
            samples = (saved.folder / "evaluations" if saved.folder else job.folder) / _name_evaluation(saved)
            scores = _score(saved, fabric, None if job.rank else samples)
            if job.rank:
                continue
            record = _build_record(saved, scores)
            records.append(record)
            if saved.folder is not None:
                (saved.folder / "evaluations").mkdir(exist_ok=True)
                paths.append(samples.with_name(f"{samples.name}.json"))
                write_json(paths[-1], record)
            lines = score_lines(scores)
            log.info("%s", "\n".join([f"{saved.identity['checkpoint']['file']} scored", *lines]))
    if job.rank:
        return TaskEnd(COMPLETED, "completed")
    output = job.folder / "evaluation.json"
    records.sort(key=lambda record: record["step"] or 0)
    write_json(output, records if len(records) > 1 else records[0])
    if len(records) > 1:
        write_atomic(job.folder / "curve.csv", _format_curve(records))
    line = f"scores in {paths[0] if len(paths) == 1 else output}"
    log.info("%s", line)
    return TaskEnd(COMPLETED, line)


def _launch_fabric(trainer: TrainerSettings) -> L.Fabric:
    fabric = L.Fabric(
        accelerator=trainer.accelerator,
        devices=trainer.devices,
        num_nodes=trainer.num_nodes,
        strategy="ddp" if trainer.world_size > 1 else "auto",
        precision=trainer.precision,
        plugins=[build_environment()],
    )
    prepare_process(trainer)
    fabric.launch()
    return fabric


def _score(saved: SavedWeights, fabric: L.Fabric, samples: Path | None) -> dict[str, Any]:
    """Return the suite's scores, on every rank; ranks share the work, and one writes the scored items.

    Raises:
        UserError: ranks have read different weights.
    """
    if fabric.world_size > 1:
        hashes: list[str | None] = [None] * fabric.world_size
        torch.distributed.all_gather_object(hashes, saved.identity["checkpoint"]["sha256"])
        if len(set(hashes)) > 1:
            file = saved.identity["checkpoint"]["file"]
            raise UserError(f"{file} was replaced while the ranks read it; try again, or give checkpoint=best")
    settings = saved.settings
    settings.evaluation.check(saved.tokenizer, settings.model.vocab_size, settings.model.block_size)
    gpt = saved.gpt.to(fabric.device).eval()
    with torch.no_grad(), fabric.autocast():
        scores: dict[str, Any] = settings.evaluation.run(gpt, saved.tokenizer, lambda: None, samples)
    return scores


def _build_record(saved: SavedWeights, scores: dict[str, Any]) -> dict[str, Any]:
    settings: Settings = saved.settings
    return {
        **saved.identity,
        "name": settings.name,
        "scores": scores,
        "evaluation": settings.config["evaluation"],
        "device": device_name(settings.trainer.accelerator),
        "world_size": settings.trainer.world_size,
        "precision": settings.trainer.precision,
        "versions": versions(),
        "git": git_commit(),
    }


def _name_evaluation(saved: SavedWeights) -> str:
    """Return a name of weights and suite, by the step and both hashes."""
    evaluation = saved.settings.config["evaluation"]
    scored = {key: value for key, value in evaluation.items() if key not in ("every_steps", "log_samples")}
    suite = hashlib.sha256(json.dumps(scored, sort_keys=True).encode()).hexdigest()
    step, sha256 = saved.identity["step"], saved.identity["checkpoint"]["sha256"]
    return f"{'weights' if step is None else f'step{step:08d}'}-{sha256[:12]}-{suite[:12]}"


def _format_curve(records: list[dict[str, Any]]) -> str:
    """Return CSV with one row per checkpoint, ordered by step: its headline scores."""
    rows = [
        {"name": r["name"], "step": r["step"], **headline(r["scores"]), "file": r["checkpoint"]["file"]}
        for r in records
    ]
    return str(pd.DataFrame(rows, dtype=object).to_csv(index=False))
