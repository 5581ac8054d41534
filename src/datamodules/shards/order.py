"""Orders in which windows are visited, each computed at any position in O(1) memory.

    shuffled          position p visits window permutation[epoch = p // n](p mod n)
    shard_shuffled    one shard after the other in a shuffled order, the windows of each in a shuffled order:
                      for streamed data, since it reads one shard at a time
    sequential        p mod n, as modded-nanogpt reads

The permutation is keyed:

    (a, b) -> (b, a ^ F_key(b))  four rounds over the halves of an index (a Feistel network), repeated
    until the result is below n (cycle walking); the key follows from (seed, epoch)

An order is thus independent of ranks, workers and interruptions, and its state is one integer.

Source: Black, Rogaway, "Ciphers with Arbitrary Finite Domains" (CT-RSA 2002), section 4; round function:
the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
"""

import numpy as np
from numpy.typing import NDArray

N_ROUNDS = 4
U64 = NDArray[np.uint64]


def window_at(positions: NDArray[np.int64], n_windows: int, seed: int) -> NDArray[np.int64]:
    """Return the windows at `positions` (sequences since the start of the run), [n] -> [n]."""
    out = np.empty_like(positions)
    epochs = positions // n_windows
    for epoch in np.unique(epochs):
        mask = epochs == epoch
        out[mask] = permute(positions[mask] - epoch * n_windows, n_windows, seed, int(epoch))
    return out


def shard_window_at(positions: NDArray[np.int64], ends: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return the windows at `positions`, one shard at a time.

    Args:
        positions: sequences since the start of the run, [n].
        ends: windows up to each shard's end, [S].
        seed: key of the order.
    """
    out = np.empty_like(positions)
    begins = np.concatenate([[0], ends[:-1]])
    epochs, offsets = positions // ends[-1], positions % ends[-1]
    for epoch in np.unique(epochs):
        # Shards in the order of this epoch, and the windows up to the end of each in that order.
        shards = permute(np.arange(len(ends)), len(ends), seed, int(epoch))
        shard_ends = np.cumsum((ends - begins)[shards])
        turn_of = np.searchsorted(shard_ends, offsets, side="right")
        for turn in np.unique(turn_of[epochs == epoch]):
            mask = (epochs == epoch) & (turn_of == turn)
            shard = shards[turn]
            size = int(ends[shard] - begins[shard])
            local = offsets[mask] - (int(shard_ends[turn]) - size)
            out[mask] = begins[shard] + permute(local, size, seed + 1 + int(shard), int(epoch))
    return out


def permute(index: NDArray[np.int64], n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the images of `index` under the permutation of range(n) with the key (seed, epoch)."""
    half = max(1, ((n - 1).bit_length() + 1) // 2)  # bits of each half; 2^(2 half) < 4n
    keys = _mix(_mix(np.uint64(seed % 2**64) + np.arange(N_ROUNDS, dtype=np.uint64)) ^ np.uint64(epoch))
    value = _encrypt(index.astype(np.uint64), half, keys)
    outside = value >= n
    while outside.any():  # cycle walking
        value[outside] = _encrypt(value[outside], half, keys)
        outside = value >= n
    return value.astype(np.int64)


def _encrypt(value: U64, half: int, keys: U64) -> U64:
    """Apply the Feistel network."""
    shift, mask = np.uint64(half), np.uint64(2**half - 1)
    left, right = value >> shift, value & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return (left << shift) | right


def _mix(z: U64) -> U64:
    """Apply the finaliser of SplitMix64."""
    with np.errstate(over="ignore"):
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
