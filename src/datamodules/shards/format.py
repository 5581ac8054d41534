"""Token shards, read where they lie.

    format      header                                                  tokens, little-endian
    llm.c       256 int32: [0] 20240520, [1] version 1, [2] n tokens    uint16 from byte 1024
    Llama-3     256 int32: [0] 20240801, [1] version 7, [2] n tokens    uint32 from byte 1024
    nanoGPT     none                                                    uint16 from byte 0

In the first two the end-of-text token (50256; 128000) stands before each document, in the last after it. A
nanoGPT file has no mark of its own, so it is read only where it was declared to be one.

Source: karpathy/llm.c, dev/data; KellerJordan/modded-nanogpt, data/; karpathy/nanoGPT, data/openwebtext.
"""

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from src.files import write_atomic

#: Ids as they lie in the file.
Tokens = NDArray[np.uint16] | NDArray[np.uint32]

MAGIC, VERSION = 20240520, 1
HEADER_INTS, HEADER_BYTES = 256, 1024
BLOCK_BYTES, N_BLOCKS, WHOLE_BYTES = 4096, 64, 8 << 20


class Format(NamedTuple):
    """How a file of tokens is laid out."""

    name: str
    version: int
    dtype: str
    end_of_text: int
    header_bytes: int
    marks_before: bool  # the end-of-text token stands before its document


FORMATS = {
    MAGIC: Format("llm.c", VERSION, "<u2", 50256, HEADER_BYTES, True),
    20240801: Format("Llama-3", 7, "<u4", 128000, HEADER_BYTES, True),
}
NANOGPT = Format("nanoGPT", 0, "<u2", 50256, 0, False)


class ShardError(ValueError):
    """Data that cannot be read right; says which file, where, what was found and what expected."""


class _Descriptor:
    """A file held open for reading, closed when nothing refers to it any more."""

    def __init__(self, path: Path) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


