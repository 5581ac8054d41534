"""Mean-preserving RMS norm beside the benchmark's description."""

import torch
from torch import Tensor

from src.norm.base import NormSpec
from tests.norm.test_contract import EPS, built, inputs
from tests.oracle import compare_module
from tests.support import component


def test_it_equals_its_source() -> None:
    """MLS-Bench llm-pretrain-normalization, submission: xc = x - mu, y = (xc / rms(xc) + mu) w + b."""
    norm = built("mean_preserving_rms").double()

    def oracle(x: Tensor) -> Tensor:
        mu = x.sum(-1, keepdim=True) / 8
        scale = (((x - mu) ** 2).sum(-1, keepdim=True) / 8 + EPS).sqrt()
        return ((x - mu) / scale + mu) * norm.weight + norm.bias

    compare_module(norm, inputs(), oracle)


def test_the_mean_is_kept() -> None:
    norm = component("norm", "mean_preserving_rms")(NormSpec(8, bias=False)).double()
    assert torch.allclose(norm(inputs()).mean(-1), inputs().mean(-1))
