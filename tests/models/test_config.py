"""Bounds of the section `model`."""

import math
from typing import Any

import pytest
from omegaconf import OmegaConf

from src.models.config import GPTConfig
from tests.support import SIZES, option, options


@pytest.mark.parametrize("key", ["n_layer", "n_head", "n_embd", "block_size", "vocab_size"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_size_below_one_is_an_error(key: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"^model\.{key} must be >= 1, got {value}$"):
        GPTConfig(**{**SIZES, key: value})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("n_embd", 17, "multiple of model.n_head, got 17 and 2; the nearest is model.n_embd=16"),
        ("n_embd", 1, "multiple of model.n_head, got 1 and 2; the nearest is model.n_embd=2"),
        ("n_head", 3, "multiple of model.n_head, got 16 and 3; the nearest is model.n_embd=15"),
        ("dropout", 1.0, r"model.dropout must be in \[0, 1\), got 1.0"),
        ("dropout", -0.1, r"model.dropout must be in \[0, 1\), got -0.1"),
        ("dropout", math.nan, r"model.dropout must be in \[0, 1\), got nan"),
        ("gelu_approximate", "fast", r"must be none \(exact\) or tanh \(OpenAI's GPT-2\), got fast"),
        ("norm_placement", "post", "model.norm_placement must be one of pre, sandwich, output, got post"),
        ("rope_scaling", "ntk", "model.rope_scaling must be one of linear, llama3, got ntk"),
        ("rope_scaling", "llama3", "model.rope_scaling=llama3 needs model.rope_original >= 1, .* got None; Llama 3.1"),
        ("rope_low_turns", 4.0, "must be > 0 and below model.rope_high_turns, got 4.0 and 4.0; Llama 3.1 has 1 and 4"),
        ("qk_gain", 0.0, "model.qk_gain must be > 0 and below 1e6, got 0.0; nanochat has 1.2"),
        ("qk_gain", 1.2, "model.qk_gain=1.2 needs a norm of queries and keys, .* give model.qk_norm=rms, or leave"),
        ("logit_softcap", 0.0, "model.logit_softcap must be > 0 and below 1e12, got 0.0; null is without a bound"),
        ("logit_softcap", math.nan, "model.logit_softcap must be > 0 and below 1e12, got nan"),
        ("window_pattern", "SX", r"model.window_pattern must be letters S \(short window\) and L .* got 'SX'; null is"),
        ("window_pattern", "", "model.window_pattern must be letters .* got ''; null is"),
        ("window_size", 4, "model.window_size=4 needs model.window_pattern, which states the layers"),
        ("positions", "sinus", "model.positions must be one of learned, rope, none, got sinus"),
    ],
)
def test_a_value_out_of_bounds_is_an_error_of_one_sentence(key: str, value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        GPTConfig(**{**SIZES, key: value})
    assert str(caught.value).startswith("model.")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 12])
def test_a_window_is_of_some_tokens_and_fewer_than_the_sequence(size: int) -> None:
    with pytest.raises(ValueError, match=rf"model.window_size must be >= 1 and below model.block_size=12, got {size};"):
        GPTConfig(**{**SIZES, "window_pattern": "S", "window_size": size})


def test_windows_are_those_of_their_source() -> None:
    """karpathy/nanochat @ 92d63d4, nanochat/gpt.py, `_compute_window_sizes`: T stands for None."""
    for T, pattern, n_layer in ((2048, "SSSL", 12), (1024, "SL", 6), (2000, "SSL", 5), (512, "L", 3)):
        short = -(-T // 4 // 128) * 128
        wanted = [T if pattern[layer % len(pattern)] == "L" else short for layer in range(n_layer)]
        wanted[-1] = T
        config = GPTConfig(**{**SIZES, "n_layer": n_layer, "block_size": T, "window_pattern": pattern})
        assert [window or T for window in config.windows] == wanted
    assert GPTConfig(**SIZES).windows == (None, None, None)
    assert GPTConfig(**{**SIZES, "window_pattern": "S"}).windows == (3, 3, None)  # a quarter of 12
    assert GPTConfig(**{**SIZES, "window_pattern": "SL", "window_size": 5}).windows == (5, None, None)


def test_rope_needs_an_even_head_size() -> None:
    words = r"must be even with model\.positions=rope.*, got 18 / 6; the nearest is model\.n_embd=24$"
    with pytest.raises(ValueError, match=words):
        GPTConfig(**{**SIZES, "n_embd": 18, "n_head": 6, "positions": "rope"})
    assert GPTConfig(**{**SIZES, "n_embd": 24, "n_head": 6, "positions": "rope"}).positions == "rope"


def test_the_shipped_sizes_are_valid() -> None:
    for name in set(options("model")) - {"from_checkpoint"}:  # it has the sizes of another model
        sizes: Any = OmegaConf.to_container(option("model", name))
        assert GPTConfig(**sizes).n_layer >= 1
