"""Greedy decoding."""

import torch

from src.datamodules.tokenization.gpt2 import gpt2_tokenizer
from src.datamodules.tokenizer import END_OF_TEXT, gpt2_encoding
from src.evaluation.generation import generate_text
from tests.support import jitter, tiny_gpt


def test_a_continuation_is_the_most_likely_token_each_time() -> None:
    gpt = jitter(tiny_gpt(vocab_size=50304)).eval()
    encoding = gpt2_encoding()
    tokens = encoding.encode_ordinary("It was the best of times, it was the worst")  # longer than block_size
    start = len(tokens)
    with torch.no_grad():
        while len(tokens) < start + 5:
            tokens.append(int(gpt(torch.tensor([tokens[-12:]]))[0, -1, :50257].argmax()))
    found = generate_text(gpt, gpt2_tokenizer(), "It was the best of times, it was the worst", 5)
    assert found == encoding.decode(tokens[start:])
    assert generate_text(gpt, gpt2_tokenizer(), "It was the best of times, it was the worst", 5) == found


def test_a_continuation_ends_at_end_of_text() -> None:
    gpt = tiny_gpt(vocab_size=50304, embedding="untied").eval()
    with torch.no_grad():
        gpt.embedding.get_lm_head_weight()[END_OF_TEXT] += gpt.hidden(torch.tensor([[11]]))[0, -1]
    assert generate_text(gpt, gpt2_tokenizer(), gpt2_encoding().decode([11]), 5) == ""
