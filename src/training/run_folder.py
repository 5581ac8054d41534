"""Run folder: config.yaml, result.json, the loss curve and the table of scores."""

import logging
import resource
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import OmegaConf
from torch.utils.tensorboard.summary import hparams

from src.callbacks.evaluation import headline
from src.callbacks.spike_score import SpikeScore
from src.files import flatten, scan_rows, write_atomic
from src.launch.arguments import stored_yaml
from src.launch.world import read_world
from src.models.flops import average_flops_per_token, describe_visits
from src.models.formats.hub import identify
from src.models.gpt import GPT
from src.reporting.columns import Columns, read_columns
from src.reporting.figures import draw_loss_curves, draw_visit_order, save_figure
from src.training.branch import begin_branch
from src.training.provenance import (
    code_by_step,
    code_identity,
    config_hash,
    describe_machine,
    device_name,
    versions,
)
from src.training.resume import set_aside_after
from src.training.run import Run

log = logging.getLogger(__name__)


def begin_record(run: Run, gpt: GPT) -> None:
    """Write config.yaml and the first result.json; cut the metrics back to the step that the run continues from."""
    job, settings, record, data, step = run.job, run.settings, run.record, run.data, run.first_step
    if job.rank:
        return
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()  # the jobs of a sweep share the process
    if run.branches:  # before config.yaml: a folder that can be resumed holds the checkpoint
        begin_branch(run)
    record.keep_until(step)
    if run.resume:
        set_aside_after(run.checkpoints, step, run.resume.path)
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
        tokens=step * run.tokens_per_step,
        n_params=gpt.n_params(positions=True),
        n_params_without_positions=gpt.n_params(positions=False),
        n_params_looked_up=gpt.embedding.get_num_lookup_params(),
        n_params_residual=sum(p.numel() for p in gpt.residual.parameters()),
        flops_per_token=average_flops_per_token(gpt, keys.max_steps),
        **_describe_init(run),
        **({"logger_ids": run.logger_ids} if run.logger_ids else {}),
        config_hash=config_hash(config),
        data=data.identity(),
        **{key: getattr(keys, key) for key in ("accelerator", "precision", "compile", "threads", "onednn")},
        device=device_name(keys.accelerator),
        machine=describe_machine(),
        world_size=keys.world_size,
        launched_by=read_world().job,
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
        f"{keys.max_steps * run.tokens_per_step:,}",
        record.result["device"],
        keys.world_size,
        keys.precision,
        job.folder,
    )
    if layout := gpt.residual.describe():
        log.info("residual strategy: %s", layout)
    _report_visits(run, gpt)


def _describe_init(run: Run) -> dict[str, Any]:
    """Return the identity of the weights that the run starts from; a resumed run keeps that of its start."""
    source = run.settings.config.get("init_from")
    if source is None or "init_from" in run.record.result:
        return {}
    return {"init_from": identify(Path(source))}


def _report_visits(run: Run, gpt: GPT) -> None:
    """Log and draw the order of visits, where layers are visited more than once."""
    visits = describe_visits(gpt, run.settings.trainer.max_steps)
    if visits is None:
        return
    log.info("visits to layers: %s", visits)
    layers = [visit.layer for visit in gpt.recurrence.visits()]
    with run.best_effort.attempt("the picture of visits"):
        save_figure(draw_visit_order(layers, visits), run.job.folder / "figures" / "visits.png")


def record_progress(run: Run, trainer: L.Trainer) -> None:
    """Write steps, tokens, seconds, peak memory and spike score so far to result.json."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    scores = [callback.scores() for callback in trainer.callbacks if isinstance(callback, SpikeScore)]  # type: ignore[attr-defined]  # Lightning sets it
    run.record.update(
        steps=trainer.global_step,
        tokens=trainer.global_step * run.tokens_per_step,
        seconds=run.record.seconds(),
        peak_memory_bytes=peak,
        **({"spike_score": scores[0]} if any(scores) else {}),
    )


def complete_record(run: Run) -> float:
    """Record the final loss, draw the loss curve, write TensorBoard's summary; return the loss in nats."""
    folder, record = run.job.folder, run.record
    branched_at = record.result.get("branched_from", {}).get("step", 0)
    columns, losses, speed = summarize_rows(folder / "metrics.jsonl", branched_at)
    per_byte = columns["val/bpb"][~np.isnan(columns["val/bpb"])]
    # A run that a callback stopped before the first logged row has no speed but that of the whole.
    speed = record.result["tokens"] / record.result["seconds"] if speed is None else speed
    record.update(val_loss=losses[-1], best_val_loss=min(losses), tokens_per_s=speed)
    trained = columns["train/loss"][~np.isnan(columns["train/loss"])]
    if run.settings.trainer.overfit_batches is not None and len(trained):
        record.update(overfit_loss=[float(trained[0]), float(trained[-1])])
    if len(per_byte):
        record.update(val_bpb=float(per_byte[-1]))
    with run.best_effort.attempt("the loss curve and TensorBoard's summary"):
        _draw_summary(run, columns, losses[-1])
    record.finish("completed", None)
    log.info("%s", table(record.result))
    log.info("curve: %s", folder / "figures" / "loss.png")
    return losses[-1]


