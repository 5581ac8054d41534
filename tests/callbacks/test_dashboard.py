"""Sample text and the layout of TensorBoard's charts."""

import pytest
import torch

from src.callbacks.dashboard import LAYOUT, SampleKeys, continuation
from src.datamodules.tokenizer import END_OF_TEXT, gpt2_encoding
from tests.support import jitter, tiny_gpt


def test_a_continuation_is_the_likeliest_token_each_time() -> None:
    gpt = jitter(tiny_gpt(vocab_size=50304)).eval()
    encoding = gpt2_encoding()
    tokens = encoding.encode_ordinary("It was the best of times, it was the worst")  # longer than block_size
    start = len(tokens)
    with torch.no_grad():
        while len(tokens) < start + 5:
            tokens.append(int(gpt(torch.tensor([tokens[-12:]]))[0, -1, :50257].argmax()))
    found = continuation(gpt, "It was the best of times, it was the worst", 5)
    assert found == encoding.decode(tokens[start:])
    assert continuation(gpt, "It was the best of times, it was the worst", 5) == found


def test_a_continuation_ends_at_end_of_text() -> None:
    gpt = tiny_gpt(vocab_size=50304, embedding="untied").eval()
    with torch.no_grad():
        gpt.embedding.get_lm_head_weight()[END_OF_TEXT] += gpt.hidden(torch.tensor([[11]]))[0, -1]
    assert continuation(gpt, gpt2_encoding().decode([11]), 5) == ""


def test_the_layout_names_tags_that_a_run_writes() -> None:
    tags = {tag for charts in LAYOUT.values() for _, found in charts.values() for tag in found}
    assert tags >= {"train/loss", "val/loss", "lr", "grad_norm", "tokens_per_s"}


@pytest.mark.parametrize(
    ("prompt", "tokens", "words"), [("x", -1, "samples.tokens"), ("", 3, "samples.prompt")]
)
def test_mistakes_are_named(prompt: str, tokens: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SampleKeys(prompt, tokens)
