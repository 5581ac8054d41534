"""The kernels in C++ against the plain form of what they compute, in value and gradient."""

import contextlib

import pytest
import torch
from torch import Tensor

from src.kernels import cpp_build as native
from src.kernels.depth_attention import ops
from src.kernels.dispatch import REGISTRY
from src.residual.attnres import AttentionResiduals
from tests.residual.plain import flow, jittered, stream_spec

D = 32


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def needs_kernels(source: str, **sizes: int) -> None:
    if native.kernels_for(torch.ones(1, D), source, **sizes) is None:
        pytest.skip("no C++ compiler")


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_gradients_of_depth_attention_equal_the_references(dtype: torch.dtype, atol: float) -> None:
    if ops.SOURCE.why_not(torch.device("cpu"), dtype, width=D) is not None:
        pytest.skip("no C++ compiler")
    spec = stream_spec(5, D)
    strategy = jittered(AttentionResiduals(spec, eps=1e-6)).to(dtype)
    weights = [random(D, D, seed=i, dtype=dtype).requires_grad_() for i in range(spec.n_site)]
    results = []
    for plain in (True, False):
        with REGISTRY.without_residual_kernels() if plain else contextlib.nullcontext():
            x0 = random(2, 19, D, dtype=dtype).requires_grad_()
            out = flow(strategy, spec, x0, [lambda x, w=w: torch.tanh(x @ w) for w in weights])
        early = torch.autograd.grad(out.sum(), weights[-2:], retain_graph=True)  # must not change the next
        total = (out * random(*out.shape, dtype=dtype, seed=3)).sum()
        results.append([out, *early, *torch.autograd.grad(total, [x0, *weights, *strategy.parameters()])])
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=atol, atol=atol * one.abs().max().item())
