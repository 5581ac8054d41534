"""task=tokenizer: train a byte-level BPE on documents.

python run.py task=tokenizer tokenizer.source=<files or data set> tokenizer.vocab_size=4096 tokenizer.output=<folder>
python run.py task=prepare prepare.tokenizer=<folder> prepare.source=<files or data set> prepare.output=<shards>
"""

import logging

from src.datamodules.tokenization.train import TokenizerKeys, train_tokenizer
from src.errors import UserError, one_line, raise_user_errors
from src.launch.job import COMPLETED, Job, TaskEnd
from src.launch.stop_request import StopRequest
from src.settings.sections import read_section

log = logging.getLogger(__name__)


def run(job: Job) -> TaskEnd:
    """Train the tokenizer and write its folder.

    Raises:
        UserError: a key or the source is at fault, or the folder exists.
    """
    with raise_user_errors():
        keys = read_section("tokenizer", job.config.tokenizer, TokenizerKeys)
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
