"""Token shards in the llm.c / modded-nanogpt `.bin` format.

256 little-endian int32 of header ([0] 20240520, [1] version 1, [2] number of tokens), then uint16 tokens
from byte 1024; the end-of-text token stands before each document.

Source: karpathy/llm.c, dev/data; KellerJordan/modded-nanogpt, data/.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from src.artefacts import write_atomic

Tokens = NDArray[np.uint16]

MAGIC, VERSION = 20240520, 1
HEADER_INTS, HEADER_BYTES = 256, 1024
#: Other formats' first word, to name what was given instead.
KNOWN_MAGICS = {20240801: "a Llama-3 shard (uint32 tokens)"}
BLOCK_BYTES, N_BLOCKS, WHOLE_BYTES = 4096, 64, 8 << 20


class ShardError(ValueError):
    """A token file that cannot be read right; says which, where, what was found and what expected."""


@dataclass(frozen=True)
class TokenShard:
    """One shard, memory-mapped; `tokens` is the whole of it."""

    path: Path
    tokens: Tokens

    @classmethod
    def open(cls, path: Path) -> "TokenShard":
        """Map a shard after checking header and size.

        Raises:
            ShardError: not this format, truncated, longer than its header says, or unreadable.
        """
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                header = np.frombuffer(file.read(HEADER_BYTES), dtype="<i4", count=min(size, HEADER_BYTES) // 4)
        except OSError as error:
            raise ShardError(f"{path}: cannot be read ({error.strerror})") from error
        if size < HEADER_BYTES:
            raise ShardError(f"{path}: {size} bytes, less than the header of {HEADER_BYTES}; make it again")
        if header[0] != MAGIC:
            what = KNOWN_MAGICS.get(int(header[0]), "perhaps a headerless file of nanoGPT")
            raise ShardError(
                f"{path}: byte 0 holds {header[0]}, expected the magic number {MAGIC} of a .bin shard "
                f"({what}); make llm.c shards of it"
            )
        if header[1] != VERSION:
            raise ShardError(f"{path}: byte 4 holds version {header[1]}, expected {VERSION}; make it again")
        expected = HEADER_BYTES + 2 * int(header[2])
        if size != expected:
            how = "truncated" if size < expected else "longer than its header says"
            raise ShardError(
                f"{path}: {how}, {size} bytes where a header of {header[2]} tokens asks for {expected}; "
                "fetch or make it again"
            )
        if header[2] <= 0:
            raise ShardError(f"{path}: its header says {header[2]} tokens; make it again")
        return cls(path, np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(int(header[2]),)))

    def check_size(self) -> None:
        """Refuse a file that was cut since it was mapped (reading it would kill the process)."""
        try:
            size = self.path.stat().st_size
        except OSError as error:
            raise ShardError(f"{self.path}: gone while in use ({error.strerror})") from error
        if size < HEADER_BYTES + 2 * len(self.tokens):
            raise ShardError(f"{self.path}: cut to {size} bytes while in use; restore it")

    def check_ids(self, start: int, tokens: Tokens, vocab_size: int) -> None:
        """Refuse ids outside the model's vocabulary; `tokens` were read from position `start` on."""
        if tokens.size and int(tokens.max()) >= vocab_size:
            at = start + int(np.argmax(tokens >= vocab_size))
            raise ShardError(
                f"{self.path}: token {at} (byte {HEADER_BYTES + 2 * at}) has id {self.tokens[at]}, "
                f"model.vocab_size is {vocab_size}; "
                "raise model.vocab_size or make the shards with its tokenizer"
            )

    def fingerprint(self) -> str:
        """A hash of name, size and content; of a large file's content, header and 64 blocks spread evenly."""
        digest = hashlib.sha256(f"{self.path.name} {len(self.tokens)}\n".encode())
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            if size <= WHOLE_BYTES:
                digest.update(file.read())
            else:
                for i in range(N_BLOCKS + 1):
                    file.seek(i * (size - BLOCK_BYTES) // N_BLOCKS)
                    digest.update(file.read(BLOCK_BYTES))
        return digest.hexdigest()


def write_shard(path: Path, tokens: Tokens) -> None:
    """Write one shard, atomically."""
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:3] = MAGIC, VERSION, len(tokens)
    write_atomic(path, header.tobytes() + tokens.astype("<u2").tobytes())


def find_shards(folder: Path) -> tuple[list[Path], list[Path]]:
    """A folder's validation and training shards by name, each in order.

    Raises:
        ShardError: no such folder, or one of the two kinds is not there.
    """
    if not folder.is_dir():
        raise ShardError(
            f"data.path={folder} is no folder; give one that holds *val*.bin and *train*.bin shards"
        )
    files = sorted(folder.glob("*.bin"))
    val = [path for path in files if "val" in path.name]
    train = [path for path in files if "train" in path.name]
    for name, found in (("val", val), ("train", train)):
        if not found:
            raise ShardError(
                f"data.path={folder} holds no *{name}*.bin ({len(files)} .bin files in all); "
                "published shards are named fineweb_val_000000.bin, fineweb_train_000001.bin, ..."
            )
    return val, train


class Windows:
    """Disjoint windows of a fixed length over a list of shards; a window never spans two shards.

    Args:
        shards: in order.
        length: tokens of a window.
        vocab_size: ids at or above it are refused when read.
    """

    def __init__(self, shards: Sequence[TokenShard], length: int, vocab_size: int) -> None:
        self.shards = shards
        self.length = length
        self.vocab_size = vocab_size
        self._ends = np.cumsum([len(shard.tokens) // length for shard in shards])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, windows: NDArray[np.int64]) -> Tokens:
        """Windows by number, [n] -> tokens [n, length]."""
        out = np.empty((len(windows), self.length), dtype=np.uint16)
        shard_of = np.searchsorted(self._ends, windows, side="right")
        for s in set(shard_of.tolist()):
            self.shards[s].check_size()
        for i, (window, s) in enumerate(zip(windows, shard_of, strict=True)):
            shard = self.shards[s]
            first = int(self._ends[s - 1]) if s else 0
            start = (int(window) - first) * self.length
            out[i] = shard.tokens[start : start + self.length]
            shard.check_ids(start, out[i], self.vocab_size)
        return out
