"""Centered gated RMS norm equals its equation, channel by channel."""

import pytest
import torch

from src.norm.base import NormSpec
from tests.norm.equations import rms, row
from tests.norm.test_contract import built, inputs
from tests.support import component


def test_centered_gated_rms_equals_its_equation() -> None:
    norm, x = built("centered_gated_rms").double(), inputs()[0, 0]
    values, weight, bias, mean = row(norm, x)
    mixed = [v + g * (v - mean) for v, g in zip(values, norm.gate.tolist(), strict=True)]
    expected = [m / rms(mixed) * w + b for m, w, b in zip(mixed, weight, bias, strict=True)]
    assert norm(x).tolist() == pytest.approx(expected)


def test_the_gate_starts_at_a_half_and_at_zero_it_is_rmsnorm() -> None:
    norm = component("norm", "centered_gated_rms")(NormSpec(8, bias=False)).double()
    assert norm.gate.tolist() == [0.5] * 8
    closed = component("norm", "centered_gated_rms", gate_init=0.0)(NormSpec(8, bias=False)).double()
    plain = component("norm", "rmsnorm")(NormSpec(8, bias=False)).double()
    assert torch.allclose(closed(inputs()), plain(inputs()))
    assert not torch.allclose(norm(inputs()), plain(inputs()))
