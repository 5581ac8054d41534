"""Where evaluation texts and items come from: files in the project, files of the user, the hub."""

import gzip
import json
import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import IO

EMBEDDED = Path(__file__).parent / "embedded"
PREFIX = "embedded:"
PROTOCOL_NAMES = ("windows", "sliding", "words", "bytes", "last_word")


def resolve_path(key: str, path: str) -> Path:
    """A path as written in a configuration; `embedded:<name>` is a file that the project carries.

    Raises:
        ValueError: there is no such file.
    """
    found = EMBEDDED / path.removeprefix(PREFIX) if path.startswith(PREFIX) else Path(path)
    if not found.is_file():
        raise ValueError(f"{key}={path}: no such file; give a .jsonl(.xz|.gz) or .txt file, or null")
    return found


def read_texts(path: Path, field: str) -> list[str]:
    """The documents of a file: rows of a .jsonl(.xz|.gz), or a whole text file as one.

    Raises:
        ValueError: rows that are not JSON objects with a text in `field`.
    """
    stem = path.name.removesuffix(path.suffix) if path.suffix in (".xz", ".gz") else path.name
    with _opened(path) as file:
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
                there = (
                    [key for key, value in row.items() if isinstance(value, str)]
                    if isinstance(row, dict)
                    else []
                )
                raise ValueError(
                    f"{path}, row {number}: no text in field {field!r}; texts there: {', '.join(there) or 'none'}"
                )
            texts.append(text)
    return texts


def _opened(path: Path) -> IO[str]:
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


@dataclass(frozen=True)
class TextSet:
    """A text to score: one file, or a hub data set, as one stream of documents.

    Args:
        path: a file, or null.
        hub: data set, configuration and split on the hub, read where `path` is null; or null.
        field: the rows' field that holds the text.
        join: what stands between two rows in the stream.
        limit_tokens: score only the first so many tokens, and say so; null scores all.
        protocol: one of `PROTOCOL_NAMES`; src/evaluation/protocols.py says what they are.
        stride: tokens between the windows of protocol sliding; null for the others.
    """

    path: str | None
    hub: list[str] | None
    field: str
    join: str
    limit_tokens: int | None
    protocol: str
    stride: int | None

    def check(self, key: str, block_size: int) -> None:
        """Refuse, naming `key`, a protocol or a stride that cannot be.

        Raises:
            ValueError: likewise.
        """
        if self.limit_tokens is not None and self.limit_tokens < 1:
            raise ValueError(f"{key}.limit_tokens must be null or at least 1, got {self.limit_tokens}")
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
                "a larger one would leave tokens out"
            )

    def rows(self, key: str) -> list[str] | None:
        """The documents, or None where neither file nor hub was named."""
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
        return list(rows[self.field])
