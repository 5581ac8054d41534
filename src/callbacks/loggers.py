"""Loggers in addition to TensorBoard, one config option each: `logger=csv`, `logger=[wandb,csv]`.

Each receives the same scalars as TensorBoard, and the configuration. A run's record does not depend on them, but holds
the id under which each service knows the run, so a resumed run continues there; steps that a killed run repeats are
logged twice. Imports of the services' packages are deferred, since none of them is required.
"""

import contextlib
import hashlib
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.loggers import CometLogger, CSVLogger, Logger, MLFlowLogger, WandbLogger

from src.callbacks.trackio_logger import TrackioLogger


class RunInfo(NamedTuple):
    """Folder of a run, its name, the step at which it starts or resumes, and the id that a logger gave it earlier."""

    folder: Path
    name: str
    step: int
    logger_id: str | None = None

    def identify(self) -> str:
        """Return the earlier id, or one that follows from the folder."""
        return self.logger_id or hashlib.sha256(str(self.folder).encode()).hexdigest()[:32]


def csv(run: RunInfo, *, flush_every_rows: int) -> Logger:
    """Build a CSV logger with one file per session, because Lightning's would overwrite the earlier one."""
    return CSVLogger(run.folder, name="csv", version=f"from_step_{run.step}", flush_logs_every_n_steps=flush_every_rows)


def wandb(run: RunInfo, *, project: str, offline: bool) -> Logger:
    """Build a W&B logger with one W&B run per run folder; a resumed run continues it.

    Raises:
        ValueError: the package wandb is not installed.
    """
    identity = run.logger_id or run.identify()[:16]
    with _require_package("wandb"):
        return WandbLogger(
            name=run.name, project=project, save_dir=run.folder, id=identity, resume="allow", offline=offline
        )


def mlflow(run: RunInfo, *, experiment: str, tracking_uri: str | None) -> Logger:
    """Build an MLflow logger with one MLflow run per run folder; a resumed run continues it.

    Raises:
        ValueError: the package mlflow is not installed.
    """
    default = f"sqlite:///{run.folder / 'mlflow.db'}"  # MLflow no longer maintains its plain files
    artifacts = None if tracking_uri else (run.folder / "mlartifacts").as_uri()
    with _require_package("mlflow"):
        return MLFlowLogger(
            experiment,
            run_name=run.name,
            tracking_uri=tracking_uri or default,
            artifact_location=artifacts,
            run_id=run.logger_id,
        )


def comet(run: RunInfo, *, project: str, workspace: str | None, offline: bool) -> Logger:
    """Build a Comet logger with one experiment per run folder; a resumed run continues it.

    Raises:
        ValueError: the package comet_ml is not installed.
    """
    if offline:  # Lightning's online=False disables the experiment instead
        os.environ["COMET_START_ONLINE"] = "false"
    with _require_package("comet", "comet_ml"):
        return CometLogger(
            name=run.name,
            project=project,
            workspace=workspace,
            experiment_key=run.identify(),
            online=None if offline else True,
            offline_directory=str(run.folder / "comet"),
        )


def aim(run: RunInfo, *, experiment: str, repo: str | None) -> Logger:
    """Build an Aim logger (its own, for Lightning) with one Aim run per run folder; a resumed run continues it.

    Raises:
        ValueError: the package aim is not installed.
    """
    with _require_package("aim"):
        logger: Logger = importlib.import_module("aim.pytorch_lightning").AimLogger(
            repo=repo or str(run.folder),
            experiment=experiment,
            run_name=run.name,
            run_hash=run.logger_id,
            system_tracking_interval=None,
            log_system_params=False,
            capture_terminal_logs=False,
        )
    return logger


def trackio(run: RunInfo, *, project: str, space_id: str | None) -> Logger:
    """Build a Trackio logger with one Trackio run per run folder; a resumed run continues it.

    Raises:
        ValueError: the package trackio is not installed.
    """
    with _require_package("trackio"):
        importlib.import_module("trackio")
    name = run.logger_id or f"{run.name}-{run.identify()[:8]}"  # Trackio knows runs by their name
    return TrackioLogger(project=project, run_name=name, space_id=space_id)


@contextlib.contextmanager
def _require_package(name: str, package: str | None = None) -> Iterator[None]:
    package = package or name
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(
            f"logger={name} needs the package {package}, which is not installed; "
            f"`pip install {package}`, or remove the option"
        ) from error
