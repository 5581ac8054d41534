"""GELU MLP equals its equation."""

import pytest
import torch
from torch import Tensor

from src.models.mlp.base import MLPSpec
from src.models.mlp.gelu import GELU
from tests.oracle import assert_same


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_it_equals_its_source(approximate: str) -> None:
    """arXiv 1606.08415, section 2: x Phi(x), and its approximation."""
    mlp = GELU(MLPSpec(16, True, 0.0, approximate)).double()
    x_BTD = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()

    def gelu(x: Tensor) -> Tensor:
        if approximate == "tanh":
            return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
        return x * (1 + torch.erf(x / 2**0.5)) / 2

    expected = gelu(x_BTD @ mlp.c_fc.weight.T + mlp.c_fc.bias) @ mlp.c_proj.weight.T + mlp.c_proj.bias
    assert_same(mlp(x_BTD), expected, [x_BTD, *mlp.parameters()], 1e-10)
    assert sum(p.numel() for p in mlp.parameters()) == 8 * 16**2 + 5 * 16
