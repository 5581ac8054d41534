"""task=export: write a run's weights as a folder with configuration, tokenizer and model card.

    python run.py task=export run=<run folder> output=<new folder> [checkpoint=last|best|<step>|<file>]
    python run.py task=export checkpoint=<file> output=<new folder>

A model that is GPT-2 or a Llama becomes a Hugging Face folder of that kind; any other model becomes a folder that
carries its own code, which transformers loads with `trust_remote_code=True` (`src/models/formats/portable/`).
`task=evaluate hf=<folder>` and `init_from=<folder>` of task=train read all of them without running code of the folder.
`push_to=<org>/<name>` uploads it.
"""

import logging
from pathlib import Path

from omegaconf import OmegaConf

from src.callbacks.run_record import read_result
from src.datamodules.hub_tokenizer import write_tokenizer, write_tokenizer_file
from src.datamodules.tokenization.base import Tokenizer
from src.errors import UserError, raise_user_errors
from src.files import atomic_folder
from src.launch.job import COMPLETED, Job, TaskEnd
from src.models.formats.folder import require_empty
from src.models.formats.pretrained import write_pretrained
from src.tasks.model_card import build_model_card
from src.tasks.push import push_folder, require_pushable
from src.training.saved_weights import SavedWeights, load_saved_weights

log = logging.getLogger(__name__)


def run(job: Job) -> TaskEnd:
    """Write the folder atomically.

    Raises:
        UserError: the keys name no or several checkpoints, or the model has a class that is not this project's.
    """
    if OmegaConf.is_missing(job.config, "output"):
        raise UserError("output is missing; give output=<folder>")
    output, repo = Path(job.config.output), job.config.push_to
    if repo is not None:
        require_pushable(str(repo))
    with raise_user_errors():
        require_empty(output)
        first, *others = load_saved_weights(job.config)
        if others:
            raise UserError("export takes one checkpoint; give checkpoint=last, best or a file")
        model_format = _write(first, output)
    line = f"step {first.identity['step']} of {first.settings.name} exported to {output} ({model_format})"
    if repo is not None:
        address = push_folder(output, str(repo), private=bool(job.config.push_private), message=line)
        line = f"{line}, pushed to {address}"
    log.info("%s", line)
    return TaskEnd(COMPLETED, line)


def _write(saved: SavedWeights, output: Path) -> str:
    """Write model, tokenizer and card; return the format, "gpt2", "llama" or "reslab"."""
    result = read_result(saved.folder) if saved.folder is not None else None
    with atomic_folder(output) as part:
        tokenizer = saved.tokenizer
        end_of_text, n_vocab = (None, None) if tokenizer is None else (tokenizer.end_of_text, tokenizer.n_vocab)
        model_format = write_pretrained(saved.gpt, saved.recipe, part, end_of_text, n_vocab)
        if tokenizer is not None:
            _write_tokenizer(part, tokenizer, saved.settings.model.block_size)
        else:
            size = saved.settings.model.vocab_size
            log.warning("no tokenizer exported: the data stated none, and a vocabulary of %d is not GPT-2's", size)
        card = build_model_card(saved, result, model_format=model_format)
        (part / "README.md").write_text(card, encoding="utf-8")
    return model_format


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, block_size: int) -> None:
    content = tokenizer.content()
    if content is None:
        write_tokenizer(folder, block_size)
    else:
        end_of_text = tokenizer.decode([tokenizer.end_of_text])
        write_tokenizer_file(folder, content, end_of_text, block_size)
