"""See `src.kernels.cross_entropy.triton_launch`. Shape letters: C rows, V vocabulary."""

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Logits that a program holds at a time, and the warps that hold them: 16 a thread.
BLOCK, WARPS = 8192, 16


@triton.jit
def _cross_entropy(logits, target, loss, V, GRADIENT: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * V
    lane = tl.arange(0, BLOCK)
    top = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    for at in range(0, V, BLOCK):
        here = at + lane
        logit = tl.load(logits + here, mask=here < V, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(top, tl.max(logit))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(logit - higher))
        top = higher
    log_sum = top + tl.log(total)
    wanted = tl.load(target + row)
    tl.store(loss + row, log_sum - tl.load(logits + wanted).to(tl.float32))
    if GRADIENT:
        tl.debug_barrier()  # the target's logit is read before it is overwritten
        for at in range(0, V, BLOCK):
            here = at + lane
            logit = tl.load(logits + here, mask=here < V, other=0.0).to(tl.float32)
            p = tl.exp(logit - log_sum)
            tl.store(logits + here, tl.where(here == wanted, p - 1, p), mask=here < V)


def losses_(logits_CV: Tensor, target_C: Tensor, *, gradient: bool) -> Tensor:
    """Losses [C], float32, of contiguous logits [C, V]; with `gradient`, the logits become theirs."""
    assert logits_CV.is_contiguous()
    C, V = logits_CV.shape
    loss_C = torch.empty(C, dtype=torch.float32, device=logits_CV.device)
    block = min(BLOCK, triton.next_power_of_2(V))
    _cross_entropy[(C,)](
        logits_CV, target_C.contiguous(), loss_C, V, GRADIENT=gradient, BLOCK=block, num_warps=WARPS
    )
    return loss_C
