"""Preparation of a folder of shards from documents: `task=prepare`.

Tokens are one sequence, an end-of-text token before each document; the first `val_tokens` are shard 0, the rest
shards of `shard_tokens`, the last one shorter. The result is independent of the number of processes and of
interruptions.
"""

import errno
import json
import logging
import os
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from src.bounds import CONFIG, PositiveInt
from src.datamodules.prepare.documents import Chunk
from src.datamodules.prepare.progress import Progress
from src.datamodules.prepare.sources import Source, open_source
from src.datamodules.prepare.tokenize_pool import Encoded, encode_chunks
from src.datamodules.prepare.writer import (
    BAD_DOCUMENTS,
    Journal,
    ShardFile,
    check_output,
    lock_output,
    shard_name,
)
from src.datamodules.shards.manifest import JOURNAL, NAME, Manifest, ShardEntry
from src.datamodules.tokenizer import END_OF_TEXT, N_VOCAB, RANKS_SHA256
from src.errors import UserError
from src.files import write_atomic

log = logging.getLogger(__name__)

TOKENIZER = {"name": "gpt2", "ranks_sha256": RANKS_SHA256, "n_vocab": N_VOCAB, "end_of_text": END_OF_TEXT}
#: The header's count is an int32.
ShardTokens = Annotated[int, Field(ge=1, le=2**31 - 1)]


@dataclass(frozen=True, config=CONFIG)
class PrepareKeys:
    """Keys of `prepare`.

    Args:
        source: a file, folder or pattern; a data set on disk; or `hf://datasets/<owner>/<name>[:<config>]`.
        output: the folder of shards.
        processes: tokenizer processes; auto uses every core.
        shard_tokens, val_tokens: tokens of a training shard and of the validation shard.

    Raises:
        ValueError: a key of another type or out of its bounds.
    """

    source: str
    output: str
    processes: PositiveInt | Literal["auto"]
    shard_tokens: ShardTokens
    val_tokens: ShardTokens


def prepare(keys: PrepareKeys) -> Manifest:
    """Write the shards that are missing, and the manifest.

    Raises:
        UserError: nothing to read, a folder of another preparation, a full disk; complete shards stay valid.
    """
    folder = Path(keys.output)
    source = open_source(keys.source)
    asked = {**source.identity(), "shard_tokens": keys.shard_tokens, "val_tokens": keys.val_tokens}
    try:
        with lock_output(folder):
            if (folder / NAME).is_file():
                return _read_finished(folder, asked)
            return _Preparation(folder, source, asked, keys).run()
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "is full" if full else f"cannot be written ({error.strerror})"
        raise UserError(
            f"prepare.output={folder}: the disk {what}; complete shards are kept, make room and run again to continue"
        ) from error


def _read_finished(folder: Path, asked: dict[str, Any]) -> Manifest:
    manifest = Manifest.parse((folder / NAME).read_bytes(), str(folder / NAME))
    _check_same(folder, manifest.source, asked)
    (folder / JOURNAL).unlink(missing_ok=True)  # killed between the two
    for entry in manifest.shards:
        path = folder / entry.name
        if not path.is_file() or path.stat().st_size != entry.bytes:
            raise UserError(f"{path} must have {entry.bytes} bytes by {NAME}; empty the folder and prepare again")
    log.info("%s is prepared already", folder)
    return manifest


