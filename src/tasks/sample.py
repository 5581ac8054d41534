"""task=sample: continue prompts with saved weights, on the terminal and in samples.jsonl.

    python run.py task=sample run=<run folder> 'sample.prompt="The old house"'
    python run.py task=sample run=<run folder> sample.file=prompts.txt sample.count=4 sample.top_p=0.9
    python run.py task=sample hf=gpt2 'sample.prompt="The old house"' sample.temperature=0

Text goes to standard output, messages to standard error. Keys and values are kept between tokens where that gives the
logits of a full forward (`models/kv_cache.py`); the task states when it does not.
"""

import codecs
import json
import logging
from pathlib import Path
from typing import Any

import torch
from pydantic.dataclasses import dataclass

from src.bounds import CONFIG, PositiveInt
from src.errors import UserError, raise_user_errors
from src.evaluation.sampling import SamplingKeys, sample
from src.files import write_atomic
from src.launch.job import COMPLETED, Job, TaskEnd
from src.models.kv_cache import find_difference
from src.settings.sections import read_section
from src.settings.trainer import TrainerKeys, resolve_trainer
from src.training.process import prepare_process
from src.training.saved_weights import SavedWeights, load_saved_weights

log = logging.getLogger(__name__)


@dataclass(frozen=True, config=CONFIG)
class SampleKeys(SamplingKeys):
    """Keys of `sample`, with those of sampling.

    Args:
        prompt: prompts on the command line.
        file: file of prompts.
        tokens, count: number of tokens of a continuation, and of continuations of a prompt.
        cache: keep keys and values where that is exact.

    Raises:
        ValueError: a key is out of its bounds.
    """

    prompt: str | list[str] | None
    file: str | None
    tokens: PositiveInt
    count: PositiveInt
    cache: bool

    def read_prompts(self) -> list[str]:
        """Return the prompts.

        Raises:
            ValueError: they are given twice or not at all, or the file cannot be read or has none.
        """
        if (self.prompt is None) == (self.file is None):
            raise ValueError("give one of sample.prompt='<text>' and sample.file=<file with a prompt a line>")
        if self.file is None:
            return [self.prompt] if isinstance(self.prompt, str) else list(self.prompt or [])
        try:
            lines = Path(self.file).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ValueError(f"sample.file={self.file} cannot be read: {reason}") from error
        prompts = [_read_line(line, f"{self.file}:{i}") for i, line in enumerate(lines, 1) if line.strip()]
        if not prompts:
            raise ValueError(f"sample.file={self.file} has no prompt")
        return prompts


def run(job: Job) -> TaskEnd:
    """Print the continuations of all prompts and write samples.jsonl.

    Raises:
        UserError: a key, the prompts or the weights are at fault, or the model has no tokenizer.
    """
    with raise_user_errors():
        keys = read_section("sample", job.config.sample, SampleKeys)
        prompts = keys.read_prompts()
        trainer = resolve_trainer(read_section("trainer", job.config.trainer, TrainerKeys))
        prepare_process(trainer)
        saved, *others = load_saved_weights(job.config)
    if others:
        raise UserError("sample takes one checkpoint; give checkpoint=last, best, a step or a file")
    if saved.tokenizer is None:
        raise UserError(
            f"{saved.identity['checkpoint']['file']} states no tokenizer, so there is no text to read or write; "
            "train on shards of task=prepare, whose manifest.json states it, or add tokenizer.json to the folder of hf="
        )
    device = torch.device("cuda" if trainer.accelerator == "gpu" else "cpu")
    saved.gpt.to(device).eval()
    caches = keys.cache and _may_cache(saved)
    records = [_continue(saved, text, number, keys, caches=caches) for number, text in enumerate(prompts)]
    lines = [json.dumps({**record, **saved.identity}, ensure_ascii=False) for found in records for record in found]
    write_atomic(job.folder / "samples.jsonl", "\n".join(lines) + "\n")
    line = f"{len(lines)} continuation{'s' * (len(lines) != 1)} in {job.folder / 'samples.jsonl'}"
    log.info("%s", line)
    return TaskEnd(COMPLETED, line)


def _may_cache(saved: SavedWeights) -> bool:
    assert saved.tokenizer is not None  # checked by the caller
    difference = find_difference(saved.gpt, saved.tokenizer.n_vocab)
    if difference is not None:
        log.info("no cache of keys and values (%s): every token costs a full forward", difference)
    return difference is None


def _continue(saved: SavedWeights, prompt: str, number: int, keys: SampleKeys, *, caches: bool) -> list[dict[str, Any]]:
    """Print the continuations of a prompt and return their records."""
    tokenizer = saved.tokenizer
    assert tokenizer is not None  # checked by `run`
    ids = tokenizer.encode(prompt) or [tokenizer.end_of_text]
    new: list[list[int]] = [[] for _ in range(keys.count)]
    if number:
        print()
    print(prompt, end="", flush=True)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for drawn in sample(saved.gpt, tokenizer, ids, keys.count, keys.tokens, keys, caches=caches):
        new[drawn.row].append(drawn.token)
        if keys.count == 1:  # as it grows; a character may end in the next token
            print(decoder.decode(tokenizer.decode_bytes([drawn.token])), end="", flush=True)
    texts = [tokenizer.decode(tokens) for tokens in new]
    if keys.count > 1:
        for row, text in enumerate(texts):
            print(f"\n--- {row + 1} of {keys.count}\n{text}", end="")
    print(flush=True)
    drawn_by = {"temperature": keys.temperature, "top_k": keys.top_k, "top_p": keys.top_p, "seed": keys.seed}
    return [
        {"prompt": prompt, "number": row, "text": text, "tokens": len(new[row]), **drawn_by, "cache": caches}
        for row, text in enumerate(texts)
    ]


def _read_line(line: str, where: str) -> str:
    if not line.lstrip().startswith("{"):
        return line
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where} begins with a brace but is not a JSON object with a field prompt") from error
    return str(prompt)
