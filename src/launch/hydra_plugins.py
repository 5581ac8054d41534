"""Hydra plugins that are supported: launchers and sweepers other than Hydra's own, and what each needs.

Their jobs run `src/launch/job.py`'s `run_job` in other processes (joblib, submitit) or in this one (optuna).
"""

import importlib.util
import os

from src.errors import UserError
from src.files import ROOT

EXTRA = ".[sweeps]"

#: Package and module of each plugin; None for Hydra's own.
JOBLIB = ("hydra-joblib-launcher", "hydra_plugins.hydra_joblib_launcher")
SUBMITIT = ("hydra-submitit-launcher", "hydra_plugins.hydra_submitit_launcher")
OPTUNA = ("hydra-optuna-sweeper", "hydra_plugins.hydra_optuna_sweeper")
SUPPORTED: dict[str, dict[str, tuple[str, str] | None]] = {
    "hydra/launcher": {"basic": None, "joblib": JOBLIB, "submitit_local": SUBMITIT, "submitit_slurm": SUBMITIT},
    "hydra/sweeper": {"basic": None, "optuna": OPTUNA},
}


def prepare_plugins(arguments: list[str]) -> list[str]:
    """Return the command line with the options that its launcher or sweeper needs so that a sweep loses no job.

    Raises:
        UserError: a plugin that is not supported, or not installed.
    """
    added: list[str] = []
    for argument in arguments:
        key, _, choice = argument.lstrip("+").partition("=")
        if key not in SUPPORTED:
            continue
        if choice not in SUPPORTED[key]:
            raise UserError(f"{key}={choice} is not supported; give one of {', '.join(SUPPORTED[key])}")
        plugin = SUPPORTED[key][choice]
        if plugin is not None:
            _require(argument, *plugin)
        if plugin == OPTUNA and not any("hydra.sweeper.max_failure_rate=" in a for a in arguments):
            added.append("hydra.sweeper.max_failure_rate=1.0")  # a diverging trial does not end the search
        if plugin == SUBMITIT:  # submitit starts jobs by a module of its own, which must find src
            path = os.environ.get("PYTHONPATH")
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), path)))
    return [*arguments, *added]


def _require(argument: str, package: str, module: str) -> None:
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise UserError(
            f"{argument} needs the package {package}, which is not installed; `pip install '{EXTRA}'` or "
            f"`pip install {package}`, or leave it out: Hydra's own runs the jobs one after the other"
        )
