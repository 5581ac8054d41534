"""LayerNorm equals its equation."""

import torch

from tests.norm.test_contract import built, inputs


def test_layernorm_equals_its_equation() -> None:
    norm, x = built("layernorm").double(), inputs()
    expected = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(norm(x), expected * norm.weight + norm.bias)
