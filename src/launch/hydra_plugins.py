"""Hydra's launchers and sweepers beyond its own two: which of them do here, and what each needs.

Their jobs run `src/launch/job.py`'s `run_job` in other processes (joblib, submitit) or in this one (optuna).
"""

import importlib.util
import os
from pathlib import Path

from src.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
EXTRA = ".[sweeps]"

#: By choice on the command line: the package and its module.
JOBLIB = ("hydra-joblib-launcher", "hydra_plugins.hydra_joblib_launcher")
SUBMITIT = ("hydra-submitit-launcher", "hydra_plugins.hydra_submitit_launcher")
OPTUNA = ("hydra-optuna-sweeper", "hydra_plugins.hydra_optuna_sweeper")
SUPPORTED: dict[str, dict[str, tuple[str, str] | None]] = {
    "hydra/launcher": {"basic": None, "joblib": JOBLIB, "submitit_local": SUBMITIT, "submitit_slurm": SUBMITIT},
    "hydra/sweeper": {"basic": None, "optuna": OPTUNA},
}


def with_launcher(arguments: list[str]) -> list[str]:
    """The command line, with what the launcher or sweeper that it names needs for a sweep that loses no job.

    Raises:
        UserError: one that is not supported, or not installed.
    """
    added: list[str] = []
    for argument in arguments:
        key, _, choice = argument.lstrip("+").partition("=")
        if key not in SUPPORTED:
            continue
        if choice not in SUPPORTED[key]:
            raise UserError(f"{key}={choice} is not supported; {', '.join(SUPPORTED[key])} are")
        needed = SUPPORTED[key][choice]
        if needed is not None:
            _refuse_missing(argument, *needed)
        if needed == OPTUNA and not any("hydra.sweeper.max_failure_rate=" in a for a in arguments):
            added.append("hydra.sweeper.max_failure_rate=1.0")  # a diverging trial is a failed one, not the end
        if needed == SUBMITIT:  # its jobs are started by a module of its own
            path = os.environ.get("PYTHONPATH")
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), path)))
    return [*arguments, *added]


def _refuse_missing(argument: str, package: str, module: str) -> None:
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise UserError(
            f"{argument} needs the package {package}, which is not installed; `pip install '{EXTRA}'` or "
            f"`pip install {package}`, or leave it out: Hydra's own runs the jobs one after the other"
        )
