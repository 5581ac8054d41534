"""The embedded text as token shards: what a run trains on where no data was given.

Every twentieth document is held out for validation. The shards are built once, under `cache`, in a
folder that is named by the hash of text and tokenizer.
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

import numpy as np
from numpy.typing import NDArray

from src.datamodules.shards.format import write_shard
from src.datamodules.token_shards import TokenShardDataModule
from src.datamodules.tokenizer import END_OF_TEXT, RANKS_SHA256, gpt2_encoding
from src.files import atomic_folder, sha256_file, write_atomic

log = logging.getLogger(__name__)

TEXT = Path(__file__).parent / "embedded" / "sotu_pddl.jsonl.xz"
HELD_OUT_EVERY = 20
#: Beside the shards: the hash of each as it was built.
SUMS = "sha256.json"


class EmbeddedTextDataModule(TokenShardDataModule):
    """The embedded text, or the folder that `path` names.

    Args:
        spec and all keys: as in `TokenShardDataModule`; with `path` null the embedded text is read, from shards
            that are kept in `cache`.
    """

    def prepare_data(self) -> None:
        if self.path is None:
            build_shards(self.folder)

    def sources(self) -> dict[str, tuple[list[str], float]]:
        return super().sources() if self.path is not None else {"the data": ([str(self.folder)], 1.0)}

    @cached_property
    def folder(self) -> Path:
        """Where the embedded text's shards are."""
        key = f"{sha256_file(TEXT)} {RANKS_SHA256} {HELD_OUT_EVERY}"
        return self.cache.folder / f"embedded-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def embedded_tokens() -> NDArray[np.uint16]:
    """All documents of the embedded text in one stream."""
    with lzma.open(TEXT, "rt", encoding="utf-8") as file:
        return _joined(gpt2_encoding().encode_ordinary_batch([json.loads(line)["text"] for line in file]))


def build_shards(folder: Path) -> None:
    """Tokenize the embedded text into `folder`, unless it is there; several processes may try at once.

    A folder is believed by its hashes, not because it exists; a damaged one is made again.
    """
    if folder.is_dir():
        if _as_built(folder):
            return
        log.warning("%s is damaged; making it again", folder)
        aside = folder.with_name(f".{folder.name}.{os.getpid()}.damaged")
        with suppress(FileNotFoundError):  # another process was faster
            folder.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
    log.info("tokenizing the embedded text into %s", folder)
    with lzma.open(TEXT, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    documents = gpt2_encoding().encode_ordinary_batch(texts)
    try:
        with atomic_folder(folder) as part:
            write_shard(part / "fineweb_val_000000.bin", _joined(documents[::HELD_OUT_EVERY]))
            rest = [d for i, d in enumerate(documents) if i % HELD_OUT_EVERY]
            write_shard(part / "fineweb_train_000001.bin", _joined(rest))
            sums = {path.name: sha256_file(path) for path in sorted(part.glob("*.bin"))}
            write_atomic(part / SUMS, json.dumps(sums))
    except FileExistsError:
        log.debug("%s was built by another process meanwhile", folder)


def _as_built(folder: Path) -> bool:
    try:
        sums = json.loads((folder / SUMS).read_text())
        return len(sums) == 2 and all(sha256_file(folder / name) == told for name, told in sums.items())
    except (OSError, ValueError, AttributeError):
        return False


def _joined(documents: list[list[int]]) -> NDArray[np.uint16]:
    """Documents in one stream, an end-of-text token before each."""
    return np.array([t for document in documents for t in (END_OF_TEXT, *document)], dtype=np.uint16)
