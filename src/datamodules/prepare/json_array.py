"""Values of one JSON array, or of objects that are spread over lines, one after the other without the whole in memory."""

import codecs
import io
import json
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import IO

BLOCK = 1 << 20
#: What stands between values; a sequence without commas and brackets is read too.
BETWEEN = re.compile(r"[\s,\[\]]*")


class ArrayError(Exception):
    """Raised for a value of an array that is not valid JSON, cut off or too long."""


def is_json_array(head: bytes) -> bool:
    """Return whether content that begins with `head` is a JSON array or a multi-line object, not JSON lines."""
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    return text.startswith(b"[") or re.match(rb"\{[ \t\r]*\n", text) is not None


def read_array(file: IO[bytes], max_bytes: int) -> Generator[bytes, None, None]:
    """Yield each value as JSON.

    Args:
        file: the decompressed content.
        max_bytes: the longest value.

    Raises:
        ArrayError: a value is not valid JSON, cut off or too long.
    """
    with open_text(file) as reader:
        yield from _decode(reader, max_bytes)


@contextmanager
def open_text(file: IO[bytes], newline: str | None = None) -> Iterator[io.TextIOWrapper]:
    """Yield the text of an open file, which stays open; bytes that are not UTF-8 survive, to be counted by row."""
    reader = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline=newline)
    try:
        yield reader
    finally:
        reader.detach()


def _decode(reader: io.TextIOWrapper, max_bytes: int) -> Iterator[bytes]:
    decoder = json.JSONDecoder()
    text, at, row, ended = "", 0, 1, False
    while True:
        found = BETWEEN.match(text, at)
        at = found.end() if found else at
        try:
            if at < len(text):
                _, end = decoder.raw_decode(text, at)
                if end < len(text) or ended:  # a number at the end may be cut
                    yield text[at:end].encode("utf-8", "surrogateescape")
                    at, row = end, row + 1
                    continue
        except RecursionError as error:
            raise ArrayError(f"value {row} of the array is nested too deeply") from error
        except ValueError as error:
            if ended or len(text) - at > max_bytes:
                raise ArrayError(f"value {row} of the array is not JSON, or cut off") from error
        if ended:
            return
        # As much again as is pending, so that a long value is parsed a few times only.
        more = reader.read(max(BLOCK, len(text) - at))
        text, at, ended = text[at:] + more, 0, not more
