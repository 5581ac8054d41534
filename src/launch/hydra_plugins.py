"""Hydra plugins that are supported: launchers and sweepers other than Hydra's own, and what each needs.

Their jobs run `src/launch/job.py`'s `run_job` in other processes (joblib, submitit, ray) or in this one (optuna).
"""

import importlib.util
import os

from src.errors import UserError
from src.files import ROOT
from src.launch.optuna_storage import prepare_storage

EXTRA = ".[sweeps]"

#: Key of the arguments of `ray.init`.
RAY_INIT = "hydra.launcher.ray.init"

#: Package and module of each plugin; None for Hydra's own.
JOBLIB = ("hydra-joblib-launcher", "hydra_plugins.hydra_joblib_launcher")
SUBMITIT = ("hydra-submitit-launcher", "hydra_plugins.hydra_submitit_launcher")
RAY = ("hydra-ray-launcher", "hydra_plugins.hydra_ray_launcher")
OPTUNA = ("hydra-optuna-sweeper", "hydra_plugins.hydra_optuna_sweeper")
SUPPORTED: dict[str, dict[str, tuple[str, str] | None]] = {
    "hydra/launcher": {
        "basic": None,
        "joblib": JOBLIB,
        "submitit_local": SUBMITIT,
        "submitit_slurm": SUBMITIT,
        "ray": RAY,
    },
    "hydra/sweeper": {"basic": None, "optuna": OPTUNA},
}


def prepare_plugins(arguments: list[str]) -> list[str]:
    """Return the command line with the options that its launcher or sweeper needs so that a sweep loses no job.

    Raises:
        UserError: a plugin that is not supported, or not installed.
    """
    prepared, added = arguments, []
    for argument in arguments:
        key, _, choice = argument.lstrip("+").partition("=")
        if key not in SUPPORTED:
            continue
        if choice not in SUPPORTED[key]:
            raise UserError(f"{key}={choice} is not supported; give one of {', '.join(SUPPORTED[key])}")
        plugin = SUPPORTED[key][choice]
        if plugin is not None:
            _require(argument, *plugin)
        if plugin == OPTUNA:
            prepared = prepare_storage(arguments)
            if not _is_given("hydra.sweeper.max_failure_rate", arguments):
                added.append("hydra.sweeper.max_failure_rate=1.0")  # a diverging trial does not end the search
        if plugin == RAY and _is_given(f"{RAY_INIT}.address", arguments):
            # The launcher gives the memory of a store that it starts; Ray rejects it for a cluster that runs.
            added.append(f"+{RAY_INIT}.object_store_memory=null")
        if plugin == SUBMITIT:  # submitit starts jobs by a module of its own, which must find src
            path = os.environ.get("PYTHONPATH")
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), path)))
    return [*prepared, *added]


def _is_given(key: str, arguments: list[str]) -> bool:
    return any(argument.lstrip("+").startswith(f"{key}=") for argument in arguments)


def _require(argument: str, package: str, module: str) -> None:
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        extra = "" if package == RAY[0] else f"`pip install '{EXTRA}'` or "  # it holds cloudpickle below 3
        raise UserError(
            f"{argument} needs the package {package}, which is not installed; {extra}"
            f"`pip install {package}`, or leave it out: Hydra's own runs the jobs one after the other"
        )
