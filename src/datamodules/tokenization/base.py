"""Contract of a tokenizer: text to ids and back, and what identifies it.

Every tokenizer here is byte-level: each id stands for a fixed string of bytes, and the ids of a text stand for the bytes
of the text. Bits per byte are thus comparable between any two of them.

A statement is what a manifest, a run's record and a checkpoint hold of a tokenizer: its name, its number of ids, its id
of end of text, and a hash.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: File of a tokenizer in a folder of shards, in a run folder and in an export.
FILE = "tokenizer.json"
#: Tensor cores and CPU kernels like a vocabulary that is a multiple of this.
PADDED_TO = 128

Ids = NDArray[np.uint16] | NDArray[np.uint32]
Statement = Mapping[str, Any]


class Tokenizer(ABC):
    """Tokenizer of a data set, which its models are evaluated with.

    Args:
        name: name for messages and reports.
        n_vocab: number of ids, which are 0 to n_vocab - 1.
        end_of_text: id that precedes each document.
    """

    def __init__(self, name: str, n_vocab: int, end_of_text: int) -> None:
        self.name, self.n_vocab, self.end_of_text = name, n_vocab, end_of_text

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; special tokens that are spelt out in it are plain text.

        Raises:
            UnicodeEncodeError: the text has an unpaired surrogate.
        """

    @abstractmethod
    def encode_special(self, text: str) -> list[int]:
        """Return the ids of a text in which a spelt-out special token is that token."""

    @abstractmethod
    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Return the bytes that ids stand for."""

    @abstractmethod
    def statement(self) -> dict[str, Any]:
        """Return what identifies the tokenizer."""

    @abstractmethod
    def content(self) -> str | None:
        """Return the text of the tokenizer's file; None for one that needs no file."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text that ids stand for; bytes that are not UTF-8 become replacement characters."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def encode_array(self, text: str) -> Ids:
        """Return the ids of a text as an array of `dtype`."""
        ids: Any = np.array(self.encode(text), dtype=self.dtype)  # numpy's stubs lose which of the two types
        return ids  # type: ignore[no-any-return]

    @property
    def dtype(self) -> type[np.uint16] | type[np.uint32]:
        """Return the narrowest type that holds every id: uint16 up to 65,536 ids."""
        return np.uint16 if self.n_vocab <= 2**16 else np.uint32

    @property
    def padded_vocab_size(self) -> int:
        """Return `n_vocab` rounded up to a multiple of 128, the `model.vocab_size` for this tokenizer."""
        return -(-self.n_vocab // PADDED_TO) * PADDED_TO

    @cached_property
    def token_bytes(self) -> NDArray[np.int16]:
        """Return the number of bytes that each id stands for, [n_vocab]; end of text stands for none."""
        lengths = [len(self.decode_bytes([token])) for token in range(self.n_vocab)]
        lengths[self.end_of_text] = 0
        return np.array(lengths, dtype=np.int16)

    def count_bytes(self, ids: Ids) -> int:
        """Return the number of bytes that ids stand for; end of text stands for none."""
        return int(self.token_bytes[ids].sum(dtype=np.int64))


def identify(statement: Statement | None) -> str | None:
    """Return the hash by which two statements are of one tokenizer; None where nothing is stated."""
    found = statement or {}
    value = found.get("sha256") or found.get("ranks_sha256")
    return None if value is None else str(value)


def describe(statement: Statement) -> str:
    """Return a tokenizer in words: its name and number of ids."""
    return f"{statement.get('name')} ({statement.get('n_vocab'):,} ids)"
