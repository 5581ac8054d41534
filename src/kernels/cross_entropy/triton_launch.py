"""Cross-entropy of a chunk's logits and its gradient by a Triton kernel: a row is read twice and written once.

    loss_c = logsumexp(l_c) - l_c[target_c];   l_c <- softmax(l_c) - onehot(target_c)

Source: Milakov and Gimelshein, "Online normalizer calculation for softmax" (arXiv 1805.02867), algorithm 3.
Shape letters: C rows, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from src.kernels.dispatch import verify

#: Tolerance of the gradient by the logits' dtype; that of losses, which are float32, is the first one's.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def losses_(logits_CV: Tensor, target_C: Tensor, *, gradient: bool) -> Tensor:
    """Return the losses [C] of logits [C, V], in float32; with `gradient`, the logits become their gradient."""
    from src.kernels.cross_entropy import triton_kernels  # needs Triton, which a CPU does not

    return triton_kernels.losses_(logits_CV, target_C, gradient=gradient)


def why_not(device: torch.device, dtype: torch.dtype, *, width: int, products: torch.dtype) -> str | None:
    """Return why the kernel cannot run, or None."""
    if dtype == torch.float64:
        return "its arithmetic is float32"

    def value(logits_CV: Tensor, target_C: Tensor) -> Tensor:
        return losses_(logits_CV.detach(), target_C, gradient=False)

    def value_again(logits_CV: Tensor, target_C: Tensor) -> Tensor:
        return losses_(logits_CV.detach().clone(), target_C, gradient=True)

    def gradient(logits_CV: Tensor, target_C: Tensor) -> Tensor:
        gradient_CV = logits_CV.detach().clone()
        losses_(gradient_CV, target_C, gradient=True)
        return gradient_CV

    def reference_value(logits_CV: Tensor, target_C: Tensor) -> Tensor:
        return F.cross_entropy(logits_CV, target_C, reduction="none").detach()

    def reference_gradient(logits_CV: Tensor, target_C: Tensor) -> Tensor:
        return torch.autograd.grad(F.cross_entropy(logits_CV, target_C, reduction="sum"), logits_CV)[0]

    generator = torch.Generator().manual_seed(0)
    for logits_dtype, tolerance in TOLERANCE.items():
        logits_CV = (4 * torch.randn(7, 10_007, generator=generator)).to(device, logits_dtype)
        case = [logits_CV, torch.randint(10_007, (7,), generator=generator).to(device)]
        reason = (
            verify(value, reference_value, [case], TOLERANCE[torch.float32])
            or verify(value_again, reference_value, [case], TOLERANCE[torch.float32])
            or verify(gradient, reference_gradient, [case], tolerance)
        )
        if reason is not None:
            return reason
    return None
