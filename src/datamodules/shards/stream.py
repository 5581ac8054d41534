"""Sequences by position since the start of a run: the windows of one source, or a mixture of several.

A stream has no state: the sequence at a position follows from the position.

A mixture gives each source its share of every thousand positions, spread evenly: source i takes q_i slots of 1000
(its weight, rounded), and its k-th slot since the start of the run reads position k of source i.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from src.datamodules.shards.format import Tokens
from src.datamodules.shards.order import shard_window_at, window_at
from src.datamodules.shards.windows import DocumentWindows, Windows

Positions = NDArray[np.int64]
OrderName = Literal["shuffled", "shard_shuffled", "sequential", "document_aligned"]
Order = Callable[[Positions, NDArray[np.int64], int], Positions]

#: Positions of the visiting order computed at once; one step at a time would be dominated by numpy's overhead.
ORDER_BLOCK = 8192
SLOTS = 1000

#: Kind of window and visiting order by `data.order`.
ORDERS: dict[OrderName, tuple[type[Windows], Order]] = {
    "shuffled": (Windows, lambda positions, ends, seed: window_at(positions, int(ends[-1]), seed)),
    "shard_shuffled": (Windows, shard_window_at),
    "sequential": (Windows, lambda positions, ends, seed: positions % int(ends[-1])),
    "document_aligned": (
        DocumentWindows,
        lambda positions, ends, seed: window_at(positions, int(ends[-1]), seed),
    ),
}
#: Orders that read one shard after the other.
STREAMED = ("shard_shuffled", "sequential")


class WindowStream:
    """Windows of one source in a visiting order, epoch after epoch.

    Args:
        name: name of the source.
        windows: windows of one epoch.
        order: maps positions to windows.
        seed: key of the order.
    """

    def __init__(self, name: str, windows: Windows, order: Order, seed: int) -> None:
        self.name, self.windows, self.order, self.seed = name, windows, order, seed
        self._block: tuple[int, Positions] = (0, np.empty(0, dtype=np.int64))

    def read(self, positions: Positions) -> Tokens:
        """Return the sequences at consecutive positions, [n] -> tokens [n, T + 1]."""
        return self.windows.read(self._windows_at(int(positions[0]), int(positions[-1]) + 1))

    def _windows_at(self, first: int, last: int) -> Positions:
        """Return the windows at positions first to last - 1, computed a block of positions at a time."""
        begin, block = self._block
        if not begin <= first <= last <= begin + len(block):
            positions = np.arange(first, max(last, first + ORDER_BLOCK), dtype=np.int64)
            begin, block = first, self.order(positions, self.windows.ends, self.seed)
            self._block = begin, block
            self._prefetch_shards(begin + len(block), block)
        return block[first - begin : last - begin]

    def _prefetch_shards(self, position: int, block: Positions) -> None:
        """Fetch the shards of the block ahead of time, and the two that follow at a shard's distance each."""
        ends = self.windows.ends
        later = position + np.arange(1, 3) * max(1, int(ends[-1]) // len(ends))
        windows = np.concatenate([block, self.order(later, ends, self.seed)])
        shards = np.searchsorted(ends, windows, side="right")
        self.windows.prefetch(list(dict.fromkeys(shards.tolist())))


class Mixture:
    """One stream, or several by weight.

    Args:
        streams: the sources.
        weights: one positive number for each; only their ratios count.

    Raises:
        ValueError: a weight too small for a slot.
    """

    def __init__(self, streams: Sequence[WindowStream], weights: Sequence[float]) -> None:
        self.streams = streams
        # Slots of each source in a block of SLOTS, rounded by the largest remainder.
        exact = np.array(weights, dtype=np.float64) / sum(weights) * SLOTS
        quotas = np.floor(exact).astype(np.int64)
        quotas[np.argsort(quotas - exact, kind="stable")[: SLOTS - int(quotas.sum())]] += 1
        for stream, quota in zip(streams, quotas, strict=True):
            if quota == 0:
                raise ValueError(
                    f"data.path: the weight of {stream.name} is below 1/{SLOTS} of the sum; raise it or leave it out"
                )
        self.quotas = quotas
        # Slot k of source i stands at (k + 1/2) / q_i of the block: evenly spread, and sorted into one sequence.
        slots = [((k + 0.5) / q, i, k) for i, q in enumerate(quotas.tolist()) for k in range(q)]
        self._source, self._turn = np.array([(i, k) for _, i, k in sorted(slots)], dtype=np.int64).T

    def read(self, positions: Positions) -> Tokens:
        """Return the sequences at consecutive positions, [n] -> tokens [n, T + 1]."""
        block, slot = positions // SLOTS, positions % SLOTS
        source = self._source[slot]
        own = block * self.quotas[source] + self._turn[slot]
        parts = {i: self.streams[i].read(own[source == i]) for i in np.unique(source).tolist()}
        first = next(iter(parts.values()))
        out: Tokens = np.empty((len(positions), first.shape[1]), dtype=first.dtype)
        for i, part in parts.items():
            out[source == i] = part
        return out

    def epochs(self, position: int) -> dict[str, int]:
        """Return the completed epochs before a position, by source."""
        block, slot = divmod(position, SLOTS)
        epochs = {}
        for i, stream in enumerate(self.streams):
            seen = block * int(self.quotas[i]) + int((self._source[: slot + 1] == i).sum())
            epochs[stream.name] = max(0, seen - 1) // len(stream.windows)
        return epochs
