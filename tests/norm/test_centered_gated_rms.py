"""Centered gated RMS norm beside the benchmark's description."""

import torch
from torch import Tensor

from src.norm.base import NormSpec
from tests.norm.test_contract import EPS, built, inputs
from tests.oracle import compare_module
from tests.support import component


def test_it_equals_its_source() -> None:
    """MLS-Bench llm-pretrain-normalization, submission: mix = x + g (x - mean x), y = mix / rms(mix) w + b."""
    norm = built("centered_gated_rms").double()

    def oracle(x: Tensor) -> Tensor:
        mix = x + norm.gate * (x - x.sum(-1, keepdim=True) / 8)
        return mix / ((mix**2).sum(-1, keepdim=True) / 8 + EPS).sqrt() * norm.weight + norm.bias

    compare_module(norm, inputs(), oracle)


def test_the_gate_starts_at_a_half_and_at_zero_it_is_rmsnorm() -> None:
    norm = component("norm", "centered_gated_rms")(NormSpec(8, bias=False)).double()
    assert norm.gate.tolist() == [0.5] * 8
    closed = component("norm", "centered_gated_rms", gate_init=0.0)(NormSpec(8, bias=False)).double()
    plain = component("norm", "rmsnorm")(NormSpec(8, bias=False)).double()
    assert torch.allclose(closed(inputs()), plain(inputs()))
    assert not torch.allclose(norm(inputs()), plain(inputs()))
