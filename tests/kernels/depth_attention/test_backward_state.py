"""State shared by autograd functions: fresh in each backward, and shared by all sources of one forward."""

from typing import Any

import pytest
import torch
from torch import Tensor

from src.kernels.depth_attention import append, attend, open
from src.kernels.depth_attention.backward_state import BackwardState
from src.kernels.depth_attention.ops import SOURCE
from src.kernels.dispatch import REGISTRY

D = 16


class Source(torch.autograd.Function):
    """The identity, whose gradient is the sum of what its users add to the state."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.state = BackwardState[list[Tensor]](list)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Tensor:
        return torch.stack([torch.zeros(2), *ctx.state.current()]).sum(0)


class Use(torch.autograd.Function):
    """The sum of its inputs' elements times a factor, which adds its gradient to their states."""

    @staticmethod
    def forward(ctx: Any, factor: float, *values: Tensor) -> Tensor:
        ctx.factor, ctx.states = factor, [x.grad_fn.state for x in values]
        return factor * torch.stack(values).sum()

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[None, ...]:
        for state in ctx.states:
            state.current().append(ctx.factor * dx.expand(2))
        return (None,) * (1 + len(ctx.states))


def gradient(out: Tensor, x: Tensor) -> float:
    return torch.autograd.grad(out, x, retain_graph=True)[0][0].item()


def test_a_source_reads_what_all_its_users_add() -> None:
    x = torch.ones(2, requires_grad=True)
    v = Source.apply(x)
    assert gradient(Use.apply(2.0, v) + Use.apply(3.0, v), x) == 5.0


def test_a_backward_reads_nothing_of_an_earlier_one() -> None:
    x, other = (torch.ones(2, requires_grad=True) for _ in range(2))
    v, w = Source.apply(x), Source.apply(other)
    one, two = Use.apply(2.0, v), Use.apply(3.0, v, w)
    gradient(two, other)  # adds to the state of v, whose backward does not run
    assert gradient(one, x) == 2.0
    assert gradient(one + two, x) == gradient(one + two, x) == 5.0


def test_a_cleared_state_holds_nothing() -> None:
    state = BackwardState[list[int]](list)
    state.current().append(1)
    state.clear()
    assert state.current() == []


@pytest.mark.parametrize("frozen", [(0,), (0, 1), (0, 1, 2, 3), (2,)])
def test_sources_without_a_gradient_leave_those_of_the_others_as_they_are(frozen: tuple[int, ...]) -> None:
    if SOURCE.why_not(torch.device("cpu"), torch.float64, width=D) is not None:
        pytest.skip("no C++ compiler")
    generator = torch.Generator().manual_seed(0)
    key, *values = (torch.randn(*shape, generator=generator).double() for shape in ((8, D), *[(1, 3, D)] * 9))
    leaves = [v.requires_grad_() for j, v in enumerate(values) if j not in frozen]

    def gradients() -> tuple[Tensor, ...]:
        sources, total = open(values[0], key, 1e-6), torch.zeros(())
        for v in values[1:]:
            sources = append(sources, v)
            total = total + attend(sources).pow(3).sum()
        return torch.autograd.grad(total, leaves)

    with REGISTRY.without_residual_kernels():
        expected = gradients()
    for one, other in zip(gradients(), expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-11, atol=1e-11)
