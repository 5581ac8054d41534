"""How a global batch is shared out, and the fixed validation windows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from src.datamodules.shards.format import ShardError, Tokens
from src.datamodules.shards.windows import ShardSlot


@dataclass(frozen=True)
class BatchSpec:
    """What the data is told about the run."""

    block_size: int
    vocab_size: int
    seed: int
    max_steps: int


def accumulation(micro_batch_size: int, global_batch_size: int, world_size: int) -> int:
    """Micro-steps of each rank in an optimizer step.

    Raises:
        ValueError: the global batch is not a whole number of micro-batches on every rank.
    """
    for key, value in (("micro_batch_size", micro_batch_size), ("global_batch_size", global_batch_size)):
        if value < 1:
            raise ValueError(f"data.{key} must be at least 1, got {value}")
    at_once = micro_batch_size * world_size
    if global_batch_size % at_once:
        near = max(1, round(global_batch_size / at_once)) * at_once
        raise ValueError(
            f"data.global_batch_size must be a multiple of data.micro_batch_size * ranks = "
            f"{micro_batch_size} * {world_size}, got {global_batch_size}; the nearest is {near}"
        )
    return global_batch_size // at_once


def validation_windows(slots: Sequence[ShardSlot], val_tokens: int, spec: BatchSpec, place: str) -> Tokens:
    """The first `val_tokens` tokens as windows [n, T + 1], targets shifted by one: each predicted once.

    Raises:
        ShardError: fewer tokens than asked for.
    """
    T = spec.block_size
    wanted = val_tokens // T * T + 1
    parts: list[Tokens] = []
    left = wanted
    for slot in slots:
        if left <= 0:
            break
        shard = slot.shard()
        part = shard.read(0, min(left, shard.n_tokens))
        shard.check_ids(0, part, spec.vocab_size)
        parts.append(part)
        left -= len(part)
    if left > 0:
        raise ShardError(
            f"data.val_tokens={val_tokens} needs {wanted} validation tokens, "
            f"data.path={place} has {wanted - left}; lower data.val_tokens"
        )
    stream = np.concatenate(parts)
    return np.lib.stride_tricks.sliding_window_view(stream, T + 1)[::T]
