"""Shards written as a stream, each whole or not there, and the journal from which a killed run goes on.

    folder/.fineweb_train_000001.bin.part    the shard being written
    folder/.prepare.json                     after each whole shard: where the next one begins
    folder/bad_documents.jsonl               name and reason of each document without text

The journal is replaced after a shard was renamed into place, so a kill between the two only means that the
shard is made again, to the same bytes.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from src.datamodules.shards.format import HEADER_BYTES, HEADER_INTS, MAGIC, VERSION, Tokens, TokenShard
from src.datamodules.shards.manifest import JOURNAL, NAME, ShardEntry
from src.errors import UserError
from src.files import fsync_folder, sha256_file, write_atomic

BAD = "bad_documents.jsonl"


@dataclass
class Journal:
    """How far a preparation has come: everything that the whole shards say, and where the next begins.

    Args:
        asked: what is being prepared; another preparation must not go on with it.
        place: cursor of a chunk, rows of it to pass over, tokens of the next row to pass over.
    """

    asked: dict[str, Any]
    place: dict[str, Any] = field(default_factory=lambda: {"cursor": {}, "rows": 0, "tokens": 0})
    documents: int = 0
    bad: dict[str, int] = field(default_factory=dict)
    bad_bytes: int = 0
    shards: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> "Journal | None":
        """The folder's journal, where a preparation was begun there."""
        path = folder / JOURNAL
        return cls(**json.loads(path.read_text())) if path.is_file() else None

    def write(self, folder: Path) -> None:
        """Note it, atomically."""
        write_atomic(folder / JOURNAL, json.dumps(asdict(self)))


def shard_name(number: int) -> str:
    """The published name of a shard; number 0 is for validation."""
    return f"fineweb_{'train' if number else 'val'}_{number:06d}.bin"


class ShardFile:
    """One shard on its way to disk.

    Args:
        path: its final name.
        capacity: tokens that it holds when full.
        first_document: name of the document that its first token belongs to.
    """

    def __init__(self, path: Path, capacity: int, first_document: str) -> None:
        self.path, self.capacity, self.first_document = path, capacity, first_document
        self.tokens = 0
        self._part = path.with_name(f".{path.name}.part")
        self._file = self._part.open("wb", buffering=1 << 20)
        self._digest = hashlib.sha256()
        self._put(_header(capacity))

    @property
    def room(self) -> int:
        """Tokens that still fit."""
        return self.capacity - self.tokens

    def write(self, tokens: Tokens) -> None:
        """Append tokens, at most as many as fit."""
        self._put(np.ascontiguousarray(tokens, dtype="<u2").tobytes())
        self.tokens += len(tokens)

    def _put(self, raw: bytes) -> None:
        self._file.write(raw)
        self._digest.update(raw)

    def close(self) -> ShardEntry:
        """Force it to disk and give it its name."""
        if self.room:
            self._file.seek(0)
            self._file.write(_header(self.tokens))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        sha256 = sha256_file(self._part) if self.room else self._digest.hexdigest()
        self._part.replace(self.path)
        fsync_folder(self.path.parent)
        split = "val" if "_val_" in self.path.name else "train"
        sampled = TokenShard.open(self.path).fingerprint()
        size = HEADER_BYTES + 2 * self.tokens
        return ShardEntry(self.path.name, split, self.tokens, size, sha256, sampled, self.first_document)

    def abandon(self) -> None:
        """Leave nothing behind."""
        with suppress(OSError):  # closing flushes, and the disk may be full
            self._file.close()
        self._part.unlink(missing_ok=True)


def _header(tokens: int) -> bytes:
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:3] = MAGIC, VERSION, tokens
    return header.tobytes()


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep every other process from preparing into `folder`; a killed one lets go by dying.

    Raises:
        UserError: another process is at it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"prepare.output={folder} is being written by another process; wait for it"
            ) from error
        yield
    finally:
        os.close(handle)


def refuse_strangers(folder: Path, journal: Journal | None) -> None:
    """Refuse a folder that holds shards which this preparation did not write.

    Raises:
        UserError: which file is in the way.
    """
    own = {entry["name"] for entry in journal.shards} if journal else set()
    if journal is not None:
        own.add(shard_name(len(journal.shards)))  # renamed into place, and killed before the journal
    strangers = sorted(p.name for p in folder.glob("*.bin") if p.name not in own)
    if strangers or (journal is None and (folder / NAME).exists()):
        raise UserError(
            f"prepare.output={folder} holds {strangers[0] if strangers else NAME} of something else; "
            "give another folder or empty it"
        )