@dataclass(frozen=True)
class TokenShard:
    """One shard of `n_tokens`, held open; `sha256` is what a manifest says of the file.

    `tokens` maps the whole of it. Training reads with `read`: whoever touches the mapped page of a file that
    was cut meanwhile is killed (SIGBUS), where a read is answered with fewer bytes.
    """

    path: Path
    n_tokens: int
    format: Format
    file: _Descriptor
    sha256: str | None = None

    @classmethod
    def open(cls, path: Path, *, headerless: bool = False) -> "TokenShard":
        """Open a shard after checking header and size.

        Args:
            path: the file.
            headerless: whether it was declared to be nanoGPT's.

        Raises:
            ShardError: not this format, truncated, longer than its header says, or unreadable.
        """
        try:
            file = _Descriptor(path)
            size = os.fstat(file.number).st_size
            header = np.frombuffer(
                os.pread(file.number, HEADER_BYTES, 0), dtype="<i4", count=min(size, HEADER_BYTES) // 4
            )
        except OSError as error:
            raise ShardError(f"{path}: cannot be read ({error.strerror})") from error
        form, count = (_headerless if headerless else _headed)(path, size, header)
        return cls(path, count, form, file)

    @cached_property
    def tokens(self) -> Tokens:
        """All of it, memory-mapped."""
        with os.fdopen(os.dup(self.file.number), "rb") as file:
            return np.memmap(
                file, self.format.dtype, mode="r", offset=self.format.header_bytes, shape=(self.n_tokens,)
            )

    def read(self, start: int, count: int) -> Tokens:
        """Tokens `start` to `start + count`, copied.

        Raises:
            ShardError: the file was cut since it was opened, or cannot be read any more.
        """
        out = np.empty(count, dtype=self.format.dtype)
        left, at = out.data.cast("B"), self.byte_of(start)
        while left:
            try:
                n = os.preadv(self.file.number, [left], at)
            except OSError as error:
                raise ShardError(f"{self.path}: cannot be read any more ({error.strerror})") from error
            if n == 0:
                size = os.fstat(self.file.number).st_size
                raise ShardError(f"{self.path}: cut to {size} bytes while in use; restore it")
            left, at = left[n:], at + n
        return out

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    def shard(self) -> "TokenShard":
        """Itself: a local shard needs no fetching."""
        return self

    def expect(self, order: int) -> None:
        """Nothing to do: it is here."""

    def close(self) -> None:
        """Nothing to let go."""

    def byte_of(self, token: int) -> int:
        """Where a token lies in the file."""
        return self.format.header_bytes + token * np.dtype(self.format.dtype).itemsize

    def check_ids(self, start: int, tokens: Tokens, vocab_size: int) -> None:
        """Refuse ids outside the model's vocabulary; `tokens` were read from position `start` on."""
        if tokens.size and int(tokens.max()) >= vocab_size:
            at = start + int(np.argmax(tokens >= vocab_size))
            raise ShardError(
                f"{self.path}: token {at} (byte {self.byte_of(at)}) has id {tokens[at - start]}, "
                f"model.vocab_size is {vocab_size}; "
                "raise model.vocab_size or make the shards with its tokenizer"
            )

    def document_starts(self) -> NDArray[np.int64]:
        """Positions at which a document begins, from the file's end-of-text tokens."""
        marks = np.flatnonzero(self.tokens == self.format.end_of_text)
        if self.format.marks_before:
            return marks
        return np.concatenate([[0], marks[marks + 1 < len(self.tokens)] + 1])

    def stamp(self) -> dict[str, str | int]:
        """What identifies it, wherever it lies: the manifest's hash, or one of sampled content."""
        known = {"sha256": self.sha256} if self.sha256 else {"sha256_sampled": self.fingerprint()}
        return {"name": self.name, "tokens": self.n_tokens, **known}

    def fingerprint(self) -> str:
        """A hash of name, size and content; of a large file's content, header and 64 blocks spread evenly."""
        digest = hashlib.sha256(f"{self.path.name} {self.n_tokens}\n".encode())
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            if size <= WHOLE_BYTES:
                digest.update(file.read())
            else:
                for i in range(N_BLOCKS + 1):
                    file.seek(i * (size - BLOCK_BYTES) // N_BLOCKS)
                    digest.update(file.read(BLOCK_BYTES))
        return digest.hexdigest()


def _headed(path: Path, size: int, header: NDArray[np.int32]) -> tuple[Format, int]:
    if size < HEADER_BYTES:
        raise ShardError(f"{path}: {size} bytes, less than the header of {HEADER_BYTES}; make it again")
    form = FORMATS.get(int(header[0]))
    if form is None:
        raise ShardError(
            f"{path}: byte 0 holds {header[0]}, expected a magic number of a .bin shard "
            f"({', '.join(f'{magic} of {f.name}' for magic, f in FORMATS.items())}); "
            "perhaps a headerless file of nanoGPT, to be declared by nanogpt: before its path"
        )
    if header[1] != form.version:
        raise ShardError(f"{path}: byte 4 holds version {header[1]}, expected {form.version}; make it again")
    count = int(header[2])
    expected = HEADER_BYTES + np.dtype(form.dtype).itemsize * count
    if size != expected:
        how = "truncated" if size < expected else "longer than its header says"
        raise ShardError(
            f"{path}: {how}, {size} bytes where a header of {count} tokens asks for {expected}; "
            "fetch or make it again"
        )
    if count <= 0:
        raise ShardError(f"{path}: its header says {count} tokens; make it again")
    return form, count


def _headerless(path: Path, size: int, header: NDArray[np.int32]) -> tuple[Format, int]:
    if len(header) and int(header[0]) in FORMATS:
        raise ShardError(
            f"{path}: byte 0 holds {header[0]}, the magic number of {FORMATS[int(header[0])].name}, but it was "
            "declared headerless; leave out nanogpt: before its path"
        )
    if not size:
        raise ShardError(f"{path}: 0 bytes; make it again")
    if size % 2:
        raise ShardError(
            f"{path}: {size} bytes are no whole number of uint16 tokens, the last is cut; make it again"
        )
    return NANOGPT, size // 2


def write_shard(path: Path, tokens: NDArray[np.uint16]) -> None:
    """Write one llm.c shard, atomically."""
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:3] = MAGIC, VERSION, len(tokens)
    write_atomic(path, header.tobytes() + tokens.astype("<u2").tobytes())
