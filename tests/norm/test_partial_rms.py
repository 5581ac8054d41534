"""Partial RMS norm beside the benchmark's description."""

import pytest
import torch
from torch import Tensor

from src.norm.base import NormSpec
from tests.norm.test_contract import EPS, built, inputs
from tests.oracle import compare_module
from tests.support import component


@pytest.mark.parametrize(("fraction", "channels"), [(0.25, 2), (0.5, 4), (0.01, 1)])
def test_it_equals_its_source(fraction: float, channels: int) -> None:
    """MLS-Bench llm-pretrain-normalization, submission: as mean-preserving RMSNorm, rms over the first channels only."""
    norm = built("partial_rms", fraction=fraction).double()

    def oracle(x: Tensor) -> Tensor:
        mu = x.sum(-1, keepdim=True) / 8
        scale = (((x - mu)[..., :channels] ** 2).sum(-1, keepdim=True) / channels + EPS).sqrt()
        return ((x - mu) / scale + mu) * norm.weight + norm.bias

    compare_module(norm, inputs(), oracle)


def test_over_all_channels_partial_rms_is_mean_preserving_rms() -> None:
    whole = component("norm", "partial_rms", fraction=1.0)(NormSpec(8, bias=False)).double()
    assert torch.allclose(whole(inputs()), component("norm", "mean_preserving_rms")(NormSpec(8, bias=False))(inputs()))


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5])
def test_a_fraction_out_of_bounds_is_an_error(fraction: float) -> None:
    with pytest.raises(ValueError, match=rf"norm\.fraction must be in \(0, 1\], got {fraction}"):
        component("norm", "partial_rms", fraction=fraction)(NormSpec(8, bias=False))
