"""Parts of a source, which the tasks of a preparation tokenize on many machines and one process writes as shards.

    folder/.parts/000003.tokens        part 3: the chunks of a file or of a range of rows, with their tokens
    folder/.parts/.000003.tokens.part  part being written
    folder/.parts/task-001/.lock       held by the process of task 1

Task t of n has the parts t, t + n, t + 2 n, ... A part depends on the source alone, so that the number of tasks may
change between two starts. The process that writes the shards reads the chunks in the order of the source and cuts
them as it cuts chunks that it tokenizes itself, so the bytes do not depend on the number of tasks.

A chunk in the file is a line of JSON, without the tokens, followed by its tokens as in a shard.
"""

import json
import logging
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import groupby, takewhile
from pathlib import Path
from typing import IO, Any

import numpy as np

from src.datamodules.prepare.documents import Chunk, Cursor
from src.datamodules.prepare.sources import Source
from src.datamodules.prepare.tokenize_pool import Encoded, encode_chunks
from src.datamodules.shards.format import LLM_C, Format
from src.errors import UserError
from src.files import fsync_folder
from src.launch.folder_lock import lock_folder

log = logging.getLogger(__name__)

PARTS = ".parts"


def part_path(folder: Path, number: int) -> Path:
    """Return the file of a part of the preparation into `folder`."""
    return folder / PARTS / f"{number:06d}.tokens"


def missing_parts(folder: Path, numbers: Iterable[int]) -> list[int]:
    """Return those parts that are not complete."""
    return [number for number in numbers if not part_path(folder, number).exists()]


def tokenize_parts(
    folder: Path, source: Source, task: int, tasks: int, processes: int, tokenizer_path: Path | None = None
) -> None:
    """Write the parts of one task that are missing; complete ones are kept.

    Raises:
        UserError: another process runs the task, or a document file is at fault.
    """
    own = range(task, source.n_part, tasks)
    if not missing_parts(folder, own):
        return
    with lock_folder(folder / PARTS / f"task-{task:03d}") as note:
        if note:
            log.warning("%s", note)
        missing = missing_parts(folder, own)
        log.info("task %d of %d: %d of its %d parts to tokenize", task, tasks, len(missing), len(own))
        with closing(encode_chunks(_label_chunks(source, missing), processes, tokenizer_path)) as encoded:
            rest = iter(missing)
            for number, chunks in groupby(encoded, key=lambda pair: int(pair[0].cursor["part"])):
                for empty in takewhile(lambda n, number=number: n != number, rest):  # type: ignore[misc]  # bound now
                    _write_part(part_path(folder, empty), ())
                _write_part(part_path(folder, number), chunks)
            for empty in rest:
                _write_part(part_path(folder, empty), ())


def _label_chunks(source: Source, numbers: Sequence[int]) -> Iterator[Chunk]:
    for number in numbers:
        for chunk in source.part(number):
            yield replace(chunk, cursor={"part": number})


def _write_part(path: Path, chunks: Iterable[tuple[Chunk, Encoded]]) -> None:
    unfinished = path.with_name(f".{path.name}.part")
    with unfinished.open("wb", buffering=1 << 20) as file:
        for chunk, encoded in chunks:
            head = {
                "name": chunk.name,
                "first_row": chunk.first_row,
                "continues": chunk.continues,
                "share": chunk.share,
                "counts": encoded.counts,
                "names": encoded.names,
                "bad": list(encoded.bad.items()),
            }
            file.write(json.dumps(head).encode() + b"\n")
            file.write(np.ascontiguousarray(encoded.tokens).tobytes())
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    fsync_folder(path.parent)


def read_parts(
    folder: Path, source: Source, cursor: Cursor, format_: Format = LLM_C
) -> Generator[tuple[Chunk, Encoded], None, None]:
    """Yield the chunks of all parts in the order of the source, from a chunk's cursor on, `{}` for all.

    Raises:
        UserError: a part is damaged.
    """
    first, offset, earlier = (int(cursor.get(key, 0)) for key in ("part", "offset", "earlier"))
    for number in range(first, source.n_part):
        rows = 0
        with part_path(folder, number).open("rb") as file:
            file.seek(offset)
            place = {"part": number, "offset": offset, "earlier": earlier}
            while (read := _read_chunk(file, place, format_)) is not None:
                chunk, encoded = read
                rows = chunk.first_row - 1 + len(encoded.counts)
                share = (number + (chunk.share or 0.0)) / source.n_part
                yield replace(chunk, first_row=chunk.first_row + earlier, share=share), encoded
                place = {"part": number, "offset": file.tell(), "earlier": earlier}
        # The rows of a data set are numbered through all parts, those of a file in it.
        earlier = earlier + rows if source.numbers_through else 0
        offset = 0


def _read_chunk(file: IO[bytes], place: Cursor, format_: Format) -> tuple[Chunk, Encoded] | None:
    line = file.readline()
    if not line:
        return None
    try:
        head: dict[str, Any] = json.loads(line)
        size = np.dtype(format_.dtype).itemsize * sum(head["counts"])
        tokens = np.frombuffer(file.read(size), dtype=format_.dtype)
        if tokens.nbytes != size:
            raise ValueError(f"{tokens.nbytes} bytes of tokens for {size}")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file.name} is damaged ({error}); remove it and run again to tokenize it again") from error
    chunk = Chunk(place, head["name"], head["first_row"], [], None, None, head["continues"], head["share"])
    return chunk, Encoded(tokens, head["counts"], head["names"], dict(head["bad"]))
