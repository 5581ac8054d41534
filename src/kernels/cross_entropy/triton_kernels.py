"""Triton kernel of the cross-entropy of logits (`triton_launch.py`).

Shape letters: C rows, V vocabulary.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Logits that a program holds at a time, and its warps: 16 logits a thread.
TILE, WARPS = 8192, 16


@triton.jit
def _load_capped(logits, column, V, softcap, CAPPED: tl.constexpr, other: tl.constexpr):
    logit = tl.load(logits + column, mask=column < V, other=other).to(tl.float32)
    if CAPPED:  # c tanh(l / c)
        logit = tl.where(column < V, softcap * (2 * tl.sigmoid(2 * logit / softcap) - 1), other)
    return logit


@triton.jit
def _cross_entropy(logits, target, loss, V, softcap, CAPPED: tl.constexpr, GRADIENT: tl.constexpr, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * V
    lane = tl.arange(0, TILE)
    # The sum of exponentials over the row, relative to the largest logit so far.
    top = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    for at in range(0, V, TILE):
        column = at + lane
        logit = _load_capped(logits, column, V, softcap, CAPPED, float("-inf"))
        higher = tl.maximum(top, tl.max(logit))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(logit - higher))
        top = higher
    log_sum = top + tl.log(total)
    wanted = tl.load(target + row)
    tl.store(loss + row, log_sum - _load_capped(logits, wanted, V, softcap, CAPPED, 0.0))
    # The gradient over the logits, tile by tile.
    if GRADIENT:
        tl.debug_barrier()  # the target's logit is read before it is overwritten
        for at in range(0, V, TILE):
            column = at + lane
            logit = _load_capped(logits, column, V, softcap, CAPPED, 0.0)
            p = tl.exp(logit - log_sum)
            slope = tl.where(column == wanted, p - 1, p)
            if CAPPED:
                slope = slope * (1 - logit / softcap * (logit / softcap))
            tl.store(logits + column, slope, mask=column < V)


def losses_(logits_CV: Tensor, target_C: Tensor, *, gradient: bool, softcap: float | None = None) -> Tensor:
    """Return the float32 losses [C] of contiguous logits [C, V], which are not capped yet.

    With `gradient`, the logits become their gradient.
    """
    assert logits_CV.is_contiguous()
    C, V = logits_CV.shape
    loss_C = torch.empty(C, dtype=torch.float32, device=logits_CV.device)
    tile = min(TILE, triton.next_power_of_2(V))
    capped, bound = softcap is not None, 1.0 if softcap is None else softcap
    inputs = (logits_CV, target_C.contiguous(), loss_C, V, bound)
    _cross_entropy[(C,)](*inputs, CAPPED=capped, GRADIENT=gradient, TILE=tile, num_warps=WARPS)
    return loss_C
