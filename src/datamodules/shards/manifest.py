"""manifest.json of a folder of shards, which `task=prepare` writes last.

It states where the tokens came from and, of each shard, the number of tokens and the hash of the file. Its own
hash, over content and not over formatting, identifies the data.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from src.datamodules.shards.format import LLM_C, ShardError

NAME = "manifest.json"
#: File of a folder whose preparation is not finished.
JOURNAL = ".prepare.json"


@dataclass(frozen=True)
class ShardEntry:
    """Shard of a manifest; `sampled` is `TokenShard.fingerprint`, which detects a replaced file quickly."""

    name: str
    split: str
    tokens: int
    bytes: int
    sha256: str
    sampled: str
    first_document: str


@dataclass(frozen=True)
class Manifest:
    """Shards of a folder and their source."""

    source: dict[str, Any]
    tokenizer: dict[str, Any]
    documents: int
    tokens: int
    bad_documents: dict[str, int]
    shards: tuple[ShardEntry, ...]

    def dump(self) -> str:
        """Return the content of the file."""
        return json.dumps({"format": LLM_C.name, "version": LLM_C.version, **asdict(self)}, indent=1) + "\n"

    def hash(self) -> str:
        """Return the identity of the data."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @classmethod
    def parse(cls, raw: bytes, where: str) -> "Manifest":
        """Read the content of a file.

        Raises:
            ShardError: it was not written by `task=prepare`.
        """
        try:
            content = json.loads(raw)
            shards = tuple(ShardEntry(**entry) for entry in content["shards"])
            keys = ("source", "tokenizer", "documents", "tokens", "bad_documents")
            manifest = cls(**{key: content[key] for key in keys}, shards=shards)
            valid = all(
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
        if not valid or not shards:
            raise ShardError(f"{where}: no manifest of task=prepare (its shards); restore or remove it")
        return manifest
