"""Files of GPT-2's tokenizer for a Hugging Face folder, from the ranks in the repository.

A token's rank is the order in which its merge was learned. The two parts that a token was merged from are thus
what byte-pair encoding makes of its bytes with earlier merges only. Bytes are written as GPT-2's printable
characters.

Source: GPT-2's `bytes_to_unicode`; Hugging Face tokenizers' format (`tokenizer.json`, version 1.0).
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from tiktoken.load import load_tiktoken_bpe

from src.datamodules.tokenizer import END_OF_TEXT, RANKS, gpt2_encoding

SPECIAL = "<|endoftext|>"


def write_tokenizer(folder: Path, model_max_length: int) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` into `folder`."""
    gpt2_encoding()  # raises an error if the ranks are not the published ones
    ranks = load_tiktoken_bpe(str(RANKS))
    special = {"bos_token": SPECIAL, "eos_token": SPECIAL, "unk_token": SPECIAL}
    config = {
        **special,
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "model_max_length": model_max_length,
    }
    _write(folder / "tokenizer.json", _build_tokenizer(ranks))
    _write(folder / "tokenizer_config.json", config)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _build_tokenizer(ranks: dict[bytes, int]) -> dict[str, Any]:
    """Return the content of tokenizer.json."""
    characters = _byte_characters()

    def spell(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    merges = [[spell(part) for part in _split_merge(token, ranks)] for token in ranks if len(token) > 1]
    special = {"content": SPECIAL, "single_word": False, "lstrip": False, "rstrip": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": END_OF_TEXT, **special, "normalized": False, "special": True}],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": {**level, "trim_offsets": False},
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {**{spell(token): rank for token, rank in ranks.items()}, SPECIAL: END_OF_TEXT},
            "merges": merges,
        },
    }


def _byte_characters() -> dict[int, str]:
    """Return GPT-2's character for each byte: itself if it is printable, else the next one from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def _split_merge(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """Return the two parts that `token` was merged from."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, len(ranks)) for a, b in pairwise(parts)]
        at = pairs.index(min(pairs))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
