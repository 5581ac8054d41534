"""Windows of a fixed length over shards: disjoint ones, or ones that begin where a document begins.

A window never spans two shards, so a shard can come and go as a whole.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from src.datamodules.shards.format import ShardError, Tokens, TokenShard


class ShardSlot(Protocol):
    """A shard that is here, or that is fetched when asked for."""

    @property
    def name(self) -> str:
        """The file's name."""

    @property
    def n_tokens(self) -> int:
        """How many tokens it has."""

    def shard(self) -> TokenShard:
        """The shard, open."""

    def stamp(self) -> dict[str, str | int]:
        """What identifies it, wherever it lies."""

    def expect(self, order: int) -> None:
        """It will be asked for, after `order` others."""

    def close(self) -> None:
        """Let go of what can be had again."""


def read_validation_windows(
    slots: Sequence[ShardSlot], val_tokens: int, block_size: int, vocab_size: int, place: str
) -> Tokens:
    """Read the first `val_tokens` tokens as windows [N, T + 1] that predict each token once.

    Args:
        slots: validation shards in order.
        val_tokens: rounded down to whole windows.
        block_size: T; consecutive windows share one token.
        vocab_size: ids at or above it raise an error.
        place: name of the shards in messages.

    Raises:
        ShardError: the shards hold fewer tokens.
    """
    T = block_size
    wanted = val_tokens // T * T + 1
    parts: list[Tokens] = []
    missing = wanted
    for slot in slots:
        if missing <= 0:
            break
        shard = slot.shard()
        part = shard.read(0, min(missing, shard.n_tokens))
        shard.check_ids(0, part, vocab_size)
        parts.append(part)
        missing -= len(part)
    if missing > 0:
        raise ShardError(
            f"data.val_tokens={val_tokens} needs {wanted} validation tokens, "
            f"data.path={place} has {wanted - missing}; lower data.val_tokens"
        )
    stream = np.concatenate(parts)
    return np.lib.stride_tricks.sliding_window_view(stream, T + 1)[::T]


class Windows:
    """Disjoint windows, one after the other in each shard; a shard's last few tokens fill none.

    Args:
        shards: in order.
        length: tokens of a window.
        vocab_size: ids at or above it are refused when read.
    """

    def __init__(self, shards: Sequence[ShardSlot], length: int, vocab_size: int) -> None:
        self.shards = shards
        self.length = length
        self.vocab_size = vocab_size
        self.ends = np.cumsum(self._counts())

    def _counts(self) -> list[int]:
        return [shard.n_tokens // self.length for shard in self.shards]

    def _start(self, shard: int, window: int) -> int:
        return window * self.length

    def __len__(self) -> int:
        return int(self.ends[-1])

    def expect(self, shards: Sequence[int]) -> None:
        """These shards will be read, in this order."""
        for order, shard in enumerate(shards):
            self.shards[shard].expect(order)

    def read(self, windows: NDArray[np.int64]) -> Tokens:
        """Windows by number, [n] -> tokens [n, length]; uint16 where every id fits."""
        shard_of = np.searchsorted(self.ends, windows, side="right")
        shape = len(windows), self.length
        out = np.empty(shape, dtype=np.uint32) if self.vocab_size > 2**16 else np.empty(shape, dtype=np.uint16)
        for s in np.unique(shard_of).tolist():
            shard = self.shards[s].shard()
            first = int(self.ends[s - 1]) if s else 0
            for i in np.flatnonzero(shard_of == s):
                start = self._start(s, int(windows[i]) - first)
                found = shard.read(start, self.length)
                shard.check_ids(start, found, self.vocab_size)
                out[i] = found
        return out


class DocumentWindows(Windows):
    """Windows that each begin at a document's start, the next at the first start behind the last one's end.

    What lies between two windows is left out in every epoch. The shards must be local: their starts are
    looked for when this is made.

    Source: KellerJordan/modded-nanogpt, `align_to_bos`.
    """

    def _counts(self) -> list[int]:
        self._starts = [self._document_starts(slot.shard()) for slot in self.shards]
        return [len(starts) for starts in self._starts]

    def _document_starts(self, shard: TokenShard) -> NDArray[np.int64]:
        starts = shard.document_starts()
        if not len(starts):
            raise ShardError(
                f"{shard.path}: no end-of-text token {shard.format.end_of_text}, so no document starts; "
                "use data.order=shuffled"
            )
        last = shard.n_tokens - self.length
        following = np.searchsorted(starts, starts + self.length).tolist()
        kept, i = [], 0
        while i < len(starts) and starts[i] <= last:
            kept.append(i)
            i = following[i]
        return starts[np.array(kept, dtype=np.int64)]

    def _start(self, shard: int, window: int) -> int:
        return int(self._starts[shard][window])
