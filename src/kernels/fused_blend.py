"""Blend of the stream and the embedding under two learned scalars, in few passes over memory each way.

    out = keep x + blend x0 + rest
    dx = keep dout;  dx0 = blend dout;  drest = dout;  dkeep = <dout, x>;  dblend = <dout, x0>

Autograd would write a product for each of the four gradients, two of them only to sum them up. `blend` is the same in
PyTorch operations with these gradients; there is no C++ or Triton kernel, and a compiler fuses `reference` by itself.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from src.kernels.custom_op import Context


def reference(x_BTD: Tensor, x0_BTD: Tensor, keep: Tensor, blend: Tensor, *rest_BTD: Tensor) -> Tensor:
    """Return `keep x + blend x0`, plus the two tensors of `rest`, if any, [B, T, D]."""
    mixed_BTD = keep * x_BTD + blend * x0_BTD
    return rest_BTD[0] + rest_BTD[1] + mixed_BTD if rest_BTD else mixed_BTD


def blend_embedding(x_BTD: Tensor, x0_BTD: Tensor, keep: Tensor, blend: Tensor, *rest_BTD: Tensor) -> Tensor:
    """Return `keep x + blend x0`, [B, T, D].

    Args:
        x_BTD: the stream.
        x0_BTD: the embedding.
        keep: weight of the stream, without a dimension.
        blend: weight of the embedding, without a dimension.
        *rest_BTD: two more tensors to add, or none.
    """
    if torch.compiler.is_compiling():
        return reference(x_BTD, x0_BTD, keep, blend, *rest_BTD)
    out_BTD: Tensor = _Blend.apply(x_BTD, x0_BTD, keep, blend, *rest_BTD)  # type: ignore[no-untyped-call]  # torch's
    return out_BTD


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x_BTD: Tensor, x0_BTD: Tensor, keep: Tensor, blend: Tensor, *rest_BTD: Tensor) -> Tensor:
        ctx.save_for_backward(x_BTD, x0_BTD, keep, blend)
        out_BTD = torch.add(*rest_BTD).addcmul_(x_BTD, keep) if rest_BTD else keep * x_BTD
        return out_BTD.addcmul_(x0_BTD, blend)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, dout_BTD: Tensor) -> tuple[Tensor | None, ...]:
        x_BTD, x0_BTD, keep, blend = ctx.saved_tensors
        dout_M = dout_BTD.reshape(-1)
        return (
            keep * dout_BTD if ctx.needs_input_grad[0] else None,
            blend * dout_BTD if ctx.needs_input_grad[1] else None,
            torch.dot(dout_M, x_BTD.reshape(-1)),
            torch.dot(dout_M, x0_BTD.reshape(-1)),
            *[dout_BTD] * (len(ctx.needs_input_grad) - 4),
        )
