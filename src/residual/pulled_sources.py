"""Attention over depth by kernels, where a source pulls its gradient from the queries that met it.

    forward   s_i = r_i (v_i W^T) once;   x_l = sum_i a_li v_i,  a_l = softmax_i(s_il)
    backward  query l:   g_li = a_li (<dx_l, v_i> - sum_j a_lj <dx_l, v_j>), and it keeps a_l, g_l, dx_l
              source i:  dv_i = sum_l a_li dx_l + r_i u_i - (r_i^3 / D) <v_i, u_i> v_i,  u_i = sum_l g_li w_l

A query that hands each source its part would write as many hidden states as it has read. So it hands on none:
autograd runs a source's backward after those of all its queries, and one pass over their dx makes its gradient.
It is `depth_attention`'s scores and mixture, which are its plain form.

Source: this repository.
Shape letters: Q queries, J sources of a query, L queries that met a source.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from src.residual.native import Kernels


class Met(NamedTuple):
    """What a query's backward leaves for its sources."""

    weight_BTJ: Tensor
    dlogit_BTJ: Tensor
    dx_BTD: Tensor


class Pull:
    """What the queries of one forward have left for their sources in the backward under way."""

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels
        self._met: dict[int, Met] = {}
        self._backward = -1

    def met(self) -> dict[int, Met]:
        """By query; nothing of an earlier backward over the same graph."""
        backward = torch._C._current_graph_task_id()
        if backward != self._backward:
            self._backward, self._met = backward, {}
        return self._met


def source(pull: Pull, index: int, v_BTD: Tensor, key_QD: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The source as its queries are to meet it, and its scores [B, T, Q] for the last Q queries."""
    out = _Source.apply(pull, index, v_BTD.contiguous(), key_QD, eps)  # type: ignore[no-untyped-call]  # torch's
    return cast(tuple[Tensor, Tensor], out)


def attend_pulled(pull: Pull, query: int, score_BT: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """The mixture of one query, which counts from the last (-1), by its scores [B, T] of each source."""
    return cast(Tensor, _Attend.apply(pull, query, score_BT, *values))  # type: ignore[no-untyped-call]  # torch's


class _Source(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # autograd's context has no public type
        pull: Pull,
        index: int,
        v_BTD: Tensor,
        key_QD: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        (B, T, D), Q = v_BTD.shape, len(key_QD)
        score_BTQ, rrms_BT = v_BTD.new_empty(B, T, Q), v_BTD.new_empty(B, T)
        pull.kernels(
            "depth_scores", v_BTD, key_QD, score_BTQ, rrms_BT, B * T, D, Q, torch.get_num_threads(), eps
        )
        ctx.save_for_backward(v_BTD, key_QD, score_BTQ, rrms_BT)
        ctx.pull, ctx.index = pull, index
        ctx.mark_non_differentiable(score_BTQ)
        ctx.set_materialize_grads(False)
        return v_BTD.view_as(v_BTD), score_BTQ

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, direct_BTD: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        v_BTD, key_QD, *_ = given = ctx.saved_tensors
        (B, T, D), Q, threads = v_BTD.shape, len(key_QD), torch.get_num_threads()
        met = {Q + query: left for query, left in ctx.pull.met().items() if Q + query >= 0}
        i, left = ctx.index, list(met.values())
        tables = (
            _table(m.dx_BTD.data_ptr() for m in left),
            _table(m.weight_BTJ[..., i].data_ptr() for m in left),
            _table(m.dlogit_BTJ[..., i].data_ptr() for m in left),
            _table(m.weight_BTJ.shape[-1] for m in left),
            _table(met),
        )
        direct = None if direct_BTD is None else direct_BTD.contiguous()
        dv_BTD, dkey_QD = torch.empty_like(v_BTD), v_BTD.new_zeros(threads, Q, D)
        sizes = (B * T, D, Q, len(left), threads)
        ctx.pull.kernels("depth_pull", *given, direct, *tables, dv_BTD, dkey_QD, *sizes)
        if i == 0:
            ctx.pull.met().clear()
        return None, None, dv_BTD, dkey_QD.sum(0), None


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # autograd's context has no public type
        pull: Pull,
        query: int,
        score_BT: Sequence[Tensor],
        *values: Tensor,
    ) -> Tensor:
        (B, T, D), J = values[0].shape, len(values)
        x_BTD, weight_BTJ = torch.empty_like(values[0]), values[0].new_empty(B, T, J)
        strides = _table(score.stride(1) for score in score_BT)  # [B, T] of [B, T, Q]
        tables = _addresses(values), _addresses(score_BT), strides
        pull.kernels("depth_attend", *tables, weight_BTJ, x_BTD, B * T, D, J, torch.get_num_threads())
        ctx.save_for_backward(weight_BTJ, *values)
        ctx.pull, ctx.query = pull, query
        return x_BTD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx_BTD: Tensor) -> tuple[None, ...]:
        weight_BTJ, *values = ctx.saved_tensors
        (B, T, D), J = values[0].shape, len(values)
        dx_BTD, dlogit_BTJ = dx_BTD.contiguous(), torch.empty_like(weight_BTJ)
        given, sizes = (_addresses(values), weight_BTJ, dx_BTD), (B * T, D, J, torch.get_num_threads())
        ctx.pull.kernels("depth_attend_backward", *given, dlogit_BTJ, *sizes)
        ctx.pull.met()[ctx.query] = Met(weight_BTJ, dlogit_BTJ, dx_BTD)
        return (None,) * (3 + J)


def _table(numbers: Any) -> Tensor:  # an iterable of int
    return torch.tensor(list(numbers), dtype=torch.int64)


def _addresses(tensors: Sequence[Tensor]) -> Tensor:
    return _table(tensor.data_ptr() for tensor in tensors)
