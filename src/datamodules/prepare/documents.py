"""Documents of local files in chunks, readable from any chunk on.

Formats: .parquet, .jsonl, .txt, the last two also .gz, .zst or .xz. A row of a table or of JSON lines is a
document, its text in `text`; a text file is one document. A long text file has several chunks, cut where GPT-2's
pattern always cuts: between a printable character and a space before a letter.
"""

import codecs
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from pyarrow import parquet

from src.errors import UserError, one_line

#: Text of one chunk, in bytes: a fraction of a second's work.
CHUNK_BYTES = 1 << 20
CHUNK_ROWS = 4096
#: A longer document counts as bad: every process would have to hold it in memory.
MAX_DOCUMENT_BYTES = 64 << 20
TOO_LONG, NOT_UTF8 = "longer than 64 MiB", "not UTF-8"
COMPRESSIONS = (".gz", ".zst", ".xz")
KINDS = (".parquet", ".jsonl", ".txt")
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
        is_json: true if the rows are JSON objects with the text in `text`.
        continues: true if the first row continues the document of the row before.
        share: share of the source up to the end of these rows; None if unknown.
    """

    cursor: Cursor
    name: str
    first_row: int
    rows: list[bytes | str | None]
    ids: list[str | None] | None
    is_json: bool
    continues: bool
    share: float | None

    def name_of(self, i: int) -> str:
        """Return the name of a row that has none of its own."""
        return f"{self.name}:{self.first_row + i}"


def kind_of(path: Path) -> str | None:
    """Return the suffix of the format that a file's name states, without its compression, or None."""
    stem = path.name.removesuffix(path.suffix) if path.suffix in COMPRESSIONS else path.name
    suffix = Path(stem).suffix
    if suffix == ".parquet" and path.suffix in COMPRESSIONS:
        return None
    return suffix if suffix in KINDS else None


def file_chunks(path: Path, name: str, cursor: Cursor) -> Iterator[Chunk]:
    """Yield the chunks of one file from a cursor on, `{}` for the start; their shares are of this file.

    Raises:
        UserError: the file is damaged or cannot be read.
    """
    read = {".parquet": _parquet_chunks, ".jsonl": _line_chunks, ".txt": _text_chunks}[str(kind_of(path))]
    try:
        yield from read(path, name, cursor)
    except (EOFError, lzma.LZMAError, zlib.error, pa.ArrowException, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: damaged ({one_line(error)}); fetch it again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)}); restore it and run again") from error


def table_chunk(table: Any, cursor: Cursor, name: str, first_row: int, share: float | None) -> Chunk:  # pyarrow
    """Return a record batch with a column `text`, and optionally one of names, `id`, as a chunk."""
    ids = None
    if "id" in table.schema.names and pa.types.is_string(table.schema.field("id").type):
        ids = table.column("id").to_pylist()
    # As bytes, since pyarrow stops at text that is not UTF-8; it is checked row by row later.
    rows = table.column("text").cast(pa.large_binary()).to_pylist()
    return Chunk(cursor, name, first_row, rows, ids, False, False, share)


def _parquet_chunks(path: Path, name: str, cursor: Cursor) -> Iterator[Chunk]:
    with parquet.ParquetFile(path) as file:
        columns = file.schema_arrow.names
        if "text" not in columns:
            raise UserError(f"{path}: no column text among {', '.join(columns)}; rename the one that holds it")
        row, wanted = 0, int(cursor.get("row", 0))
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if row + size <= wanted:
                row += size
                continue
            for batch in file.iter_batches(256, [group], [c for c in ("text", "id") if c in columns]):
                if row + len(batch) > wanted:
                    rest = batch.slice(max(0, wanted - row))
                    first = row + len(batch) - len(rest)
                    share = (row + len(batch)) / file.metadata.num_rows
                    yield table_chunk(rest, {"row": first}, name, first + 1, share)
                row += len(batch)


def _line_chunks(path: Path, name: str, cursor: Cursor) -> Iterator[Chunk]:
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
                rows.append(line if len(line) <= MAX_DOCUMENT_BYTES else TOO_LONG)
                # Skip the rest of a line that is too long.
                while len(line) > MAX_DOCUMENT_BYTES and not line.endswith(b"\n"):
                    line = file.readline(MAX_DOCUMENT_BYTES + 1)
                    offset += len(line)
            if rows:
                position = {"row": first, "offset": start}
                yield Chunk(position, name, first + 1, rows, None, True, False, min(1.0, raw.tell() / size))


def _text_chunks(path: Path, name: str, cursor: Cursor) -> Iterator[Chunk]:
    size, offset = max(1, path.stat().st_size), int(cursor.get("offset", 0))
    if offset == 0 and not _is_utf8(path):
        yield Chunk({}, name, 1, [NOT_UTF8], None, False, False, 1.0)
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
                yield Chunk({"offset": offset}, name, 1, [pending[:cut]], None, False, continues, share)
                offset, pending = offset + cut, pending[cut:]
        if offset == 0:
            yield Chunk({}, name, 1, [b""], None, False, False, 1.0)


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
    if path.suffix == ".gz":
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]  # reads like any binary file
    if path.suffix == ".xz":
        return lzma.LZMAFile(raw)
    if path.suffix == ".zst":
        return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd"), CHUNK_BYTES)
    return raw


def skip(file: IO[bytes], offset: int) -> None:
    """Advance to a position of the decompressed content."""
    if file.seekable() and not isinstance(file, gzip.GzipFile | lzma.LZMAFile):
        file.seek(offset)
        return
    while offset > 0:
        block = file.read(min(offset, CHUNK_BYTES))
        if not block:
            raise UserError(f"the source is {offset} bytes shorter than at the start; restore it")
        offset -= len(block)
