"""Sources of evaluation texts and items: files in the repository, files of the user, the hub."""

import gzip
import json
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from src.bounds import PositiveInt
from src.errors import one_line

EMBEDDED = Path(__file__).parent / "embedded"
PREFIX = "embedded:"
OPENERS: dict[str, Callable[..., IO[str]]] = {".xz": lzma.open, ".gz": gzip.open}
#: Items of the published data sets, of which a shorter file is a part.
PUBLISHED_ITEMS = {
    "arc_easy": 2376,
    "hellaswag": 10042,
    "piqa": 1838,
    "winogrande": 1267,
    "lambada_openai": 5153,
}
PROTOCOL_NAMES = ("windows", "sliding", "words", "bytes", "last_word")


def resolve_path(key: str, path: str) -> Path:
    """Return the path that a configuration names; `embedded:<name>` is a file in the repository.

    Raises:
        ValueError: there is no such file.
    """
    found = EMBEDDED / path.removeprefix(PREFIX) if path.startswith(PREFIX) else Path(path)
    if not found.is_file():
        raise ValueError(f"{key}={path}: no such file; give a .jsonl(.xz|.gz) or .txt file, or null")
    return found


def read_texts(path: Path, field: str) -> list[str]:
    """Return the documents of a file: the rows of a .jsonl(.xz|.gz), or a text file as one document.

    Raises:
        ValueError: the file is damaged, or a row is not a JSON object with a text in `field`.
    """
    try:
        return _read_texts(path, field)
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged ({one_line(error)}); restore it") from error


def _read_texts(path: Path, field: str) -> list[str]:
    stem = path.name.removesuffix(path.suffix) if path.suffix in OPENERS else path.name
    with OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8") as file:
        if not stem.endswith((".jsonl", ".json")):
            return [file.read()]
        texts = []
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                raise ValueError(f"{path}, row {number}: not a line of JSON") from None
            text = row.get(field) if isinstance(row, dict) else None
            if not isinstance(text, str):
                items = row.items() if isinstance(row, dict) else ()
                names = ", ".join(key for key, value in items if isinstance(value, str))
                raise ValueError(
                    f"{path}, row {number}: no text in field {field!r}; fields with text: {names or 'none'}"
                )
            texts.append(text)
    return texts


@dataclass(frozen=True)
class TextSet:
    """Text to score: the documents of one file or of a data set on the hub.

    Args:
        path: a file, or null.
        hub: data set, configuration and split on the hub, used if `path` is null; or null.
        field: the rows' field that holds the text.
        join: the text between two rows.
        limit_tokens: the most tokens to score, stated in the result; null scores all.
        protocol: one of `PROTOCOL_NAMES`, described in src/evaluation/protocols.py.
        stride: tokens between the windows of protocol sliding; null for the others.
    """

    path: str | None
    hub: list[str] | None
    field: str
    join: str
    limit_tokens: PositiveInt | None
    protocol: str
    stride: int | None

    def check(self, key: str, block_size: int) -> None:
        """Raise an error that names `key` if a value is out of bounds.

        Raises:
            ValueError: an unknown protocol, or a stride or hub entry out of bounds.
        """
        if self.hub is not None and len(self.hub) != 3:
            raise ValueError(f"{key}.hub must be [data set, configuration, split] or null, got {self.hub}")
        if self.protocol not in PROTOCOL_NAMES:
            names = ", ".join(PROTOCOL_NAMES)
            raise ValueError(f"{key}.protocol must be one of {names}, got {self.protocol}")
        if (self.protocol == "sliding") != (self.stride is not None):
            raise ValueError(f"{key}.stride goes with {key}.protocol=sliding and must be null for the others")
        if self.stride is not None and not 1 <= self.stride <= block_size:
            raise ValueError(
                f"{key}.stride must be between 1 and model.block_size, {block_size}, got {self.stride}; "
                "a larger stride leaves tokens out"
            )

    def read_rows(self, key: str) -> list[str] | None:
        """Return the documents, or None if neither a file nor a data set is named.

        Raises:
            ValueError: they cannot be read, or a row has no text.
        """
        if self.path is not None:
            return read_texts(resolve_path(f"{key}.path", self.path), self.field)
        if self.hub is None:
            return None
        from datasets import load_dataset

        name, config, split = self.hub
        try:
            rows = load_dataset(name, config, split=split)
        except Exception as error:  # the hub's client raises many kinds: the network, access, a wrong name
            raise ValueError(
                f"{key}.hub={name} could not be fetched ({type(error).__name__}); check the network, "
                f"give {key}.path=<file>, or {key}.hub=null to leave it out"
            ) from error
        return _require_texts(f"{key}.hub={name}", rows, self.field)


def _require_texts(source: str, rows: Any, field: str) -> list[str]:  # rows is a Dataset of the hub's client, untyped
    """Return a column of a data set whose values are all texts.

    Raises:
        ValueError: there is no such column, or a value of another type.
    """
    if field not in rows.column_names:
        raise ValueError(f"{source} has no column {field!r}; its columns: {', '.join(rows.column_names)}")
    texts = list(rows[field])
    wrong = next((number for number, text in enumerate(texts, 1) if not isinstance(text, str)), None)
    if wrong is not None:
        raise ValueError(f"{source}, row {wrong}: no text in column {field!r}, but {texts[wrong - 1]!r:.40}")
    return texts
