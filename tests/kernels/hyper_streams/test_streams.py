"""Streams stored in bfloat16 are rounded between sites; arithmetic is in float32."""

from functools import partial
from typing import Any, get_type_hints

import pytest
import torch

from src.bounds import validate
from src.residual.base import ResidualStrategy
from tests.residual.plain import flow, jittered, stream_spec, sublayers
from tests.support import component


def build(name: str, stream_dtype: str, n_embd: int = 32) -> ResidualStrategy[Any]:
    factory: partial[ResidualStrategy[Any]] = component("residual", name)
    strategy = factory(stream_spec(2, n_embd), stream_dtype=stream_dtype)
    jittered(strategy).float()
    return strategy


@pytest.mark.parametrize("name", ["hyperconn", "mhc"])
def test_streams_in_bfloat16_equal_those_in_float32_to_rounding(name: str) -> None:
    x0 = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(0))
    branches = [lambda x, f=f: f(x.double()).float() for f in sublayers(4, 32)]
    ends, grads = [], []
    for stream_dtype in ("float32", "bfloat16"):
        strategy = build(name, stream_dtype)
        end = flow(strategy, stream_spec(2, 32), x0, branches)
        assert end.dtype == torch.float32
        ends.append(end)
        grads.append(torch.autograd.grad(end.square().mean(), [*strategy.parameters()]))
    assert not torch.equal(*ends)
    assert torch.allclose(*ends, rtol=0.05, atol=0.05 * ends[0].abs().max().item())
    for one, other in zip(*grads, strict=True):
        assert (one - other).norm() < 0.1 * one.norm()


@pytest.mark.parametrize("name", ["hyperconn", "mhc"])
def test_streams_are_bfloat16_between_sites_and_inputs_of_sublayers_are_float32(name: str) -> None:
    strategy = build(name, "bfloat16")
    state = strategy.begin(torch.ones(1, 2, 32))
    for site in stream_spec(2, 32).sites:
        u, state = strategy.read(state, site)
        assert (state.h_BTND.dtype, u.dtype) == (torch.bfloat16, torch.float32)
        state = strategy.write(state, site, u.bfloat16())
        assert state.y_BTD.dtype == torch.float32


@pytest.mark.parametrize("name", ["hyperconn", "mhc"])
def test_another_stream_dtype_raises_an_error(name: str) -> None:
    constructor = component("residual", name).func
    annotation = get_type_hints(constructor.__init__, include_extras=True)["stream_dtype"]
    with pytest.raises(ValueError, match=r"residual.stream_dtype must be float32 or bfloat16, got 'float16'"):
        validate("residual.stream_dtype", "float16", annotation)
