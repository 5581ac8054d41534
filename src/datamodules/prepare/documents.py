"""Documents of local files in chunks, readable from any chunk on.

    .parquet                   a row is a document, its text in a column
    .jsonl .ndjson .json       a line is a document, its text in a field; or a value of one JSON array
    .csv .tsv                  a row is a document, its text in a column that the first row names
    .txt                       the file is one document

All but the first also compressed. A byte-order mark is not text. A long text file has several chunks, cut where
GPT-2's pattern always cuts: between a printable character and a space before a letter.
"""

import bz2
import codecs
import csv
import gzip
import io
import itertools
import lzma
import re
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from pyarrow import parquet

from src.datamodules.prepare.columns import Column, read_rows, split_field
from src.datamodules.prepare.csv_rows import read_csv
from src.datamodules.prepare.json_array import ArrayError, is_json_array, read_array
from src.errors import UserError, one_line

#: Text of one chunk, in bytes: a fraction of a second's work.
CHUNK_BYTES = 1 << 20
CHUNK_ROWS = 4096
#: A longer document counts as bad: every process would have to hold it in memory.
MAX_DOCUMENT_BYTES = 64 << 20
TOO_LONG, NOT_UTF8, UTF16 = "longer than 64 MiB", "not UTF-8", "UTF-16, not UTF-8"
COMPRESSIONS = (".gz", ".zst", ".xz", ".bz2")
KINDS = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
CUT = re.compile(rb"[!-~](?= [A-Za-z])")

Cursor = dict[str, Any]  # plain JSON values whose meaning only the source knows


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a source.

    Args:
        cursor: position from which the source yields these rows again.
        name, first_row: names of the rows: `<name>:<row>`, from 1 on.
        rows: UTF-8 text, or JSON lines; None is a null, a str the reason why there is no text.
        ids: names of the rows if the source has them beside the text.
        json_field: field of the text if the rows are JSON objects; None if they are the text.
        continues: true if the first row continues the document of the row before.
        share: share of the source up to the end of these rows; None if unknown.
        holds_ids: true if the rows are token ids: little-endian, of four bytes, or lists in JSON.
    """

    cursor: Cursor
    name: str
    first_row: int
    rows: list[bytes | str | None]
    ids: list[str | None] | None
    json_field: str | None
    continues: bool
    share: float | None
    holds_ids: bool = False

    def name_of(self, i: int) -> str:
        """Return the name of a row that has none of its own."""
        return f"{self.name}:{self.first_row + i}"


def kind_of(path: Path) -> str | None:
    """Return the suffix of the format that a file's name states, without its compression, or None."""
    name = Path(path.name.lower())
    is_compressed = name.suffix in COMPRESSIONS
    suffix = Path(name.stem).suffix if is_compressed else name.suffix
    if suffix == ".parquet" and is_compressed:
        return None
    return suffix if suffix in KINDS else None


def file_chunks(path: Path, name: str, cursor: Cursor, field: Column) -> Iterator[Chunk]:
    """Yield the chunks of one file from a cursor on, `{}` for the start; their shares are of this file.

    Args:
        path, name: the file, and its name in the names of rows.
        cursor: position of a chunk.
        field: column or field of the text or the ids, of files that have several.

    Raises:
        UserError: the file is damaged, cannot be read, or has no column of that name.
    """
    kind = str(kind_of(path))
    if field.holds_ids and kind in (".txt", ".csv", ".tsv"):
        raise UserError(f"{path} holds text, not token ids; leave prepare.tokens_field out")
    try:
        if kind == ".parquet":
            yield from _parquet_chunks(path, name, cursor, field)
        elif _read_head(path).startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            yield Chunk({}, name, 1, [UTF16], None, None, False, 1.0)
        elif kind == ".txt":
            yield from _text_chunks(path, name, cursor)
        elif kind in (".csv", ".tsv"):
            yield from _csv_chunks(path, name, cursor, field)
        elif is_json_array(_read_head(path)):
            yield from _array_chunks(path, name, cursor, field)
        else:
            yield from _line_chunks(path, name, cursor, field)
    except (EOFError, lzma.LZMAError, zlib.error, pa.ArrowException, gzip.BadGzipFile, csv.Error, ArrayError) as error:
        raise UserError(f"{path}: damaged ({one_line(error)}); fetch it again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)}); restore it and run again") from error


