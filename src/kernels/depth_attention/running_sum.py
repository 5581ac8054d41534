"""A running sum as one more source of a query that nobody else meets, by kernels in C++ for the CPU.

    p' = p + y;   s = r <key, p'>,  r = 1 / rms(p');   x = a p' + sum_i a_i v_i,   a = exp(s - lse)
    dp' = direct + a dx + g r key - (r^2 / D) g s p',   g = a (<dx, p'> - delta),   dkey = sum_tokens g r p'

One pass each way over the running sum, which adds the newest output to it as well. The other sources v_i are those of
`block_sources.py`, and later pull from the query what they need.

Shape letters: Q queries, J sources.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from src.kernels.cpp_build import Kernels, built_for
from src.kernels.depth_attention import cpp as depth_native
from src.kernels.depth_attention.blocked import Blocks, before_block
from src.kernels.depth_attention.pull import Met, pull_of


def joined(
    blocks: Blocks,
    query: int,
    key_D: Tensor,
    eps: float,
    running: tuple[Tensor, Tensor | None],
    score_BTQ: Sequence[Tensor],
    values: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """The mixture of one query, which counts from the last (-1), over `values` and the sum of `running`; that sum."""
    p_BTD, y_BTD = running
    p_BTD = p_BTD.contiguous()
    if y_BTD is not None:
        y_BTD = y_BTD.to(p_BTD.dtype).contiguous()
    kernels = built_for(p_BTD.dtype, p_BTD.shape[-1], "kernels/depth_attention/running_sum")
    assert kernels is not None  # where those of `depth` are built
    since, before = before_block(blocks, query)
    given = (kernels, blocks.forward, query, eps, since, score_BTQ, before)
    return cast(tuple[Tensor, Tensor], _Joined.apply(*given, key_D, p_BTD, y_BTD, *values))  # type: ignore[no-untyped-call]  # torch's


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # autograd's context has no public type
        kernels: Kernels,
        forward: int,
        query: int,
        eps: float,
        since: int,
        score_BTQ: Sequence[Tensor],
        before: Sequence[Tensor],
        key_D: Tensor,
        p_BTD: Tensor,
        y_BTD: Tensor | None,
        *values: Tensor,
    ) -> tuple[Tensor, Tensor]:
        sources = values[since:], score_BTQ[since:]
        running = p_BTD, y_BTD, key_D.contiguous()
        total_BTD = p_BTD.view_as(p_BTD) if y_BTD is None else torch.empty_like(p_BTD)
        x_BTD, lse_BT = torch.empty_like(p_BTD), p_BTD.new_empty(p_BTD.shape[:-1])
        own_2BT = p_BTD.new_empty(2, *lse_BT.shape)
        out = None if y_BTD is None else total_BTD, x_BTD, lse_BT, own_2BT
        depth_native.joined(kernels, sources, query, before or (None, None), running, out, eps)
        ctx.save_for_backward(x_BTD, total_BTD, lse_BT, own_2BT, running[-1])
        ctx.pull, ctx.query, ctx.n_source, ctx.kernels = pull_of(forward), query, len(values), kernels
        ctx.adds = y_BTD is not None
        ctx.set_materialize_grads(False)
        return x_BTD, total_BTD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx_BTD: Tensor | None, direct_BTD: Tensor | None) -> tuple[Tensor | None, ...]:
        x_BTD, total_BTD, lse_BT, own_2BT, key_D = ctx.saved_tensors
        dkey_D = None
        if dx_BTD is None:
            dp_BTD = direct_BTD
        else:
            dx_BTD = dx_BTD.contiguous()
            delta_BT, dp_BTD = torch.empty_like(lse_BT), torch.empty_like(x_BTD)
            given = dx_BTD, x_BTD, total_BTD, lse_BT, own_2BT, key_D
            direct = None if direct_BTD is None else direct_BTD.contiguous()
            dkey_D = depth_native.joined_backward(ctx.kernels, given, direct, delta_BT, dp_BTD)
            ctx.pull.now().leave(Met(ctx.query, dx_BTD, None, lse_BT, delta_BT))
        dy_BTD = dp_BTD if ctx.adds else None
        return *[None] * 7, dkey_D, dp_BTD, dy_BTD, *[None] * ctx.n_source
