"""task=tokenizer: train a byte-level BPE on documents.

python run.py task=tokenizer tokenizer.source=<files or data set> tokenizer.vocab_size=4096 tokenizer.output=<folder>
python run.py task=prepare prepare.tokenizer=<folder> prepare.source=<files or data set> prepare.output=<shards>
"""

import logging

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.callbacks.stop import StopRequest
from src.datamodules.tokenization.train import TokenizerKeys, train_tokenizer
from src.errors import UserError, one_line
from src.launch.job import COMPLETED, Job, TaskEnd
from src.settings.sections import read_section

log = logging.getLogger(__name__)


def run(job: Job) -> TaskEnd:
    """Train the tokenizer and write its folder.

    Raises:
        UserError: a key or the source is at fault, or the folder exists.
    """
    for key in ("source", "output"):
        if OmegaConf.is_missing(job.config.tokenizer, key):
            raise UserError(f"tokenizer.{key} is missing; give tokenizer.{key}=<folder>")
    try:
        keys = read_section("tokenizer", job.config.tokenizer, TokenizerKeys)
    except (ValueError, HydraException, OmegaConfBaseException) as error:
        raise UserError(one_line(error)) from error
    stop = StopRequest(grace_s=60.0)
    with stop.installed():
        try:
            tokenizer = train_tokenizer(keys)
        except OSError as error:
            raise UserError(f"tokenizer.output={keys.output} cannot be written: {one_line(error)}") from error
    line = f"{tokenizer.n_vocab:,} ids in {keys.output}, sha256 {tokenizer.sha256[:12]}"
    log.info("%s", line)
    log.info("prepare shards with task=prepare prepare.tokenizer=%s", keys.output)
    return TaskEnd(COMPLETED, line)
