"""Squared-ReLU MLP equals its source."""

import torch

from src.models.mlp.base import MLPSpec
from src.models.mlp.relu2 import ReLU2
from tests.oracle import assert_same


def test_it_equals_its_source() -> None:
    """karpathy/nanochat @ 92d63d4, nanochat/gpt.py, `MLP`."""
    mlp = ReLU2(MLPSpec(16, False, 0.0, "none")).double()
    x_BTD = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    h_BTF = x_BTD @ mlp.c_fc.weight.T
    h_BTF = torch.where(h_BTF > 0, h_BTF, torch.zeros_like(h_BTF))
    assert_same(mlp(x_BTD), (h_BTF * h_BTF) @ mlp.c_proj.weight.T, [x_BTD, *mlp.parameters()], 1e-10)
    assert sum(p.numel() for p in mlp.parameters()) == 8 * 16**2
