"""SwiGLU equals its source, and has its number of hidden units."""

import torch

from src.models.mlp.base import MLPSpec
from src.models.mlp.swiglu import SwiGLU
from tests.oracle import assert_same


def test_it_equals_its_source() -> None:
    """meta-llama/llama3 @ a0940f9, llama/model.py, `FeedForward`: w2(silu(w1 x) * w3 x)."""
    mlp = SwiGLU(MLPSpec(16, False, 0.0, "none"), n_hidden=24, multiple_of=1).double()
    w1, w2, w3 = mlp.c_gate.weight, mlp.c_proj.weight, mlp.c_fc.weight
    x_BTD = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    gate_BTF = x_BTD @ w1.T
    expected = ((gate_BTF / (1 + torch.exp(-gate_BTF))) * (x_BTD @ w3.T)) @ w2.T
    assert_same(mlp(x_BTD), expected, [x_BTD, *mlp.parameters()], 1e-10)
    assert sum(p.numel() for p in mlp.parameters()) == 3 * 16 * 24


def test_hidden_units_follow_llamas_rule() -> None:
    """int(2 * 4 * dim / 3), rounded up to the multiple: 11008 of Llama's 4096 with 256."""
    for width, multiple, hidden in ((4096, 256, 11008), (768, 256, 2048), (128, 64, 384)):
        with torch.device("meta"):
            mlp = SwiGLU(MLPSpec(width, False, 0.0, "none"), n_hidden=None, multiple_of=multiple)
        assert mlp.c_fc.weight.shape == (hidden, width)
