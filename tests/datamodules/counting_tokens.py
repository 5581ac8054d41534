"""Smallest data module that fulfils the contract: sequences that count upwards, computed from their position."""

import hashlib
from typing import Any

import numpy as np

from src.datamodules.base import BatchSpec, TokenDataModule
from src.datamodules.shards.format import Tokens


class CountingTokens(TokenDataModule):
    """Sequences that begin at a random id and count upwards modulo the vocabulary.

    Args:
        spec: sizes and seed of the run.
        n_val: validation sequences.
        micro_batch_size, global_batch_size, workers: as in `TokenDataModule`.
    """

    def __init__(
        self, spec: BatchSpec, *, n_val: int, micro_batch_size: int, global_batch_size: int, workers: int
    ) -> None:
        super().__init__(spec, micro_batch_size=micro_batch_size, global_batch_size=global_batch_size, workers=workers)
        self.n_val = n_val

    def setup(self, stage: str | None = None) -> None:
        self.val_windows = self._count_from(np.arange(self.n_val))

    def train_sequences(self, first: int, count: int) -> Tokens:
        starts = [np.random.default_rng((self.spec.seed, p)).integers(1000) for p in range(first, first + count)]
        return self._count_from(np.array(starts))

    def identity(self) -> dict[str, Any]:
        return {"hash": hashlib.sha256(f"counting {self.n_val}".encode()).hexdigest()}

    def _count_from(self, starts: np.ndarray[Any, Any]) -> Tokens:
        rows = starts[:, None] + np.arange(self.spec.block_size + 1)
        return (rows % self.spec.vocab_size).astype(np.uint16)
