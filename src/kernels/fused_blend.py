"""The stream and the embedding under two learned scalars, each way in as few passes over memory as eager torch allows.

    out = keep x + blend x0 + rest
    dx = keep dout;  dx0 = blend dout;  drest = dout;  dkeep = <dout, x>;  dblend = <dout, x0>

Autograd would write a product for each of the four gradients, two of them only to be summed. A compiler is given the
plain sum, which it fuses.
"""

from typing import Any  # autograd's context

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def blended(x_BTD: Tensor, x0_BTD: Tensor, keep: Tensor, blend: Tensor, *rest_BTD: Tensor) -> Tensor:
    """`keep x + blend x0`, [B, T, D], and two summands more, or none; `keep` and `blend` have no dimension."""
    if torch.compiler.is_compiling():
        mixed_BTD = keep * x_BTD + blend * x0_BTD
        return rest_BTD[0] + rest_BTD[1] + mixed_BTD if rest_BTD else mixed_BTD
    out_BTD: Tensor = _Blend.apply(x_BTD, x0_BTD, keep, blend, *rest_BTD)  # type: ignore[no-untyped-call]  # torch's
    return out_BTD


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BTD: Tensor, x0_BTD: Tensor, keep: Tensor, blend: Tensor, *rest_BTD: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x_BTD, x0_BTD, keep, blend)
        out_BTD = torch.add(*rest_BTD).addcmul_(x_BTD, keep) if rest_BTD else keep * x_BTD
        return out_BTD.addcmul_(x0_BTD, blend)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_BTD: Tensor) -> tuple[Tensor | None, ...]:
        x_BTD, x0_BTD, keep, blend = ctx.saved_tensors
        dout_M = dout_BTD.reshape(-1)
        return (
            keep * dout_BTD if ctx.needs_input_grad[0] else None,
            blend * dout_BTD if ctx.needs_input_grad[1] else None,
            torch.dot(dout_M, x_BTD.reshape(-1)),
            torch.dot(dout_M, x0_BTD.reshape(-1)),
            *[dout_BTD] * (len(ctx.needs_input_grad) - 4),
        )