def table_chunk(table: Any, cursor: Cursor, name: str, first_row: int, share: float | None, field: Column) -> Chunk:
    """Return a table or record batch of pyarrow, with a column of text and optionally one of names, `id`, as a chunk."""
    ids = None
    if "id" in table.schema.names and pa.types.is_string(table.schema.field("id").type):
        ids = table.column("id").to_pylist()
    rows = read_rows(table, field, name)
    return Chunk(cursor, name, first_row, rows, ids, None, False, share, field.holds_ids)


def _parquet_chunks(path: Path, name: str, cursor: Cursor, field: Column) -> Iterator[Chunk]:
    with parquet.ParquetFile(path) as file:
        columns = {".".join(split_field(file.schema_arrow, field, str(path)))}
        columns |= {"id"} & {*file.schema_arrow.names}
        row, wanted = 0, int(cursor.get("row", 0))
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if row + size <= wanted:
                row += size
                continue
            for batch in file.iter_batches(256, [group], sorted(columns)):
                if row + len(batch) > wanted:
                    rest = batch.slice(max(0, wanted - row))
                    first = row + len(batch) - len(rest)
                    share = (row + len(batch)) / file.metadata.num_rows
                    yield table_chunk(rest, {"row": first}, name, first + 1, share, field)
                row += len(batch)


def _line_chunks(path: Path, name: str, cursor: Cursor, field: Column) -> Iterator[Chunk]:
    size = max(1, path.stat().st_size)
    row, offset = int(cursor.get("row", 0)), int(cursor.get("offset", 0))
    with path.open("rb") as raw, decompress(raw, path) as file:
        skip(file, offset)
        done = False
        while not done:
            start, first, rows, size_read = offset, row, list[bytes | str | None](), 0
            while size_read < CHUNK_BYTES and len(rows) < CHUNK_ROWS:
                line = file.readline(MAX_DOCUMENT_BYTES + 1)
                if not line:
                    done = True
                    break
                row, offset, size_read = row + 1, offset + len(line), size_read + len(line)
                text = line.removeprefix(codecs.BOM_UTF8) if row == 1 else line
                rows.append(text if len(line) <= MAX_DOCUMENT_BYTES else TOO_LONG)
                # Skip the rest of a line that is too long.
                while len(line) > MAX_DOCUMENT_BYTES and not line.endswith(b"\n"):
                    line = file.readline(MAX_DOCUMENT_BYTES + 1)
                    offset += len(line)
            if rows:
                position = {"row": first, "offset": start}
                share = min(1.0, raw.tell() / size)
                yield Chunk(position, name, first + 1, rows, None, field.name, False, share, field.holds_ids)


def _array_chunks(path: Path, name: str, cursor: Cursor, field: Column) -> Iterator[Chunk]:
    with path.open("rb") as raw, decompress(raw, path) as file, closing(read_array(file, MAX_DOCUMENT_BYTES)) as values:
        for chunk in _pack_rows(((value, None) for value in values), raw, path, name, cursor):
            yield replace(chunk, ids=None, json_field=field.name, holds_ids=field.holds_ids)


def _csv_chunks(path: Path, name: str, cursor: Cursor, field: Column) -> Iterator[Chunk]:
    delimiter = "\t" if kind_of(path) == ".tsv" else ","
    with (
        path.open("rb") as raw,
        decompress(raw, path) as file,
        closing(read_csv(file, field.name, delimiter, str(path), MAX_DOCUMENT_BYTES)) as rows,
    ):
        yield from _pack_rows(rows, raw, path, name, cursor)


