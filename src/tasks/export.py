"""task=export: a run's weights as a Hugging Face GPT-2 folder.

    python run.py task=export run=<run folder> output=<new folder> [checkpoint=last|best]

The way back is `init_from=<folder>` of task=train.
"""

import logging
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from src.callbacks.checkpoints import read_checkpoint
from src.launch import COMPLETED, Job, TaskEnd
from src.mistakes import UserError, one_line
from src.models.huggingface import export_gpt2
from src.tasks.settings import read_settings
from src.tasks.train import build_gpt

log = logging.getLogger(__name__)


def run(job: Job) -> TaskEnd:
    """Write the folder.

    Raises:
        UserError: no run, no such checkpoint, or a model that GPT-2's format cannot hold.
    """
    for key in ("run", "output", "checkpoint"):
        if OmegaConf.is_missing(job.config, key):
            raise UserError(f"{key} is missing; give {key}=<folder>")
    source = Path(job.config.run)
    if not (source / "config.yaml").is_file():
        raise UserError(f"run={source} is no run folder (it has no config.yaml)")
    config = OmegaConf.load(source / "config.yaml")
    assert isinstance(config, DictConfig)  # a run's configuration is a mapping
    try:
        gpt = build_gpt(read_settings(config))
        stored = read_checkpoint(source / "checkpoints" / f"{job.config.checkpoint}.ckpt")
        prefix = "gpt."
        weights = {key.removeprefix(prefix): value for key, value in stored["state_dict"].items()}
        gpt.load_state_dict(weights, strict=True)
        export_gpt2(gpt, Path(job.config.output))
    except UserError:
        raise
    except (ValueError, OSError) as error:
        raise UserError(one_line(error)) from error
    line = f"step {stored['reslab']['step']} of {source} exported to {job.config.output}"
    log.info("%s", line)
    return TaskEnd(COMPLETED, line)
