"""Training of a byte-level BPE on documents: `task=tokenizer`.

The pieces that merges stay within are those of GPT-2's pattern; every byte has an id, so any text has ids. Id 0 is
`<|endoftext|>`, ids 1 to 256 are the bytes, the rest merges in the order in which they were learned. The result follows
from the documents and the keys alone: counts are exact, ties go to the pair of smaller ids.

Source: Hugging Face tokenizers, `trainers.BpeTrainer`; GPT-2 (Radford et al. 2019), section 2.2.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from src.bounds import PositiveInt
from src.datamodules.hub_tokenizer import SPECIAL, write_tokenizer_file
from src.datamodules.prepare.columns import Column
from src.datamodules.prepare.discovery import reject_output_inside
from src.datamodules.prepare.first_rows import check_text_field
from src.datamodules.prepare.sources import Source, open_source
from src.datamodules.prepare.tokenize_pool import read_text
from src.datamodules.tokenization.byte_level import ByteLevelTokenizer
from src.errors import UserError
from src.files import atomic_folder, write_json

log = logging.getLogger(__name__)

#: File of a tokenizer's folder on how it was trained.
TRAINING = "training.json"


@dataclass(frozen=True)
class TokenizerKeys:
    """Keys of `tokenizer`.

    Args:
        source, text_field: documents, as in `prepare.source` and `prepare.text_field`.
        output: new folder.
        vocab_size: number of ids.
        max_bytes: bytes of text that are read, from the start of the source; None reads all.
    """

    source: str
    text_field: str
    output: str
    vocab_size: Annotated[int, Field(ge=1024, le=32768)]
    max_bytes: PositiveInt | None


@dataclass
class _Read:
    """Documents and bytes that have been read."""

    documents: int = 0
    bytes: int = 0


def train_tokenizer(keys: TokenizerKeys) -> ByteLevelTokenizer:
    """Train a tokenizer and write its folder, which appears at the end.

    Raises:
        UserError: the source cannot be read or has too little text, or the folder exists.
    """
    output = Path(keys.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"tokenizer.output={output} exists already; name a folder that does not")
    reject_output_inside("tokenizer", keys.source, output)
    try:
        field = Column(keys.text_field)
        source = open_source(keys.source, field)
        check_text_field(source)
        read = _Read()
        text = train_bpe(_read_texts(source, keys.max_bytes, read), keys.vocab_size)
    except UserError as error:
        raise UserError(str(error).replace("prepare.", "tokenizer.")) from error
    n_ids = len(json.loads(text)["model"]["vocab"])
    if n_ids < keys.vocab_size:
        raise UserError(
            f"tokenizer.source={keys.source} has {read.bytes:,} bytes of text, which make {n_ids:,} ids, not "
            f"tokenizer.vocab_size={keys.vocab_size}; lower it or give more text"
        )
    name = output.absolute().name
    tokenizer = ByteLevelTokenizer(name, text)
    with atomic_folder(output) as part:
        write_tokenizer_file(part, text, SPECIAL)
        found: dict[str, Any] = {"documents": read.documents, "bytes": read.bytes, "max_bytes": keys.max_bytes}
        found |= {"source": source.identity(), "versions": {"tokenizers": version("tokenizers")}}
        write_json(part / TRAINING, {**tokenizer.statement(), **found})
    log.info("%d ids from %s documents, %s bytes", n_ids, f"{read.documents:,}", f"{read.bytes:,}")
    return tokenizer


def train_bpe(texts: Iterator[str], vocab_size: int) -> str:
    """Return the `tokenizer.json` of a BPE trained on texts; it has fewer ids if the texts have no more pairs."""
    tokenizer: Any = Tokenizer(models.BPE())  # the library's stubs do not let its parts be set
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return str(tokenizer.to_str()) + "\n"


def _read_texts(source: Source, max_bytes: int | None, read: _Read) -> Iterator[str]:
    """Yield the texts of a source, the last one cut at `max_bytes`; rows without text are left out."""
    for chunk in source.chunks({}):
        for row in chunk.rows:
            _, text, _ = read_text(row, chunk.json_field)
            if text is None:
                continue
            try:
                raw = text.encode("utf-8")
            except UnicodeEncodeError:  # an unpaired surrogate, spelt out in JSON: `task=prepare` leaves it out, too
                continue
            rest = len(raw) if max_bytes is None else max_bytes - read.bytes
            read.documents += not chunk.continues
            read.bytes += min(len(raw), rest)
            yield raw[:rest].decode("utf-8", errors="ignore")
            if len(raw) >= rest and max_bytes is not None:
                return
