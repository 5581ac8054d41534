"""Data module over token shards: local or remote, of one source or a mixture of several.

The reading is in `shards/` (format, windows, order), the fetching of remote shards in `remote/`.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from src.bounds import PositiveInt
from src.datamodules.base import BatchSpec, TokenDataModule, WorkerCount
from src.datamodules.open import open_shards, read_sources
from src.datamodules.remote.cache import CacheFolder
from src.datamodules.shards.format import ShardError, Tokens, TokenShard
from src.datamodules.shards.local import Shards
from src.datamodules.shards.stream import ORDERS, STREAMED, Mixture, OrderName, WindowStream
from src.datamodules.shards.windows import read_validation_windows
from src.datamodules.tokenization.base import Tokenizer, identify
from src.datamodules.tokenization.gpt2 import gpt2_tokenizer

log = logging.getLogger(__name__)

#: Training tokens whose ids are checked before the run; the rest are checked as they are read.
SCANNED_TOKENS = 100_000_000
#: Validation tokens by default; with fewer, differences between runs drown in the noise of the text's choice.
DEFAULT_VAL_TOKENS = 2**20
#: Most shards of a split that result.json lists; its hash covers all.
LISTED_SHARDS = 1000


class TokenShardDataModule(TokenDataModule):
    """Windows of token shards in a visiting order.

    The tokenizer of shards is what their manifest states; of the addresses in `gpt2_addresses` it is GPT-2's.

    Args:
        spec: sizes and seed of the run.
        path: a folder, file or pattern of shards, a remote address, or a list of these; the prefix `nanogpt:`
            declares headerless files. A list of {path, weight} is a mixture.
        order: shuffled, shard_shuffled, sequential or document_aligned.
        document_attention: true keeps attention within documents, in training and validation.
        epochs: the most epochs that the run may need; null for any number.
        val_tokens: validation tokens, rounded down to whole windows; None for 2**20, or all where there are fewer.
        val_sets: further validation sets: addresses of shards by name, of which `val_tokens` are read or all.
        micro_batch_size: sequences of one micro-step of one rank.
        global_batch_size: sequences of an optimizer step over all ranks.
        workers: loader processes; 0 reads in the training process.
        cache: the folder into which remote shards are fetched.
        cache_gib: its largest size in GiB; the least recently used shards are removed first.
        accept_changed: true lets a resumed run continue with other data.

    Raises:
        ValueError: sizes that do not fit one another.
    """

    added_keys: ClassVar[Mapping[str, object]] = {"val_sets": None, "document_attention": False}
    gpt2_addresses: ClassVar[tuple[str, ...]] = ()
    #: Validate on all tokens, with a warning, where there are fewer than `val_tokens`; false raises an error.
    accepts_fewer_val_tokens: ClassVar[bool] = False

    def __init__(
        self,
        spec: BatchSpec,
        *,
        path: str | list[object] | None,
        order: OrderName,
        document_attention: bool,
        epochs: PositiveInt | None,
        val_tokens: int | None,
        val_sets: dict[str, str | list[str]] | None,
        micro_batch_size: int,
        global_batch_size: int,
        workers: WorkerCount,
        cache: str,
        cache_gib: Annotated[float, Field(gt=0, le=1e9)],
        accept_changed: bool,
    ) -> None:
        super().__init__(spec, micro_batch_size=micro_batch_size, global_batch_size=global_batch_size, workers=workers)
        if val_tokens is not None and val_tokens < spec.block_size:
            raise ValueError(f"data.val_tokens must be at least model.block_size={spec.block_size}, got {val_tokens}")
        self.path, self.order, self.epochs, self.val_tokens = path, order, epochs, val_tokens
        self.wanted_val_tokens = DEFAULT_VAL_TOKENS if val_tokens is None else val_tokens
        for name in val_sets or {}:
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise ValueError(f"data.val_sets: a name has letters, digits, _ and - only, got {name!r}")
        self.named_sets = {name: [at] if isinstance(at, str) else at for name, at in (val_sets or {}).items()}
        self.named_stamps: dict[str, list[dict[str, str | int]]] = {}
        self.cache = CacheFolder(Path(cache), int(cache_gib * 2**30))
        self.accept_changed = accept_changed
        self.document_attention = document_attention

    # ---- opening

    def sources(self) -> dict[str, tuple[list[str], float]]:
        """Return the addresses and the weight of each source, by name."""
        return read_sources(self.path)

    def setup(self, stage: str | None = None) -> None:
        """Open the shards and check them.

        Raises:
            ShardError: a shard that cannot be read, too few tokens, or a tokenizer that does not fit.
        """
        if hasattr(self, "stream"):
            return
        sources = self.sources()
        weights = [weight for _, weight in sources.values()]
        streams: list[WindowStream] = []
        val: list[Any] = []  # Tokens, whose union of dtypes numpy's stubs cannot concatenate
        self.shards: dict[str, Shards] = {}
        for name, (addresses, weight) in sources.items():
            shards = open_shards(addresses, self.cache, streamed=self.order in STREAMED)
            self.shards[name] = shards
            self._check_tokenizer(shards)
            streams.append(self._stream(name, shards))
            wanted = self.wanted_val_tokens * weight / sum(weights)
            all_if_fewer = self.val_tokens is None or self.accepts_fewer_val_tokens
            val.append(self._read_validation(shards, wanted, all_if_fewer=all_if_fewer))
            n_read, T = val[-1][:, 1:].size, self.spec.block_size
            if self.val_tokens is not None and n_read < int(wanted) // T * T:
                line = "data.path=%s has fewer validation tokens than data.val_tokens=%d: validating on %d"
                log.warning(line, shards.name, self.val_tokens, n_read)
        self.val_windows = np.concatenate(val)
        self.val_sets = {name: self._read_named_set(name, at) for name, at in self.named_sets.items()}
        self.train_windows = [stream.windows for stream in streams]
        stream = Mixture(streams, weights)
        self._check_epochs(stream)
        self._check_documents()
        self.stream = stream

    def _check_tokenizer(self, shards: Shards) -> None:
        """Raise an error if shards have another tokenizer than the first, or ids that the model lacks."""
        first = next(iter(self.shards.values()))
        a, b = identify(first.tokenizer), identify(shards.tokenizer)
        if a is not None and b is not None and a != b:
            raise ShardError(
                f"data.path={shards.name} has the tokens of another tokenizer than {first.name}; prepare it again by the "
                "same"
            )
        tokenizer, size = shards.open_tokenizer(), self.spec.vocab_size
        if tokenizer is not None and size < tokenizer.n_vocab:
            raise ShardError(
                f"data.path={shards.name} has the {tokenizer.n_vocab} ids of tokenizer {tokenizer.name}, "
                f"model.vocab_size is {size}; give model.vocab_size={tokenizer.padded_vocab_size}"
            )
        if tokenizer is not None and size >= 2 * tokenizer.n_vocab and shards is first:
            log.warning(
                "%d of model.vocab_size=%d ids never occur in the data; model.vocab_size=%d has those of tokenizer %s",
                *(size - tokenizer.n_vocab, size, tokenizer.padded_vocab_size, tokenizer.name),
            )

    def _read_validation(self, shards: Shards, wanted: float, *, all_if_fewer: bool) -> Tokens:
        n_tokens, T = int(wanted), self.spec.block_size
        if all_if_fewer:
            n_tokens = min(n_tokens, sum(slot.n_tokens for slot in shards.val) - 1)
        return read_validation_windows(shards.val, max(T, n_tokens), T, self.spec.vocab_size, shards.name)

    def _read_named_set(self, name: str, addresses: list[str]) -> Tokens:
        try:
            shards = open_shards(addresses, self.cache, streamed=True, splits=("val",))
            self._check_tokenizer(shards)
            windows = self._read_validation(shards, self.wanted_val_tokens, all_if_fewer=True)
            self.named_stamps[name] = [slot.stamp() for slot in shards.val]
        except ShardError as error:
            raise ShardError(str(error).replace("data.path=", f"data.val_sets.{name}=")) from error
        for slot in shards.val:
            slot.close()
        return windows

    def teardown(self, stage: str | None = None) -> None:
        """Release fetched shards; a later read opens them again."""
        for shards in getattr(self, "shards", {}).values():
            for slot in (*shards.val, *shards.train):
                slot.close()

    def _stream(self, name: str, shards: Shards) -> WindowStream:
        """Build the training windows of one source and check the ids of its first tokens."""
        length, vocab_size = self.spec.block_size + 1, self.spec.vocab_size
        kind, order = ORDERS[self.order]
        remaining = SCANNED_TOKENS
        for slot in shards.train:
            if isinstance(slot, TokenShard) and remaining:
                slot.check_ids(0, slot.tokens[:remaining], vocab_size)
                remaining -= min(remaining, slot.n_tokens)
        windows = kind(shards.train, length, vocab_size)
        if len(windows) == 0:
            n_tokens = sum(slot.n_tokens for slot in shards.train)
            raise ShardError(
                f"data.path={shards.name} has {n_tokens} training tokens, not one window of "
                f"model.block_size + 1 = {length} for data.order={self.order}; lower model.block_size or give "
                "more data"
            )
        return WindowStream(name, windows, order, self.spec.seed)

    def _check_epochs(self, stream: Mixture) -> None:
        """Raise an error if the run needs more epochs than `data.epochs` allows."""
        needed = self.spec.max_steps * self.global_batch_size
        for name, completed in stream.epochs(needed - 1).items():
            if self.epochs is not None and completed >= self.epochs:
                raise ValueError(
                    f"data.epochs={self.epochs}, but trainer.max_steps={self.spec.max_steps} of "
                    f"data.global_batch_size={self.global_batch_size} needs epoch {completed + 1} of {name} "
                    f"({needed} sequences); lower trainer.max_steps or give data.epochs=null"
                )

    def _check_documents(self) -> None:
        """Raise an error if attention is to stay within documents and no document begins."""
        mark = self.document_mark()
        if mark is not None and not (self.val_windows == mark).any():
            raise ShardError(
                f"data.document_attention=true needs documents that begin with token {mark} (end of text), which does "
                f"not occur in the {self.val_windows[:, 1:].size} validation tokens of data.path; give shards with it, "
                "or data.document_attention=false"
            )

    # ---- contract

    def train_sequences(self, first: int, count: int) -> Tokens:
        return self.stream.read(np.arange(first, first + count, dtype=np.int64))

    def completed_epochs(self, position: int) -> dict[str, int]:
        return self.stream.epochs(position)

    def document_mark(self) -> int | None:
        return self._document_mark if self.document_attention else None

    @cached_property
    def _document_mark(self) -> int:
        """Return the id of end of text: of the manifest, or else of the format."""
        marks = {name: shards.val[0].load().format.end_of_text for name, shards in self.shards.items()}
        if len({*marks.values()}) > 1:
            stated = ", ".join(f"{mark} in {name}" for name, mark in marks.items())
            raise ShardError(f"data.path mixes shards of different ids of end of text: {stated}; prepare them by one")
        return next(iter(marks.values()))

    def tokenizer(self) -> Tokenizer | None:
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> Tokenizer | None:
        found: list[Tokenizer] = []
        for name, (addresses, _) in self.sources().items():
            published = all(address in self.gpt2_addresses for address in addresses)
            tokenizer = gpt2_tokenizer() if published else self.shards[name].open_tokenizer()
            if tokenizer is None:
                log.info("no bits per byte: %s has no manifest that states its tokenizer", name)
                return None
            found.append(tokenizer)
        if len({identify(tokenizer.statement()) for tokenizer in found}) > 1:
            names = " and ".join(tokenizer.name for tokenizer in found)
            raise ShardError(f"data.path mixes the tokens of {names}; prepare all sources by one tokenizer")
        return found[0]

    def identity(self) -> dict[str, Any]:
        return self._identity

    @cached_property
    def _identity(self) -> dict[str, Any]:
        shards = {
            split: [slot.stamp() for part in self.shards.values() for slot in getattr(part, split)]
            for split in ("val", "train")
        }
        weights = {name: weight for name, (_, weight) in self.sources().items()}
        n_val = len(self.val_windows) * self.spec.block_size
        hashed: list[Any] = [shards, n_val if self.val_tokens is None else self.val_tokens]
        if self.order != "shuffled" or len(weights) > 1:
            n_train = [len(part.train) for part in self.shards.values()]
            hashed += [self.order, list(zip(weights.values(), n_train, strict=True))]
        if self.document_attention:  # losses depend on what a token attends over
            hashed.append("document_attention")
        n_windows = sum(len(w) for w in self.train_windows)
        tokenizer = self.tokenizer()
        return {
            "folder": ", ".join(part.name for part in self.shards.values()),
            "hash": hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest(),
            "tokenizer": None if tokenizer is None else tokenizer.statement(),
            "manifest": [part.manifest for part in self.shards.values()],
            "order": self.order,
            **({"document_attention": True} if self.document_attention else {}),
            "weights": weights,
            "val_tokens": n_val,
            "val_sets": {
                name: {"val_tokens": self.val_sets[name][:, 1:].size, "shards": stamps}
                for name, stamps in self.named_stamps.items()
            },
            "train_tokens": sum(slot.n_tokens for part in self.shards.values() for slot in part.train),
            "train_windows": n_windows,
            "epochs": self.spec.max_steps * self.global_batch_size / n_windows,
            "n_shards": {split: len(stamps) for split, stamps in shards.items()},
            "shards": {split: stamps[:LISTED_SHARDS] for split, stamps in shards.items()},
        }
