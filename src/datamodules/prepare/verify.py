"""Verification of the content of shards, which are read completely: `task=check data=...`.

    hashes       every file has the hash that the manifest states
    ids          every token is in the vocabulary
    documents    end-of-text tokens exist, precede the first document and do not follow one another
    duplicates   no two shards are equal
    overlap      share of the validation text's sampled 32-grams that occur in the training text

N-grams are sampled by content, where a hash of two tokens falls into one class of 64, so that a text is sampled at
the same places wherever it occurs; repetitive ones (fewer than 16 different tokens) are left out.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from src.datamodules.shards.format import ShardError, ShardSlot, Tokens, TokenShard
from src.datamodules.shards.local import Shards
from src.files import sha256_file

log = logging.getLogger(__name__)

GRAM, DISTINCT, ONE_IN = 32, 16, 64
#: Overlap that no web corpus should have; FineWeb's own repetitions are well below.
MAX_OVERLAP = 0.1
#: Share of end-of-text tokens that follow another one directly.
MAX_EMPTY = 0.01
BLOCK = 1 << 22
U64 = NDArray[np.uint64]


@dataclass
class Verdict:
    """Result of one property: its faults, and the figures that were counted."""

    faults: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)


@dataclass
class _Counts:
    """Tokens, documents and empty documents of one split."""

    tokens: int = 0
    documents: int = 0
    empty: int = 0


def verify(shards: Shards, vocab_size: int) -> dict[str, Verdict]:
    """Read every token and return the verdict on each property."""
    verdicts = {name: Verdict() for name in ("hashes", "ids", "documents", "duplicates", "overlap")}
    grams = _sample_grams(shards.val)
    in_train = np.zeros(len(grams), dtype=bool)
    names_by_hash: dict[str, str] = {}
    for split, slots in (("val", shards.val), ("train", shards.train)):
        counts = _Counts()
        for i, slot in enumerate(slots):
            shard = slot.load()
            log.info("%s, %s shard %d of %d", shard.name, split, i + 1, len(slots))
            _check_file(shard, verdicts, names_by_hash)
            _check_tokens(shard, vocab_size, verdicts, counts, first=split == "val" and i == 0)
            if split == "train":
                for block in _hash_grams(shard):
                    in_train |= np.isin(grams, block)
        _check_documents(split, counts, verdicts["documents"])
    overlap = float(in_train.mean()) if len(grams) else 0.0
    verdicts["overlap"].figures = {"sampled": len(grams), "share": overlap}
    if overlap > MAX_OVERLAP:
        verdicts["overlap"].faults.append(
            f"{overlap:.1%} of {len(grams)} sampled {GRAM}-grams of the validation text occur in the training text "
            f"(at most {MAX_OVERLAP:.0%}); validate on other documents"
        )
    return verdicts


def _check_file(shard: TokenShard, verdicts: dict[str, Verdict], names_by_hash: dict[str, str]) -> None:
    sha256 = sha256_file(shard.path)
    figures = verdicts["hashes"].figures
    figures["files"] = figures.get("files", 0) + 1
    if shard.sha256 is not None:
        figures["by_manifest"] = figures.get("by_manifest", 0) + 1
        if sha256 != shard.sha256:
            verdicts["hashes"].faults.append(
                f"{shard.path}: sha256 {sha256[:12]}, the manifest says {shard.sha256[:12]}; restore it"
            )
    first = names_by_hash.setdefault(sha256, shard.name)
    if first != shard.name:
        verdicts["duplicates"].faults.append(f"{shard.path}: the same tokens as {first}; remove one")


def _check_tokens(
    shard: TokenShard, vocab_size: int, verdicts: dict[str, Verdict], counts: _Counts, *, first: bool
) -> None:
    mark = shard.format.end_of_text
    if first and shard.format.marks_before and shard.tokens[0] != mark:
        verdicts["documents"].faults.append(
            f"{shard.path}: begins with id {shard.tokens[0]}, expected end-of-text {mark} before the first document"
        )
    highest, faulty = 0, False
    for at in range(0, shard.n_tokens, BLOCK):
        block = shard.tokens[at : at + BLOCK + 1]  # one token more, to see pairs across blocks
        own = block[:BLOCK]
        highest = max(highest, int(own.max()))
        if not faulty:
            try:
                shard.check_ids(at, own, vocab_size)
            except ShardError as error:
                verdicts["ids"].faults.append(str(error))
                faulty = True
        marks = block == mark
        counts.documents += int(marks[: len(own)].sum())
        counts.empty += int((marks[:-1] & marks[1:]).sum())
    counts.tokens += shard.n_tokens
    figures = verdicts["ids"].figures
    figures["highest"] = max(figures.get("highest", 0), highest)


def _check_documents(split: str, counts: _Counts, verdict: Verdict) -> None:
    verdict.figures[f"{split}_tokens"] = counts.tokens
    verdict.figures[f"{split}_documents"] = counts.documents
    if not counts.documents:
        verdict.faults.append(f"no end-of-text token in {counts.tokens} {split} tokens; documents run into each other")
    elif counts.empty / counts.documents > MAX_EMPTY:
        verdict.faults.append(
            f"{counts.empty} of {counts.documents} {split} end-of-text tokens follow another one directly; "
            "the documents between them are empty"
        )


def _sample_grams(slots: Sequence[ShardSlot]) -> U64:
    blocks = [block for slot in slots for block in _hash_grams(slot.load())]
    return np.unique(np.concatenate(blocks)) if blocks else np.empty(0, dtype=np.uint64)


def _hash_grams(shard: TokenShard) -> Iterator[U64]:
    """Yield the hashes of the sampled n-grams, a block of tokens at a time."""
    factors = np.random.default_rng(0).integers(1, 2**63, GRAM, dtype=np.uint64) | np.uint64(1)
    for at in range(0, shard.n_tokens, BLOCK):
        block: Tokens = shard.tokens[at : at + BLOCK + GRAM]
        pair = block[:-1].astype(np.uint32) * np.uint32(2654435761) ^ block[1:].astype(np.uint32) * np.uint32(40503)
        # Sample by content: a start counts if the hash of its two tokens falls into one class of ONE_IN.
        starts = np.flatnonzero((pair * np.uint32(2246822519)) >> np.uint32(16) & np.uint32(ONE_IN - 1) == 0)
        starts = starts[starts + GRAM <= len(block)]
        grams = block[starts[:, None] + np.arange(GRAM)].astype(np.uint64)
        # Leave out repetitive n-grams.
        ordered = np.sort(grams, axis=1)
        distinct = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(axis=1)
        yield (grams[distinct >= DISTINCT] * factors).sum(axis=1, dtype=np.uint64)
