"""Windows of a fixed length over shards: disjoint ones, or ones that start where a document starts.

A window never spans two shards, so that a shard can be fetched and released as a whole.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from src.datamodules.shards.format import ShardError, ShardSlot, Tokens, TokenShard


def read_validation_windows(
    slots: Sequence[ShardSlot], val_tokens: int, block_size: int, vocab_size: int, path: str
) -> Tokens:
    """Read the first `val_tokens` tokens as windows [N, T + 1] that predict each token once.

    Args:
        slots: validation shards in order.
        val_tokens: rounded down to whole windows.
        block_size: T; consecutive windows share one token.
        vocab_size: ids at or above it raise an error.
        path: where the shards are, for messages.

    Raises:
        ShardError: the shards hold fewer tokens.
    """
    T = block_size
    n_missing = n_needed = val_tokens // T * T + 1
    parts: list[Tokens] = []
    for slot in slots:
        if not n_missing:
            break
        shard = slot.load()
        part = shard.read(0, min(n_missing, shard.n_tokens))
        shard.check_ids(0, part, vocab_size)
        parts.append(part)
        n_missing -= len(part)
    if n_missing:
        raise ShardError(
            f"data.val_tokens={val_tokens} needs {n_needed} validation tokens, "
            f"data.path={path} has {n_needed - n_missing}; lower data.val_tokens"
        )
    stream = np.concatenate(parts)
    return np.lib.stride_tricks.sliding_window_view(stream, T + 1)[::T]


class Windows:
    """Disjoint windows, consecutive within each shard; the last tokens of a shard may belong to none.

    Args:
        shards: in order.
        length: tokens of a window.
        vocab_size: ids at or above it raise an error when they are read.
    """

    def __init__(self, shards: Sequence[ShardSlot], length: int, vocab_size: int) -> None:
        self.shards, self.length, self.vocab_size = shards, length, vocab_size
        #: Windows up to the end of each shard, [S].
        self.ends = np.cumsum(self._counts())

    def _counts(self) -> list[int]:
        """Return the windows of each shard."""
        return [shard.n_tokens // self.length for shard in self.shards]

    def _start(self, shard: int, window: int) -> int:
        """Return the position in the shard at which its window number `window` starts."""
        return window * self.length

    def __len__(self) -> int:
        return int(self.ends[-1])

    def prefetch(self, shards: Sequence[int]) -> None:
        """Queue these shards to be fetched in the order in which they are read."""
        for order, shard in enumerate(shards):
            self.shards[shard].prefetch(order)

    def read(self, windows: NDArray[np.int64]) -> Tokens:
        """Return windows by number, [n] -> tokens [n, length]; uint16 if every id fits, else uint32."""
        shard_of = np.searchsorted(self.ends, windows, side="right")
        dtype = np.uint32 if self.vocab_size > 2**16 else np.uint16
        out: Tokens = np.empty((len(windows), self.length), dtype=dtype)  # type: ignore[assignment]
        for s in np.unique(shard_of).tolist():
            shard = self.shards[s].load()
            first = int(self.ends[s - 1]) if s else 0
            for i in np.flatnonzero(shard_of == s):
                start = self._start(s, int(windows[i]) - first)
                tokens = shard.read(start, self.length)
                shard.check_ids(start, tokens, self.vocab_size)
                out[i] = tokens
        return out


class DocumentWindows(Windows):
    """Windows that start at a document's start, each at the first one after the end of the window before.

    The tokens between two windows are left out in every epoch. The constructor searches all shards for document
    starts, so remote shards are fetched then.

    Source: KellerJordan/modded-nanogpt, `align_to_bos`.
    """

    def _counts(self) -> list[int]:
        self._starts = [self._window_starts(slot.load()) for slot in self.shards]
        return [len(starts) for starts in self._starts]

    def _window_starts(self, shard: TokenShard) -> NDArray[np.int64]:
        starts = shard.document_starts()
        if not len(starts):
            raise ShardError(
                f"{shard.path}: no end-of-text token {shard.format.end_of_text}, so no document starts; "
                "use data.order=shuffled"
            )
        last = shard.n_tokens - self.length
        # next_start[i]: index of the first document start after a window that starts at document i.
        next_start = np.searchsorted(starts, starts + self.length).tolist()
        kept, i = [], 0
        while i < len(starts) and starts[i] <= last:
            kept.append(i)
            i = next_start[i]
        return starts[np.array(kept, dtype=np.int64)]

    def _start(self, shard: int, window: int) -> int:
        return int(self._starts[shard][window])
