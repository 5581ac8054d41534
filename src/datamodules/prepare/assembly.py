"""Assembly of shards from the tokens of chunks: cut at exact sizes, continued after an interruption."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import IO

import numpy as np

from src.datamodules.prepare.documents import Chunk, Cursor
from src.datamodules.prepare.parts import PARTS
from src.datamodules.prepare.progress import Progress
from src.datamodules.prepare.tokenize_pool import Encoded
from src.datamodules.prepare.writer import BAD_DOCUMENTS, Journal, ShardFile, shard_name
from src.datamodules.shards.format import choose_format
from src.datamodules.shards.manifest import JOURNAL, NAME, Manifest, ShardEntry
from src.datamodules.tokenization.base import Tokenizer
from src.errors import UserError
from src.files import write_atomic

log = logging.getLogger(__name__)


class ShardAssembly:
    """Shards of one preparation, which a process starts or continues.

    Args:
        folder: the folder of shards, locked by this process.
        journal: progress so far, and the sizes of the shards.
        source, text_field: values of `prepare.source` and `prepare.text_field`, for messages.
        tokenizer: tokenizer of the tokens.
    """

    def __init__(self, folder: Path, journal: Journal, source: str, text_field: str, tokenizer: Tokenizer) -> None:
        self.folder, self.journal, self.source, self.text_field = folder, journal, source, text_field
        self.tokenizer = tokenizer
        self.shard: ShardFile | None = None

    def write(self, read_chunks: Callable[[Cursor], Generator[tuple[Chunk, Encoded], None, None]]) -> Manifest:
        """Write the shards that are missing, and the manifest.

        Args:
            read_chunks: yields the source's chunks with their tokens from a chunk's cursor on, `{}` for all.

        Raises:
            UserError: the source has no text, or not enough.
        """
        for path in self.folder.glob(".*.part"):
            path.unlink()
        (self.folder / BAD_DOCUMENTS).touch()
        os.truncate(self.folder / BAD_DOCUMENTS, self.journal.bad_bytes)
        place = self.journal.place
        progress = Progress(self._count_tokens())
        try:
            with (
                (self.folder / BAD_DOCUMENTS).open("ab") as bad,
                closing(read_chunks(place["cursor"])) as chunks,
            ):
                rows, tokens = place["rows"], place["tokens"]
                for chunk, encoded in chunks:
                    self._write_chunk(chunk, encoded, rows, tokens, bad)
                    rows = tokens = 0
                    progress.report(self._count_tokens(), len(self.journal.shards), chunk.share)
                self._end_file()
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
                row = int(np.searchsorted(ends, at, side="right"))
                name = encoded.names[row] or chunk.name_of(row)
                number = len(self.journal.shards)
                capacity = int(self.journal.asked["shard_tokens" if number else "val_tokens"])
                path, format_ = self.folder / shard_name(number), choose_format(self.tokenizer.n_vocab)
                self.shard = ShardFile(path, capacity, name, format_)
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
        if rows and chunk.name != journal.file["name"]:
            self._end_file()
            journal.file = {"name": chunk.name, "documents": 0, "bad": 0, "reason": ""}
        for i in rows:
            if i in encoded.bad:
                journal.file["reason"] = journal.file["reason"] or encoded.bad[i]
                reason = encoded.bad[i]
                journal.bad[reason] = journal.bad.get(reason, 0) + 1
                name = encoded.names[i] or chunk.name_of(i)
                bad.write(json.dumps({"document": name, "reason": reason}).encode() + b"\n")
            elif i or not chunk.continues:
                journal.documents += 1
            journal.file["bad" if i in encoded.bad else "documents"] += 1

    def _end_file(self) -> None:
        """Warn of a file without a single document: an error page under the name of a text, mostly."""
        name, documents, bad, reason = self.journal.file.values()
        if bad and not documents:
            log.warning("%s has no document with text (%d rows, the first: %s)", name, bad, reason)

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
                f"prepare.source={self.source} has no document with text ({n_bad} without, "
                f"see {self.folder / BAD_DOCUMENTS}); the text must be in a field or column named "
                f"{self.text_field}, see prepare.text_field"
            )
        if len(journal.shards) == 1:
            raise UserError(
                f"prepare.source={self.source} has {tokens} tokens and prepare.val_tokens={journal.asked['val_tokens']} "
                "takes them all; lower it and give another folder"
            )
        shards = tuple(ShardEntry(**entry) for entry in journal.shards)
        bad = dict(sorted(journal.bad.items()))
        manifest = Manifest(journal.asked, self.tokenizer.statement(), journal.documents, tokens, bad, shards)
        write_atomic(self.folder / NAME, manifest.dump())
        (self.folder / JOURNAL).unlink()
        shutil.rmtree(self.folder / PARTS, ignore_errors=True)
        return manifest
