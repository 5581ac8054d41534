"""Formats of token shards, and reading a shard in place.

    format      header                                                  tokens, little-endian
    llm.c       256 int32: [0] 20240520, [1] version 1, [2] n tokens    uint16 from byte 1024
    Llama-3     256 int32: [0] 20240801, [1] version 7, [2] n tokens    uint32 from byte 1024
    nanoGPT     none                                                    uint16 from byte 0

In the first two the end-of-text token (50256; 128000) precedes each document, in the last it follows. A nanoGPT
file has no magic number, so it must be declared. Shards of another tokenizer, whose end of text the manifest states, have
the first format for up to 65,536 ids and else the second.

Source: karpathy/llm.c, dev/data; KellerJordan/modded-nanogpt, data/; karpathy/nanoGPT, data/openwebtext.
"""

import hashlib
import os
import resource
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from src.files import is_lfs_pointer, write_atomic

#: Ids with the dtype of the file.
Tokens = NDArray[np.uint16] | NDArray[np.uint32]

HEADER_INTS, HEADER_BYTES = 256, 1024
#: A fingerprint hashes files up to `FULL_HASH_BYTES` as a whole, and blocks of larger ones.
BLOCK_BYTES, N_BLOCKS, FULL_HASH_BYTES = 4096, 64, 8 << 20


class Format(NamedTuple):
    """Layout of a file of tokens."""

    name: str
    magic: int
    version: int
    dtype: str
    end_of_text: int
    header_bytes: int
    marks_before: bool  # the end-of-text token precedes its document


LLM_C = Format("llm.c", 20240520, 1, "<u2", 50256, HEADER_BYTES, True)
LLAMA_3 = Format("Llama-3", 20240801, 7, "<u4", 128000, HEADER_BYTES, True)
NANOGPT = Format("nanoGPT", 0, 0, "<u2", 50256, 0, False)
#: Formats with a header, by magic number.
FORMATS = {LLM_C.magic: LLM_C, LLAMA_3.magic: LLAMA_3}


def choose_format(n_vocab: int) -> Format:
    """Return the format that shards of a tokenizer are written in: the narrowest that holds its ids."""
    return LLM_C if n_vocab <= 2**16 else LLAMA_3


class ShardError(ValueError):
    """Data that cannot be read; the message names the file, the position, the value and the expected one."""


