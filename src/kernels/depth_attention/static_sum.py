"""Sums of sources by static weights, where each source computes its own gradient: C++ kernels for the CPU.

    x_q = sum_j w_jq v_j;   dv_j = direct + sum_q w_jq dx_q,   dw_jq = sum over tokens of <dx_q, v_j>

A query's backward computes nothing; it leaves dx_q in each source's `BackwardState`, and autograd runs a source's
backward after those of all its queries. A compiler gets the reference, which it differentiates and fuses.

Shape letters: J sources, Q queries.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from src.kernels.cpp_build import Kernels, Source, addresses
from src.kernels.custom_op import Context
from src.kernels.depth_attention import reference
from src.kernels.depth_attention.backward_state import BackwardState
from src.kernels.dispatch import Operation, verify

SOURCE = Source("kernels/depth_attention/static_sum")
TOLERANCE = 1e-4  # of the largest element

#: Of one source, dx by query.
Gradients = dict[int, Tensor]


class StaticSources(NamedTuple):
    """All sources so far, the weights, and the kernels with the weights by source, where they run."""

    v_BTD: tuple[Tensor, ...]
    weight_JQ: Tensor
    weight_Q: tuple[Tensor, ...] = ()
    kernels: Kernels | None = None


def open_static(x0_BTD: Tensor, weight_JQ: Tensor) -> StaticSources:
    """Return sources of which the embedding is the first.

    Args:
        x0_BTD: the embedding.
        weight_JQ: weight of each source, those to come too, in each query's sum.
    """
    width = x0_BTD.shape[-1]
    if x0_BTD.dtype == weight_JQ.dtype and STATIC_SUM.backend_for(x0_BTD, width=width) == "cpp":
        return append_static(_by_kernels(x0_BTD, weight_JQ), x0_BTD)
    return append_static(StaticSources((), weight_JQ), x0_BTD)


def append_static(sources: StaticSources, v_BTD: Tensor) -> StaticSources:
    """Append a source; other uses of it should take it from the result, as its last, which adds up their gradients."""
    if sources.kernels is not None:
        weight_Q = sources.weight_Q[len(sources.v_BTD)]
        v_BTD = _Source.apply(sources.kernels, v_BTD.contiguous(), weight_Q)  # type: ignore[no-untyped-call]  # torch's
    return sources._replace(v_BTD=(*sources.v_BTD, v_BTD))


def sum_static(sources: StaticSources, query: int, members: range) -> Tensor:
    """Return one query's sum of the sources `members`, [B, T, D]."""
    weight_J = sources.weight_JQ[members.start : members.stop : members.step, query]
    values = [sources.v_BTD[j] for j in members]
    if sources.kernels is None:
        return reference.weighted_sum(weight_J.unbind(0), values)
    constants = sources.kernels, query, weight_J.detach().contiguous()
    return cast(Tensor, _Sum.apply(*constants, *values))  # type: ignore[no-untyped-call]  # torch's


def _by_kernels(x0_BTD: Tensor, weight_JQ: Tensor) -> StaticSources:
    kernels = SOURCE.load(x0_BTD.dtype, x0_BTD.shape[-1])
    return StaticSources((), weight_JQ, weight_JQ.unbind(0), kernels)


def _why_not(device: torch.device, dtype: torch.dtype, *, width: int) -> str | None:
    reason = SOURCE.why_not(device, dtype, width=width)
    if reason is not None:
        return reason

    def sum_all(sources: StaticSources, values: Sequence[Tensor]) -> list[Tensor]:
        for v_BTD in values:
            sources = append_static(sources, v_BTD)
        return [sum_static(sources, query, range(query, 3)) for query in range(2)]

    generator = torch.Generator().manual_seed(0)
    weight_JQ, *values = (torch.randn(*shape, generator=generator) for shape in ((3, 2), *[(1, 2, width)] * 3))
    return verify(
        lambda weight_JQ, *values: sum_all(_by_kernels(values[0], weight_JQ), values),
        lambda weight_JQ, *values: sum_all(StaticSources((), weight_JQ), values),
        [[weight_JQ.to(device, dtype), *(v_BTD.to(device, dtype) for v_BTD in values)]],
        TOLERANCE,
    )


STATIC_SUM = Operation("static sums over depth", cpp=_why_not, compiled=(), residual=True)


class _Source(torch.autograd.Function):
    """Source as its queries read it; the backward computes its whole gradient and those of its weights."""

    @staticmethod
    def forward(ctx: Context, kernels: Kernels, v_BTD: Tensor, weight_Q: Tensor) -> Tensor:
        ctx.save_for_backward(v_BTD, weight_Q)
        ctx.kernels, ctx.state = kernels, BackwardState[Gradients](dict)
        ctx.set_materialize_grads(False)
        return v_BTD.view_as(v_BTD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, direct_BTD: Tensor | None) -> tuple[Tensor | None, ...]:
        v_BTD, weight_Q = ctx.saved_tensors
        gradients: Gradients = ctx.state.current()
        ctx.state.clear()
        if not gradients:
            return None, direct_BTD, None
        dv_BTD, threads = torch.empty_like(v_BTD), torch.get_num_threads()
        part = v_BTD.new_zeros(threads, len(gradients), dtype=torch.float64)
        queries = torch.tensor([*gradients])
        args = addresses([*gradients.values()]), weight_Q[queries], v_BTD
        direct = None if direct_BTD is None else direct_BTD.contiguous()
        sizes = (v_BTD.shape[:-1].numel(), v_BTD.shape[-1], len(gradients), threads)
        ctx.kernels("static_sum_backward", *args, direct, dv_BTD, part.data_ptr(), *sizes)  # doubles in every source
        dweight_Q = torch.zeros_like(weight_Q).index_put_((queries,), part.sum(0).to(weight_Q.dtype))
        return None, dv_BTD, dweight_Q


class _Sum(torch.autograd.Function):
    """Sum of sources; its backward leaves the gradient for them to read."""

    @staticmethod
    def forward(ctx: Context, kernels: Kernels, query: int, weight_J: Tensor, *values: Tensor) -> Tensor:
        x_BTD = torch.empty_like(values[0])
        sizes = (x_BTD.shape[:-1].numel(), x_BTD.shape[-1], len(values), torch.get_num_threads())
        kernels("static_sum_forward", addresses(values), weight_J, x_BTD, *sizes)
        nodes: list[Any] = [v_BTD.grad_fn for v_BTD in values]  # those of _Source have a state
        ctx.states = [node.state for node in nodes if node is not None]
        ctx.query, ctx.n_source = query, len(values)
        return x_BTD

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, dx_BTD: Tensor) -> tuple[None, ...]:
        dx_BTD = dx_BTD.contiguous()
        for state in ctx.states:
            state.current()[ctx.query] = dx_BTD
        return cast(tuple[None, ...], (None,) * (3 + ctx.n_source))