def _check_same(folder: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [f"{key} was {then.get(key)}, is {now[key]}" for key in now if then.get(key) != now[key]]
    if changed:
        raise UserError(
            f"prepare.output={folder} holds another preparation: {'; '.join(changed)}; "
            "give another folder, or empty this one"
        )


class _Preparation:
    """One process's part in a preparation, which it starts or continues."""

    def __init__(self, folder: Path, source: Source, asked: dict[str, Any], keys: PrepareKeys) -> None:
        self.folder, self.source, self.asked, self.keys = folder, source, asked, keys
        journal = Journal.read(folder)
        check_output(folder, journal)
        if journal is not None:
            _check_same(folder, journal.asked, asked)
            log.info("continuing after %d complete shards", len(journal.shards))
        self.journal = journal or Journal(asked)
        self.shard: ShardFile | None = None

    def run(self) -> Manifest:
        for path in self.folder.glob(".*.part"):
            path.unlink()
        self.journal.write(self.folder)
        (self.folder / BAD_DOCUMENTS).touch()
        os.truncate(self.folder / BAD_DOCUMENTS, self.journal.bad_bytes)
        place, keys = self.journal.place, self.keys
        processes = len(os.sched_getaffinity(0)) if keys.processes == "auto" else keys.processes
        progress = Progress(self._count_tokens())
        try:
            with (
                (self.folder / BAD_DOCUMENTS).open("ab") as bad,
                closing(encode_chunks(self.source.chunks(place["cursor"]), processes)) as chunks,
            ):
                rows, tokens = place["rows"], place["tokens"]
                for chunk, encoded in chunks:
                    self._write_chunk(chunk, encoded, rows, tokens, bad)
                    rows = tokens = 0
                    progress.report(self._count_tokens(), len(self.journal.shards), chunk.share)
                self._close_shard(bad)
        finally:
            if self.shard is not None:
                self.shard.discard()
        return self._write_manifest()

    def _count_tokens(self) -> int:
        complete = sum(int(entry["tokens"]) for entry in self.journal.shards)
        return complete + (self.shard.tokens if self.shard else 0)

    def _write_chunk(self, chunk: Chunk, encoded: Encoded, rows: int, tokens: int, bad: IO[bytes]) -> None:
        """Write a chunk's tokens without its first rows and tokens, and close every shard that is full."""
        ends = np.cumsum(encoded.counts)
        at = (int(ends[rows - 1]) if rows else 0) + tokens
        counted = rows + (tokens > 0)  # an earlier process has counted the row that it started
        while at < len(encoded.tokens):
            if self.shard is None:
                name = encoded.names[int(np.searchsorted(ends, at, side="right"))]
                number = len(self.journal.shards)
                capacity = self.keys.shard_tokens if number else self.keys.val_tokens
                self.shard = ShardFile(self.folder / shard_name(number), capacity, name)
            size = min(self.shard.room, len(encoded.tokens) - at)
            self.shard.write(encoded.tokens[at : at + size])
            at += size
            if self.shard.room == 0:
                # The next shard starts `offset` tokens into row `row` of this chunk.
                row = int(np.searchsorted(ends, at, side="right"))
                offset = at - (int(ends[row - 1]) if row else 0)
                self._count_documents(chunk, encoded, range(counted, row + (offset > 0)), bad)
                counted = row + (offset > 0)
                self.journal.place = {"cursor": chunk.cursor, "rows": row, "tokens": offset}
                self._close_shard(bad)
        self._count_documents(chunk, encoded, range(counted, len(encoded.counts)), bad)

    def _count_documents(self, chunk: Chunk, encoded: Encoded, rows: range, bad: IO[bytes]) -> None:
        journal = self.journal
        for i in rows:
            if i in encoded.bad:
                reason = encoded.bad[i]
                journal.bad[reason] = journal.bad.get(reason, 0) + 1
                bad.write(json.dumps({"document": encoded.names[i], "reason": reason}).encode() + b"\n")
            elif i or not chunk.continues:
                journal.documents += 1

    def _close_shard(self, bad: IO[bytes]) -> None:
        if self.shard is None:
            return
        entry = self.shard.close()
        self.shard = None
        bad.flush()
        os.fsync(bad.fileno())
        self.journal.shards.append(asdict(entry))
        self.journal.bad_bytes = bad.tell()
        self.journal.write(self.folder)

    def _write_manifest(self) -> Manifest:
        journal = self.journal
        tokens, n_bad = self._count_tokens(), sum(journal.bad.values())
        if not tokens:
            raise UserError(
                f"prepare.source={self.keys.source} has no document with text ({n_bad} without, "
                f"see {self.folder / BAD_DOCUMENTS}); the text must be in a field named text"
            )
        if len(journal.shards) == 1:
            raise UserError(
                f"prepare.source={self.keys.source} has {tokens} tokens and prepare.val_tokens={self.keys.val_tokens} "
                "takes them all; lower it and give another folder"
            )
        shards = tuple(ShardEntry(**entry) for entry in journal.shards)
        bad = dict(sorted(journal.bad.items()))
        manifest = Manifest(self.asked, TOKENIZER, journal.documents, tokens, bad, shards)
        write_atomic(self.folder / NAME, manifest.dump())
        (self.folder / JOURNAL).unlink()
        return manifest
