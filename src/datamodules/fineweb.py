"""The data module over token shards: FineWeb as published, or any folder of the same form.

A training batch is one optimizer step of one rank, uint16 [A, M, T + 1]. Step k of the run covers the
sequences k * G to (k + 1) * G - 1 in visiting order; of these, rank r takes the r-th contiguous share, so a
global batch holds the same sequences for every number of ranks.
Validation tokens are the first of the validation shards: windows of T inputs with targets shifted by one,
so that each token is predicted exactly once.

Shape letters: A accumulation (micro-steps), M micro-batch size, G global batch size, T block_size.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.datamodules.hub import HUB, fetch_from_hub
from src.datamodules.loader import TrainLoader
from src.datamodules.order import window_at
from src.datamodules.shards import ShardError, Tokens, TokenShard, Windows, find_shards

log = logging.getLogger(__name__)

#: Training tokens whose ids are checked before the run; the rest are checked as they are read.
SCANNED_TOKENS = 100_000_000
#: Positions of the visiting order computed at once: a step alone would pay numpy's overhead.
ORDER_BLOCK = 8192


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


class FineWebDataModule(L.LightningDataModule):
    """Token shards to batches.

    Args:
        spec: the run's sizes and seed.
        path: a folder of shards, or `hf://datasets/<owner>/<name>`, fetched into the hub's cache.
        val_tokens: validation tokens, rounded down to whole windows.
        micro_batch_size: sequences of one micro-step of one rank.
        global_batch_size: sequences of an optimizer step over all ranks.
        workers: loader processes; 0 reads in the training process.
    """

    def __init__(
        self,
        spec: BatchSpec,
        *,
        path: str | None,
        val_tokens: int,
        micro_batch_size: int,
        global_batch_size: int,
        workers: int,
    ) -> None:
        super().__init__()
        accumulation(micro_batch_size, global_batch_size, 1)
        if val_tokens < spec.block_size:
            raise ValueError(
                f"data.val_tokens must be at least model.block_size={spec.block_size}, got {val_tokens}"
            )
        if workers < 0:
            raise ValueError(f"data.workers must not be negative, got {workers}")
        self.spec = spec
        self.path = path
        self.val_tokens = val_tokens
        self.micro_batch_size = micro_batch_size
        self.global_batch_size = global_batch_size
        self.workers = workers

    # ---- opening

    def prepare_data(self) -> None:
        """Fetch what is not on this machine; one process a node."""
        if self.path is not None and self.path.startswith(HUB):
            fetch_from_hub(self.path)

    def folder(self) -> Path:
        """Where the shards lie on this machine."""
        if self.path is None:
            raise ValueError("data.path is null; give a folder of shards")
        return fetch_from_hub(self.path) if self.path.startswith(HUB) else Path(self.path)

    def setup(self, stage: str | None = None) -> None:
        """Map the shards and check them; again is cheap.

        Raises:
            ShardError: a shard that cannot be read right, or too few tokens for what was asked.
        """
        if hasattr(self, "train_windows"):
            return
        val, train = find_shards(self.folder())
        length, vocab_size = self.spec.block_size + 1, self.spec.vocab_size
        self.val_shards = [TokenShard.open(path) for path in val]
        self.train_shards = [TokenShard.open(path) for path in train]
        train_windows = Windows(self.train_shards, length, vocab_size)
        if len(train_windows) == 0:
            tokens = sum(len(shard.tokens) for shard in self.train_shards)
            raise ShardError(
                f"data.path={self.folder()} has {tokens} training tokens, not one window of "
                f"model.block_size + 1 = {length}; lower model.block_size or give more data"
            )
        self._val_stream = self._read_validation()
        left = SCANNED_TOKENS
        for shard in self.train_shards:
            shard.check_ids(0, shard.tokens[:left], vocab_size)
            left -= min(left, len(shard.tokens))
        self.train_windows = train_windows
        self._order_block = (0, np.empty(0, dtype=np.int64))

    def _read_validation(self) -> Tokens:
        """The fixed validation tokens: whole windows, and one token more as the last target."""
        wanted = self.val_tokens // self.spec.block_size * self.spec.block_size + 1
        parts, left = [], wanted
        for shard in self.val_shards:
            part = shard.tokens[:left]
            shard.check_ids(0, part, self.spec.vocab_size)
            parts.append(part)
            left -= len(part)
        if left > 0:
            raise ShardError(
                f"data.val_tokens={self.val_tokens} needs {wanted} validation tokens, "
                f"data.path={self.folder()} has {wanted - left}; lower data.val_tokens"
            )
        return np.concatenate(parts)

    # ---- training

    #: (step, n): from that step on, the batches of n further steps are passed over.
    skipped: tuple[tuple[int, int], ...] = ()

    def train_batch(self, step: int, rank: int, world_size: int) -> Tensor:
        """The sequences of optimizer step `step` (0-based) that `rank` of `world_size` takes, [A, M, T + 1]."""
        micro = self.micro_batch_size
        n_micro = accumulation(micro, self.global_batch_size, world_size)
        share = n_micro * micro
        skipped = sum(n for since, n in self.skipped if step >= since)
        first = (step + skipped) * self.global_batch_size + rank * share
        tokens = self.train_windows.read(self._order(first, first + share))
        return torch.from_numpy(tokens).view(n_micro, micro, -1)

    def _order(self, first: int, last: int) -> NDArray[np.int64]:
        """The windows at positions first to last - 1, computed a block of positions at a time."""
        begin, block = self._order_block
        if not begin <= first <= last <= begin + len(block):
            positions = np.arange(first, max(last, first + ORDER_BLOCK), dtype=np.int64)
            begin, block = first, window_at(positions, len(self.train_windows), self.spec.seed)
            self._order_block = begin, block
        return block[first - begin : last - begin]

    def train_dataloader(self) -> TrainLoader:
        """All the run's steps, from the one the trainer has reached."""
        trainer = self.trainer
        start, rank, world = 0, 0, 1
        if trainer is not None:
            start, rank, world = trainer.global_step, trainer.global_rank, trainer.world_size
        return TrainLoader(
            lambda step: self._announced_batch(step, rank, world),
            start=start,
            max_steps=self.spec.max_steps,
            workers=self.workers,
        )

    def _announced_batch(self, step: int, rank: int, world_size: int) -> Tensor:
        """The batch of a step; rank 0 says when it begins another epoch."""
        n, size = len(self.train_windows), self.global_batch_size
        before, after = (step * size - 1) // n, ((step + 1) * size - 1) // n
        if rank == 0 and after > before and after > 0:
            log.info("epoch %d of the data begins in step %d", after + 1, step + 1)
        return self.train_batch(step, rank, world_size)

    # ---- validation

    def val_dataloader(self) -> Iterator[Tensor]:
        """This rank's validation windows, uint16 [b, T + 1], b at most the micro-batch size."""
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        return self.val_batches(rank, world)

    def val_batches(self, rank: int, world_size: int) -> Iterator[Tensor]:
        """The validation windows of one rank: every `world_size`-th."""
        T = self.spec.block_size
        mine = range(rank, (len(self._val_stream) - 1) // T, world_size)
        for at in range(0, len(mine), self.micro_batch_size):
            rows = mine[at : at + self.micro_batch_size]
            yield torch.from_numpy(np.stack([self._val_stream[i * T : i * T + T + 1] for i in rows]))

    # ---- identity

    def identity(self) -> dict[str, Any]:
        """What the run's record says of its data; `hash` does not depend on where the folder lies."""
        shards = {
            split: [
                {"name": s.path.name, "tokens": len(s.tokens), "sha256_sampled": s.fingerprint()} for s in found
            ]
            for split, found in (("val", self.val_shards), ("train", self.train_shards))
        }
        windows = len(self.train_windows)
        combined = json.dumps([shards, self.val_tokens], sort_keys=True)
        return {
            "folder": self.folder().name,
            "hash": hashlib.sha256(combined.encode()).hexdigest(),
            "val_tokens": len(self._val_stream) - 1,
            "train_tokens": sum(len(s.tokens) for s in self.train_shards),
            "train_windows": windows,
            "epochs": self.spec.max_steps * self.global_batch_size / windows,
            "shards": shards,
        }
