"""task=evaluate: score weights that are there already, with what a run is scored with at its end.

    python run.py task=evaluate run=<run folder> [checkpoint=last|best] evaluation=full
    python run.py task=evaluate checkpoint=<file>
    python run.py task=evaluate hf=<Hugging Face GPT-2 folder>

The scores of a run's checkpoint go into the run's own `evaluations/`, one file a checkpoint and suite, named
after the step and both hashes; of other weights, and as a copy, into `evaluation.json` of the task's folder.
Model, seed and schedule are the checkpoint's; evaluation and trainer are the command line's. One process scores.
"""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf

from src.artefacts import sha256_file, write_atomic
from src.callbacks.checkpoints import read_checkpoint
from src.callbacks.record import read_result
from src.launch import COMPLETED, Job, TaskEnd
from src.mistakes import UserError, one_line
from src.models.gpt import GPT
from src.models.huggingface import load_gpt2, read_gpt2
from src.tasks import run_files
from src.tasks.provenance import device_name, git_commit, versions
from src.tasks.settings import Settings, read_settings
from src.tasks.train import build_gpt

log = logging.getLogger(__name__)

KEYS = ("run", "checkpoint", "hf")
#: What a checkpoint brings along; the rest is the command line's.
CHECKPOINTS_OWN = (*run_files.ARCHITECTURE, "optimizer", "name")
#: Where a run's checkpoints may differ from its record: the place, the end, and what the data's hash says.
MAY_CHANGE = (*run_files.PLACE, "trainer", "evaluation", "data", "init_from")


@dataclass(frozen=True)
class Subject:
    """Weights to score, and what identifies them; `folder` is the run they belong to."""

    gpt: GPT
    settings: Settings
    identity: dict[str, Any]
    folder: Path | None


def run(job: Job) -> TaskEnd:
    """Score, and write the scores down beside the weights' step and hash.

    Raises:
        UserError: nothing or too much was named, or the weights are missing, damaged or foreign.
    """
    try:
        subject = _subject(job.config)
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
            scores = settings.evaluation.run(gpt, lambda: None)
    except UserError:
        raise
    except (ValueError, OSError) as error:
        raise UserError(one_line(error)) from error
    path = _write(job, subject, scores)
    lines = run_files.score_lines(scores)
    log.info("%s", "\n".join([f"{subject.identity['checkpoint']['file']} scored", *lines]))
    line = f"scores in {path}"
    log.info("%s", line)
    return TaskEnd(COMPLETED, line)


def _subject(config: DictConfig) -> Subject:
    run_folder, checkpoint, hf = (config.get(key) for key in KEYS)
    if hf is not None and run_folder is None and checkpoint is None:
        return _from_hf(config, Path(str(hf)))
    if hf is not None or (run_folder is None and checkpoint in (None, "last", "best")):
        raise UserError(
            "give one of run=<folder> (with checkpoint=last|best), checkpoint=<file> or hf=<folder>"
        )
    if run_folder is None:
        path = Path(str(checkpoint))
        return _from_checkpoint(config, path, _run_around(path))
    folder = Path(str(run_folder))
    if read_result(folder) is None:
        raise UserError(f"run={folder} is no run folder (it has no result.json)")
    if checkpoint in (None, "last", "best"):
        return _from_checkpoint(config, folder / "checkpoints" / f"{checkpoint or 'last'}.ckpt", folder)
    return _from_checkpoint(config, Path(str(checkpoint)), folder)


def _run_around(path: Path) -> Path | None:
    folder = path.resolve().parent.parent
    there = path.parent.name == "checkpoints" or path.resolve().parent.name == "checkpoints"
    return folder if there and (folder / "result.json").is_file() else None


def _from_checkpoint(config: DictConfig, path: Path, folder: Path | None) -> Subject:
    sha256, stored = _read_unchanged(path)
    own = stored.get("reslab")
    if own is None:
        raise UserError(f"{path} is not a checkpoint of this project; give one that task=train wrote")
    if folder is not None:
        _refuse_foreign(path, folder, own)
    settings = read_settings(_with_stored(config, own["config"]), KEYS)
    gpt = build_gpt(settings)
    weights = {key.removeprefix("gpt."): value for key, value in stored["state_dict"].items()}
    gpt.load_state_dict(weights, strict=True)
    step = int(own["step"])
    gpt.follow(max(step - 1, 0), settings.trainer.max_steps)  # as in the validation of that step
    status = (read_result(folder) or {}).get("status") if folder is not None else None
    if status == "diverged":
        log.warning("%s diverged: these are weights from before it, not those of a sound run", folder)
    identity = {
        "step": step,
        "run_status": status,
        "checkpoint": {"file": str(path), "sha256": sha256},
        "config_hash": own["config_hash"],
        "data_hash": own["data_hash"],
    }
    return Subject(gpt, settings, identity, folder)


