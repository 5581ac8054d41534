"""The cross-entropy of a chunk's logits and its gradient by a kernel in Triton: a row is read twice and written once.

    loss_c = logsumexp(l_c) - l_c[target_c];   l_c <- softmax(l_c) - onehot(target_c)

It is `loss`'s softmax, gather, scatter and conversions, which are its plain form.

Source: Milakov and Gimelshein, "Online normalizer calculation for softmax" (arXiv 1805.02867), algorithm 3.
Shape letters: C rows, V vocabulary.
"""

import functools
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from src.kernels.dispatch import failing, wanted


class LossKernel(Protocol):
    """Losses [C], float32, of logits [C, V]; with `gradient`, the logits become theirs."""

    def __call__(self, logits_CV: Tensor, target_C: Tensor, *, gradient: bool) -> Tensor:
        """See the class."""


def kernel_for(x: Tensor) -> LossKernel | None:
    """The kernel for logits made of `x`, or None where the plain form has to do."""
    if not wanted(x.device) or x.dtype == torch.float64 or _failing(x.device) is not None:
        return None
    from src.kernels.cross_entropy.triton_kernels import losses_  # it imports triton, which a CPU does not need

    return losses_


@functools.cache
def _failing(device: torch.device) -> str | None:
    return failing("the loss", lambda: _error(device), 1.0)


def _error(device: torch.device) -> float:
    """How far losses and gradients are off, in what rounding explains."""
    from src.kernels.cross_entropy.triton_kernels import losses_

    generator, worst = torch.Generator().manual_seed(0), 0.0
    for dtype, rounding in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        logits_CV = (4 * torch.randn(7, 10_007, generator=generator)).to(device, dtype)
        target_C = torch.randint(10_007, (7,), generator=generator).to(device)
        leaf_CV = logits_CV.float().clone().requires_grad_()
        plain_C = F.cross_entropy(leaf_CV, target_C, reduction="none")
        (gradient_CV,) = torch.autograd.grad(plain_C.sum(), leaf_CV)
        quiet_C = losses_(logits_CV, target_C, gradient=False)
        ours_C = losses_(logits_CV, target_C, gradient=True)
        off_C = (torch.stack((quiet_C, ours_C)) / plain_C.detach() - 1).abs() / 1e-5
        off_CV = (logits_CV.float() - gradient_CV).abs() / (1e-8 + rounding * gradient_CV.abs())
        worst = max(worst, *(float(off.nan_to_num(nan=torch.inf).amax()) for off in (off_C, off_CV)))
    return worst
