"""LayerNorm beside its paper's equations."""

import torch
from torch import Tensor

from tests.norm.test_contract import EPS, built, inputs
from tests.oracle import compare_module


def test_it_equals_its_source() -> None:
    """Equation 3 of arXiv 1607.06450: mean and variance over the units of one position, gain, bias."""
    norm = built("layernorm").double()

    def oracle(x: Tensor) -> Tensor:
        mu = x.sum(-1, keepdim=True) / x.shape[-1]
        sigma = (((x - mu) ** 2).sum(-1, keepdim=True) / x.shape[-1] + EPS).sqrt()
        return norm.weight / sigma * (x - mu) + norm.bias

    compare_module(norm, inputs(), oracle)


def test_it_is_torchs() -> None:
    norm = built("layernorm").double()
    other = torch.nn.LayerNorm(8, eps=EPS).double()
    other.load_state_dict(norm.state_dict())
    assert torch.equal(norm(inputs()), other(inputs()))
