"""MLP sublayers equal their equation, with one or several copies of the weights."""

import torch
from torch.nn import functional as F

from src.models.config import GPTConfig
from src.models.mlp import MLP, CopiedMLP
from tests.support import SIZES


def test_the_mlp_equals_its_equation() -> None:
    config = GPTConfig(**{**SIZES, "bias": True})
    mlp, x = MLP(config), torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    hidden = F.gelu(x @ mlp.c_fc.weight.T + mlp.c_fc.bias)
    assert torch.allclose(mlp(x), hidden @ mlp.c_proj.weight.T + mlp.c_proj.bias, atol=1e-6)
    assert sum(p.numel() for p in mlp.parameters()) == 8 * 16**2 + 5 * 16


def test_each_visit_has_its_own_copy_of_the_weights() -> None:
    mlp, copied = MLP(GPTConfig(**SIZES)), CopiedMLP(GPTConfig(**SIZES), n_copy=2)
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for layer, packed in ((mlp.c_fc, copied.c_fc), (mlp.c_proj, copied.c_proj)):
            packed.weight[0] = layer.weight
            packed.weight[1] = 2 * layer.weight
    assert torch.allclose(copied(x, 0), mlp(x), atol=1e-6)
    hidden = F.gelu(x @ (2 * mlp.c_fc.weight).T)
    assert torch.allclose(copied(x, 1), hidden @ (2 * mlp.c_proj.weight).T, atol=1e-6)
