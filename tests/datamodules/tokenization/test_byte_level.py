"""Tokenizers of a tokenizer.json: bytes of ids, special tokens, and files that are not byte-level tokenizers.

Covers `base.py` too.
"""

import json

import numpy as np
import pytest
import tokenizers

from src.datamodules.hub_tokenizer import build_tokenizer, byte_characters, read_gpt2_ranks
from src.datamodules.tokenization.byte_level import PROBE, ByteLevelTokenizer
from src.datamodules.tokenization.gpt2 import gpt2_tokenizer
from src.datamodules.tokenization.train import train_bpe

TEXT = "the cats' naïve 猫 <|endoftext|> walks; the cats walk. "


@pytest.fixture(scope="module")
def trained() -> ByteLevelTokenizer:
    return ByteLevelTokenizer("trained", train_bpe(iter([TEXT] * 20), 280))


def test_ids_stand_for_the_bytes_of_a_text(trained: ByteLevelTokenizer) -> None:
    for text in (TEXT, PROBE):
        ids = trained.encode(text)
        assert trained.decode(ids) == text
        assert trained.count_bytes(np.array(ids)) == len(text.encode())
    assert trained.n_vocab == 280
    assert trained.padded_vocab_size == 384
    assert trained.dtype is np.uint16
    assert trained.decode(trained.encode("猫")[:1]) == "\N{REPLACEMENT CHARACTER}"


def test_a_special_token_that_is_spelt_out_is_text_unless_asked_for(trained: ByteLevelTokenizer) -> None:
    assert trained.end_of_text == 0
    assert 0 not in trained.encode("a<|endoftext|>b")
    a, mark, b = trained.encode_special("a<|endoftext|>b")
    assert mark == 0
    assert trained.decode([a, b]) == "ab"
    assert trained.token_bytes[0] == 0


def test_gpt2s_file_gives_gpt2s_ids_and_bytes() -> None:
    """The right values are tiktoken's."""
    read = ByteLevelTokenizer("copy", json.dumps(build_tokenizer(read_gpt2_ranks())))
    for text in (TEXT, PROBE):
        assert read.encode(text) == gpt2_tokenizer().encode(text)
    assert (read.n_vocab, read.end_of_text) == (50257, 50256)
    assert np.array_equal(read.token_bytes, gpt2_tokenizer().token_bytes)


def test_bytes_of_an_id_are_those_of_its_text_and_none_for_end_of_text() -> None:
    gpt2 = gpt2_tokenizer()
    assert gpt2.token_bytes[[15496, 995, 198, 50256]].tolist() == [len("Hello"), len(" world"), len("\n"), 0]
    text = "naïve Zürich 🎉"
    assert gpt2.count_bytes(gpt2.encode_array(text)) == len(text.encode())


def changed(change: dict[str, object], drop: str | None = None) -> str:
    tree = {**json.loads(train_bpe(iter([TEXT] * 20), 280)), **change}
    if drop is not None:
        tree["model"]["vocab"].pop(drop)
        tree["model"]["merges"] = []
    return json.dumps(tree, ensure_ascii=False)


def test_an_nfc_normalizer_is_left_out_so_that_texts_keep_their_bytes(trained: ByteLevelTokenizer) -> None:
    read = ByteLevelTokenizer("qwen", changed({"normalizer": {"type": "NFC"}}))
    decomposed = "cafe\u0301"
    assert read.decode(read.encode(decomposed)) == decomposed
    assert read.count_bytes(np.array(read.encode(decomposed))) == 6
    assert read.encode(TEXT) == trained.encode(TEXT)
    stored = ByteLevelTokenizer("qwen", str(read.content()))
    assert (stored.sha256, stored.encode(PROBE)) == (read.sha256, read.encode(PROBE))


def test_deepseeks_end_of_text_is_found() -> None:
    name = "<\uff5cend\u2581of\u2581sentence\uff5c>"
    read = ByteLevelTokenizer("deepseek", changed({}).replace("<|endoftext|>", name))
    assert read.end_of_text == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "is not a file of Hugging Face tokenizers"),
        (changed({"added_tokens": []}), r"has no token for end of text; .* its special tokens are none"),
        (changed({"normalizer": {"type": "Lowercase"}}), r"is not byte-level \(a text does not come back unchanged\)"),
        (
            tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")).to_str(),
            "has no token for end of text",
        ),
    ],
)
def test_what_is_no_byte_level_tokenizer_is_rejected(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ByteLevelTokenizer("x", text)


def test_a_byte_without_an_id_is_rejected() -> None:
    with pytest.raises(ValueError, match="1 of 256 bytes have no id"):
        ByteLevelTokenizer("x", changed({}, drop=byte_characters()[0xF5]))


def test_an_unpaired_surrogate_is_no_text(trained: ByteLevelTokenizer) -> None:
    with pytest.raises(UnicodeEncodeError):
        trained.encode("lone \ud800 surrogate")
