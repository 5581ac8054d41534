"""Contract of a norm for every shipped option.

Covers `affine.py` too.
"""

import inspect
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from src.norm.base import NormSpec
from tests.support import ROOT, class_of, component, jitter, module_of, option, options, tiny_gpt, tokens

EPS = 1e-5
every_norm = pytest.mark.parametrize("name", options("norm"))


def built(name: str, *, bias: bool = True, **changes: Any) -> nn.Module:
    """Build a jittered norm over eight channels."""
    norm: nn.Module = component("norm", name, **changes)(NormSpec(8, bias=bias))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for param in norm.parameters():
            param += 0.3 * torch.randn(param.shape, generator=generator)
    return norm


def inputs(offset: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return (offset + torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))).to(dtype)


@every_norm
def test_the_yaml_holds_exactly_the_constructors_keys(name: str) -> None:
    config = option("norm", name)
    keywords = [p for p in inspect.signature(class_of(config)).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert {str(key) for key in config if not str(key).startswith("_")} == {p.name for p in keywords}
    assert all(p.default is p.empty for p in keywords)
    assert re.match(r"# \S+: ", (ROOT / f"conf/norm/{name}.yaml").read_text())
    assert "Source:" in module_of(config).__doc__


@every_norm
@pytest.mark.parametrize("bias", [True, False])
def test_the_shape_is_kept_and_biases_follow_the_model(name: str, bias: bool) -> None:
    norm = built(name, bias=bias).double()
    assert norm(inputs()).shape == (3, 5, 8)
    assert all(p.shape in ((8,), (1,)) for p in norm.parameters())
    if name not in ("rmsnorm", "seednorm", "derf"):  # never a bias, and always one in the source
        assert ("bias" in dict(norm.named_parameters())) == bias


@every_norm
def test_bf16_inputs_are_computed_in_float32(name: str) -> None:
    norm = built(name, bias=False)
    x = inputs(1000.0, torch.bfloat16)
    y = norm.bfloat16()(x) if name == "layernorm" else norm(x)
    assert y.dtype == torch.bfloat16
    exact = norm.double()(x.double())
    assert ((y.double() - exact).abs() / exact.abs().clamp(min=1)).max() < 2e-2


@every_norm
def test_under_autocast_the_result_is_that_of_float32(name: str) -> None:
    norm, x = built(name), inputs(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    assert y.dtype == torch.float32
    assert torch.equal(y, norm(x))


@every_norm
def test_every_parameter_gets_a_gradient_that_finite_differences_confirm(name: str) -> None:
    norm, x = built(name).double(), inputs().requires_grad_()
    norm(x).square().sum().backward()
    assert all(p.grad is not None and (p.grad != 0).any() for p in norm.parameters())
    assert torch.autograd.gradcheck(norm, (x,))


@every_norm
@pytest.mark.parametrize("value", [0.0, 1.0, -1e4])
def test_a_constant_input_gives_finite_values_and_gradients(name: str, value: float) -> None:
    norm = built(name)
    x = torch.full((2, 8), value, requires_grad=True)
    y = norm(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in norm.parameters())


@every_norm
def test_positions_do_not_see_each_other(name: str) -> None:
    norm, x = built(name).double(), inputs()
    assert torch.allclose(norm(x)[1, 2], norm(x[1, 2]))


@every_norm
def test_compiled_in_one_graph_it_equals_eager(name: str) -> None:
    torch.compiler.reset()
    norm, x = built(name).double(), inputs()
    compiled = torch.compile(norm, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), norm(x))


@every_norm
def test_every_parameter_of_a_model_is_trained(name: str) -> None:
    gpt = jitter(tiny_gpt(norm=name))
    gpt.loss(tokens(), tokens(seed=1)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in gpt.parameters())


@pytest.mark.parametrize("name", [name for name in options("norm") if "eps" in option("norm", name)])
def test_an_eps_that_is_not_positive_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=r"norm\.eps must be > 0, got 0"):
        component("norm", name, eps=0.0)(NormSpec(8, bias=False))
