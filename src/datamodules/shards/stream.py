"""Sequences by position since the start of a run: windows in a visiting order, or several such by weight.

A stream has no state: what stands at a position follows from the position.

A mixture gives each source its share of every thousand positions, spread evenly over them: source i takes
q_i slots of 1000 (its weight, rounded), and its k-th slot since the start shows its own position k.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from src.datamodules.shards.format import Tokens
from src.datamodules.shards.order import shard_window_at, window_at
from src.datamodules.shards.windows import DocumentWindows, Windows

Positions = NDArray[np.int64]
Order = Callable[[Positions, NDArray[np.int64], int], Positions]

#: Positions of the visiting order computed at once: a step alone would pay numpy's overhead.
ORDER_BLOCK = 8192
SLOTS = 1000

#: `data.order`: the kind of window, and the order in which they are visited.
ORDERS: dict[str, tuple[type[Windows], Order]] = {
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


class Stream(Protocol):
    """Sequences by position."""

    def read(self, positions: Positions) -> Tokens:
        """Consecutive positions [n] -> tokens [n, T + 1]."""

    def epochs(self, position: int) -> dict[str, int]:
        """Whole epochs behind a position, of each source by name."""


class WindowStream:
    """The windows of one source in a visiting order, epoch after epoch.

    Args:
        name: of the source.
        windows: of one epoch.
        order: windows of positions.
        seed: keys the order.
    """

    def __init__(self, name: str, windows: Windows, order: Order, seed: int) -> None:
        self.name, self.windows, self.order, self.seed = name, windows, order, seed
        self._block: tuple[int, Positions] = (0, np.empty(0, dtype=np.int64))

    def read(self, positions: Positions) -> Tokens:
        return self.windows.read(self._visited(int(positions[0]), int(positions[-1]) + 1))

    def epochs(self, position: int) -> dict[str, int]:
        return {self.name: position // len(self.windows)}

    def _visited(self, first: int, last: int) -> Positions:
        """The windows at positions first to last - 1, computed a block of positions at a time."""
        begin, block = self._block
        if not begin <= first <= last <= begin + len(block):
            positions = np.arange(first, max(last, first + ORDER_BLOCK), dtype=np.int64)
            begin, block = first, self.order(positions, self.windows.ends, self.seed)
            self._block = begin, block
            self._announce(begin + len(block), block)
        return block[first - begin : last - begin]

    def _announce(self, position: int, block: Positions) -> None:
        """Have the shards of the block fetched, and the two that come a shard's length later."""
        ends = self.windows.ends
        later = position + np.arange(1, 3) * max(1, int(ends[-1]) // len(ends))
        visited = np.concatenate([block, self.order(later, ends, self.seed)])
        shards = np.searchsorted(ends, visited, side="right")
        self.windows.expect(list(dict.fromkeys(shards.tolist())))


class Mixture:
    """Several streams by weight.

    Args:
        streams: the sources.
        weights: as many, positive; only their ratios count.
    """

    def __init__(self, streams: Sequence[WindowStream], weights: Sequence[float]) -> None:
        self.streams = streams
        exact = np.array(weights, dtype=np.float64) / sum(weights) * SLOTS
        quotas = np.floor(exact).astype(np.int64)
        quotas[np.argsort(quotas - exact, kind="stable")[: SLOTS - int(quotas.sum())]] += 1
        self.quotas = quotas
        places = [((k + 0.5) / q, i, k) for i, q in enumerate(quotas.tolist()) for k in range(q)]
        self._source, self._turn = np.array([(i, k) for _, i, k in sorted(places)], dtype=np.int64).T

    def read(self, positions: Positions) -> Tokens:
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
        block, slot = divmod(position, SLOTS)
        told = {}
        for i, stream in enumerate(self.streams):
            seen = block * int(self.quotas[i]) + int((self._source[: slot + 1] == i).sum())
            told.update(stream.epochs(max(0, seen - 1)))
        return told
