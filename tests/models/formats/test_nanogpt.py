"""Weights of nanoGPT load by name."""

import pytest
import torch

from src.models.formats.nanogpt import load_nanogpt
from tests.support import jitter, tiny_gpt, tokens


def test_nanogpts_weights_load_by_name_and_wrong_shapes_are_an_error() -> None:
    gpt = jitter(tiny_gpt())
    theirs = {f"transformer.{key.removeprefix('embedding.')}": value.clone() for key, value in gpt.state_dict().items()}
    theirs["lm_head.weight"] = theirs["transformer.wte.weight"]
    other = tiny_gpt(seed=3)
    load_nanogpt(other, theirs)
    assert torch.equal(other(tokens()), gpt(tokens()))
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_nanogpt(tiny_gpt(n_embd=32), theirs)
