"""Contract of the data axis: training sequences by position, fixed validation windows and an identity.

A data set is one file here with a subclass of `TokenDataModule`, one YAML `conf/data/<name>.yaml` whose keys are
the constructor's keyword-only arguments, and one test. The subclass provides

    prepare_data()                  optional: download or build files, in every rank before `setup`
    setup()                         open the data and set `val_windows`; called again without effect
    train_sequences(first, count)   tokens [count, T + 1], a pure function of the position since the run's start
    completed_epochs(position)      optional: for the line in the log at the start of an epoch
    val_sets                        optional: further validation windows by name, set by `setup`
    tokenizer()                     optional: the tokenizer, for bits per byte, evaluation and exports
    document_mark()                 optional: the id that begins each document, if attention stays within documents
    identity()                      a dict for result.json; its `hash` decides whether a run may resume

and the rest follows from these for any number of ranks and loader workers, and for resumed runs: the sequences
of optimizer step k are k G to (k + 1) G - 1, of which rank r takes the r-th contiguous share.

Raise `src.datamodules.shards.format.ShardError` for data that turn out to be damaged while training: the run
then ends with that one sentence.

Shape letters: A accumulation (micro-steps of a step), M micro-batch size, G global batch size, T block_size,
N validation windows.
"""

import functools
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from src.datamodules.shards.format import Tokens
from src.datamodules.shards.loader import TrainLoader, ValLoader
from src.datamodules.tokenization.base import Tokenizer

log = logging.getLogger(__name__)

#: Loader processes of a rank; no machine has more.
WorkerCount = Annotated[int, Field(ge=0, le=1024)]


@dataclass(frozen=True)
class BatchSpec:
    """Sizes and seed of the run, supplied by the task; `repeats` is the number of batches that training repeats."""

    block_size: int
    vocab_size: int
    seed: int
    max_steps: int
    repeats: int | None = None


