"""Mean-preserving RMS norm equals its equation, channel by channel."""

import pytest
import torch

from src.norm.base import NormSpec
from tests.norm.equations import rms, row
from tests.norm.test_contract import built, inputs
from tests.support import component


def test_mean_preserving_rms_equals_its_equation() -> None:
    norm, x = built("mean_preserving_rms").double(), inputs()[0, 0]
    values, weight, bias, mean = row(norm, x)
    scale = rms([v - mean for v in values])
    expected = [((v - mean) / scale + mean) * w + b for v, w, b in zip(values, weight, bias, strict=True)]
    assert norm(x).tolist() == pytest.approx(expected)


def test_the_mean_is_kept() -> None:
    norm = component("norm", "mean_preserving_rms")(NormSpec(8, bias=False)).double()
    assert torch.allclose(norm(inputs()).mean(-1), inputs().mean(-1))
