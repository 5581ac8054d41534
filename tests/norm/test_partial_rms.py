"""Partial RMS norm equals its equation, channel by channel."""

import pytest
import torch

from src.norm.base import NormSpec
from tests.norm.equations import rms, row
from tests.norm.test_contract import inputs
from tests.support import component


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
    assert torch.allclose(whole(inputs()), component("norm", "mean_preserving_rms")(NormSpec(8, bias=False))(inputs()))


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5])
def test_a_fraction_out_of_bounds_is_an_error(fraction: float) -> None:
    with pytest.raises(ValueError, match=rf"norm\.fraction must be in \(0, 1\], got {fraction}"):
        component("norm", "partial_rms", fraction=fraction)(NormSpec(8, bias=False))
