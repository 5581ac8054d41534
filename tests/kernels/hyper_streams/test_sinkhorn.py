"""Sinkhorn-Knopp against the plain loop, in value and gradient."""

import pytest
import torch

from src.kernels.hyper_streams.sinkhorn import sinkhorn


def plain(logit: torch.Tensor, n: int) -> torch.Tensor:
    m = logit.exp()
    for _ in range(n):
        m = m / m.sum(-2, keepdim=True)
        m = m / m.sum(-1, keepdim=True)
    return m


def logits(scale: float, n: int = 4) -> torch.Tensor:
    return scale * torch.randn(7, n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_value_and_gradient_are_the_plain_loops(scale: float) -> None:
    logit, weight = logits(scale).requires_grad_(), logits(1.0).flip(0)
    (ours,) = torch.autograd.grad((sinkhorn(logit, 20) * weight).sum(), logit)
    (theirs,) = torch.autograd.grad((plain(logit, 20) * weight).sum(), logit)
    assert torch.allclose(sinkhorn(logit, 20), plain(logit, 20), rtol=0, atol=1e-13)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-11)


def test_rows_sum_to_one_exactly_and_columns_nearly() -> None:
    m = sinkhorn(logits(1.0), 20)
    assert torch.allclose(m.sum(-1), torch.ones(7, 4, dtype=torch.float64), rtol=0, atol=1e-15)
    assert torch.allclose(m.sum(-2), torch.ones(7, 4, dtype=torch.float64), rtol=0, atol=1e-3)


@pytest.mark.parametrize("scale", [100.0, 1000.0])
def test_peaked_logits_stay_finite_in_float32(scale: float) -> None:
    logit = logits(scale).float().requires_grad_()
    m = sinkhorn(logit, 20)
    m.square().sum().backward()
    assert m.isfinite().all()
    assert logit.grad.isfinite().all()


def test_it_compiles_in_one_graph() -> None:
    torch.compiler.reset()
    logit = logits(1.0).requires_grad_()
    graph = torch.compile(lambda x: sinkhorn(x, 5).square().sum(), fullgraph=True, backend="aot_eager")
    results = [torch.autograd.grad(f(logit), logit)[0] for f in (graph, lambda x: plain(x, 5).square().sum())]
    assert torch.allclose(*results, rtol=0, atol=1e-12)


def test_it_is_the_published_packages() -> None:
    package = pytest.importorskip("hyper_connections", reason="optional: pip install hyper-connections")
    theirs = package.manifold_constrained_hyper_connections.sinkhorn_knopps(logits(1.0).float(), iters=20)
    assert torch.allclose(sinkhorn(logits(1.0).float(), 20), theirs, rtol=0, atol=1e-6)
