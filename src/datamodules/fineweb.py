"""The data module over token shards: FineWeb as published, or any place of the same form.

A training batch is one optimizer step of one rank, uint16 [A, M, T + 1] (int32 where the vocabulary is
larger). Step k of the run covers the sequences k * G to (k + 1) * G - 1 in visiting order; of these, rank r
takes the r-th contiguous share, so a global batch holds the same sequences for every number of ranks.

Shape letters: A accumulation (micro-steps), M micro-batch size, G global batch size, T block_size.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from src.datamodules.batches import BatchSpec, accumulation, validation_windows
from src.datamodules.open import Cache, open_shards, read_sources
from src.datamodules.shards.format import ShardError, TokenShard
from src.datamodules.shards.loader import TrainLoader
from src.datamodules.shards.local import Shards
from src.datamodules.shards.stream import ORDERS, STREAMED, Mixture, Stream, WindowStream

log = logging.getLogger(__name__)

#: Training tokens whose ids are checked before the run; the rest are checked as they are read.
SCANNED_TOKENS = 100_000_000
#: Loader processes of a rank, and the size of a cache, that no machine has.
MOST_WORKERS, MOST_GIB = 1024, 1e9


class FineWebDataModule(L.LightningDataModule):
    """Token shards to batches.

    More keys than house style likes: each is a choice of the user's about one thing, the data.

    Args:
        spec: the run's sizes and seed.
        path: a folder, file or pattern of shards, a remote address, or a list of these; `nanogpt:` before
            one declares headerless files. A list of {path, weight} is a mixture.
        order: shuffled, shard_shuffled, sequential or document_aligned.
        epochs: the most that the run may see of the data; null for any number.
        val_tokens: validation tokens, rounded down to whole windows.
        micro_batch_size: sequences of one micro-step of one rank.
        global_batch_size: sequences of an optimizer step over all ranks.
        workers: loader processes; 0 reads in the training process.
        cache: the folder into which remote shards are fetched.
        cache_gib: its size at most; the least recently used shards go first.
        accept_changed: whether a resumed run may go on with other data.
    """

    def __init__(
        self,
        spec: BatchSpec,
        *,
        path: str | list[object] | None,
        order: str,
        epochs: int | None,
        val_tokens: int,
        micro_batch_size: int,
        global_batch_size: int,
        workers: int,
        cache: str,
        cache_gib: float,
        accept_changed: bool,
    ) -> None:
        super().__init__()
        accumulation(micro_batch_size, global_batch_size, 1)
        if val_tokens < spec.block_size:
            raise ValueError(
                f"data.val_tokens must be at least model.block_size={spec.block_size}, got {val_tokens}"
            )
        if not 0 <= workers <= MOST_WORKERS:
            raise ValueError(f"data.workers must be between 0 and {MOST_WORKERS}, got {workers}")
        if order not in ORDERS:
            raise ValueError(f"data.order must be one of {', '.join(ORDERS)}, got {order}")
        if epochs is not None and epochs < 1:
            raise ValueError(f"data.epochs must be null or at least 1, got {epochs}")
        if not 0 < cache_gib <= MOST_GIB:
            raise ValueError(f"data.cache_gib must be positive and at most {MOST_GIB:g}, got {cache_gib}")
        self.spec, self.path, self.order, self.epochs = spec, path, order, epochs
        self.val_tokens = val_tokens
        self.micro_batch_size, self.global_batch_size = micro_batch_size, global_batch_size
        self.workers = workers
        self.cache = Cache(Path(cache), int(cache_gib * 2**30))
        self.accept_changed = accept_changed

    # ---- opening

    def sources(self) -> dict[str, tuple[list[str], float]]:
        """Addresses and weight of each source, by name."""
        return read_sources(self.path)

    def setup(self, stage: str | None = None) -> None:
        """Map the shards and check them; again is cheap.

        Raises:
            ShardError: a shard that cannot be read right, or too few tokens for what was asked.
        """
        if hasattr(self, "stream"):
            return
        sources = self.sources()
        whole = sum(weight for _, weight in sources.values())
        streams, val = [], []
        self.places: dict[str, Shards] = {}
        for name, (addresses, weight) in sources.items():
            place = open_shards(addresses, self.cache, streamed=self.order in STREAMED)
            self.places[name] = place
            streams.append(self._stream(name, place))
            tokens = max(self.spec.block_size, int(self.val_tokens * weight / whole))
            val.append(validation_windows(place.val, tokens, self.spec, place.name))
        self.val_windows = np.concatenate(val) if len(val) > 1 else val[0]
        self.train_windows = [stream.windows for stream in streams]
        weights = [weight for _, weight in sources.values()]
        stream: Stream = streams[0] if len(streams) == 1 else Mixture(streams, weights)
        self._refuse_more_epochs(stream)
        self.stream = stream

    def teardown(self, stage: str | None = None) -> None:
        """Let go of fetched shards; a later read takes them up again."""
        for place in getattr(self, "places", {}).values():
            for slot in (*place.val, *place.train):
                slot.close()

    def _stream(self, name: str, place: Shards) -> WindowStream:
        """The training windows of one source, the ids of its first tokens checked."""
        length, vocab_size = self.spec.block_size + 1, self.spec.vocab_size
        kind, order = ORDERS[self.order]
        left = SCANNED_TOKENS
        for slot in place.train:
            if isinstance(slot, TokenShard):
                slot.check_ids(0, slot.tokens[:left], vocab_size)
                left -= min(left, slot.n_tokens)
        windows = kind(place.train, length, vocab_size)
        if len(windows) == 0:
            tokens = sum(slot.n_tokens for slot in place.train)
            raise ShardError(
                f"data.path={place.name} has {tokens} training tokens, not one window of "
                f"model.block_size + 1 = {length} for data.order={self.order}; lower model.block_size or give "
                "more data"
            )
        return WindowStream(name, windows, order, self.spec.seed)

    def _refuse_more_epochs(self, stream: Stream) -> None:
        needed = self.spec.max_steps * self.global_batch_size
        for name, behind in stream.epochs(needed - 1).items():
            if self.epochs is not None and behind >= self.epochs:
                raise ValueError(
                    f"data.epochs={self.epochs}, but trainer.max_steps={self.spec.max_steps} of "
                    f"data.global_batch_size={self.global_batch_size} needs epoch {behind + 1} of {name} "
                    f"({needed} sequences); lower trainer.max_steps or give data.epochs=null"
                )

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
        tokens = self.stream.read(np.arange(first, first + share, dtype=np.int64))
        return as_tensor(tokens).view(n_micro, micro, -1)

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
        if rank == 0 and step:
            size = self.global_batch_size
            before = self.stream.epochs(step * size - 1)
            for name, epoch in self.stream.epochs((step + 1) * size - 1).items():
                if epoch > before[name]:
                    log.info("epoch %d of %s begins in step %d", epoch + 1, name, step + 1)
        return self.train_batch(step, rank, world_size)

    # ---- validation

    def val_dataloader(self) -> Iterator[Tensor]:
        """This rank's validation windows, [b, T + 1], b at most the micro-batch size."""
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        return self.val_batches(rank, world)

    def val_batches(self, rank: int, world_size: int) -> Iterator[Tensor]:
        """The validation windows of one rank: every `world_size`-th."""
        mine = self.val_windows[rank::world_size]
        for at in range(0, len(mine), self.micro_batch_size):
            yield as_tensor(np.array(mine[at : at + self.micro_batch_size]))

    # ---- identity

    def identity(self) -> dict[str, Any]:
        """What the run's record says of its data; `hash` does not depend on where the data lies."""
        return self._identity

    @cached_property
    def _identity(self) -> dict[str, Any]:
        shards = {
            split: [slot.stamp() for place in self.places.values() for slot in getattr(place, split)]
            for split in ("val", "train")
        }
        weights = {name: weight for name, (_, weight) in self.sources().items()}
        what: list[Any] = [shards, self.val_tokens]
        if self.order != "shuffled" or len(weights) > 1:
            what += [
                self.order,
                [(w, len(p.train)) for w, p in zip(weights.values(), self.places.values(), strict=True)],
            ]
        windows = sum(len(w) for w in self.train_windows)
        return {
            "folder": ", ".join(place.name for place in self.places.values()),
            "hash": hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest(),
            "manifest": [place.manifest for place in self.places.values()],
            "order": self.order,
            "weights": weights,
            "val_tokens": len(self.val_windows) * self.spec.block_size,
            "train_tokens": sum(slot.n_tokens for place in self.places.values() for slot in place.train),
            "train_windows": windows,
            "epochs": self.spec.max_steps * self.global_batch_size / windows,
            "shards": shards,
        }


def as_tensor(tokens: Any) -> Tensor:  # uint16 or uint32, as in the file
    """Ids as a tensor: uint16, or int32 where ids are wider (the vocabulary's check came before)."""
    return torch.from_numpy(tokens if tokens.dtype == np.uint16 else tokens.astype(np.int32))
