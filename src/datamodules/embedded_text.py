"""Embedded text as token shards: the data of a run without other data.

Every twentieth document is held out for validation. The shards are built once, in a folder of `data.cache` that is
named by the hash of text and tokenizer.
"""

import hashlib
import json
import logging
import lzma
import os
import shutil
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from src.datamodules.open import SINGLE_SOURCE
from src.datamodules.shards.format import write_shard
from src.datamodules.token_shards import TokenShardDataModule
from src.datamodules.tokenization.base import Tokenizer
from src.datamodules.tokenization.gpt2 import gpt2_tokenizer
from src.datamodules.tokenizer import END_OF_TEXT, RANKS_SHA256, gpt2_encoding
from src.files import atomic_folder, sha256_file, write_atomic

log = logging.getLogger(__name__)

TEXT = Path(__file__).parent / "embedded" / "sotu_pddl.jsonl.xz"
HELD_OUT_EVERY = 20
#: File beside the shards with the hash of each.
SUMS = "sha256.json"


class EmbeddedTextDataModule(TokenShardDataModule):
    """Embedded text, or the shards that `path` names.

    Args:
        spec and all keys: as in `TokenShardDataModule`; with `path` null the embedded text is read, from shards
            in `cache`. Where shards have fewer than `val_tokens`, all are used.
    """

    accepts_fewer_val_tokens: ClassVar[bool] = True

    def tokenizer(self) -> Tokenizer | None:
        return gpt2_tokenizer() if self.path is None else super().tokenizer()

    def prepare_data(self) -> None:
        if self.path is None:
            build_shards(self.folder)

    def sources(self) -> dict[str, tuple[list[str], float]]:
        return super().sources() if self.path is not None else {SINGLE_SOURCE: ([str(self.folder)], 1.0)}

    @cached_property
    def folder(self) -> Path:
        """Return the folder of the embedded text's shards."""
        key = f"{sha256_file(TEXT)} {RANKS_SHA256} {HELD_OUT_EVERY}"
        return self.cache.folder / f"embedded-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def read_embedded_tokens() -> NDArray[np.uint16]:
    """Return all documents of the embedded text as one sequence of tokens."""
    return _concatenate(_encode_documents())


def build_shards(folder: Path) -> None:
    """Tokenize the embedded text into `folder` unless the folder is intact; safe for concurrent processes.

    A folder is intact if its hashes are right; a damaged one is built again.
    """
    if folder.is_dir():
        if _is_intact(folder):
            return
        log.warning("%s is damaged; building it again", folder)
        damaged = folder.with_name(f".{folder.name}.{os.getpid()}.damaged")
        with suppress(FileNotFoundError):  # another process was faster
            folder.rename(damaged)
            shutil.rmtree(damaged, ignore_errors=True)
    log.info("tokenizing the embedded text into %s", folder)
    documents = _encode_documents()
    try:
        with atomic_folder(folder) as part:
            write_shard(part / "fineweb_val_000000.bin", _concatenate(documents[::HELD_OUT_EVERY]))
            train = [d for i, d in enumerate(documents) if i % HELD_OUT_EVERY]
            write_shard(part / "fineweb_train_000001.bin", _concatenate(train))
            sums = {path.name: sha256_file(path) for path in sorted(part.glob("*.bin"))}
            write_atomic(part / SUMS, json.dumps(sums))
    except FileExistsError:
        log.debug("%s was built by another process meanwhile", folder)


def _is_intact(folder: Path) -> bool:
    try:
        sums = json.loads((folder / SUMS).read_text())
        return len(sums) == 2 and all(sha256_file(folder / name) == sha256 for name, sha256 in sums.items())
    except (OSError, ValueError, AttributeError):
        return False


def _encode_documents() -> list[list[int]]:
    with lzma.open(TEXT, "rt", encoding="utf-8") as file:
        return gpt2_encoding().encode_ordinary_batch([json.loads(line)["text"] for line in file])


def _concatenate(documents: list[list[int]]) -> NDArray[np.uint16]:
    """Return documents as one sequence, each preceded by the end-of-text token."""
    return np.array([t for document in documents for t in (END_OF_TEXT, *document)], dtype=np.uint16)
