"""Documents to a folder of shards: `task=prepare`.

Tokens are one stream, an end-of-text token before each document; the first `val_tokens` are shard 0, the
rest shards of `shard_tokens`, the last one shorter. Nothing in the folder depends on the number of processes
or on how often the preparation was stopped.
"""

import errno
import json
import logging
import os
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from src.datamodules.prepare.documents import Chunk
from src.datamodules.prepare.sources import Source, open_source
from src.datamodules.prepare.tokenize_pool import Encoded, encoded
from src.datamodules.prepare.writer import BAD, Journal, ShardFile, held, refuse_strangers, shard_name
from src.datamodules.shards.manifest import JOURNAL, NAME, Manifest, ShardEntry
from src.datamodules.tokenizer import END_OF_TEXT, N_VOCAB, RANKS_SHA256
from src.errors import UserError
from src.files import write_atomic

log = logging.getLogger(__name__)

TOKENIZER = {"name": "gpt2", "ranks_sha256": RANKS_SHA256, "n_vocab": N_VOCAB, "end_of_text": END_OF_TEXT}
#: The header's count is an int32.
MAX_SHARD_TOKENS = 2**31 - 1


@dataclass(frozen=True)
class PrepareKeys:
    """`prepare` as written.

    Args:
        source: a file, folder or pattern; a data set on disk; or `hf://datasets/<owner>/<name>[:<config>]`.
        output: the folder of shards.
        processes: that tokenize; auto takes every core.
        shard_tokens, val_tokens: tokens of a training shard, and of the validation shard.
    """

    source: str
    output: str
    processes: int | str
    shard_tokens: int
    val_tokens: int

    def __post_init__(self) -> None:
        if self.processes != "auto" and not (isinstance(self.processes, int) and self.processes >= 1):
            raise ValueError(f"prepare.processes must be auto or at least 1, got {self.processes!r}")
        for key in ("shard_tokens", "val_tokens"):
            if not 1 <= getattr(self, key) <= MAX_SHARD_TOKENS:
                raise ValueError(
                    f"prepare.{key} must be from 1 to {MAX_SHARD_TOKENS}, got {getattr(self, key)}"
                )


def prepare(keys: PrepareKeys) -> Manifest:
    """Write the shards, or the rest of them, and the manifest.

    Raises:
        UserError: nothing to read, a folder of something else, a full disk; what was written stays valid.
    """
    folder = Path(keys.output)
    source = open_source(keys.source)
    asked = {**source.identity(), "shard_tokens": keys.shard_tokens, "val_tokens": keys.val_tokens}
    try:
        with held(folder):
            if (folder / NAME).is_file():
                return _finished(folder, asked)
            return _Preparation(folder, source, asked, keys).run()
    except OSError as error:
        what = (
            "is full"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else f"cannot be written ({error.strerror})"
        )
        raise UserError(
            f"prepare.output={folder}: the disk {what}; the whole shards are kept, make room and run again to go on"
        ) from error


def _finished(folder: Path, asked: dict[str, Any]) -> Manifest:
    manifest = Manifest.parse((folder / NAME).read_bytes(), str(folder / NAME))
    _refuse_other(folder, manifest.source, asked)
    (folder / JOURNAL).unlink(missing_ok=True)  # killed between the two
    for entry in manifest.shards:
        path = folder / entry.name
        if not path.is_file() or path.stat().st_size != entry.bytes:
            raise UserError(
                f"{path} is not as {NAME} says ({entry.bytes} bytes); empty the folder and prepare again"
            )
    log.info("%s is prepared already", folder)
    return manifest