class TokenDataModule(L.LightningDataModule, ABC):
    """Batches of token ids by optimizer step.

    Args:
        spec: sizes and seed of the run.
        micro_batch_size: sequences of one micro-step of one rank.
        global_batch_size: sequences of an optimizer step over all ranks.
        workers: loader processes; 0 reads in the training process.

    Raises:
        ValueError: a size below 1, or a global batch that is not a multiple of the micro-batch.
    """

    #: Validation tokens, [N, T + 1]; targets are the inputs shifted by one. `setup` sets it.
    val_windows: Tokens
    #: Pairs (step, n): from `step` on, the batches of n further steps are left out. A rollback sets it.
    skipped: tuple[tuple[int, int], ...] = ()

    def __init__(self, spec: BatchSpec, *, micro_batch_size: int, global_batch_size: int, workers: int) -> None:
        super().__init__()
        count_micro_steps(micro_batch_size, global_batch_size, 1)
        self.spec = spec
        self.micro_batch_size, self.global_batch_size = micro_batch_size, global_batch_size
        self.workers = workers
        #: Further validation tokens by name, each [N, T + 1].
        self.val_sets: dict[str, Tokens] = {}

    # ---- provided by the subclass

    @abstractmethod
    def setup(self, stage: str | None = None) -> None:
        """Open the data and set `val_windows`; a second call does nothing."""

    @abstractmethod
    def train_sequences(self, first: int, count: int) -> Tokens:
        """Return the training sequences at positions `first` to `first + count - 1`, [count, T + 1]."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return the data's part of result.json; its `hash` follows from the content, not from the place."""

    def completed_epochs(self, position: int) -> dict[str, int]:
        """Return the whole epochs before a position, by source; empty where there are no epochs."""
        return {}

    def tokenizer(self) -> Tokenizer | None:
        """Return the tokenizer of the ids; None where it is not known."""
        return None

    def document_mark(self) -> int | None:
        """Return the id that begins each document; None where attention reaches across documents."""
        return None

    def token_bytes(self) -> NDArray[np.int16] | None:
        """Return the number of bytes that each token id stands for; None where the tokenizer is not known."""
        tokenizer = self.tokenizer()
        return None if tokenizer is None else tokenizer.token_bytes

    # ---- training

    def train_batch(self, step: int, rank: int, world_size: int) -> Tensor:
        """Return the batch of optimizer step `step` (0-based) of one rank, [A, M, T + 1]."""
        n_micro = count_micro_steps(self.micro_batch_size, self.global_batch_size, world_size)
        share = n_micro * self.micro_batch_size
        skipped = sum(n for since, n in self.skipped if step >= since)
        number = step + skipped
        if self.spec.repeats is not None:
            number %= self.spec.repeats
        first = number * self.global_batch_size + rank * share
        return as_tensor(self.train_sequences(first, share)).view(n_micro, self.micro_batch_size, -1)

    def train_dataloader(self) -> TrainLoader:
        """Return a loader of one batch per optimizer step, from the step that the trainer has reached."""
        trainer = self.trainer
        start, rank, world = 0, 0, 1
        if trainer is not None:
            start, rank, world = trainer.global_step, trainer.global_rank, trainer.world_size

        def batch_of(step: int) -> Tensor:
            if rank == 0 and step and self.spec.repeats is None:
                self._log_new_epochs(step)
            return self.train_batch(step, rank, world)

        return TrainLoader(batch_of, start=start, max_steps=self.spec.max_steps, workers=self.workers)

    def _log_new_epochs(self, step: int) -> None:
        size = self.global_batch_size
        before = self.completed_epochs(step * size - 1)
        for name, epoch in self.completed_epochs((step + 1) * size - 1).items():
            if epoch > before[name]:
                log.info("epoch %d of %s begins in step %d", epoch + 1, name, step + 1)

    # ---- validation

    def validation_sets(self) -> dict[str, Tokens]:
        """Return all validation tokens by the prefix of their metrics: `val`, then `val/<name>` of the further sets."""
        return {"val": self.val_windows, **{f"val/{name}": windows for name, windows in self.val_sets.items()}}

    def val_dataloader(self) -> list[ValLoader]:
        """Return one loader of this rank's validation batches for each of `validation_sets`."""
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        loaders = []
        for windows in self.validation_sets().values():
            n_batches = math.ceil(len(range(rank, len(windows), world)) / self.micro_batch_size)
            loaders.append(ValLoader(functools.partial(self._val_batches, windows, rank, world), n_batches))
        return loaders

    def val_batches(self, rank: int, world_size: int) -> Iterator[Tensor]:
        """Yield every `world_size`-th window of the first validation set, [b, T + 1] with b <= M."""
        return self._val_batches(self.val_windows, rank, world_size)

    def _val_batches(self, windows: Tokens, rank: int, world_size: int) -> Iterator[Tensor]:
        windows = windows[rank::world_size]
        for at in range(0, len(windows), self.micro_batch_size):
            batch: Tokens = windows[at : at + self.micro_batch_size].copy()
            yield as_tensor(batch)

    def bytes_per_token(self) -> dict[str, float]:
        """Return the mean bytes of a predicted token for each of `validation_sets`; empty without a known tokenizer."""
        table = self.token_bytes()
        if table is None:
            return {}
        return {name: float(table[windows[:, 1:]].mean()) for name, windows in self.validation_sets().items()}


def build_data(factory: Callable[[BatchSpec], object], spec: BatchSpec) -> TokenDataModule:
    """Build the configured data module for a run.

    Raises:
        ValueError: the class does not fulfil the contract, or a key is out of bounds.
    """
    target = getattr(factory, "func", factory)
    foreign = isinstance(target, type) and not issubclass(target, TokenDataModule)
    data = None if foreign else factory(spec)
    if not isinstance(data, TokenDataModule):
        raise ValueError(
            f"data._target_ must be a subclass of src.datamodules.base.TokenDataModule, got "
            f"{target.__module__}.{target.__qualname__}; derive it from TokenDataModule, whose file lists what to write"
        )
    return data


def count_micro_steps(micro_batch_size: int, global_batch_size: int, world_size: int) -> int:
    """Return the micro-steps of each rank in an optimizer step.

    Raises:
        ValueError: the global batch is not a whole number of micro-batches on every rank.
    """
    for key, value in (("micro_batch_size", micro_batch_size), ("global_batch_size", global_batch_size)):
        if value < 1:
            raise ValueError(f"data.{key} must be at least 1, got {value}")
    per_micro_step = micro_batch_size * world_size
    if global_batch_size % per_micro_step:
        nearest = max(1, round(global_batch_size / per_micro_step)) * per_micro_step
        raise ValueError(
            f"data.global_batch_size must be a multiple of data.micro_batch_size * ranks = "
            f"{micro_batch_size} * {world_size}, got {global_batch_size}; the nearest is {nearest}"
        )
    return global_batch_size // per_micro_step


def as_tensor(tokens: Tokens) -> Tensor:
    """Return ids as a tensor: uint16 as they are, wider ids as int32."""
    return torch.from_numpy(tokens if tokens.dtype == np.uint16 else tokens.astype(np.int32))
