"""Lightning logger of Trackio, which has none of its own (0.43): metrics, configuration, one run for all sessions."""

import importlib
from argparse import Namespace
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger


class TrackioLogger(Logger):
    """Logs into a Trackio run that is found by its name, or begun.

    Args:
        project: the project of the run.
        run_name: its name, unique in the project.
        space_id: Hugging Face Space that shows the project, `<owner>/<name>`; None keeps it on this machine.
    """

    def __init__(self, *, project: str, run_name: str, space_id: str | None) -> None:
        super().__init__()
        self.project, self.run_name, self.space_id = project, run_name, space_id
        self._experiment: Any = None

    @property
    def name(self) -> str:
        """Return the project."""
        return self.project

    @property
    def version(self) -> str:
        """Return the name of the run."""
        return self.run_name

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:  # trackio.Run: the package is optional
        """Return the run, opened when it is first asked for."""
        if self._experiment is None:
            self._experiment = importlib.import_module("trackio").init(
                project=self.project,
                name=self.run_name,
                space_id=self.space_id,
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        return self._experiment

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.experiment.log(metrics, step=step)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        self.experiment.config.update(vars(params) if isinstance(params, Namespace) else params)

    def finalize(self, status: str) -> None:
        if self._experiment is not None:
            self._experiment.finish()
            self._experiment = None
