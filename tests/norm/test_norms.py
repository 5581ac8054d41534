"""Norms against their equations, and the room's contract over the shipped options."""

import inspect

import pytest
import torch

from src.norm.base import NormSpec
from tests.support import class_of, component, option, options


@pytest.mark.parametrize("name", options("norm"))
def test_the_yaml_holds_exactly_the_constructors_keys(name: str) -> None:
    config = option("norm", name)
    keywords = [p for p in inspect.signature(class_of(config)).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert {str(key) for key in config if not str(key).startswith("_")} == {p.name for p in keywords}
    assert all(p.default is p.empty for p in keywords)


@pytest.mark.parametrize("name", options("norm"))
def test_shape_and_type_are_kept_and_statistics_are_float32(name: str) -> None:
    norm = component("norm", name)(NormSpec(8, bias=False))
    x = (1000 + torch.randn(3, 5, 8)).bfloat16()
    y = norm(x)
    assert y.shape == x.shape
    if name == "rmsnorm":
        assert y.dtype == torch.bfloat16
    exact = norm.double()(x.double())
    assert (y.double() - exact).abs().max() < 2e-2


def test_layernorm_is_its_equation() -> None:
    norm = component("norm", "layernorm")(NormSpec(8, bias=True)).double()
    torch.manual_seed(0)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(3, 8, dtype=torch.float64)
    expected = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(norm(x), expected * norm.weight + norm.bias)
    assert component("norm", "layernorm")(NormSpec(8, bias=False)).bias is None


def test_rmsnorm_is_its_equation() -> None:
    norm = component("norm", "rmsnorm")(NormSpec(8, bias=True)).double()
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 8, dtype=torch.float64)
    assert torch.allclose(norm(x), x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight)


@pytest.mark.parametrize("name", options("norm"))
def test_an_eps_that_is_not_positive_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"norm\.eps must be positive, got 0"):
        component("norm", name, eps=0.0)(NormSpec(8, bias=False))