def _pack_rows(
    rows: Iterator[tuple[bytes | str, str | None]], raw: IO[bytes], path: Path, name: str, cursor: Cursor
) -> Iterator[Chunk]:
    """Yield rows and their names as chunks; a file of rows that have no place of their own is parsed from its start."""
    size, first = max(1, path.stat().st_size), int(cursor.get("row", 0))
    rest = itertools.islice(rows, first, None)
    while True:
        texts, ids, size_read = list[bytes | str | None](), list[str | None](), 0
        for text, own in itertools.islice(rest, CHUNK_ROWS):
            texts.append(text)
            ids.append(own)
            size_read += len(text)
            if size_read >= CHUNK_BYTES:
                break
        if not texts:
            return
        yield Chunk({"row": first}, name, first + 1, texts, ids, None, False, min(1.0, raw.tell() / size))
        first += len(texts)


def _text_chunks(path: Path, name: str, cursor: Cursor) -> Iterator[Chunk]:
    size, offset = max(1, path.stat().st_size), int(cursor.get("offset", 0))
    if offset == 0 and not _is_utf8(path):
        yield Chunk({}, name, 1, [NOT_UTF8], None, None, False, 1.0)
        return
    with path.open("rb") as raw, decompress(raw, path) as file:
        skip(file, offset)
        pending, ended = b"", False
        while not ended:
            block = file.read(CHUNK_BYTES)
            ended = not block
            pending += block
            cut = len(pending) if ended else _last_cut(pending)
            if cut and (ended or len(pending) >= CHUNK_BYTES):
                continues, share = offset > 0, min(1.0, raw.tell() / size)
                text = pending[:cut] if continues else pending[:cut].removeprefix(codecs.BOM_UTF8)
                yield Chunk({"offset": offset}, name, 1, [text], None, None, continues, share)
                offset, pending = offset + cut, pending[cut:]
        if offset == 0:
            yield Chunk({}, name, 1, [b""], None, None, False, 1.0)


def _last_cut(text: bytes) -> int:
    """Return the position of the last cut in `text`, or 0 if there is none yet."""
    for reach in (4096, len(text)):
        ends = [found.end() for found in CUT.finditer(text, max(0, len(text) - reach))]
        if ends:
            return ends[-1]
    # Megabytes without a space before a letter: cut between any two characters, before memory ends.
    if len(text) <= MAX_DOCUMENT_BYTES:
        return 0
    return next(at for at in range(len(text) - 1, 0, -1) if text[at] & 0xC0 != 0x80)


def _read_head(path: Path) -> bytes:
    """Return the first bytes of the decompressed content."""
    with path.open("rb") as raw, decompress(raw, path) as file:
        return file.read(4096)


def _is_utf8(path: Path) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as raw, decompress(raw, path) as file:
        try:
            while block := file.read(CHUNK_BYTES):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


def decompress(raw: IO[bytes], path: Path) -> IO[bytes]:
    """Return an open file's decompressed content."""
    compression = path.suffix.lower()
    if compression == ".gz":
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]  # reads like any binary file
    if compression == ".xz":
        return lzma.LZMAFile(raw)
    if compression == ".bz2":
        return bz2.BZ2File(raw)
    if compression == ".zst":
        return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd"), CHUNK_BYTES)
    return raw


def skip(file: IO[bytes], offset: int) -> None:
    """Advance to a position of the decompressed content."""
    if file.seekable() and not isinstance(file, gzip.GzipFile | lzma.LZMAFile | bz2.BZ2File):
        file.seek(offset)
        return
    while offset > 0:
        block = file.read(min(offset, CHUNK_BYTES))
        if not block:
            raise UserError(f"the source is {offset} bytes shorter than at the start; restore it")
        offset -= len(block)
