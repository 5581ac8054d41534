"""Sizes that a model can have."""

from typing import Any

import pytest

from src.models.config import GPTConfig
from tests.support import SIZES


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("n_layer", 0, "model.n_layer must be at least 1, got 0"),
        ("vocab_size", -1, "model.vocab_size must be at least 1, got -1"),
        ("n_embd", 17, "multiple of model.n_head, got 17 and 2; the nearest is model.n_embd=16"),
        ("dropout", 1.0, r"model.dropout must be in \[0, 1\), got 1.0"),
        ("gelu_approximate", "fast", "none .exact. or tanh"),
    ],
)
def test_sizes_that_no_model_can_have_are_refused(key: str, value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GPTConfig(**{**SIZES, key: value})