def _read_unchanged(path: Path) -> tuple[str, dict[str, Any]]:
    """A checkpoint with the hash of the very bytes that were read; a running run may replace it meanwhile."""
    for _ in range(3):
        before = sha256_file(path) if path.is_file() else None
        stored = read_checkpoint(path)
        if before is not None and sha256_file(path) == before:
            return before, stored
    raise UserError(f"{path} is replaced faster than it can be read; give checkpoint=best, or try again later")


def _refuse_foreign(path: Path, folder: Path, own: dict[str, Any]) -> None:
    result = read_result(folder) or {}
    config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    resumed = own["step"] <= max(result.get("resumed_at") or [-1])  # with other values, perhaps, since
    then, now = run_files.flat(own["config"]), run_files.flat(dict(config))  # type: ignore[arg-type]  # a mapping
    for key in sorted({*then, *now}):
        section = key.partition(".")[0]
        kept = section in run_files.ARCHITECTURE or not (resumed or section in MAY_CHANGE)
        if kept and then.get(key) != now.get(key):
            raise UserError(
                f"{path} belongs to another run than {folder}: {key} is {then.get(key)} there and {now.get(key)} "
                "here; give checkpoint=<file> alone, outside a run folder, to score it by itself"
            )
    if own["data_hash"] != (result.get("data") or {}).get("hash"):
        raise UserError(f"{path} belongs to another run than {folder}: it was trained on other data")
    if path.name == "last.ckpt" and result.get("status") == "completed" and own["step"] != result["steps"]:
        raise UserError(
            f"{path} is of step {own['step']}, but {folder} is completed at step {result['steps']}; "
            "restore the file, or copy it elsewhere and give checkpoint=<file>"
        )


def _with_stored(config: DictConfig, stored: dict[str, Any]) -> DictConfig:
    """The command line's configuration with the checkpoint's model, seed and schedule."""
    merged: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]  # a mapping
    merged.update({key: stored[key] for key in CHECKPOINTS_OWN})
    merged["trainer"]["max_steps"] = stored["trainer"]["max_steps"]
    return OmegaConf.create(merged)


def _from_hf(config: DictConfig, folder: Path) -> Subject:
    fields, _ = read_gpt2(folder)
    eps = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("layer_norm_epsilon", 1e-5)
    merged: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]  # a mapping
    gpt2 = {
        "model": fields,
        "residual": {"_target_": "src.residual.vanilla.Vanilla", "_partial_": True},
        "norm": {"_target_": "src.norm.layernorm.LayerNorm", "_partial_": True, "eps": eps},
        "embedding": {"_target_": "src.embedding.tied.TiedEmbedding", "_partial_": True},
        "recurrence": {"_target_": "src.recurrence.none.NoRecurrence", "_partial_": True},
        "name": folder.name,
    }
    settings = read_settings(OmegaConf.create({**merged, **gpt2}), KEYS)
    gpt = build_gpt(settings)
    load_gpt2(gpt, folder)
    file = {"file": str(folder), "sha256": sha256_file(folder / "model.safetensors")}
    return Subject(gpt, settings, {"step": None, "checkpoint": file}, None)


def _write(job: Job, subject: Subject, scores: dict[str, Any]) -> Path:
    trainer = subject.settings.trainer
    suite = subject.settings.config["evaluation"]
    record = {
        **subject.identity,
        "name": subject.settings.name,
        "scores": scores,
        "evaluation": suite,
        "device": device_name(trainer.accelerator),
        "precision": trainer.precision,
        "versions": versions(),
        "git": git_commit(),
    }
    text = json.dumps(record, indent=2) + "\n"
    write_atomic(job.folder / "evaluation.json", text)
    if subject.folder is None:
        return job.folder / "evaluation.json"
    suite_hash = hashlib.sha256(json.dumps(suite, sort_keys=True).encode()).hexdigest()
    sha256 = subject.identity["checkpoint"]["sha256"]
    place = subject.folder / "evaluations"
    place.mkdir(exist_ok=True)
    path = place / f"step{subject.identity['step']:08d}-{sha256[:12]}-{suite_hash[:12]}.json"
    write_atomic(path, text)
    return path
