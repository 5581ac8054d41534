"""Tokenizers by address, by statement, and from tiktoken.

Covers `gpt2.py` too.
"""

import json
from pathlib import Path

import pytest
import tiktoken

from src.datamodules.hub_tokenizer import build_tokenizer, read_gpt2_ranks
from src.datamodules.tokenization import open as opening
from src.datamodules.tokenization.base import describe, identify
from src.datamodules.tokenization.byte_level import PROBE, ByteLevelTokenizer
from src.datamodules.tokenization.gpt2 import gpt2_tokenizer
from src.datamodules.tokenization.open import open_stated, open_tokenizer, or_gpt2
from src.datamodules.tokenization.train import train_bpe
from src.datamodules.tokenizer import RANKS_SHA256

#: The pattern of cl100k_base, as tiktoken 0.14 has it.
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
TEXTS = [
    PROBE,
    "I'LL  pay 12345678 for (naïve) cats!!\n\n\n  \tx = y ** 2;\r\n",
    "  trailing  ",
    "\n \n",
    "猫猫 de\u0301ja\u0300",
]


def encoding(ranks: dict[bytes, int], **special: int) -> tiktoken.Encoding:
    marks = {f"<|{name}|>": token for name, token in special.items()}
    return tiktoken.Encoding(name="cl", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=marks)


def test_a_tiktoken_encoding_converts_to_the_same_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """The right ids are tiktoken's; the special ids leave a gap, as those of cl100k_base do."""
    ranks = dict(list(read_gpt2_ranks().items())[:20_000])
    theirs = encoding(ranks, endoftext=20_001, fim=20_002)
    monkeypatch.setattr(tiktoken, "list_encoding_names", lambda: ["cl"])
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: theirs)
    ours = open_tokenizer("cl")
    assert (ours.name, ours.n_vocab, ours.end_of_text) == ("cl", 20_003, 20_001)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode_ordinary(text)
        assert ours.decode_bytes(ours.encode(text)) == text.encode()
    assert ours.encode_special("a<|endoftext|>")[-1] == 20_001


def test_gpt2_is_recognised_however_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(build_tokenizer(read_gpt2_ranks())))
    assert open_tokenizer("gpt2") is gpt2_tokenizer()
    assert open_tokenizer(str(tmp_path)) is gpt2_tokenizer()
    assert open_stated({"name": "gpt2", "ranks_sha256": RANKS_SHA256}, None) is gpt2_tokenizer()


def test_a_file_or_its_folder_names_a_tokenizer(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    text = train_bpe(iter(["low lower lowest"] * 9), 262)
    (folder / "tokenizer.json").write_text(text)
    (tmp_path / "other.json").write_text(text)
    found = [open_tokenizer(str(place)) for place in (folder, folder / "tokenizer.json", tmp_path / "other.json")]
    assert [t.name for t in found] == ["small", "small", "other"]
    assert len({identify(t.statement()) for t in found}) == 1
    assert describe(found[0].statement()) == "small (262 ids)"
    again = open_stated(found[0].statement(), text)
    assert isinstance(again, ByteLevelTokenizer)
    with pytest.raises(ValueError, match=r"tokenizer\.json is not the stated one"):
        open_stated(found[0].statement(), text + " ")
    with pytest.raises(ValueError, match=r"tokenizer\.json is missing; restore it"):
        open_stated(found[0].statement(), None)


def test_without_a_statement_a_vocabulary_of_gpt2s_size_is_gpt2s() -> None:
    assert open_stated(None, None) is None
    assert open_stated({"name": "unknown"}, None) is None
    assert or_gpt2(None, 50304) is gpt2_tokenizer()
    assert or_gpt2(None, 50256) is None
    assert or_gpt2(None, 128256) is None  # Llama 3's


def test_an_unknown_or_unreachable_tokenizer_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"is neither gpt2, a file or folder with a tokenizer\.json, nor an encoding"):
        open_tokenizer("cl1000_base")

    def fail(name: str) -> None:
        raise ConnectionError(name)

    monkeypatch.setattr(opening.tiktoken, "get_encoding", fail)
    with pytest.raises(ValueError, match=r"could not be fetched \(ConnectionError\); .* TIKTOKEN_CACHE_DIR"):
        open_tokenizer("cl100k_base")
    (tmp_path / "tokenizer.json").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="cannot be read"):
        open_tokenizer(str(tmp_path))
