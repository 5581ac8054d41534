"""The embedded text as token shards: what a run trains on where no data was given.

Every twentieth document is held out for validation. The shards are built once, under `cache`, in a
folder that is named by the hash of text and tokenizer.
"""

import hashlib
import json
import logging
import lzma
from pathlib import Path

import numpy as np

from src.artefacts import atomic_folder, sha256_file
from src.datamodules.fineweb import BatchSpec, FineWebDataModule
from src.datamodules.shards import Tokens, write_shard
from src.datamodules.tokenizer import END_OF_TEXT, RANKS_SHA256, gpt2_encoding

log = logging.getLogger(__name__)

TEXT = Path(__file__).parent / "embedded" / "sotu_pddl.jsonl.xz"
HELD_OUT_EVERY = 20


class EmbeddedTextDataModule(FineWebDataModule):
    """The embedded text, or the folder that `path` names.

    Args:
        spec, path, val_tokens, micro_batch_size, global_batch_size, workers: as in `FineWebDataModule`;
            with `path` null the embedded text is read.
        cache: where its shards are kept.
    """

    def __init__(
        self,
        spec: BatchSpec,
        *,
        path: str | None,
        cache: str,
        val_tokens: int,
        micro_batch_size: int,
        global_batch_size: int,
        workers: int,
    ) -> None:
        super().__init__(
            spec,
            path=path,
            val_tokens=val_tokens,
            micro_batch_size=micro_batch_size,
            global_batch_size=global_batch_size,
            workers=workers,
        )
        self.cache = Path(cache)

    def prepare_data(self) -> None:
        if self.path is None:
            build_shards(self.folder())
        else:
            super().prepare_data()

    def folder(self) -> Path:
        if self.path is not None:
            return super().folder()
        key = f"{sha256_file(TEXT)} {RANKS_SHA256} {HELD_OUT_EVERY}"
        return self.cache / f"embedded-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def embedded_tokens() -> Tokens:
    """All documents of the embedded text in one stream."""
    with lzma.open(TEXT, "rt", encoding="utf-8") as file:
        return _joined(gpt2_encoding().encode_ordinary_batch([json.loads(line)["text"] for line in file]))


def build_shards(folder: Path) -> None:
    """Tokenize the embedded text into `folder`, unless it is there; several processes may try at once."""
    if folder.is_dir():
        return
    log.info("tokenizing the embedded text into %s", folder)
    with lzma.open(TEXT, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    documents = gpt2_encoding().encode_ordinary_batch(texts)
    try:
        with atomic_folder(folder) as part:
            write_shard(part / "fineweb_val_000000.bin", _joined(documents[::HELD_OUT_EVERY]))
            rest = [d for i, d in enumerate(documents) if i % HELD_OUT_EVERY]
            write_shard(part / "fineweb_train_000001.bin", _joined(rest))
    except FileExistsError:
        log.debug("%s was built by another process meanwhile", folder)


def _joined(documents: list[list[int]]) -> Tokens:
    """Documents in one stream, an end-of-text token before each."""
    return np.array([t for document in documents for t in (END_OF_TEXT, *document)], dtype=np.uint16)
