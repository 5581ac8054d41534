"""Loggers beside TensorBoard, one config option each: `logger=csv`, `logger=[wandb,csv]`.

All are Lightning's own; each gets the scalars that TensorBoard gets, and the configuration. A run's record does
not depend on them.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, WandbLogger


class RunPlace(NamedTuple):
    """Where a run lies, what it is called, and the step that it starts or goes on from."""

    folder: Path
    name: str
    step: int


def csv(run: RunPlace, *, flush_every_rows: int) -> Logger:
    """A file a session: Lightning's logger would overwrite the earlier one's."""
    return CSVLogger(
        run.folder, name="csv", version=f"from_step_{run.step}", flush_logs_every_n_steps=flush_every_rows
    )


def wandb(run: RunPlace, *, project: str, offline: bool) -> Logger:
    """One W&B run a folder; a resumed run goes on with it.

    Raises:
        ValueError: the package is not installed.
    """
    identity = hashlib.sha256(str(run.folder).encode()).hexdigest()[:16]
    try:
        return WandbLogger(
            name=run.name, project=project, save_dir=run.folder, id=identity, resume="allow", offline=offline
        )
    except ModuleNotFoundError as error:
        raise ValueError(_missing("wandb")) from error


def mlflow(run: RunPlace, *, experiment: str, tracking_uri: str | None) -> Logger:
    """One MLflow run a session.

    Raises:
        ValueError: the package is not installed.
    """
    own = f"sqlite:///{run.folder / 'mlflow.db'}"  # MLflow's plain files are no longer kept up
    artifacts = None if tracking_uri else (run.folder / "mlartifacts").as_uri()
    try:
        return MLFlowLogger(
            experiment, run_name=run.name, tracking_uri=tracking_uri or own, artifact_location=artifacts
        )
    except ModuleNotFoundError as error:
        raise ValueError(_missing("mlflow")) from error


def _missing(package: str) -> str:
    return (
        f"logger={package} needs the package {package}, which is not installed; "
        f"`pip install {package}`, or leave it out"
    )
