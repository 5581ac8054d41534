"""Loggers in addition to TensorBoard, one config option each: `logger=csv`, `logger=[wandb,csv]`.

All are Lightning's own; each receives the same scalars as TensorBoard, and the configuration. A run's record does
not depend on them.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, WandbLogger


class RunInfo(NamedTuple):
    """Folder of a run, its name, and the step at which it starts or resumes."""

    folder: Path
    name: str
    step: int


def csv(run: RunInfo, *, flush_every_rows: int) -> Logger:
    """Build a CSV logger with one file per session, because Lightning's would overwrite the earlier one."""
    return CSVLogger(run.folder, name="csv", version=f"from_step_{run.step}", flush_logs_every_n_steps=flush_every_rows)


def wandb(run: RunInfo, *, project: str, offline: bool) -> Logger:
    """Build a W&B logger with one W&B run per run folder; a resumed run continues it.

    Raises:
        ValueError: the package wandb is not installed.
    """
    identity = hashlib.sha256(str(run.folder).encode()).hexdigest()[:16]
    with _require_package("wandb"):
        return WandbLogger(
            name=run.name, project=project, save_dir=run.folder, id=identity, resume="allow", offline=offline
        )


def mlflow(run: RunInfo, *, experiment: str, tracking_uri: str | None) -> Logger:
    """Build an MLflow logger with one MLflow run per session.

    Raises:
        ValueError: the package mlflow is not installed.
    """
    default = f"sqlite:///{run.folder / 'mlflow.db'}"  # MLflow no longer maintains its plain files
    artifacts = None if tracking_uri else (run.folder / "mlartifacts").as_uri()
    with _require_package("mlflow"):
        return MLFlowLogger(
            experiment, run_name=run.name, tracking_uri=tracking_uri or default, artifact_location=artifacts
        )


@contextlib.contextmanager
def _require_package(package: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(
            f"logger={package} needs the package {package}, which is not installed; "
            f"`pip install {package}`, or remove the option"
        ) from error
