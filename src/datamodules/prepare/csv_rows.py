"""Rows of a table in a text file, comma or tab separated, whose first row names the columns."""

import csv
from collections.abc import Generator, Iterator
from typing import IO

from src.datamodules.prepare.columns import describe_fields
from src.datamodules.prepare.json_array import open_text
from src.errors import UserError


def read_csv(
    file: IO[bytes], field: str, delimiter: str, where: str, max_bytes: int
) -> Generator[tuple[bytes | str, str | None], None, None]:
    """Yield the text of each row, or the reason why there is none, and the row's `id` if there is such a column.

    Args:
        file: the decompressed content.
        field: column of the text.
        delimiter: what separates columns.
        where: the file, for messages.
        max_bytes: the longest value.

    Raises:
        UserError: there is no such column.
        csv.Error: a value is too long, such as one whose quotation mark is missing.
    """
    csv.field_size_limit(max_bytes)
    with open_text(file, newline="") as text:
        yield from _read_rows(csv.reader(text, delimiter=delimiter), field, where)


def _read_rows(rows: Iterator[list[str]], field: str, where: str) -> Iterator[tuple[bytes | str, str | None]]:
    header = next(rows, None)
    if header is None:
        return
    if field not in header:
        names = [name.encode("ascii", "replace").decode()[:40] for name in header]
        raise UserError(
            f"{where}: no column {field} in the first row, which must name the columns: {', '.join(names)}; "
            f"{describe_fields([name for name in names if name != 'id'])}"
        )
    at, id_at = header.index(field), header.index("id") if "id" in header else None
    for row in rows:
        own = row[id_at] if id_at is not None and id_at < len(row) else None
        if row and at >= len(row):
            yield f"no column {field}", own
        else:
            yield (row[at] if row else "").encode("utf-8", "surrogateescape"), own
