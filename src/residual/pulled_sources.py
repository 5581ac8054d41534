"""Attention over depth by kernels, where a source pulls its gradient from the queries that met it.

    forward   s_i = r_i (v_i W^T) once;   x_l = sum_i a_li v_i,  a_l = softmax_i(s_il)
    backward  query l:   g_li = a_li (<dx_l, v_i> - sum_j a_lj <dx_l, v_j>), and it keeps a_l, g_l, dx_l
              source i:  dv_i = sum_l a_li dx_l + r_i u_i - (r_i^3 / D) <v_i, u_i> v_i,  u_i = sum_l g_li w_l

A query that hands each source its part would write as many hidden states as it has read. So it hands on none:
autograd runs a source's backward after those of all its queries, and one pass over their dx makes its gradient.
A compiler runs these functions while it traces: what a source pulls becomes an edge of its graph.
It is `depth_attention`'s scores and mixture, which are its plain form.

Source: this repository.
Shape letters: Q queries, J sources of a query, L queries that met a source.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from src.residual.depth_operators import depth_attend, depth_attend_backward, depth_pull, depth_scores


class Met(NamedTuple):
    """What a query's backward leaves for its sources."""

    weight_BTJ: Tensor
    dlogit_BTJ: Tensor
    dx_BTD: Tensor


class Pull:
    """What the queries of one forward have left for their sources in the backward under way."""

    def __init__(self) -> None:
        self._met: dict[int, Met] = {}
        self._backward = -1

    def met(self) -> dict[int, Met]:
        """By query; nothing of an earlier backward over the same graph."""
        backward = torch._C._current_graph_task_id()
        if backward != self._backward:
            self._backward, self._met = backward, {}
        return self._met


_forwards = itertools.count()
_pulls: WeakValueDictionary[int, Pull] = WeakValueDictionary()  # by forward; kept by its autograd graph


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch's
def new_forward() -> int:
    """A number by which the sources and queries of one forward find each other; a compiled graph has none left."""
    return next(_forwards)


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]  # torch's
def source(forward: int, index: int, v_BTD: Tensor, key_QD: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The source as its queries are to meet it, and its scores [B, T, Q] for the last Q queries."""
    out = _Source.apply(forward, index, v_BTD.contiguous(), key_QD, eps)  # type: ignore[no-untyped-call]  # torch's
    return cast(tuple[Tensor, Tensor], out)


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]  # torch's
def attend_pulled(forward: int, query: int, score_BTQ: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """The mixture of one query, which counts from the last (-1), by the scores of each source."""
    return cast(Tensor, _Attend.apply(forward, query, score_BTQ, *values))  # type: ignore[no-untyped-call]  # torch's


class _Source(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # autograd's context has no public type
        forward: int,
        index: int,
        v_BTD: Tensor,
        key_QD: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        score_BTQ, rrms_BT = depth_scores(v_BTD, key_QD, eps)
        ctx.save_for_backward(v_BTD, key_QD, score_BTQ, rrms_BT)
        ctx.pull, ctx.index = _pulls.setdefault(forward, Pull()), index
        ctx.mark_non_differentiable(score_BTQ)
        ctx.set_materialize_grads(False)
        return v_BTD.view_as(v_BTD), score_BTQ

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, direct_BTD: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        Q, all_met = len(ctx.saved_tensors[1]), ctx.pull.met()
        met = {Q + query: left for query, left in all_met.items() if Q + query >= 0}
        direct = None if direct_BTD is None else direct_BTD.contiguous()
        left = [[one[part] for one in met.values()] for part in range(len(Met._fields))]
        dv_BTD, dkey_QD = depth_pull(ctx.index, *ctx.saved_tensors, direct, list(met), *left)
        if ctx.index == 0:
            all_met.clear()
        return None, None, dv_BTD, dkey_QD, None


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # autograd's context has no public type
        forward: int,
        query: int,
        score_BTQ: Sequence[Tensor],
        *values: Tensor,
    ) -> Tensor:
        x_BTD, weight_BTJ = depth_attend(list(values), list(score_BTQ), query)
        ctx.save_for_backward(weight_BTJ, *values)
        ctx.pull, ctx.query = _pulls.setdefault(forward, Pull()), query
        return cast(Tensor, x_BTD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx_BTD: Tensor) -> tuple[None, ...]:
        weight_BTJ, *values = ctx.saved_tensors
        dx_BTD = dx_BTD.contiguous()
        dlogit_BTJ = depth_attend_backward(values, weight_BTJ, dx_BTD)
        ctx.pull.met()[ctx.query] = Met(weight_BTJ, dlogit_BTJ, dx_BTD)
        return (None,) * (3 + len(values))
