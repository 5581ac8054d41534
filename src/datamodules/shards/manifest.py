"""manifest.json of a folder of shards, which `task=prepare` writes last.

It states where the tokens came from and, of each shard, the number of tokens and the hash of the file. Its own
hash, over content and not over formatting, identifies the data.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from src.datamodules.shards.format import Format, ShardError, choose_format
from src.errors import one_line

NAME = "manifest.json"
#: File of a folder whose preparation is not finished.
JOURNAL = ".prepare.json"


@dataclass(frozen=True)
class ShardEntry:
    """Shard of a manifest; `sampled` is `TokenShard.fingerprint`, which detects a replaced file quickly."""

    name: Annotated[str, Field(pattern="^[^/]+$")]
    split: str
    tokens: int
    bytes: int
    sha256: Annotated[str, Field(min_length=64, max_length=64)]
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
    shards: Annotated[tuple[ShardEntry, ...], Field(min_length=1)]

    def dump(self) -> str:
        """Return the content of the file."""
        head = {"format": self.shard_format.name, "version": self.shard_format.version}
        return json.dumps({**head, **asdict(self)}, indent=1) + "\n"

    @property
    def shard_format(self) -> Format:
        """Return the format of the shards, with the tokenizer's id of end of text."""
        format_ = choose_format(self.tokenizer.get("n_vocab", 0))
        return format_._replace(end_of_text=self.tokenizer.get("end_of_text", format_.end_of_text))

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
            return TypeAdapter(cls).validate_json(raw, strict=True)
        except ValidationError as error:
            raise ShardError(
                f"{where}: no manifest of task=prepare ({one_line(error)}); restore or remove it"
            ) from error