class _Descriptor:
    """File that is open for reading until nothing refers to it."""

    def __init__(self, path: Path) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class OpenFiles:
    """Files that a process reads in turn: at most `max_open` are open, the least recently read one is closed first.

    Args:
        max_open: at least 1; None for a quarter of the files that the process may have open.
    """

    def __init__(self, max_open: int | None = None) -> None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.max_open = max(1, limit // 4) if max_open is None else max_open
        self._open: dict[Path, _Descriptor] = {}  # in the order of the last reads
        self._inodes: dict[Path, int] = {}

    def get(self, path: Path) -> int:
        """Return the descriptor of a file, opened if needed.

        Raises:
            OSError: the file cannot be opened.
            ShardError: it is another file than at first.
        """
        found = self._open.pop(path, None) or _Descriptor(path)
        self._open[path] = found
        while len(self._open) > self.max_open:
            del self._open[next(iter(self._open))]  # nothing else refers to it, so it is closed
        inode = os.fstat(found.number).st_ino
        if self._inodes.setdefault(path, inode) != inode:
            raise ShardError(f"{path}: replaced while in use; restore the file, or start the run again")
        return found.number


@dataclass(frozen=True)
class ShardSlot(ABC):
    """Shard that is local, or remote and fetched when it is loaded."""

    name: str
    n_tokens: int

    @abstractmethod
    def load(self) -> "TokenShard":
        """Return the open shard."""

    @abstractmethod
    def stamp(self) -> dict[str, str | int]:
        """Return what identifies the content, independent of the place."""

    def prefetch(self, order: int) -> None:  # noqa: B027  # a local shard is ready
        """Queue the shard to be fetched for a `load` after `order` other shards."""

    def close(self) -> None:  # noqa: B027
        """Release what can be loaded again."""


@dataclass(frozen=True)
class TokenShard(ShardSlot):
    """Open shard of a local file; `sha256` is the file's hash according to a manifest.

    `tokens` maps the whole file. Training reads with `read`: a process that touches a mapped page of a truncated
    file is killed (SIGBUS), whereas a read returns fewer bytes.
    """

    path: Path
    format: Format
    files: OpenFiles
    sha256: str | None = None

    @classmethod
    def open(
        cls, path: Path, *, headerless: bool = False, files: OpenFiles | None = None, end_of_text: int | None = None
    ) -> "TokenShard":
        """Open a shard after checking header and size.

        Args:
            path: the file.
            headerless: true for a file of nanoGPT.
            files: the open files that the shard shares with others; None keeps its own open.
            end_of_text: id of end of text; None for the format's own.

        Raises:
            ShardError: another format, a size that the header contradicts, or an unreadable file.
        """
        files = OpenFiles(max_open=1) if files is None else files
        try:
            number = files.get(path)
            size = os.fstat(number).st_size
            header = np.frombuffer(os.pread(number, HEADER_BYTES, 0), dtype="<i4", count=min(size, HEADER_BYTES) // 4)
        except OSError as error:
            raise ShardError(f"{path}: cannot be read ({error.strerror})") from error
        if is_lfs_pointer(path):
            raise ShardError(f"{path}: a Git LFS pointer, not the content; run git lfs pull where it was cloned")
        check = _check_headerless if headerless else check_header
        format_, n_tokens = check(path, size, header)
        if end_of_text is not None:
            format_ = format_._replace(end_of_text=end_of_text)
        return cls(path.name, n_tokens, path, format_, files)

    @cached_property
    def tokens(self) -> Tokens:
        """Return all tokens, memory-mapped."""
        with os.fdopen(os.dup(self.files.get(self.path)), "rb") as file:
            return np.memmap(file, self.format.dtype, mode="r", offset=self.format.header_bytes, shape=(self.n_tokens,))

    def read(self, start: int, count: int) -> Tokens:
        """Return a copy of tokens `start` to `start + count - 1`.

        Raises:
            ShardError: the file was truncated since it was opened, or cannot be read any more.
        """
        out = np.empty(count, dtype=self.format.dtype)
        rest, position = out.data.cast("B"), self.byte_of(start)
        while rest:
            try:
                number = self.files.get(self.path)
                n = os.preadv(number, [rest], position)
            except OSError as error:
                raise ShardError(f"{self.path}: cannot be read any more ({error.strerror})") from error
            if n == 0:
                size = os.fstat(number).st_size
                raise ShardError(f"{self.path}: cut to {size} bytes while in use; restore it")
            rest, position = rest[n:], position + n
        return out

    def load(self) -> "TokenShard":
        return self

    def byte_of(self, token: int) -> int:
        """Return the position of a token in the file, in bytes."""
        return self.format.header_bytes + token * np.dtype(self.format.dtype).itemsize

    def check_ids(self, start: int, tokens: Tokens, vocab_size: int) -> None:
        """Raise `ShardError` if one of `tokens`, read from position `start` on, is outside the vocabulary."""
        if tokens.size and int(tokens.max()) >= vocab_size:
            index = start + int(np.argmax(tokens >= vocab_size))
            raise ShardError(
                f"{self.path}: token {index} (byte {self.byte_of(index)}) has id {tokens[index - start]}, "
                f"model.vocab_size is {vocab_size}; "
                "raise model.vocab_size or make the shards with its tokenizer"
            )

    def document_starts(self) -> NDArray[np.int64]:
        """Return the positions of the first token of each document, from the end-of-text tokens."""
        marks = np.flatnonzero(self.tokens == self.format.end_of_text)
        if self.format.marks_before:
            return marks
        return np.concatenate([[0], marks[marks + 1 < len(self.tokens)] + 1])

    def stamp(self) -> dict[str, str | int]:
        content = {"sha256": self.sha256} if self.sha256 else {"sha256_sampled": self.fingerprint()}
        return {"name": self.name, "tokens": self.n_tokens, **content}

    def fingerprint(self) -> str:
        """Return a hash of name, size and content; of a large file's content, of 65 blocks at equal distances."""
        digest = hashlib.sha256(f"{self.name} {self.n_tokens}\n".encode())
        if self.path.stat().st_size <= FULL_HASH_BYTES:
            digest.update(self.path.read_bytes())
        else:
            hash_blocks(digest, self.path, N_BLOCKS)
        return digest.hexdigest()


def hash_blocks(digest: "hashlib._Hash", path: Path, n_blocks: int) -> None:
    """Update `digest` with `n_blocks + 1` blocks of a file at equal distances."""
    last = max(0, path.stat().st_size - BLOCK_BYTES)
    with path.open("rb") as file:
        for i in range(n_blocks + 1):
            file.seek(i * last // n_blocks)
            digest.update(file.read(BLOCK_BYTES))


def check_header(path: Path | str, size: int, header: NDArray[np.int32]) -> tuple[Format, int]:
    """Return format and number of tokens of a file of `size` bytes by its header.

    Raises:
        ShardError: another format, or a size that the header contradicts.
    """
    if size < HEADER_BYTES:
        raise ShardError(f"{path}: {size} bytes, less than the header of {HEADER_BYTES}; make it again")
    format_ = FORMATS.get(int(header[0]))
    if format_ is None:
        raise ShardError(
            f"{path}: byte 0 holds {header[0]}, expected a magic number of a .bin shard "
            f"({', '.join(f'{f.magic} of {f.name}' for f in FORMATS.values())}); "
            "if it is a headerless file of nanoGPT, declare it by nanogpt: before its path"
        )
    if header[1] != format_.version:
        raise ShardError(f"{path}: byte 4 holds version {header[1]}, expected {format_.version}; make it again")
    n_tokens = int(header[2])
    expected = HEADER_BYTES + np.dtype(format_.dtype).itemsize * n_tokens
    if size != expected:
        how = "truncated" if size < expected else "longer than its header says"
        raise ShardError(
            f"{path}: {how}, {size} bytes where a header of {n_tokens} tokens asks for {expected}; "
            "fetch or make it again"
        )
    if n_tokens <= 0:
        raise ShardError(f"{path}: its header says {n_tokens} tokens; make it again")
    return format_, n_tokens


def _check_headerless(path: Path, size: int, header: NDArray[np.int32]) -> tuple[Format, int]:
    """Return format and number of tokens of a nanoGPT file."""
    if len(header) and int(header[0]) in FORMATS:
        raise ShardError(
            f"{path}: byte 0 holds {header[0]}, the magic number of {FORMATS[int(header[0])].name}, but it was "
            "declared headerless; leave out nanogpt: before its path"
        )
    if not size:
        raise ShardError(f"{path}: 0 bytes; make it again")
    if size % 2:
        raise ShardError(
            f"{path}: {size} bytes are not a whole number of uint16 tokens, the last is cut; make it again"
        )
    return NANOGPT, size // 2


def encode_header(n_tokens: int, format_: Format = LLM_C) -> bytes:
    """Return the header of a shard."""
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:3] = format_.magic, format_.version, n_tokens
    return header.tobytes()


def write_shard(path: Path, tokens: NDArray[np.uint16]) -> None:
    """Write an llm.c shard atomically."""
    write_atomic(path, encode_header(len(tokens)) + tokens.astype(LLM_C.dtype).tobytes())