def _refuse_other(folder: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [f"{key} was {then.get(key)}, is {now[key]}" for key in now if then.get(key) != now[key]]
    if changed:
        raise UserError(
            f"prepare.output={folder} holds another preparation: {'; '.join(changed)}; "
            "give another folder, or empty this one"
        )


class _Preparation:
    """One session of one preparation."""

    def __init__(self, folder: Path, source: Source, asked: dict[str, Any], keys: PrepareKeys) -> None:
        self.folder, self.source, self.asked, self.keys = folder, source, asked, keys
        journal = Journal.read(folder)
        refuse_strangers(folder, journal)
        if journal is not None:
            _refuse_other(folder, journal.asked, asked)
            log.info("going on after %d whole shards", len(journal.shards))
        self.journal = journal or Journal(asked)
        self.shard: ShardFile | None = None

    def run(self) -> Manifest:
        for path in self.folder.glob(".*.part"):
            path.unlink()
        self.journal.write(self.folder)
        (self.folder / BAD).touch()
        os.truncate(self.folder / BAD, self.journal.bad_bytes)
        place, keys = self.journal.place, self.keys
        processes = len(os.sched_getaffinity(0)) if keys.processes == "auto" else int(keys.processes)
        speed = Speed(self._tokens())
        try:
            with (
                (self.folder / BAD).open("ab") as bad,
                closing(encoded(self.source.chunks(place["cursor"]), processes)) as stream,
            ):
                rows, tokens = place["rows"], place["tokens"]
                for chunk, found in stream:
                    self._take(chunk, found, rows, tokens, bad)
                    rows = tokens = 0
                    speed.tell(self._tokens(), len(self.journal.shards), chunk.share)
                self._close_shard(bad)
        finally:
            if self.shard is not None:
                self.shard.abandon()
        return self._finish()

    def _tokens(self) -> int:
        whole = sum(int(entry["tokens"]) for entry in self.journal.shards)
        return whole + (self.shard.tokens if self.shard else 0)

    def _take(self, chunk: Chunk, found: Encoded, rows: int, tokens: int, bad: IO[bytes]) -> None:
        """Write a chunk's tokens, but for its first rows and tokens, and close every shard that they fill."""
        ends = np.cumsum(found.counts)
        at = (int(ends[rows - 1]) if rows else 0) + tokens
        counted = rows + (tokens > 0)  # a row that an earlier session began is counted already
        while at < len(found.tokens):
            if self.shard is None:
                name = found.names[int(np.searchsorted(ends, at, side="right"))]
                number = len(self.journal.shards)
                capacity = self.keys.shard_tokens if number else self.keys.val_tokens
                self.shard = ShardFile(self.folder / shard_name(number), capacity, name)
            size = min(self.shard.room, len(found.tokens) - at)
            self.shard.write(found.tokens[at : at + size])
            at += size
            if self.shard.room == 0:
                row = int(np.searchsorted(ends, at, side="right"))
                inside = at - (int(ends[row - 1]) if row else 0)
                self._count(chunk, found, range(counted, row + (inside > 0)), bad)
                counted = row + (inside > 0)
                self.journal.place = {"cursor": chunk.cursor, "rows": row, "tokens": inside}
                self._close_shard(bad)
        self._count(chunk, found, range(counted, len(found.counts)), bad)

    def _count(self, chunk: Chunk, found: Encoded, rows: range, bad: IO[bytes]) -> None:
        journal = self.journal
        for i in rows:
            if i in found.bad:
                reason = found.bad[i]
                journal.bad[reason] = journal.bad.get(reason, 0) + 1
                bad.write(json.dumps({"document": found.names[i], "reason": reason}).encode() + b"\n")
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

    def _finish(self) -> Manifest:
        journal = self.journal
        tokens, n_bad = self._tokens(), sum(journal.bad.values())
        if not tokens:
            raise UserError(
                f"prepare.source={self.keys.source} has no document with text ({n_bad} without, "
                f"see {self.folder / BAD}); the text must stand in a field named text"
            )
        if len(journal.shards) == 1:
            raise UserError(
                f"prepare.source={self.keys.source} has {tokens} tokens and prepare.val_tokens={self.keys.val_tokens} "
                "takes them all; lower it and give another folder"
            )
        shards = tuple(ShardEntry(**entry) for entry in journal.shards)
        bad = dict(sorted(journal.bad.items()))
        manifest = Manifest(self.asked, TOKENIZER, journal.documents, tokens, bad, shards)
        write_atomic(self.folder / NAME, manifest.text())
        (self.folder / JOURNAL).unlink()
        return manifest


class Speed:
    """Says now and then how fast it goes and how long it will take."""

    EVERY_S = 10.0

    def __init__(self, tokens: int) -> None:
        self._began = self._told = time.monotonic()
        self._first: tuple[int, float | None] = (tokens, None)

    def tell(self, tokens: int, shards: int, share: float | None) -> None:
        """Log a line where it is time."""
        now = time.monotonic()
        if self._first[1] is None:
            self._first = (self._first[0], share)
        if now - self._told < self.EVERY_S:
            return
        self._told = now
        seconds = now - self._began
        line = f"{tokens:,} tokens, {shards} whole shards, {(tokens - self._first[0]) / seconds:,.0f} tokens/s"
        first = self._first[1]
        if share is not None and first is not None and share > first:
            left = seconds * (1 - share) / (share - first)
            line += f", {100 * share:.1f} % of the source, {duration(left)} left"
        log.info("%s", line)


def duration(seconds: float) -> str:
    """Seconds for people."""
    minutes, hours = seconds / 60, seconds / 3600
    return f"{hours:.1f} h" if hours >= 1 else f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"
