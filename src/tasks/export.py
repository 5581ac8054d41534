"""task=export: a run's weights as a folder of safetensors, configuration, tokenizer and model card.

    python run.py task=export run=<run folder> output=<new folder> [checkpoint=last|best|<file>]
    python run.py task=export checkpoint=<file> output=<new folder>

A model that is GPT-2 becomes a Hugging Face GPT-2 folder, which transformers loads; every other model becomes a
folder that `src.models.formats.pretrained.from_pretrained` loads. `task=evaluate hf=<folder>` takes both, and so does
`init_from=<folder>` of task=train.
"""

import logging
from pathlib import Path

from omegaconf import OmegaConf

from src.callbacks.run_record import read_result
from src.datamodules.hub_tokenizer import write_tokenizer
from src.datamodules.tokenizer import N_VOCAB
from src.errors import UserError, one_line
from src.files import atomic_folder
from src.launch.job import COMPLETED, Job, TaskEnd
from src.models.formats.huggingface import refuse_full
from src.models.formats.pretrained import write_pretrained
from src.tasks.model_card import model_card
from src.training.saved_weights import Subject, subjects

log = logging.getLogger(__name__)


def run(job: Job) -> TaskEnd:
    """Write the folder, whole or not at all.

    Raises:
        UserError: no run, no such checkpoint, several, or a class that is not this project's.
    """
    if OmegaConf.is_missing(job.config, "output"):
        raise UserError("output is missing; give output=<folder>")
    output = Path(job.config.output)
    try:
        refuse_full(output)
        first, *others = subjects(job.config)
        if others:
            raise UserError("export takes one checkpoint; give checkpoint=last, best or a file")
        kind = _write(first, output)
    except UserError:
        raise
    except (ValueError, OSError) as error:
        raise UserError(one_line(error)) from error
    line = f"step {first.identity['step']} of {first.settings.name} exported to {output} ({kind})"
    log.info("%s", line)
    return TaskEnd(COMPLETED, line)


def _write(subject: Subject, output: Path) -> str:
    result = read_result(subject.folder) if subject.folder is not None else None
    with atomic_folder(output) as part:
        kind = write_pretrained(subject.gpt, subject.recipe, part)
        has_tokenizer = subject.settings.model.vocab_size >= N_VOCAB
        if has_tokenizer:
            write_tokenizer(part, subject.settings.model.block_size)
        else:
            log.warning(
                "export: no tokenizer: a vocabulary of %d is not GPT-2's", subject.settings.model.vocab_size
            )
        card = model_card(subject, result, kind=kind, has_tokenizer=has_tokenizer)
        (part / "README.md").write_text(card, encoding="utf-8")
    return kind
