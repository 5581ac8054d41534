"""A training that was stopped before it could say so itself: while its code was imported or its parts were built."""

import json
import logging
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.errors import one_line
from src.files import read_object, write_atomic
from src.launch.arguments import stored_yaml

log = logging.getLogger(__name__)


def state_interrupted(folder: Path, config: DictConfig, reason: str) -> None:
    """Mark the folder's record, unless it says already how the run ended; leave what it takes to go on with it.

    Args:
        folder: the run folder, held by this process.
        config: the job's configuration, as composed.
        reason: what stopped it.
    """
    path = folder / "result.json"
    if OmegaConf.select(config, "task._target_") != "src.tasks.train.run":
        return
    try:
        stated = read_object(path) if path.exists() else {"steps": 0}
        if stated.get("status", "running") != "running":
            return
        if not (folder / "config.yaml").exists():
            plain = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
            own = {"name": plain["name"], "seed": plain["seed"], "max_steps": plain["trainer"]["max_steps"]}
            stated = {**own, **stated}
            write_atomic(folder / "config.yaml", stored_yaml({**plain, "resume": None, "from_run": None}))
        write_atomic(path, json.dumps({**stated, "status": "interrupted", "reason": reason}, indent=2) + "\n")
    except (OSError, ValueError, KeyError, TypeError, OmegaConfBaseException) as error:  # leaving matters more
        log.warning("the record could not be marked interrupted: %s", one_line(error))
