"""Reference of depth attention with gradients written by hand, for eager mode.

Autograd would keep the product v key^T beside the scores, and pass over every source once more in the backward. A
compiler gets the reference itself, which it differentiates and fuses.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from src.kernels.custom_op import Context
from src.kernels.depth_attention import reference


def scores(v_BTD: Tensor, key_QD: Tensor, eps: float) -> Tensor:
    """Return the scores [B, T, Q] of one source."""
    if torch.compiler.is_compiling():
        return reference.scores(v_BTD, key_QD, eps)
    return cast(Tensor, _Scores.apply(v_BTD, key_QD, eps))  # type: ignore[no-untyped-call]  # torch's


def sum_by_token(weight_BTJ: Tensor, values: Sequence[Tensor]) -> Tensor:
    """Return sum_j weight_BTJ[..., j] v_j, [B, T, D]: a sum of sources with weights of each token."""
    if torch.compiler.is_compiling():
        return reference.sum_by_token(weight_BTJ, values)
    return cast(Tensor, _SumByToken.apply(weight_BTJ, *values))  # type: ignore[no-untyped-call]  # torch's


class _Scores(torch.autograd.Function):
    """Scores s = (v key^T) r, r = 1 / rms(v), which keep v, the keys and r.

    dv = r ds key - (r^2 / D) <r ds key, v> v;   dkey = sum over tokens of r ds^T v
    """

    @staticmethod
    def forward(ctx: Context, v_BTD: Tensor, key_QD: Tensor, eps: float) -> Tensor:
        rrms_BT1 = reference.inverse_rms(v_BTD, eps)
        ctx.save_for_backward(v_BTD, key_QD, rrms_BT1)
        return F.linear(v_BTD, key_QD).mul_(rrms_BT1)

    @staticmethod
    def backward(ctx: Context, ds_BTQ: Tensor) -> tuple[Tensor, Tensor, None]:
        v_BTD, key_QD, rrms_BT1 = ctx.saved_tensors
        dproduct_BTQ = ds_BTQ * rrms_BT1
        dv_BTD = dproduct_BTQ @ key_QD
        along_BT1 = (dv_BTD * v_BTD).sum(-1, keepdim=True)
        dv_BTD.addcmul_(along_BT1 * rrms_BT1.square(), v_BTD, value=-1 / v_BTD.shape[-1])
        return dv_BTD, dproduct_BTQ.flatten(0, 1).t() @ v_BTD.flatten(0, 1), None


class _SumByToken(torch.autograd.Function):
    """Sum x = sum_j w_j v_j, which keeps the weights and sources: dv_j = w_j dx, dw_j = <dx, v_j>."""

    @staticmethod
    def forward(ctx: Context, weight_BTJ: Tensor, *values: Tensor) -> Tensor:
        ctx.save_for_backward(weight_BTJ, *values)
        return reference.sum_by_token(weight_BTJ, values)

    @staticmethod
    def backward(ctx: Context, dx_BTD: Tensor) -> tuple[Tensor, ...]:
        weight_BTJ, *values = ctx.saved_tensors
        product_BTD = torch.empty_like(dx_BTD)  # one buffer for all J products
        dots = [torch.mul(dx_BTD, v_BTD, out=product_BTD).sum(-1) for v_BTD in values]
        weights = weight_BTJ.unsqueeze(-1).unbind(-2)
        return torch.stack(dots, dim=-1), *(weight_BT1 * dx_BTD for weight_BT1 in weights)
