"""manifest.json: what a folder of shards is, written last, by `task=prepare`.

It says where the tokens came from and, of each shard, how many there are and the hash of the file. Its own
hash, over content and not over formatting, is the identity of the data.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from src.datamodules.shards.format import ShardError

NAME = "manifest.json"
#: Stands in a folder whose preparation is not finished.
JOURNAL = ".prepare.json"


@dataclass(frozen=True)
class ShardEntry:
    """One shard of a manifest."""

    name: str
    split: str
    tokens: int
    bytes: int
    sha256: str
    sampled: str  # `TokenShard.fingerprint`, to tell a replaced file without reading all of it
    first_document: str


@dataclass(frozen=True)
class Manifest:
    """A folder's shards and where they came from."""

    source: dict[str, Any]
    tokenizer: dict[str, Any]
    documents: int
    tokens: int
    bad_documents: dict[str, int]
    shards: tuple[ShardEntry, ...]

    def text(self) -> str:
        """As it stands in the file."""
        return json.dumps({"format": "llm.c", "version": 1, **asdict(self)}, indent=1) + "\n"

    def hash(self) -> str:
        """The identity of the data."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @classmethod
    def parse(cls, raw: bytes, where: str) -> "Manifest":
        """Read a manifest.

        Raises:
            ShardError: not one that `task=prepare` wrote.
        """
        try:
            found = json.loads(raw)
            shards = tuple(ShardEntry(**entry) for entry in found["shards"])
            keys = ("source", "tokenizer", "documents", "tokens", "bad_documents")
            manifest = cls(**{key: found[key] for key in keys}, shards=shards)
            whole = all(
                isinstance(s.name, str)
                and "/" not in s.name
                and isinstance(s.bytes, int)
                and len(s.sha256) == 64
                for s in shards
            )
        except (ValueError, TypeError, KeyError) as error:
            raise ShardError(
                f"{where}: no manifest of task=prepare ({error!r}); restore or remove it"
            ) from error
        if not whole or not shards:
            raise ShardError(f"{where}: no manifest of task=prepare (its shards); restore or remove it")
        return manifest
