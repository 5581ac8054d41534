"""The orders in which windows are visited, each evaluated at any position in O(1) memory.

    shuffled          position p visits window permutation[epoch = p // n](p mod n)
    shard_shuffled    shard after shard in a shuffled order, inside each its windows in a shuffled order:
                      for data that is streamed, since one shard is read at a time
    sequential        p mod n, as modded-nanogpt reads

The permutation is keyed:

    (a, b) -> (b, a ^ F_key(b))  four rounds over the halves of an index (a Feistel network), repeated
    until the result lies below n (cycle walking); the key follows from (seed, epoch)

So an order does not depend on ranks, workers or where a run was stopped, and its state is one integer.

Source: Black, Rogaway, "Ciphers with Arbitrary Finite Domains" (CT-RSA 2002), section 4; round function:
the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
"""

import numpy as np
from numpy.typing import NDArray

N_ROUNDS = 4
U64 = NDArray[np.uint64]


def window_at(positions: NDArray[np.int64], n_windows: int, seed: int) -> NDArray[np.int64]:
    """The windows visited at `positions` (sequences since the start of the run), [n] -> [n]."""
    out = np.empty_like(positions)
    epochs = positions // n_windows
    for epoch in np.unique(epochs):
        here = epochs == epoch
        out[here] = permuted(positions[here] - epoch * n_windows, n_windows, seed, int(epoch))
    return out


def shard_window_at(positions: NDArray[np.int64], ends: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """As `window_at`, one shard at a time; `ends` are the windows up to each shard's end, [S]."""
    out = np.empty_like(positions)
    begins = np.concatenate([[0], ends[:-1]])
    epochs, inside = positions // ends[-1], positions % ends[-1]
    for epoch in np.unique(epochs):
        visited = permuted(np.arange(len(ends)), len(ends), seed, int(epoch))
        passed = np.cumsum((ends - begins)[visited])
        turn_of = np.searchsorted(passed, inside, side="right")
        for turn in np.unique(turn_of[epochs == epoch]):
            here = (epochs == epoch) & (turn_of == turn)
            shard = visited[turn]
            size = int(ends[shard] - begins[shard])
            local = inside[here] - (int(passed[turn]) - size)
            out[here] = begins[shard] + permuted(local, size, seed + 1 + int(shard), int(epoch))
    return out


def permuted(index: NDArray[np.int64], n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The permutation of range(n) keyed by (seed, epoch), at `index`."""
    half = max(1, ((n - 1).bit_length() + 1) // 2)  # bits of each half; 2^(2 half) < 4n
    keys = _mix(_mix(np.uint64(seed % 2**64) + np.arange(N_ROUNDS, dtype=np.uint64)) ^ np.uint64(epoch))
    value = _feistel(index.astype(np.uint64), half, keys)
    outside = value >= n
    while outside.any():
        value[outside] = _feistel(value[outside], half, keys)
        outside = value >= n
    return value.astype(np.int64)


def _feistel(value: U64, half: int, keys: U64) -> U64:
    shift, mask = np.uint64(half), np.uint64(2**half - 1)
    left, right = value >> shift, value & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return (left << shift) | right


def _mix(z: U64) -> U64:
    with np.errstate(over="ignore"):
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
