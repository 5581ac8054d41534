"""Atomic shard files of a preparation, and the journal from which an interrupted one continues.

    folder/.fineweb_train_000001.bin.part    the shard being written
    folder/.prepare.json                     journal, replaced after each complete shard: where the next one starts
    folder/bad_documents.jsonl               name and reason of each document without text

A shard is renamed into place before the journal is replaced. After a kill between the two, the shard is written
again with the same bytes.
"""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from src.datamodules.shards.format import LLM_C, Format, Tokens, TokenShard, encode_header
from src.datamodules.shards.manifest import JOURNAL, NAME, ShardEntry
from src.errors import UserError
from src.files import fsync_folder, sha256_file, write_atomic

BAD_DOCUMENTS = "bad_documents.jsonl"


@dataclass
class Journal:
    """Progress of a preparation: its complete shards, and where the next one starts.

    Args:
        asked: requested source and sizes; a preparation with others must not continue this one.
        place: cursor of a chunk, rows of it to skip, tokens of the next row to skip.
        documents: documents with text.
        bad: documents without text, by reason.
        file: documents and bad rows so far of the file that the next shard starts in.
        bad_bytes: length of bad_documents.jsonl.
        shards: entries of the manifest.
        by_parts: true if tasks tokenize parts, from which the shards are written; `place` is a place in them then.
    """

    asked: dict[str, Any]
    place: dict[str, Any] = field(default_factory=lambda: {"cursor": {}, "rows": 0, "tokens": 0})
    documents: int = 0
    bad: dict[str, int] = field(default_factory=dict)
    file: dict[str, Any] = field(default_factory=lambda: {"name": "", "documents": 0, "bad": 0, "reason": ""})
    bad_bytes: int = 0
    shards: list[dict[str, Any]] = field(default_factory=list)
    by_parts: bool = False

    @classmethod
    def read(cls, folder: Path) -> "Journal | None":
        """Return the folder's journal, or None if there is none."""
        path = folder / JOURNAL
        return cls(**json.loads(path.read_text())) if path.is_file() else None

    def write(self, folder: Path) -> None:
        """Replace the folder's journal atomically."""
        write_atomic(folder / JOURNAL, json.dumps(asdict(self)))


def shard_name(number: int) -> str:
    """Return the published name of a shard; number 0 is the validation shard."""
    return f"fineweb_{'train' if number else 'val'}_{number:06d}.bin"


class ShardFile:
    """Shard being written.

    Args:
        path: its final name.
        capacity: the most tokens that it holds.
        first_document: name of the document that its first token belongs to.
        format_: format of the file.
    """

    def __init__(self, path: Path, capacity: int, first_document: str, format_: Format = LLM_C) -> None:
        self.path, self.capacity, self.first_document = path, capacity, first_document
        self.format = format_
        self.tokens = 0
        self._part = path.with_name(f".{path.name}.part")
        self._file = self._part.open("wb", buffering=1 << 20)
        self._digest = hashlib.sha256()
        self._put(encode_header(capacity, format_))

    @property
    def room(self) -> int:
        """Return the number of tokens that still fit."""
        return self.capacity - self.tokens

    def write(self, tokens: Tokens) -> None:
        """Append at most `room` tokens."""
        self._put(np.ascontiguousarray(tokens, dtype=self.format.dtype).tobytes())
        self.tokens += len(tokens)

    def _put(self, raw: bytes) -> None:
        self._file.write(raw)
        self._digest.update(raw)

    def close(self) -> ShardEntry:
        """Force the file to disk, rename it to its final name and return its entry."""
        if self.room:
            self._file.seek(0)
            self._file.write(encode_header(self.tokens, self.format))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        sha256 = sha256_file(self._part) if self.room else self._digest.hexdigest()
        self._part.replace(self.path)
        fsync_folder(self.path.parent)
        split = "val" if "_val_" in self.path.name else "train"
        sampled = TokenShard.open(self.path).fingerprint()
        size = self.path.stat().st_size
        return ShardEntry(self.path.name, split, self.tokens, size, sha256, sampled, self.first_document)

    def discard(self) -> None:
        """Remove the file."""
        with suppress(OSError):  # closing flushes, and the disk may be full
            self._file.close()
        self._part.unlink(missing_ok=True)


def check_output(folder: Path, journal: Journal | None) -> None:
    """Raise an error if `folder` holds shards that this preparation did not write.

    Raises:
        UserError: names the file.
    """
    own = {entry["name"] for entry in journal.shards} if journal else set()
    if journal is not None:
        own.add(shard_name(len(journal.shards)))  # renamed into place before a kill, not yet in the journal
    foreign = sorted(p.name for p in folder.glob("*.bin") if p.name not in own)
    if foreign or (journal is None and (folder / NAME).exists()):
        raise UserError(
            f"prepare.output={folder} holds {foreign[0] if foreign else NAME} of something else; "
            "give another folder or empty it"
        )
