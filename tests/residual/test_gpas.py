"""GPAS against its equation, forward and backward."""

import torch
from torch.nn import functional as F

from src.residual.gpas import GPAS
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers


def test_the_stream_is_scaled_after_each_layer_but_not_its_gradient() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like().requires_grad_()
    strategy = jittered(GPAS(spec, gate_init=0.0))
    x = x0
    for i in range(3):
        x = x + branches[2 * i](x)
        x = x + branches[2 * i + 1](x)
        x = x - F.silu(strategy.gate_L[i]) * x.detach()
    out = flow(strategy, spec, x0, branches)
    assert torch.allclose(out, x, rtol=0, atol=1e-13)
    ours, plain = (torch.autograd.grad(z.square().sum(), [x0, strategy.gate_L]) for z in (out, x))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-11) for a, b in zip(ours, plain, strict=True))


def test_the_gradient_of_the_stream_ignores_the_gates() -> None:
    spec, x0 = stream_spec(), embedding_like().requires_grad_()
    strategy = jittered(GPAS(spec, gate_init=0.7))
    out = flow(strategy, spec, x0, [torch.zeros_like] * 6)
    (gradient,) = torch.autograd.grad(out.sum(), x0)
    assert torch.equal(gradient, torch.ones_like(x0))
    assert not torch.allclose(out, x0)
