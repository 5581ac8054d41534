"""Files of a tokenizer for a Hugging Face folder, from the ranks of its tokens or as it was read.

A token's rank is the order in which its merge was learned. The two parts that a token was merged from are thus
what byte-pair encoding makes of its bytes with earlier merges only. Bytes are written as GPT-2's printable
characters.

Source: GPT-2's `bytes_to_unicode`; Hugging Face tokenizers' format (`tokenizer.json`, version 1.0).
"""

import json
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from tiktoken.load import load_tiktoken_bpe

from src.datamodules.tokenizer import END_OF_TEXT, RANKS, gpt2_encoding

SPECIAL = "<|endoftext|>"


def write_tokenizer(folder: Path, model_max_length: int) -> None:
    """Write GPT-2's `tokenizer.json` and `tokenizer_config.json` into `folder`."""
    special = {"bos_token": SPECIAL, "eos_token": SPECIAL, "unk_token": SPECIAL}
    config = {
        **special,
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "model_max_length": model_max_length,
    }
    _write(folder / "tokenizer.json", build_tokenizer(read_gpt2_ranks()))
    _write(folder / "tokenizer_config.json", config)


def write_tokenizer_file(folder: Path, text: str, end_of_text: str, model_max_length: int | None = None) -> None:
    """Write a `tokenizer.json` as it was read, and the `tokenizer_config.json` by which AutoTokenizer finds it."""
    (folder / "tokenizer.json").write_bytes(text.encode())
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    config |= {"bos_token": end_of_text, "eos_token": end_of_text}
    if model_max_length is not None:
        config["model_max_length"] = model_max_length
    _write(folder / "tokenizer_config.json", config)


def read_gpt2_ranks() -> dict[bytes, int]:
    """Return the rank of each of GPT-2's tokens."""
    gpt2_encoding()  # raises an error if the ranks are not the published ones
    return load_tiktoken_bpe(str(RANKS))


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def build_tokenizer(
    ranks: Mapping[bytes, int], special: Mapping[str, int] | None = None, pattern: str | None = None
) -> dict[str, Any]:
    """Return the content of tokenizer.json.

    Args:
        ranks: id of each token, in the order in which the tokens were learned.
        special: ids of the special tokens; None for GPT-2's.
        pattern: tiktoken's pattern of the pieces that are encoded one by one; None for GPT-2's.
    """
    special = {SPECIAL: END_OF_TEXT} if special is None else special
    characters = byte_characters()

    def spell(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": pattern is None}
    splitter: dict[str, Any] = level
    if pattern is not None:
        split = {"type": "Split", "pattern": {"Regex": _greedy_intervals(pattern)}}
        splitter = {"type": "Sequence", "pretokenizers": [{**split, "behavior": "Isolated", "invert": False}, level]}
    pairs = [_split_merge(token, ranks) for token in ranks if len(token) > 1]
    merges = [[spell(part) for part in parts] for parts in pairs if len(parts) == 2]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    ordered = sorted(special.items(), key=lambda item: item[1])
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token, "content": text, **flags} for text, token in ordered],
        "normalizer": None,
        "pre_tokenizer": splitter,
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
            "ignore_merges": pattern is not None,  # tiktoken looks a whole piece up before it merges
            "vocab": {**{spell(token): rank for token, rank in ranks.items()}, **dict(ordered)},
            "merges": merges,
        },
    }


def _greedy_intervals(pattern: str) -> str:
    """Return a pattern without possessive intervals, which Oniguruma would read as repeated ones."""
    return re.sub(r"(\{\d+(?:,\d*)?\})\+", r"\1", pattern)


def byte_characters() -> dict[int, str]:
    """Return GPT-2's character for each byte: itself if it is printable, else the next one from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def _split_merge(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """Return the parts that `token` was merged from: two, or more where merges of earlier tokens do not reach it."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, ranks[token]) for a, b in pairwise(parts)]
        if min(pairs) >= ranks[token]:
            break
        at = pairs.index(min(pairs))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
