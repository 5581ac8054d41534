"""RMSNorm equals its equation."""

import torch

from tests.norm.test_contract import built, inputs


def test_rmsnorm_equals_its_equation() -> None:
    norm, x = built("rmsnorm").double(), inputs()
    assert torch.allclose(norm(x), x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight)