def summarize_rows(path: Path, after: int) -> tuple[Columns, list[float], float | None]:
    """Summarize a run's curve: its columns, the validation losses after step `after`, and the median of its speeds.

    A loss that is NaN is among them; the speed is None if no row has one.
    """
    columns = read_columns(path, ("tokens", "train/loss", "val/loss", "val/bpb", "tokens_per_s"))
    losses = [row["val/loss"] for _, row in scan_rows(path) if "val/loss" in row and row["step"] > after]
    speeds = np.sort(columns["tokens_per_s"][~np.isnan(columns["tokens_per_s"])])
    return columns, losses, float(speeds[len(speeds) // 2]) if len(speeds) else None


def _draw_summary(run: Run, columns: Columns, loss: float) -> None:
    folder, result = run.job.folder, run.record.result
    figure = draw_loss_curves({result["name"]: columns}, folder / "figures" / "loss.png")
    config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    assert isinstance(config, dict)  # begin_record wrote it
    board = TensorBoardLogger(folder, name="", version="tensorboard", default_hp_metric=False)
    step = int(result["steps"])
    losses = {"val_loss": loss} | {key: float(result[key]) for key in ("val_bpb",) if key in result}
    board.log_metrics(losses, step)  # the scores stand there already, by `RunEvaluation`
    write_hparams(board, flatten({str(k): v for k, v in config.items()}), [*losses, *headline(result)])
    board.experiment.add_text("config", f"```yaml\n{OmegaConf.to_yaml(OmegaConf.create(config))}```")
    board.experiment.add_figure("loss", figure)
    board.finalize("success")


def write_hparams(board: TensorBoardLogger, config: dict[str, Any], tags: list[str]) -> None:
    """Write a run's configuration beside the tags of its scores, for TensorBoard's tab of hyperparameters.

    Lightning's `log_hyperparams` would write the scores again, at step 0.
    """
    values = {
        key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in config.items()
    }
    for summary in hparams(values, dict.fromkeys(tags, 0.0)):  # type: ignore[no-untyped-call]  # torch has no types here
        board.experiment.file_writer.add_summary(summary)


def table(result: dict[str, Any]) -> str:
    """Format a completed run's scores as lines of text; limited or skipped evaluations say so."""
    lines = [
        f"{result['name']} completed",
        *(
            f"  {'loss of the repeated batch':28}{loss:10.4f} nats   {when}"
            for loss, when in zip(result.get("overfit_loss", []), ("first logged", "last"), strict=False)
        ),
        f"  {'validation loss':28}{result['val_loss']:10.4f} nats   after {result['tokens']:,} tokens",
        *([f"  {'validation bits per byte':28}{result['val_bpb']:10.4f}"] if "val_bpb" in result else []),
        *score_lines(result),
        *(f"  {f'spike score, {name}':28}{score:10.2f} %" for name, score in (result.get("spike_score") or {}).items()),
        f"  {'speed':28}{result['tokens_per_s']:10,.0f} tokens/s, {result['seconds']:.0f} s in all",
    ]
    return "\n".join(lines)


def score_lines(scores: dict[str, Any]) -> list[str]:
    """Format perplexities and lm-eval scores as lines of text; the tasks of CORE one by one below their mean."""
    lines = []
    for section, key in (("perplexity", "ppl"), ("lm_eval", "score")):
        for name, entry in (scores.get(section) or {}).items():
            label = f"{name} {'perplexity' if key == 'ppl' else entry.get('metric', '')}"
            if "skipped" in entry:
                lines.append(f"  {label:28}{'-':>10}        left out: {entry['skipped']}")
            else:
                unit = " %" if key == "score" and entry.get("unit", "%") else ""
                limit = f"   limited: {entry['limited']}" if entry.get("limited") else ""
                cut = f"   {entry['cut']} prompts cut to the context" if entry.get("cut") else ""
                lines.append(f"  {label:28}{entry[key]:10.2f}{unit:5}{limit}{cut}")
            for task, part in (entry.get("parts") or {}).items():
                if "centred" in part:
                    of = f"{part['metric']}, {part['num_fewshot']}-shot, centred {part['centred']:.2f} %"
                    of += f", {part['cut']} prompts cut" if part.get("cut") else ""
                    lines.append(f"    {task:26}{part['score']:10.2f} %     {of}")
    return lines
