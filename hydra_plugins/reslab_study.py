"""Sweeper of Hydra that runs a study: batches of jobs, each chosen from the results of those before.

Hydra finds plugins in the namespace package `hydra_plugins`; `src/tasks/study.py` does the work. `task=study` selects
this sweeper, and `hydra/launcher=` the launcher of the jobs.
"""

from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class StudySweeper(Sweeper):
    """Sweeper that asks the plan of a study for its next jobs until there are none."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Build the launcher."""
        self.hydra_context = hydra_context
        self.config = config
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:  # Hydra ignores it
        """Run the study."""
        from src.tasks.study import Machinery, conduct  # only here: Hydra imports every plugin at each start

        assert self.config is not None  # Hydra calls `setup` first
        assert self.hydra_context is not None
        HydraConfig.instance().set_config(self.config)  # for ${hydra:...} outside of jobs
        config, loader = self.config, self.hydra_context.config_loader
        machinery = Machinery(
            compose=lambda overrides: loader.load_sweep_config(config, overrides),
            launch=lambda batch, first: self.launcher.launch(batch, initial_job_idx=first),
        )
        return conduct(config, arguments, machinery)
