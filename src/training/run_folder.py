"""What a training run leaves in its folder, and how it finds its way back in."""

import hashlib
import json
import logging
import resource
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import OmegaConf

from src.callbacks.best_effort import BestEffort
from src.callbacks.final_evaluation import headline
from src.callbacks.run_record import Row, RunRecord, read_metrics
from src.datamodules.base import TokenDataModule
from src.errors import UserError
from src.files import flatten, write_atomic
from src.launch.arguments import stored_yaml
from src.launch.job import Job
from src.models.flops import average_flops_per_token, describe_visits
from src.models.gpt import GPT
from src.reporting.figures import loss_curves, save, visit_order
from src.settings.read import Settings
from src.training.fallback import forget_after, newest_good
from src.training.provenance import code_by_step, code_identity, device_name, tell_other_code, versions

log = logging.getLogger(__name__)

#: Keys that say where and how a run goes, not what it computes.
PLACE = ("name", "resume", "from_run", "task", "check", "logger", "samples", "safety", "trusted_targets")
#: What a checkpoint's weights are made for; these cannot change on resume.
ARCHITECTURE = ("model", "residual", "norm", "embedding", "recurrence", "seed")


class Resume(NamedTuple):
    """Where a run goes on: the checkpoint and the optimizer steps it has behind it."""

    path: Path
    step: int


def checkpoint_to_resume(job: Job, settings: Settings, identity: dict[str, Any]) -> Resume | None:
    """The checkpoint that this job goes on from; None where it starts at step 0.

    Raises:
        UserError: the checkpoint is damaged, gone, or belongs to another model or other data.
    """
    if not job.resumes:
        return None
    found = newest_good(job.folder / "checkpoints")
    if found is None:
        rows = read_metrics(job.folder)
        if rows and rows[-1]["step"] > settings.trainer.checkpoint_every_steps:
            raise UserError(
                f"{job.folder / 'checkpoints/last.ckpt'} is gone, though the run had passed step {rows[-1]['step']}; "
                "put it back or start a new run"
            )
        log.warning("no checkpoint in %s yet: starting again at step 0", job.folder)
        return None
    path, stored = found[0], found[1].get("reslab")
    if stored is None:
        raise UserError(f"{path} is not a checkpoint of this project; resume needs one that it wrote")
    _refuse_other_model(stored["config"], settings.config)
    if stored["data_hash"] != identity["hash"]:
        line = (
            f"data.path holds other data than the run was trained on: {identity['hash'][:12]} now, "
            f"{stored['data_hash'][:12]} then"
        )
        if not settings.config["data"].get("accept_changed", False):
            raise UserError(f"{line}; restore the shards, start a new run or give data.accept_changed=true")
        log.warning("%s; accepted", line)
    for key, (then, now) in _differences(stored["config"], settings.config).items():
        if key.partition(".")[0] not in PLACE:
            log.warning("changed on resume: %s %s -> %s", key, then, now)
    tell_other_code(stored.get("code"))
    log.info("going on from step %d", stored["step"])
    return Resume(path, int(stored["step"]))


def _refuse_other_model(then: dict[str, Any], now: dict[str, Any]) -> None:
    found = _differences(then, now).items()
    changed = [f"{k} was {old}, is {new}" for k, (old, new) in found if k.partition(".")[0] in ARCHITECTURE]
    if changed:
        raise UserError(f"a resumed run keeps its model: {'; '.join(changed)}; start a new run to change it")


