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


class Logits:
    """Logits of one chunk after the other in the same memory: fresh pages cost a CPU as much as the product.

    Args:
        x_ND: of all chunks; gives the type that log-sum-exp runs in.
        w_VD: the head, in the type that products run in.
    """

    def __init__(self, x_ND: Tensor, w_VD: Tensor) -> None:
        self.w_VD = w_VD
        shape = (min(CHUNK_ROWS, x_ND.shape[0]), w_VD.shape[0])
        self._product_CV = w_VD.new_empty(shape)
        wide = _wide(x_ND.dtype)
        self._wide_CV = self._product_CV if wide == w_VD.dtype else w_VD.new_empty(shape, dtype=wide)

    def __call__(self, x_CD: Tensor) -> Tensor:
        """`x W^T`, [C, V], in float32 at least; the next call overwrites it."""
        rows = slice(x_CD.shape[0])
        torch.mm(x_CD, self.w_VD.T, out=self._product_CV[rows])
        if self._wide_CV is not self._product_CV:
            self._wide_CV[rows].copy_(self._product_CV[rows])
        return self._wide_CV[rows]

    def narrow(self, wide_CV: Tensor) -> Tensor:
        """What `__call__` gave, in the type of the products."""
        if self._wide_CV is self._product_CV:
            return wide_CV
        return self._product_CV[: wide_CV.shape[0]].copy_(wide_CV)


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
        logits, mean = Logits(x_ND, w_VD), 1.0 / x_ND.shape[0]
        for at in range(0, x_ND.shape[0], CHUNK_ROWS):
            rows = slice(at, at + CHUNK_ROWS)
            x_CD, target_C1 = x_ND[rows].to(dtype), target_N[rows, None]
            p_CV = logits(x_CD)
            loss_N[rows] = _softmax_(p_CV, target_C1)
            p_CV.scatter_add_(1, target_C1, torch.full_like(p_CV[:, :1], -1.0))
            dlogits_CV = logits.narrow(p_CV)
            if dx_ND is not None:
                dx_ND[rows] = (dlogits_CV @ w_VD).mul_(mean)
            if dw_VD is not None:
                if dw_VD.dtype == dtype:
                    dw_VD.addmm_(dlogits_CV.T, x_CD, alpha=mean)
                else:
                    dw_VD.add_(dlogits_CV.T @ x_CD, alpha=mean)
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
    """Turn logits into probabilities in place; returns the cross-entropy of each row, [C].

    The largest probability gives the log-sum-exp: it is at least 1 / V, where a target's own may underflow.
    """
    top_C1, of_target_C1 = logits_CV.amax(-1, keepdim=True), logits_CV.gather(1, target_C1)
    p_CV = torch.softmax(logits_CV, -1, out=logits_CV)
    return (top_C1 - of_target_C1 - p_CV.amax(-1, keepdim=True).log())[:, 0]


def log_softmax_(logits_CV: Tensor) -> Tensor:
    """Log-probabilities, in the logits' memory."""
    logp_CV: Tensor = torch.ops.aten._log_softmax.out(logits_CV, -1, False, out=logits_CV)
    return logp_CV


def product_type(x: Tensor) -> torch.dtype:
    """What matrix products with `x` run in: autocast's type where it is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def linear_cross_entropy(x_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
    """Mean cross-entropy in nats of the logits `x W^T` against `target`, a 0-dim tensor.

    Matrix products run in the autocast type where autocast is on, log-sum-exp in float32 at least.
    """
    if not torch.is_grad_enabled():  # autograd asks a Function for gradients all the same
        return token_losses(x_ND, weight_VD, target_N).mean()
    dtype = product_type(x_ND)
    with torch.autocast(x_ND.device.type, enabled=False):
        loss: Tensor = _LinearCrossEntropy.apply(x_ND, weight_VD, target_N, dtype)  # type: ignore[no-untyped-call]  # torch
    return loss


@torch.no_grad()
def token_losses(x_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
    """Cross-entropy in nats of every row, [N], without gradients; same chunks, the same but for rounding."""
    dtype = product_type(x_ND)
    w_VD = weight_VD.to(dtype)
    loss_N = torch.empty(x_ND.shape[0], dtype=_wide(x_ND.dtype), device=x_ND.device)
    with torch.autocast(x_ND.device.type, enabled=False):
        logits = Logits(x_ND, w_VD)
        for at in range(0, x_ND.shape[0], CHUNK_ROWS):
            rows = slice(at, at + CHUNK_ROWS)
            logits_CV = logits(x_ND[rows].to(dtype))
            loss_N[rows] = -log_softmax_(logits_CV).gather(1, target_N[rows, None])[:, 0]
    return loss_N
