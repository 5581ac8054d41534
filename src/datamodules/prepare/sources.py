"""Sources of documents: local files, a Hugging Face data set on disk, or one streamed from the hub.

A source yields chunks from a cursor on, always the same rows in the same order. Its identity is independent of the
folder that the files are in, and changes with their content.
"""

import copy
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from src.datamodules.prepare.columns import Column, split_field
from src.datamodules.prepare.discovery import find_files, is_saved_data_set
from src.datamodules.prepare.documents import Chunk, Cursor, file_chunks, table_chunk
from src.datamodules.prepare.token_files import IdForm, files_of, is_token_file, token_chunks
from src.datamodules.shards.format import hash_blocks
from src.errors import UserError, one_line

HUB = "hf://datasets/"
ROWS_AT_ONCE = 256
#: Parts are at most so many runs of files, or so many rows of a data set on disk.
MAX_PARTS, PART_ROWS = 1000, 1 << 16
N_BLOCKS = 16


class Source(Protocol):
    """Documents in a fixed order.

    Attributes:
        numbers_through: true if rows are numbered through all parts, false if from 1 on in each file.
    """

    numbers_through: ClassVar[bool]

    @property
    def n_part(self) -> int:
        """Number of parts, which tasks tokenize independently of each other."""

    def identity(self) -> dict[str, Any]:
        """Return `address`, and a `revision` that changes with the content."""

    def chunks(self, cursor: Cursor) -> Iterator[Chunk]:
        """Yield the rows from a chunk's cursor on, `{}` for all."""

    def part(self, number: int) -> Iterator[Chunk]:
        """Yield all rows of one part, numbered from 1 on; the parts in order are all rows."""


def open_source(address: str, field: Column | None = None, form: IdForm | None = None) -> Source:
    """Return the source that `prepare.source` names.

    Args:
        address: files, or a data set on disk or on the hub.
        field: field or column of the documents; None for `text`.
        form: form of ids in files that do not state it; None if the source must hold text.

    Raises:
        UserError: there is nothing to read.
    """
    field = field or Column()
    if address.startswith(HUB):
        return HubSource.open(address, field)
    place = Path(address)
    if is_saved_data_set(place):
        return DiskSource.open(place, field)
    place, found = find_files(address, f"a data set saved to disk, or {HUB}<owner>/<name>")
    names = [p.relative_to(place).as_posix() if p.is_relative_to(place) else p.name for p in found]
    return FileSource(Path(address).name, tuple(found), tuple(names), field, form)


