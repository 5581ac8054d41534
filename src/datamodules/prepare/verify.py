"""Whether shards are what they should be, read from end to end: `task=check data=...`.

    hashes       every file against its manifest
    ids          every token under the vocabulary
    documents    end-of-text tokens: there, at the start, not side by side
    duplicates   no two shards alike
    overlap      share of the validation text's sampled 32-grams that stand in the training text

The n-grams are sampled by content, where a hash of two tokens falls into one class of 64, so that the same
text is sampled at the same places wherever it stands; repetitive ones (under 16 different tokens) are left out.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from src.datamodules.shards.format import ShardError, Tokens, TokenShard
from src.datamodules.shards.local import Shards
from src.datamodules.shards.windows import ShardSlot
from src.files import sha256_file

log = logging.getLogger(__name__)

GRAM, DISTINCT, ONE_IN = 32, 16, 64
#: Overlap that no web corpus should have; FineWeb's own repetitions stay well below.
MAX_OVERLAP = 0.1
#: End-of-text tokens with no text between them, as a share of all.
MAX_EMPTY = 0.01
BLOCK = 1 << 22
U64 = NDArray[np.uint64]


@dataclass
class Verdict:
    """One property: what is wrong with it, and the figures seen."""

    faults: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)


@dataclass
class _Seen:
    """What was counted in one split."""

    tokens: int = 0
    documents: int = 0
    empty: int = 0


def verify(place: Shards, vocab_size: int) -> dict[str, Verdict]:
    """Read every token of a place and judge it, by property."""
    found = {name: Verdict() for name in ("hashes", "ids", "documents", "duplicates", "overlap")}
    grams = _sampled(place.val)
    met = np.zeros(len(grams), dtype=bool)
    firsts: dict[str, str] = {}
    for split, slots in (("val", place.val), ("train", place.train)):
        seen = _Seen()
        for i, slot in enumerate(slots):
            shard = slot.shard()
            log.info("%s, %s shard %d of %d", shard.name, split, i + 1, len(slots))
            _judge_file(shard, found, firsts)
            _judge_tokens(shard, vocab_size, found, seen, first=split == "val" and i == 0)
            if split == "train":
                for block in _gram_hashes(shard):
                    met |= np.isin(grams, block)
        _judge_documents(split, seen, found["documents"])
    overlap = float(met.mean()) if len(met) else 0.0
    found["overlap"].figures = {"sampled": len(met), "share": overlap}
    if overlap > MAX_OVERLAP:
        found["overlap"].faults.append(
            f"{overlap:.1%} of {len(met)} sampled {GRAM}-grams of the validation text stand in the training text "
            f"(at most {MAX_OVERLAP:.0%}); validate on other documents"
        )
    return found


def _judge_file(shard: TokenShard, found: dict[str, Verdict], firsts: dict[str, str]) -> None:
    sha256 = sha256_file(shard.path)
    figures = found["hashes"].figures
    figures["files"] = figures.get("files", 0) + 1
    if shard.sha256 is not None:
        figures["by_manifest"] = figures.get("by_manifest", 0) + 1
        if sha256 != shard.sha256:
            found["hashes"].faults.append(
                f"{shard.path}: sha256 {sha256[:12]}, the manifest says {shard.sha256[:12]}; restore it"
            )
    first = firsts.setdefault(sha256, shard.name)
    if first != shard.name:
        found["duplicates"].faults.append(f"{shard.path}: the same tokens as {first}; remove one")


def _judge_tokens(
    shard: TokenShard, vocab_size: int, found: dict[str, Verdict], seen: _Seen, *, first: bool
) -> None:
    mark = shard.format.end_of_text
    if first and shard.format.marks_before and shard.tokens[0] != mark:
        found["documents"].faults.append(
            f"{shard.path}: begins with id {shard.tokens[0]}, expected end-of-text {mark} before the first document"
        )
    highest, faulty = 0, False
    for at in range(0, shard.n_tokens, BLOCK):
        block = shard.tokens[at : at + BLOCK + 1]  # one more, for pairs
        own = block[:BLOCK]
        highest = max(highest, int(own.max()))
        if not faulty:
            try:
                shard.check_ids(at, own, vocab_size)
            except ShardError as error:
                found["ids"].faults.append(str(error))
                faulty = True
        marks = block == mark
        seen.documents += int(marks[: len(own)].sum())
        seen.empty += int((marks[:-1] & marks[1:]).sum())
    seen.tokens += shard.n_tokens
    figures = found["ids"].figures
    figures["highest"] = max(figures.get("highest", 0), highest)


def _judge_documents(split: str, seen: _Seen, verdict: Verdict) -> None:
    verdict.figures[f"{split}_tokens"] = seen.tokens
    verdict.figures[f"{split}_documents"] = seen.documents
    if not seen.documents:
        verdict.faults.append(
            f"no end-of-text token in {seen.tokens} {split} tokens; documents run into each other"
        )
    elif seen.empty / seen.documents > MAX_EMPTY:
        verdict.faults.append(
            f"{seen.empty} of {seen.documents} {split} end-of-text tokens follow on another one; "
            "the documents between them are empty"
        )


def _sampled(slots: Sequence[ShardSlot]) -> U64:
    blocks = [block for slot in slots for block in _gram_hashes(slot.shard())]
    return np.unique(np.concatenate(blocks)) if blocks else np.empty(0, dtype=np.uint64)


def _gram_hashes(shard: TokenShard) -> Iterator[U64]:
    """Hashes of the sampled n-grams, a block of tokens at a time."""
    factors = np.random.default_rng(0).integers(1, 2**63, GRAM, dtype=np.uint64) | np.uint64(1)
    for at in range(0, shard.n_tokens, BLOCK):
        block: Tokens = shard.tokens[at : at + BLOCK + GRAM]
        pair = block[:-1].astype(np.uint32) * np.uint32(2654435761) ^ block[1:].astype(np.uint32) * np.uint32(
            40503
        )
        starts = np.flatnonzero((pair * np.uint32(2246822519)) >> np.uint32(16) & np.uint32(ONE_IN - 1) == 0)
        starts = starts[starts + GRAM <= len(block)]
        grams = block[starts[:, None] + np.arange(GRAM)].astype(np.uint64)
        ordered = np.sort(grams, axis=1)
        distinct = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(axis=1)
        yield (grams[distinct >= DISTINCT] * factors).sum(axis=1, dtype=np.uint64)
