"""GPT-2's tokenizer, whose ranks are in the repository."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from src.datamodules.tokenization.base import Ids, Tokenizer
from src.datamodules.tokenizer import END_OF_TEXT, N_VOCAB, RANKS_SHA256, gpt2_encoding


class GPT2Tokenizer(Tokenizer):
    """GPT-2's byte-pair encoding by tiktoken; it needs no file."""

    def __init__(self) -> None:
        super().__init__("gpt2", N_VOCAB, END_OF_TEXT)

    def encode(self, text: str) -> list[int]:
        return gpt2_encoding().encode_ordinary(text)

    def encode_special(self, text: str) -> list[int]:
        return gpt2_encoding().encode(text, allowed_special="all")

    def encode_array(self, text: str) -> Ids:
        ids: Any = gpt2_encoding().encode_to_numpy(text, disallowed_special=()).astype(self.dtype)
        return ids  # type: ignore[no-any-return]  # as in the base

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return gpt2_encoding().decode_bytes(ids)

    def statement(self) -> dict[str, Any]:
        return {"name": "gpt2", "ranks_sha256": RANKS_SHA256, "n_vocab": N_VOCAB, "end_of_text": END_OF_TEXT}

    def content(self) -> str | None:
        return None


@cache
def gpt2_tokenizer() -> GPT2Tokenizer:
    """Return GPT-2's tokenizer."""
    return GPT2Tokenizer()
