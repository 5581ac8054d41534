"""GPT-2's tokenizer from the ranks in the repository."""

import hashlib
from pathlib import Path

import pytest

from src.datamodules.tokenizer import RANKS, gpt2_encoding


def test_the_tokenizer_is_that_of_gpt2() -> None:
    encoding = gpt2_encoding()
    assert encoding.encode("Hello world") == [15496, 995]
    assert encoding.n_vocab == 50257
    assert encoding.encode("<|endoftext|>", allowed_special="all") == [50256]
    text = "It's  27 o'clock\n\n\tin naïve Zürich; we'll\u3000see 🎉 "
    assert encoding.decode(encoding.encode(text)) == text


def test_the_tokenizer_does_not_trust_the_machines_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    (tmp_path / hashlib.sha1(str(RANKS).encode()).hexdigest()).write_bytes(b"IQ== 0\n")
    gpt2_encoding.cache_clear()
    assert gpt2_encoding().encode("Hello world") == [15496, 995]
    assert len(list(tmp_path.iterdir())) == 1
