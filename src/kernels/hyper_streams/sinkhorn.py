"""Sinkhorn-Knopp: matrices that are nearly doubly stochastic, from logits.

    M = exp(logits);   n times:  columns of M sum to 1, then rows

It ends with the rows, whose sums are exact. It saves only the logits and runs again in the backward. Arithmetic is in
the logits' dtype, which should be float32: in bfloat16 a product of 48 such matrices drifts by 7 %.

Source: Xie et al., "mHC" (arXiv 2512.24880), section 4.2, equation 19.
Shape letters: N rows and columns, K matrices.
"""

from typing import cast

import torch
from torch import Tensor

from src.kernels.custom_op import Context

#: Logits this far below their matrix's largest do not change the result, and no product of theirs underflows.
FLOOR = 40.0


def sinkhorn(logit_KNN: Tensor, n_iteration: int) -> Tensor:
    """Return matrices [K, N, N] after `n_iteration` rounds from logits of the same shape."""
    if torch.compiler.is_compiling():
        return _rounds(_start(logit_KNN), n_iteration)[-1].permute(2, 0, 1)
    return cast(Tensor, _Sinkhorn.apply(logit_KNN, n_iteration))  # type: ignore[no-untyped-call]  # torch's


def _start(logit_KNN: Tensor) -> Tensor:
    """Return exp(logits) as [N, N, K], so that sums run over whole rows of memory."""
    logit_NNK = logit_KNN.permute(1, 2, 0).contiguous()
    return (logit_NNK - logit_NNK.amax((0, 1))).clamp_min(-FLOOR).exp()


def _rounds(m_NNK: Tensor, n_iteration: int) -> list[Tensor]:
    """Return M before the first half round and after every one."""
    rounds = [m_NNK]
    for _ in range(n_iteration):
        for dim in (0, 1):
            rounds.append(rounds[-1] / rounds[-1].sum(dim, keepdim=True))
    return rounds


class _Sinkhorn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, logit_KNN: Tensor, n_iteration: int) -> Tensor:
        ctx.save_for_backward(logit_KNN)
        ctx.n_iteration = n_iteration
        m_NNK = _start(logit_KNN)
        for _ in range(n_iteration):
            for dim in (0, 1):
                m_NNK /= m_NNK.sum(dim, keepdim=True)
        return m_NNK.permute(2, 0, 1).contiguous()

    @staticmethod
    def backward(ctx: Context, dm_KNN: Tensor) -> tuple[Tensor, None]:
        (logit_KNN,) = ctx.saved_tensors
        first, *halves = _rounds(_start(logit_KNN), ctx.n_iteration)
        before = [first, *halves[:-1]]
        dm_NNK = dm_KNN.permute(1, 2, 0).contiguous()
        for i in reversed(range(len(halves))):
            dim = i % 2  # columns first
            inner = (dm_NNK * halves[i]).sum(dim, keepdim=True)
            dm_NNK = (dm_NNK - inner) / before[i].sum(dim, keepdim=True)
        over_floor = first > torch.full_like(first[:1, :1], -FLOOR).exp()
        return (dm_NNK * first * over_floor).permute(2, 0, 1), None
