"""task=prepare: write a folder of token shards with its manifest from documents.

    python run.py task=prepare prepare.output=<folder> [prepare.source=<files or data set>]
    python run.py data=fineweb10b data.path=<folder>

An interrupted preparation continues when it is run again.
"""

import logging

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.callbacks.stop import StopRequest
from src.datamodules.prepare.prepare import PrepareKeys, prepare
from src.errors import UserError, one_line
from src.launch.job import COMPLETED, Job, TaskEnd
from src.settings.sections import read_section

log = logging.getLogger(__name__)


def run(job: Job) -> TaskEnd:
    """Write the shards.

    Raises:
        UserError: a key, the source or the output is at fault; complete shards stay valid.
        Interrupted: a signal arrived; running again continues.
    """
    for key in ("source", "output"):
        if OmegaConf.is_missing(job.config.prepare, key):
            raise UserError(f"prepare.{key} is missing; give prepare.{key}=<folder>")
    try:
        keys = read_section("prepare", job.config.prepare, PrepareKeys)
    except (ValueError, HydraException, OmegaConfBaseException) as error:
        raise UserError(one_line(error)) from error
    with StopRequest(grace_s=60.0).installed():
        try:
            manifest = prepare(keys)
        except OSError as error:
            raise UserError(f"prepare.source={keys.source}: {one_line(error)}; make it readable") from error
    bad = ", ".join(f"{n:,} {reason}" for reason, n in manifest.bad_documents.items())
    line = (
        f"{manifest.documents:,} documents, {manifest.tokens:,} tokens in {len(manifest.shards)} shards in "
        f"{keys.output}; documents left out: {bad or 'none'}"
    )
    log.info("%s", line)
    log.info("train on it with data=fineweb10b data.path=%s", keys.output)
    return TaskEnd(COMPLETED, line)
