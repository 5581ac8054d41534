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
def _cross_entropy(logits, target, loss, V, GRADIENT: tl.constexpr, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * V
    lane = tl.arange(0, TILE)
    # The sum of exponentials over the row, relative to the largest logit so far.
    top = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    for at in range(0, V, TILE):
        column = at + lane
        logit = tl.load(logits + column, mask=column < V, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(top, tl.max(logit))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(logit - higher))
        top = higher
    log_sum = top + tl.log(total)
    wanted = tl.load(target + row)
    tl.store(loss + row, log_sum - tl.load(logits + wanted).to(tl.float32))
    # The gradient over the logits, tile by tile.
    if GRADIENT:
        tl.debug_barrier()  # the target's logit is read before it is overwritten
        for at in range(0, V, TILE):
            column = at + lane
            logit = tl.load(logits + column, mask=column < V, other=0.0).to(tl.float32)
            p = tl.exp(logit - log_sum)
            tl.store(logits + column, tl.where(column == wanted, p - 1, p), mask=column < V)


def losses_(logits_CV: Tensor, target_C: Tensor, *, gradient: bool) -> Tensor:
    """Return the float32 losses [C] of contiguous logits [C, V]; with `gradient`, the logits become their gradient."""
    assert logits_CV.is_contiguous()
    C, V = logits_CV.shape
    loss_C = torch.empty(C, dtype=torch.float32, device=logits_CV.device)
    tile = min(TILE, triton.next_power_of_2(V))
    _cross_entropy[(C,)](logits_CV, target_C.contiguous(), loss_C, V, GRADIENT=gradient, TILE=tile, num_warps=WARPS)
    return loss_C
