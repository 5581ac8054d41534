"""Linear cross-entropy in chunks of rows: the head and the loss without the logits of a whole batch.

    loss = mean_n ( logsumexp(x_n W^T) - x_n . W[target_n] )

The forward computes the gradients on the way, chunk by chunk, since each chunk's logits are at hand only
then: of N x V logits no more than `CHUNK_ROWS` x V exist at a time. Equal to `F.cross_entropy` on the
full logits, in value and gradient, to float32 rounding. torch has `F.linear_cross_entropy` from 2.13 on
only, so it cannot be relied on.

Source: Wijmans et al., "Cut Your Losses" (arXiv 2411.09009), section 3; Liger-Kernel's gradient in the forward.
Shape letters: N rows (tokens of a batch), D n_embd, V vocab_size, C rows of a chunk.
"""

from typing import Any

import torch
from torch import Tensor

# Measured on a CPU, V = 50304: 256 rows take 0.9 of the time of 512 and half the memory; 128 gain nothing.
CHUNK_ROWS = 256


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # autograd's context has no public type
        x_ND: Tensor,
        weight_VD: Tensor,
        target_N: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        w_VD = weight_VD.to(dtype)
        needs_x, needs_w = ctx.needs_input_grad[:2]
        dx_ND = torch.empty_like(x_ND) if needs_x else None
        dw_VD = torch.zeros_like(weight_VD) if needs_w else None
        loss_N = torch.empty(x_ND.shape[0], dtype=_wide(x_ND.dtype), device=x_ND.device)
        for at in range(0, x_ND.shape[0], CHUNK_ROWS):
            rows = slice(at, at + CHUNK_ROWS)
            x_CD, target_C1 = x_ND[rows].to(dtype), target_N[rows, None]
            p_CV = (x_CD @ w_VD.T).to(loss_N.dtype)
            loss_N[rows] = _softmax_(p_CV, target_C1)
            p_CV.scatter_add_(1, target_C1, torch.full_like(p_CV[:, :1], -1.0))
            dlogits_CV = p_CV.mul_(1.0 / x_ND.shape[0]).to(dtype)
            if dx_ND is not None:
                dx_ND[rows] = dlogits_CV @ w_VD
            if dw_VD is not None:
                if dw_VD.dtype == dtype:
                    dw_VD.addmm_(dlogits_CV.T, x_CD)
                else:
                    dw_VD += dlogits_CV.T @ x_CD
        ctx.save_for_backward(dx_ND, dw_VD)
        return loss_N.mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        dx_ND, dw_VD = ctx.saved_tensors
        return (
            None if dx_ND is None else dx_ND * grad,
            None if dw_VD is None else dw_VD * grad,
            None,
            None,
        )


def _softmax_(logits_CV: Tensor, target_C1: Tensor) -> Tensor:
    """Turn logits into probabilities in place; returns the cross-entropy of each row, [C]."""
    top_C1 = logits_CV.amax(-1, keepdim=True)
    of_target_C1 = logits_CV.gather(1, target_C1) - top_C1
    sum_C1 = logits_CV.sub_(top_C1).exp_().sum(-1, keepdim=True)
    logits_CV.div_(sum_C1)
    return (sum_C1.log() - of_target_C1)[:, 0]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def linear_cross_entropy(x_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
    """Mean cross-entropy in nats of the logits `x W^T` against `target`, a 0-dim tensor.

    Matrix products run in the autocast type where autocast is on, log-sum-exp in float32 at least.
    """
    if not torch.is_grad_enabled():  # autograd asks a Function for gradients all the same
        return token_losses(x_ND, weight_VD, target_N).mean()
    device = x_ND.device.type
    on = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if on else x_ND.dtype
    with torch.autocast(device, enabled=False):
        loss: Tensor = _LinearCrossEntropy.apply(x_ND, weight_VD, target_N, dtype)  # type: ignore[no-untyped-call]  # torch
    return loss


def token_losses(x_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
    """Cross-entropy in nats of every row, [N], without gradients; same chunks, same arithmetic."""
    device = x_ND.device.type
    on = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if on else x_ND.dtype
    w_VD = weight_VD.to(dtype)
    out = []
    with torch.autocast(device, enabled=False):
        for at in range(0, x_ND.shape[0], CHUNK_ROWS):
            rows = slice(at, at + CHUNK_ROWS)
            logits_CV = (x_ND[rows].to(dtype) @ w_VD.T).to(_wide(x_ND.dtype))
            out.append(_softmax_(logits_CV, target_N[rows, None]))
    return torch.cat(out)
