"""Tokenizer pool: chunks of documents to tokens in several processes, in the order of the chunks.

A document becomes the end-of-text token followed by its text; special tokens that are spelt out in the text are plain
text. A document of token ids is taken as it is, without end-of-text tokens at its ends.
"""

import json
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.datamodules.prepare.columns import read_field
from src.datamodules.prepare.documents import NOT_UTF8, Chunk
from src.datamodules.prepare.token_files import ROW_DTYPE
from src.datamodules.tokenization.base import Ids, Tokenizer
from src.datamodules.tokenization.gpt2 import gpt2_tokenizer
from src.datamodules.tokenization.open import read_tokenizer
from src.errors import UserError

#: Pending chunks beyond three for each process: work for the time in which a shard is forced to disk.
SLACK = 16


@dataclass(frozen=True)
class Encoded:
    """Tokens of a chunk.

    Args:
        tokens: tokens of all rows, one row after the other.
        counts: number of tokens of each row; 0 for a row without text.
        names: name of each row, or None if it has none of its own.
        bad: reason by row, for the rows without text.
    """

    tokens: Ids
    counts: list[int]
    names: list[str | None]
    bad: dict[int, str]


@cache
def _load_tokenizer(path: Path | None) -> Tokenizer:
    return gpt2_tokenizer() if path is None else read_tokenizer(path, path.name)


def encode(chunk: Chunk, tokenizer_path: Path | None = None) -> Encoded:
    """Tokenize a chunk by the tokenizer of a file; None for GPT-2's."""
    return encode_by(_load_tokenizer(tokenizer_path), chunk)


def encode_by(tokenizer: Tokenizer, chunk: Chunk) -> Encoded:
    """Tokenize a chunk."""
    parts: list[Any] = []  # Ids, whose union of dtypes numpy's stubs cannot concatenate
    ids: Any
    names: list[str | None] = []
    bad: dict[int, str] = {}
    for i, row in enumerate(chunk.rows):
        name, text, reason = (None, None, "") if chunk.holds_ids else read_text(row, chunk.json_field)
        names.append(name or (chunk.ids[i] if chunk.ids else None))
        part: Any = np.empty(0, dtype=tokenizer.dtype)
        if chunk.holds_ids:
            ids, reason = read_ids(row, chunk.json_field, tokenizer, chunk.name_of(i))
            if not reason:
                part = np.concatenate([[tokenizer.end_of_text], ids]).astype(tokenizer.dtype)
        elif text is not None:
            start = 0 if chunk.continues and i == 0 else 1
            try:
                ids = tokenizer.encode_array(text)
                part = np.concatenate([np.full(start, tokenizer.end_of_text, tokenizer.dtype), ids])
            except UnicodeEncodeError:  # an unpaired surrogate, spelt out in JSON
                reason = NOT_UTF8
        if reason:
            bad[i] = reason
        parts.append(part)
    tokens: Any = np.concatenate(parts) if parts else np.empty(0, dtype=tokenizer.dtype)
    return Encoded(tokens, [len(part) for part in parts], names, bad)


def read_text(row: bytes | str | None, json_field: str | None) -> tuple[str | None, str | None, str]:
    """Return name, text and, without text, the reason."""
    if row is None:
        return None, None, "null"
    if isinstance(row, str):
        return None, None, row
    name: str | None = None
    try:
        text: object = row.decode("utf-8")
        if json_field is not None:
            fields = json.loads(str(text))
            has_field, text = read_field(fields, json_field) if isinstance(fields, dict) else (False, None)
            if not has_field:
                return None, None, f"no field {json_field}"
            name = fields["id"] if isinstance(fields.get("id"), str) else None
    except UnicodeDecodeError:
        return None, None, NOT_UTF8
    except (json.JSONDecodeError, RecursionError):
        return None, None, "not JSON" if row.strip() else "empty"
    if text is None:
        return name, None, "null"
    if not isinstance(text, str):
        return name, None, f"{json_field} is not a string"
    if not text:
        return name, None, "empty"
    return name, text, ""


def read_ids(
    row: bytes | str | None, json_field: str | None, tokenizer: Tokenizer, where: str
) -> tuple[NDArray[np.uint32], str]:
    """Return the ids of a row without end-of-text ids at both ends and, without ids, the reason.

    Raises:
        UserError: an id is not one of the tokenizer's.
    """
    none = np.empty(0, dtype=np.uint32)
    if row is None or isinstance(row, str):
        return none, row or "null"
    ids = np.frombuffer(row, dtype=ROW_DTYPE) if json_field is None else none
    if json_field is not None:
        try:
            fields = json.loads(row.decode("utf-8"))
            found = read_field(fields, json_field)[1] if isinstance(fields, dict) else None
            ids = np.array(found, dtype=np.int64).astype(np.uint32)
        except (UnicodeDecodeError, ValueError, RecursionError, TypeError, OverflowError):
            return none, f"{json_field} is not a list of ids" if row.strip() else "empty"
        if ids.ndim != 1:
            return none, f"{json_field} is not a list of ids"
    if len(ids) and ids.max() >= tokenizer.n_vocab:
        raise UserError(
            f"{where} holds id {ids.max()}, but prepare.tokenizer={tokenizer.name} has the ids 0 to "
            f"{tokenizer.n_vocab - 1}; give the tokenizer that made the ids"
        )
    inner = np.flatnonzero(ids != tokenizer.end_of_text)
    return (ids[inner[0] : inner[-1] + 1], "") if len(inner) else (none, "empty")


def encode_chunks(
    chunks: Iterable[Chunk], processes: int, tokenizer_path: Path | None = None
) -> Generator[tuple[Chunk, Encoded], None, None]:
    """Yield chunks with their tokens, in order; a few chunks for each process are pending at once.

    Args:
        chunks: chunks in the order of the source.
        processes: number of processes.
        tokenizer_path: file of the tokenizer; None for GPT-2's.

    Raises:
        UserError: a process was killed, for example because the machine ran out of memory.
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_exit_with_parent)
    pending: deque[tuple[Chunk, Future[Encoded]]] = deque()
    try:
        for chunk in chunks:
            pending.append((chunk, pool.submit(encode, chunk, tokenizer_path)))
            while len(pending) > 3 * processes + SLACK or (pending and pending[0][1].done()):
                done, future = pending.popleft()
                yield done, future.result()
        for done, future in pending:
            yield done, future.result()
    except BrokenProcessPool as error:
        raise UserError(
            f"one of prepare.processes={processes} was killed (out of memory?); complete shards are kept, "
            "run again to continue, with fewer processes if memory is short"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _exit_with_parent() -> None:
    """Watch the parent, and exit when it is killed instead of waiting forever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it and ends its processes
    parent = multiprocessing.parent_process()
    assert parent is not None  # this runs in pool processes only

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
