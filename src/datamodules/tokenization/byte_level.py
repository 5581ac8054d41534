"""Byte-level tokenizers from a file of Hugging Face tokenizers (`tokenizer.json`).

Accepted is a file whose ids stand for fixed bytes: every byte has an id, and texts come back unchanged. Those of GPT-2,
Llama 3, Qwen, OLMo, DeepSeek and of `task=tokenizer` do; SentencePiece's and WordPiece's do not.

Qwen's and OLMo 1's files normalize texts to NFC, which changes their bytes. That normalizer is left out, here and in the
stored file: texts in NFC get the same ids, others keep their bytes.

Source: Hugging Face tokenizers, `Tokenizer.encode_special_tokens`; GPT-2's `bytes_to_unicode`.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import tokenizers

from src.datamodules.hub_tokenizer import byte_characters
from src.datamodules.tokenization.base import Tokenizer
from src.errors import one_line

#: Names of the token between documents, the first that a file has. DeepSeek's has fullwidth bars, U+FF5C.
END_OF_TEXT_NAMES = ("<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "<|eot_id|>", "</s>", "<eos>")
#: Text that has to come back unchanged: case, space, digits, lines, contractions, scripts, code, special tokens.
PROBE = (
    "It's  27 o'clock\n\n\tin naïve Zürich; WE'LL pay 1234567.89 € \r\n  def f(x):\n        return x**2  # 猫\u3000"
    "Привет, мир! مرحبا 🎉 <|endoftext|> \x00\x7f e\u0301  \n "
)


class ByteLevelTokenizer(Tokenizer):
    """Tokenizer of a `tokenizer.json`.

    Args:
        name: name for messages and reports.
        text: content of the file.

    Raises:
        ValueError: the content is not a tokenizer, not byte-level, or has no token for end of text.
    """

    def __init__(self, name: str, text: str) -> None:
        self._text = text = _drop_nfc(text)
        self._plain, self._special = _parse(text), _parse(text)
        self._plain.encode_special_tokens = True  # special tokens in the text are encoded as plain text
        added = {token: str(entry.content) for token, entry in self._plain.get_added_tokens_decoder().items()}
        ids = {text: token for token, text in added.items()}
        end_of_text = next((ids[text] for text in END_OF_TEXT_NAMES if text in ids), None)
        if end_of_text is None:
            listed = ", ".join(sorted(ids)) or "none"
            raise ValueError(
                f"has no token for end of text; it must have one of {', '.join(END_OF_TEXT_NAMES)}, its special tokens "
                f"are {listed}"
            )
        self._tokens = self._plain.get_vocab(with_added_tokens=True)
        self._added = added
        super().__init__(name, max(self._tokens.values()) + 1, end_of_text)
        missing = [char for char in byte_characters().values() if char not in self._tokens]
        if missing or self.decode(self.encode(PROBE)) != PROBE:
            why = f"{len(missing)} of 256 bytes have no id" if missing else "a text does not come back unchanged"
            raise ValueError(f"is not byte-level ({why}); give one of GPT-2's kind, or train one by task=tokenizer")

    def encode(self, text: str) -> list[int]:
        try:
            ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        except TypeError:
            text.encode()  # an unpaired surrogate raises UnicodeEncodeError here, as in tiktoken
            raise
        return ids

    def encode_special(self, text: str) -> list[int]:
        ids: list[int] = self._special.encode(text, add_special_tokens=False).ids
        return ids

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join(self._bytes.get(token, b"") for token in ids)

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        values = {char: byte for byte, char in byte_characters().items()}
        spelt = {t: bytes(values[c] for c in text if c in values) for text, t in self._tokens.items()}
        return {**spelt, **{token: text.encode() for token, text in self._added.items()}}

    def statement(self) -> dict[str, Any]:
        return {"name": self.name, "sha256": self.sha256, "n_vocab": self.n_vocab, "end_of_text": self.end_of_text}

    @cached_property
    def sha256(self) -> str:
        """Return the SHA-256 of the file."""
        return hashlib.sha256(self._text.encode()).hexdigest()

    def content(self) -> str | None:
        return self._text


def _drop_nfc(text: str) -> str:
    """Return a file without its normalizer if that is NFC, else the file itself."""
    try:
        tree = json.loads(text)
    except ValueError:  # `_parse` states it
        return text
    if not isinstance(tree, dict) or tree.get("normalizer") != {"type": "NFC"}:
        return text
    return json.dumps({**tree, "normalizer": None}, ensure_ascii=False) + "\n"


def _parse(text: str) -> tokenizers.Tokenizer:
    try:
        parsed = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain exceptions
        raise ValueError(f"is not a file of Hugging Face tokenizers ({one_line(error)[:200]})") from error
    parsed.no_truncation()
    parsed.no_padding()
    return parsed