def _differences(then: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    old, new = flatten(then), flatten(now)
    return {key: (old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)}


def config_hash(config: dict[str, Any]) -> str:
    """Identifies what is computed: the configuration without its name and its place."""
    kept = {key: value for key, value in config.items() if key not in PLACE}
    kept["trainer"] = {key: value for key, value in kept.get("trainer", {}).items() if key != "max_time"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def checkpoint_identity(settings: Settings, identity: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says about the run it belongs to."""
    return {
        "config": settings.config,
        "config_hash": config_hash(settings.config),
        "data_hash": identity["hash"],
        "code": code_identity(),
    }


def open_record(
    job: Job,
    settings: Settings,
    record: RunRecord,
    data: TokenDataModule,
    gpt: GPT,
    resume: Resume | None,
    best_effort: BestEffort,
) -> None:
    """Write config.yaml and the first result.json; cut the metrics back to where the run goes on."""
    if job.rank:
        return
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()  # the jobs of a sweep share the process
    step = resume.step if resume else 0
    record.keep_until(step)
    if resume:
        forget_after(job.folder / "checkpoints", step, resume.path)
    config = {**settings.config, "resume": None, "from_run": None}
    write_atomic(job.folder / "config.yaml", stored_yaml(config))
    keys = settings.trainer
    record.update(
        status="running",
        reason=None,
        name=settings.name,
        seed=settings.seed,
        steps=step,
        max_steps=keys.max_steps,
        tokens=step * data.global_batch_size * settings.model.block_size,
        n_params=gpt.n_params(positions=True),
        n_params_without_positions=gpt.n_params(positions=False),
        n_params_looked_up=gpt.embedding.get_num_lookup_params(),
        n_params_residual=sum(p.numel() for p in gpt.residual.parameters()),
        flops_per_token=average_flops_per_token(gpt, keys.max_steps),
        config_hash=config_hash(config),
        data=data.identity(),
        **{key: getattr(keys, key) for key in ("accelerator", "precision", "compile", "threads", "onednn")},
        device=device_name(keys.accelerator),
        world_size=keys.devices,
        resumed_at=[*record.result.get("resumed_at", []), *([step] if job.resumes else [])],
        versions=versions(),
        git=code_identity()["git"],
        code=code_by_step(record.result.get("code", []), step),
    )
    log.info(
        "%s: %s parameters (%s of the residual strategy), %s tokens, %s x%d, %s, in %s",
        settings.name,
        f"{record.result['n_params']:,}",
        f"{record.result['n_params_residual']:,}",
        f"{keys.max_steps * data.global_batch_size * settings.model.block_size:,}",
        record.result["device"],
        keys.devices,
        keys.precision,
        job.folder,
    )
    visits = describe_visits(gpt, keys.max_steps)
    if visits is not None:
        log.info("visits to layers: %s", visits)
        layers = [visit.layer for visit in gpt.recurrence.visits()]
        with best_effort.attempt("the picture of visits"):
            save(visit_order(layers, visits), job.folder / "figures" / "visits.png")


def note_progress(record: RunRecord, trainer: L.Trainer, tokens_per_step: int) -> None:
    """How far the run has come, how long it took and how much memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    seconds = record.seconds()
    record.update(
        steps=trainer.global_step,
        tokens=trainer.global_step * tokens_per_step,
        seconds=seconds,
        peak_memory_bytes=peak,
    )


def close_record(job: Job, record: RunRecord, best_effort: BestEffort) -> float:
    """State the final loss, draw the curve, fill the dashboard, print the table; returns the final loss."""
    assert job.rank == 0  # the others have nothing to state
    rows = read_metrics(job.folder)
    losses = [row["val/loss"] for row in rows if "val/loss" in row]
    speeds = sorted(row["tokens_per_s"] for row in rows if "tokens_per_s" in row)
    record.update(val_loss=losses[-1], best_val_loss=min(losses), tokens_per_s=speeds[len(speeds) // 2])
    with best_effort.attempt("the loss curve and TensorBoard's summary"):
        _show_end(job, record, rows, losses[-1])
    record.finish("completed", None)
    log.info("%s", table(record.result))
    log.info("curve: %s", job.folder / "figures" / "loss.png")
    return losses[-1]


def _show_end(job: Job, record: RunRecord, rows: list[Row], loss: float) -> None:
    figure = loss_curves({record.result["name"]: rows}, job.folder / "figures" / "loss.png")
    config = OmegaConf.to_container(OmegaConf.load(job.folder / "config.yaml"))
    assert isinstance(config, dict)  # written by open_record
    board = TensorBoardLogger(job.folder, name="", version="tensorboard", default_hp_metric=False)
    board.log_hyperparams(
        flatten({str(k): v for k, v in config.items()}), {"val_loss": loss, **headline(record.result)}
    )
    board.experiment.add_text("config", f"```yaml\n{OmegaConf.to_yaml(OmegaConf.create(config))}```")
    board.experiment.add_figure("loss", figure)
    board.finalize("success")


def table(result: dict[str, Any]) -> str:
    """The run's scores as lines of text; what was limited or left out says so."""
    lines = [
        f"  {'validation loss':28}{result['val_loss']:10.4f} nats   after {result['tokens']:,} tokens",
    ]
    lines += score_lines(result)
    lines.append(f"  {'speed':28}{result['tokens_per_s']:10,.0f} tokens/s, {result['seconds']:.0f} s in all")
    return "\n".join([f"{result['name']} completed", *lines])


def score_lines(scores: dict[str, Any]) -> list[str]:
    """Perplexities and lm-eval scores as lines of text."""
    lines = []
    for section, key in (("perplexity", "ppl"), ("lm_eval", "score")):
        for name, entry in (scores.get(section) or {}).items():
            label = f"{name} {'perplexity' if key == 'ppl' else entry.get('metric', '')}"
            if "skipped" in entry:
                lines.append(f"  {label:28}{'-':>10}        left out: {entry['skipped']}")
            else:
                unit = " %" if key == "score" and entry.get("unit", "%") else ""
                limit = f"   limited: {entry['limited']}" if entry.get("limited") else ""
                lines.append(f"  {label:28}{entry[key]:10.2f}{unit:5}{limit}")
    return lines
