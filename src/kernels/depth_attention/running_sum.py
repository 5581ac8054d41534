"""Running sum as one more source, for a query that alone attends over it: C++ kernels for the CPU.

    p' = p + y;   s = r <key, p'>,  r = 1 / rms(p');   x = a p' + sum_i a_i v_i,   a = exp(s - lse)
    dp' = direct + a dx + g r key - (r^2 / D) g s p',   g = a (<dx, p'> - delta),   dkey = sum_tokens g r p'

There is one pass each way over the running sum, and the forward's adds the newest output y too. The other sources v_i
are those of `blocked.py`, which read this query's gradient as they read any other's.

Shape letters: Q queries, J sources.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from src.kernels.cpp_build import Kernels, Source
from src.kernels.custom_op import Context
from src.kernels.depth_attention import cpp
from src.kernels.depth_attention.blocked import Blocked, QueryGradient, mixture_so_far, pending_of

SOURCE = Source("kernels/depth_attention/running_sum")


def attend_with_sum_blocked(
    blocked: Blocked,
    values: Sequence[Tensor],
    query: int,
    key_D: Tensor,
    eps: float,
    p_BTD: Tensor,
    y_BTD: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return one query's mixture of `values` and p + y, and p + y; the query is counted from the last (-1)."""
    p_BTD = p_BTD.contiguous()
    if y_BTD is not None:
        y_BTD = y_BTD.to(p_BTD.dtype).contiguous()
    kernels = SOURCE.load(p_BTD.dtype, p_BTD.shape[-1])
    n_read, before = mixture_so_far(blocked, query)
    constants = (kernels, query, eps, n_read, blocked.score_BTQ, before)
    return cast(tuple[Tensor, Tensor], _MixtureWithSum.apply(*constants, key_D, p_BTD, y_BTD, *values))  # type: ignore[no-untyped-call]  # torch's


class _MixtureWithSum(torch.autograd.Function):
    """Mixture of one query over sources and p + y; its backward computes dp, dy and the key's gradient alone."""

    @staticmethod
    def forward(
        ctx: Context,
        kernels: Kernels,
        query: int,
        eps: float,
        n_read: int,
        score_BTQ: Sequence[Tensor],
        before: Sequence[Tensor],
        key_D: Tensor,
        p_BTD: Tensor,
        y_BTD: Tensor | None,
        *values: Tensor,
    ) -> tuple[Tensor, Tensor]:
        since = values[n_read:], score_BTQ[n_read:]
        running = p_BTD, y_BTD, key_D.contiguous()
        total_BTD = p_BTD.view_as(p_BTD) if y_BTD is None else torch.empty_like(p_BTD)
        x_BTD, lse_BT = torch.empty_like(p_BTD), p_BTD.new_empty(p_BTD.shape[:-1])
        own_2BT = p_BTD.new_empty(2, *lse_BT.shape)  # s and r of the running sum
        out = None if y_BTD is None else total_BTD, x_BTD, lse_BT, own_2BT
        cpp.mixture_with_sum(kernels, since, query, before or (None, None), running, out, eps)
        ctx.save_for_backward(x_BTD, total_BTD, lse_BT, own_2BT, running[-1])
        ctx.state, ctx.query, ctx.n_source, ctx.kernels = pending_of(values), query, len(values), kernels
        ctx.adds = y_BTD is not None
        ctx.set_materialize_grads(False)
        return x_BTD, total_BTD

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, dx_BTD: Tensor | None, direct_BTD: Tensor | None) -> tuple[Tensor | None, ...]:
        x_BTD, total_BTD, lse_BT, own_2BT, key_D = ctx.saved_tensors
        dkey_D = None
        if dx_BTD is None:  # only the sum is used
            dp_BTD = direct_BTD
        else:
            dx_BTD = dx_BTD.contiguous()
            delta_BT, dp_BTD = torch.empty_like(lse_BT), torch.empty_like(x_BTD)
            saved = dx_BTD, x_BTD, total_BTD, lse_BT, own_2BT, key_D
            direct = None if direct_BTD is None else direct_BTD.contiguous()
            dkey_D = cpp.mixture_with_sum_backward(ctx.kernels, saved, direct, delta_BT, dp_BTD)
            if ctx.state is not None:  # some source needs a gradient
                ctx.state.current().add(QueryGradient(ctx.query, dx_BTD, None, lse_BT, delta_BT))
        dy_BTD = dp_BTD if ctx.adds else None
        return *[None] * 6, dkey_D, dp_BTD, dy_BTD, *[None] * ctx.n_source
