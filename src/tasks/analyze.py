"""task=analyze: measure the inside of a run's checkpoints by depth.

    python run.py task=analyze run=<run folder> [checkpoint=last|best|all|<step>] [sequences=8]

Each checkpoint gives `analysis/step<n>.json` in the run folder (`src/analysis/measure.py` lists its content) and
pictures `step<n>_*.png`; with several, `curves.png` shows the measurements over all steps analyzed on the same tokens.
The tokens are the first validation sequences of the run's data; data on the command line replace it. It runs in one
process, on one device.
"""

import logging
import time
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from src.analysis.measure import measure_model
from src.bounds import PositiveInt, validate
from src.datamodules.base import BatchSpec, TokenDataModule, as_tensor, build_data
from src.errors import UserError, one_line, raise_user_errors
from src.files import write_json
from src.launch.job import COMPLETED, Job, TaskEnd
from src.launch.world import read_world
from src.reporting.analysis import FOLDER, read_analyses
from src.reporting.analysis_curves import draw_over_steps
from src.reporting.analysis_figures import draw_analysis
from src.reporting.figures import save_figure
from src.settings.read import Settings
from src.settings.sections import read_section
from src.settings.trainer import TrainerKeys, TrainerSettings, resolve_trainer
from src.training.process import prepare_process
from src.training.provenance import device_name, git_commit, versions
from src.training.saved_weights import SavedWeights, load_saved_weights

log = logging.getLogger(__name__)


def run(job: Job) -> TaskEnd:
    """Measure the checkpoints and write values and pictures into the run folder.

    Raises:
        UserError: a key is invalid, a checkpoint is missing, damaged or of another run, or the data are too short.
    """
    with raise_user_errors():
        trainer = _resolve_one_device(job.config)
        n_sequence: int = validate("sequences", job.config.sequences, PositiveInt)
        config = _use_data_of_run(job)
        fabric = L.Fabric(accelerator=trainer.accelerator, devices=1, precision=trainer.precision)
        prepare_process(trainer)
        data: TokenDataModule | None = None
        n_done = 0
        for saved in load_saved_weights(config):
            data = data or _open_data(saved.settings, n_sequence)  # the same for all checkpoints of a run
            folder, tokens = _write(saved, fabric, data, n_sequence)
            n_done += 1
        _draw_curves(folder, tokens)
    line = f"{n_done} checkpoint{'s' if n_done > 1 else ''} analyzed in {folder}"
    log.info("%s", line)
    return TaskEnd(COMPLETED, line)


def _resolve_one_device(config: DictConfig) -> TrainerSettings:
    """Return the settings of the process, which uses one device.

    Raises:
        UserError: several devices are configured, or a launcher started several processes.
    """
    world, devices = read_world(), config.trainer.devices
    if world.size > 1:
        raise UserError(f"task=analyze runs in one process, but {world.launcher} started {world.size}; start it alone")
    if devices not in ("auto", 1):
        raise UserError(f"trainer.devices must be 1 or auto for task=analyze, which uses one device, got {devices}")
    keys = OmegaConf.merge(config.trainer, {"devices": 1})
    assert isinstance(keys, DictConfig)  # a section
    return resolve_trainer(read_section("trainer", keys, TrainerKeys))


def _use_data_of_run(job: Job) -> DictConfig:
    """Return the configuration with the run's data, unless the command line names data."""
    if OmegaConf.is_missing(job.config, "run") or job.config.run is None:
        raise UserError("run is missing; give run=<run folder>")
    stored = Path(str(job.config.run)) / "config.yaml"
    config = OmegaConf.create(OmegaConf.to_container(job.config, resolve=True))
    assert isinstance(config, DictConfig)  # OmegaConf keeps a mapping a mapping
    is_named = any(override.lstrip("+").startswith(("data=", "data.")) for override in job.overrides)
    if stored.is_file() and not is_named:  # without the file, `load_saved_weights` says that it is not a run folder
        config.data = OmegaConf.load(stored).data
    return config


def _draw_curves(folder: Path, tokens: dict[str, Any]) -> None:
    """Draw the analyses on these tokens over steps, if there are several; name those on other tokens."""
    analyses = read_analyses(folder)
    same = [one for one in analyses if one.get("tokens") == tokens]
    if len(same) > 1:
        save_figure(draw_over_steps(same), folder / "curves.png")
    if others := [str(one["step"]) for one in analyses if one.get("tokens") != tokens]:
        log.warning(
            "steps %s, analyzed on other tokens, are not in curves.png; analyze them with these data and sequences",
            ", ".join(others),
        )


def _write(
    saved: SavedWeights, fabric: L.Fabric, data: TokenDataModule, n_sequence: int
) -> tuple[Path, dict[str, Any]]:
    """Measure one checkpoint and write its values and pictures; return the folder of the analyses and the tokens."""
    assert saved.folder is not None  # there is a run
    began, settings = time.monotonic(), saved.settings
    windows_BT: Tensor = as_tensor(data.val_windows[:n_sequence].copy()).long()
    gpt = saved.gpt.to(fabric.device).eval()
    try:
        measured = measure_model(gpt, windows_BT.to(fabric.device), fabric.autocast, data.document_mark())
    except ValueError as error:
        raise UserError(f"step {saved.identity['step']}: {one_line(error)}; analyze an earlier checkpoint") from error
    record: dict[str, Any] = {
        **saved.identity,
        "name": settings.name,
        "seed": settings.seed,
        "tokens": {
            "sequences": n_sequence,
            "length": windows_BT.shape[1] - 1,
            "data_hash": data.identity()["hash"],
        },
        **measured,
        "seconds": round(time.monotonic() - began, 3),
        "device": device_name(settings.trainer.accelerator),
        "precision": settings.trainer.precision,
        "versions": versions(),
        "git": git_commit(),
    }
    folder = saved.folder / FOLDER
    folder.mkdir(exist_ok=True)
    stem = f"step{record['step']:08d}"
    write_json(folder / f"{stem}.json", record)
    for name, figure in draw_analysis(record).items():
        save_figure(figure, folder / f"{stem}_{name}.png")
    loss = record["leave_out"]["loss"]["mean"]
    log.info("step %d: loss %.4f on %d sequences, %.1f s", record["step"], loss, n_sequence, record["seconds"])
    if record["tokens"]["data_hash"] != record["data_hash"]:
        log.warning("these are not the data that the run was trained on")
    return folder, record["tokens"]


def _open_data(settings: Settings, n_sequence: int) -> TokenDataModule:
    """Open the data.

    Raises:
        UserError: there are fewer validation sequences than `sequences`.
    """
    spec = BatchSpec(settings.model.block_size, settings.model.vocab_size, settings.seed, settings.trainer.max_steps)
    data = build_data(settings.data, spec)
    data.prepare_data()
    data.setup()
    if n_sequence > len(data.val_windows):
        raise UserError(
            f"sequences must be at most {len(data.val_windows)}, the validation sequences of the data, got {n_sequence}; "
            "give fewer, or more data.val_tokens"
        )
    return data
