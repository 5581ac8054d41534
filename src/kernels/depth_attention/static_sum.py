"""Sums of sources by static weights, where sources pull their gradients by kernels in C++ for the CPU.

    x_q = sum_j w_jq v_j;   dv_j = direct + sum_q w_jq dx_q,   dw_jq = sum over tokens of <dx_q, v_j>

A query does nothing in the backward but leave dx_q for its sources: autograd runs a source's backward after those of
all its queries. A compiler is given the plain form, which it differentiates and fuses itself.

Shape letters: J sources, Q queries.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from src.kernels.cpp_build import Kernels, addresses, kernels_for


class Waiting:
    """What queries have left for one source in the backward under way: the query's number and dx."""

    def __init__(self) -> None:
        self._backward = -1
        self.left: dict[int, Tensor] = {}

    def now(self) -> "Waiting":
        """It, with nothing of an earlier backward over the same graph."""
        backward = torch._C._current_graph_task_id()
        if backward != self._backward:
            self._backward, self.left = backward, {}
        return self


class Weighed(NamedTuple):
    """All sources so far, the weights, and where kernels serve what waits for each source."""

    v_BTD: tuple[Tensor, ...]
    weight_JQ: Tensor
    weight_Q: tuple[Tensor, ...]
    kernels: Kernels | None
    waiting: tuple[Waiting, ...] = ()


def open_weighed(x0_BTD: Tensor, weight_JQ: Tensor) -> Weighed:
    """The embedding as the first source."""
    kernels = (
        kernels_for(x0_BTD, "kernels/depth_attention/static_sum") if x0_BTD.dtype == weight_JQ.dtype else None
    )
    rows = () if kernels is None else weight_JQ.unbind(0)
    return one_more(Weighed((), weight_JQ, rows, kernels), x0_BTD)


def one_more(state: Weighed, v_BTD: Tensor) -> Weighed:
    """One more source; whatever else reads it should read it from the state, as its last."""
    if state.kernels is None:
        return state._replace(v_BTD=(*state.v_BTD, v_BTD))
    waiting, weight_Q = Waiting(), state.weight_Q[len(state.v_BTD)]
    v_BTD = _Source.apply(state.kernels, waiting, v_BTD.contiguous(), weight_Q)  # type: ignore[no-untyped-call]  # torch's
    return state._replace(v_BTD=(*state.v_BTD, v_BTD), waiting=(*state.waiting, waiting))


def weighed_sum(state: Weighed, query: int, sources: range) -> Tensor:
    """One query's sum of `sources`, [B, T, D]."""
    weight_J = state.weight_JQ[sources.start : sources.stop : sources.step, query]
    values = [state.v_BTD[j] for j in sources]
    if state.kernels is not None:
        waiting = [state.waiting[j] for j in sources]
        given = state.kernels, waiting, query, weight_J.detach().contiguous()
        return cast(Tensor, _Sum.apply(*given, *values))  # type: ignore[no-untyped-call]  # torch's
    x_BTD = weight_J[0] * values[0]
    for weight, v_BTD in zip(weight_J[1:], values[1:], strict=True):
        x_BTD = torch.addcmul(x_BTD, weight, v_BTD)
    return x_BTD


class _Source(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # autograd's context has no public type
        kernels: Kernels,
        waiting: Waiting,
        v_BTD: Tensor,
        weight_Q: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(v_BTD, weight_Q)
        ctx.kernels, ctx.waiting = kernels, waiting
        ctx.set_materialize_grads(False)
        return v_BTD.view_as(v_BTD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, direct_BTD: Tensor | None) -> tuple[Tensor | None, ...]:
        v_BTD, weight_Q = ctx.saved_tensors
        left = ctx.waiting.now().left
        ctx.waiting.left = {}
        if not left:
            return None, None, direct_BTD, None
        dv_BTD, threads = torch.empty_like(v_BTD), torch.get_num_threads()
        part = v_BTD.new_zeros(threads, len(left), dtype=torch.float64)
        queries = torch.tensor([*left])
        given = addresses([*left.values()]), weight_Q[queries], v_BTD
        direct = None if direct_BTD is None else direct_BTD.contiguous()
        sizes = (v_BTD.shape[:-1].numel(), v_BTD.shape[-1], len(left), threads)
        ctx.kernels("sums_pull", *given, direct, dv_BTD, part, *sizes)
        dweight_Q = torch.zeros_like(weight_Q).index_put_((queries,), part.sum(0).to(weight_Q.dtype))
        return None, None, dv_BTD, dweight_Q


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # autograd's context has no public type
        kernels: Kernels,
        waiting: Sequence[Waiting],
        query: int,
        weight_J: Tensor,
        *values: Tensor,
    ) -> Tensor:
        x_BTD = torch.empty_like(values[0])
        sizes = (x_BTD.shape[:-1].numel(), x_BTD.shape[-1], len(values), torch.get_num_threads())
        kernels("sums_forward", addresses(values), weight_J, x_BTD, *sizes)
        ctx.waiting, ctx.query = waiting, query
        return x_BTD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx_BTD: Tensor) -> tuple[None, ...]:
        dx_BTD = dx_BTD.contiguous()
        for waiting in ctx.waiting:
            waiting.now().left[ctx.query] = dx_BTD
        return (None,) * (4 + len(ctx.waiting))
