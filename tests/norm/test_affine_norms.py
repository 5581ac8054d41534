"""Norms of the submissions against their equations, channel by channel."""

import math

import pytest
import torch
from torch import Tensor

from src.norm.base import NormSpec
from tests.norm.test_norms import built, inputs
from tests.support import component

EPS = 1e-5


def rms(values: list[float]) -> float:
    return math.sqrt(sum(v * v for v in values) / len(values) + EPS)


def row(norm: torch.nn.Module, x: Tensor) -> tuple[list[float], list[float], list[float], float]:
    """One position's input, the weights, the biases, and the input's mean."""
    values = x.tolist()
    return values, norm.weight.tolist(), norm.bias.tolist(), sum(values) / len(values)


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


def test_mean_preserving_rms_equals_its_equation() -> None:
    norm, x = built("mean_preserving_rms").double(), inputs()[0, 0]
    values, weight, bias, mean = row(norm, x)
    scale = rms([v - mean for v in values])
    expected = [((v - mean) / scale + mean) * w + b for v, w, b in zip(values, weight, bias, strict=True)]
    assert norm(x).tolist() == pytest.approx(expected)


def test_the_mean_is_kept() -> None:
    norm = component("norm", "mean_preserving_rms")(NormSpec(8, bias=False)).double()
    assert torch.allclose(norm(inputs()).mean(-1), inputs().mean(-1))


@pytest.mark.parametrize(("fraction", "channels"), [(0.25, 2), (0.5, 4), (0.01, 1)])
def test_partial_rms_equals_its_equation(fraction: float, channels: int) -> None:
    norm = component("norm", "partial_rms", fraction=fraction)(NormSpec(8, bias=True)).double()
    torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(norm.bias, generator=torch.Generator().manual_seed(2))
    x = inputs()[0, 0]
    values, weight, bias, mean = row(norm, x)
    scale = rms([v - mean for v in values[:channels]])
    expected = [((v - mean) / scale + mean) * w + b for v, w, b in zip(values, weight, bias, strict=True)]
    assert norm(x).tolist() == pytest.approx(expected)


def test_over_all_channels_partial_rms_is_mean_preserving_rms() -> None:
    whole = component("norm", "partial_rms", fraction=1.0)(NormSpec(8, bias=False)).double()
    assert torch.allclose(
        whole(inputs()), component("norm", "mean_preserving_rms")(NormSpec(8, bias=False))(inputs())
    )


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5])
def test_a_fraction_out_of_bounds_is_an_error(fraction: float) -> None:
    with pytest.raises(ValueError, match=rf"norm\.fraction must be in \(0, 1\], got {fraction}"):
        component("norm", "partial_rms", fraction=fraction)(NormSpec(8, bias=False))