@dataclass(frozen=True)
class FileSource:
    """Local files, one after the other by name."""

    address: str
    paths: tuple[Path, ...]
    names: tuple[str, ...]
    field: Column
    form: IdForm | None
    numbers_through: ClassVar[bool] = False

    @property
    def n_part(self) -> int:
        return min(len(self.paths), MAX_PARTS)

    def identity(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for path, name in zip(self.paths, self.names, strict=True):
            digest.update(f"{name} {path.stat().st_size}\n".encode())
            for file in files_of(path):
                hash_blocks(digest, file, N_BLOCKS)
        return {"address": self.address, "files": len(self.paths), "revision": digest.hexdigest()}

    def chunks(self, cursor: Cursor) -> Iterator[Chunk]:
        sizes = [path.stat().st_size for path in self.paths]
        first = int(cursor.get("file", 0))
        for i in range(first, len(self.paths)):
            start = cursor if i == first else {}
            for chunk in self._read(i, start):
                share = (sum(sizes[:i]) + (chunk.share or 0.0) * sizes[i]) / max(1, sum(sizes))
                yield replace(chunk, cursor={"file": i, **chunk.cursor}, share=share)

    def part(self, number: int) -> Iterator[Chunk]:
        first, end = (len(self.paths) * n // self.n_part for n in (number, number + 1))
        for i in range(first, end):
            yield from self._read(i, {})

    def _read(self, i: int, cursor: Cursor) -> Iterator[Chunk]:
        if is_token_file(self.paths[i]):
            return token_chunks(self.paths[i], self.names[i], cursor, self.form)
        return file_chunks(self.paths[i], self.names[i], cursor, self.field)


@dataclass(frozen=True)
class DiskSource:
    """Data set that `datasets` saved to disk, memory-mapped."""

    address: str
    rows: Any  # datasets.Dataset, arrow-formatted
    field: Column
    numbers_through: ClassVar[bool] = True

    @property
    def n_part(self) -> int:
        return -(-len(self.rows) // PART_ROWS)

    @classmethod
    def open(cls, place: Path, field: Column) -> "DiskSource":
        """Open the data set, or its `train` split if it has several."""
        from datasets import load_from_disk

        try:
            found = load_from_disk(str(place))
        except (OSError, ValueError) as error:
            raise UserError(f"prepare.source={place} cannot be opened ({one_line(error)})") from error
        if isinstance(found, dict):
            if "train" not in found:
                raise UserError(
                    f"prepare.source={place} has no split train but {', '.join(found)}; give one split's folder"
                )
            found = found["train"]
        split_field(found.features.arrow_schema, field, f"prepare.source={place}")
        return cls(place.name, found.with_format("arrow"), field)

    def identity(self) -> dict[str, Any]:
        files = [(Path(f["filename"]).name, Path(f["filename"]).stat().st_size) for f in self.rows.cache_files]
        state = json.dumps([files, len(self.rows), self.rows._fingerprint], sort_keys=True)
        revision = hashlib.sha256(state.encode()).hexdigest()
        return {"address": self.address, "rows": len(self.rows), "revision": revision}

    def chunks(self, cursor: Cursor) -> Iterator[Chunk]:
        return self._read(int(cursor.get("row", 0)), 0, len(self.rows))

    def part(self, number: int) -> Iterator[Chunk]:
        first = number * PART_ROWS
        return self._read(first, first, min(first + PART_ROWS, len(self.rows)))

    def _read(self, start: int, first: int, end: int) -> Iterator[Chunk]:
        """Yield the rows from `start` to `end`, numbered and their share counted from `first` on."""
        for at in range(start, end, ROWS_AT_ONCE):
            table = self.rows[at : min(at + ROWS_AT_ONCE, end)]
            share = (at - first + len(table)) / (end - first)
            yield table_chunk(table, {"row": at}, self.address, at - first + 1, share, self.field)


@dataclass(frozen=True)
class HubSource:
    """Split train of a data set on the hub, streamed: `hf://datasets/<owner>/<name>[@<revision>][:<config>]`."""

    address: str
    revision: str
    rows: Any  # datasets.IterableDataset, arrow-formatted
    n_rows: int | None
    field: Column
    numbers_through: ClassVar[bool] = True

    @property
    def n_part(self) -> int:
        return int(self.rows.num_shards)

    @classmethod
    def open(cls, address: str, field: Column) -> "HubSource":
        """Resolve the revision, so that a continued preparation reads the same, and open the stream."""
        from datasets import load_dataset
        from huggingface_hub import HfApi

        place, _, config = address.removeprefix(HUB).partition(":")
        name, _, revision = place.partition("@")
        if name.count("/") != 1:
            raise UserError(f"prepare.source={address} must be {HUB}<owner>/<name>[@<revision>][:<config>]")
        try:
            sha = str(HfApi().dataset_info(name, revision=revision or None).sha)
            rows = load_dataset(name, config or None, split="train", streaming=True, revision=sha)
        except Exception as error:  # the hub's client raises many kinds: the network, access, a wrong name
            raise UserError(
                f"prepare.source={address} could not be opened ({type(error).__name__}: {one_line(error)[:200]}); "
                "check the name and the network, or give local files"
            ) from error
        splits = rows.info.splits or {}
        n_rows = splits["train"].num_examples if "train" in splits else None
        known = f"{HUB}{name}:{config}" if config else f"{HUB}{name}"
        return cls(known, sha, rows.with_format("arrow"), n_rows, field)

    def identity(self) -> dict[str, Any]:
        return {"address": self.address, "revision": self.revision}

    def chunks(self, cursor: Cursor) -> Iterator[Chunk]:
        # A copy: the state of a stream that was read from is not that of its start.
        rows = copy.deepcopy(self.rows)
        if cursor:
            rows.load_state_dict(cursor["state"])
        row, state = int(cursor.get("row", 0)), rows.state_dict()
        try:
            for table in rows.iter(ROWS_AT_ONCE):
                share = min(1.0, (row + len(table)) / self.n_rows) if self.n_rows else None
                yield table_chunk(table, {"row": row, "state": state}, self.address, row + 1, share, self.field)
                row, state = row + len(table), rows.state_dict()
        except UserError:
            raise
        except Exception as error:  # as in `open`
            raise UserError(
                f"prepare.source={self.address} broke off after row {row} ({type(error).__name__}: "
                f"{one_line(error)[:200]}); complete shards are kept, run again to continue"
            ) from error

    def part(self, number: int) -> Iterator[Chunk]:
        return replace(self, rows=self.rows.shard(self.n_part, number), n_rows=None).chunks({})
