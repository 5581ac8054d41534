"""Cross-entropy of a chunk's logits and its gradient by a Triton kernel: a row is read twice and written once.

    loss_c = logsumexp(l_c) - l_c[target_c];   l_c <- softmax(l_c) - onehot(target_c)

With a soft cap (`softcap.py`), the first is of the capped logits, and the second is multiplied by their slope.

Source: Milakov and Gimelshein, "Online normalizer calculation for softmax" (arXiv 1805.02867), algorithm 3.
Shape letters: C rows, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from src.kernels.cross_entropy.softcap import cap_logits
from src.kernels.dispatch import verify

#: Tolerance of each element of the gradient, by the logits' dtype; that of losses, which are float32, is the first one's.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
SMALLEST = 1e-8  # absolute error that every element may have besides


def losses_(logits_CV: Tensor, target_C: Tensor, *, gradient: bool, softcap: float | None = None) -> Tensor:
    """Return the losses [C] of logits [C, V] before their soft cap, in float32.

    With `gradient`, the logits become their gradient.
    """
    from src.kernels.cross_entropy import triton_kernels  # needs Triton, which a CPU does not

    return triton_kernels.losses_(logits_CV, target_C, gradient=gradient, softcap=softcap)


def why_not(
    device: torch.device, dtype: torch.dtype, *, width: int, products: torch.dtype, softcap: float | None = None
) -> str | None:
    """Return why the kernel cannot run, or None."""
    if dtype == torch.float64:
        return "its arithmetic is float32"

    def losses(logits_CV: Tensor, target_C: Tensor) -> list[Tensor]:
        copies = logits_CV.detach().clone(), logits_CV.detach().clone()
        return [losses_(x, target_C, gradient=g, softcap=softcap) for x, g in zip(copies, (False, True), strict=True)]

    def reference_losses(logits_CV: Tensor, target_C: Tensor) -> list[Tensor]:
        return [F.cross_entropy(cap_logits(logits_CV, softcap), target_C, reduction="none").detach()] * 2

    generator = torch.Generator().manual_seed(0)
    for logits_dtype, tolerance in TOLERANCE.items():
        logits_CV = (4 * torch.randn(7, 10_007, generator=generator)).to(device, logits_dtype)
        target_C = torch.randint(10_007, (7,), generator=generator).to(device)
        # Gradients over their own size, so that an error of a small probability is not hidden by a large one.
        exact_CV = _gradient(logits_CV.double().requires_grad_(), target_C, softcap)
        scale_CV = 1 / (exact_CV.abs() + SMALLEST / tolerance)

        def gradient(logits_CV: Tensor, target_C: Tensor, scale_CV: Tensor = scale_CV) -> Tensor:
            gradient_CV = logits_CV.detach().clone()
            losses_(gradient_CV, target_C, gradient=True, softcap=softcap)
            return gradient_CV * scale_CV

        def reference_gradient(logits_CV: Tensor, target_C: Tensor, scale_CV: Tensor = scale_CV) -> Tensor:
            return _gradient(logits_CV, target_C, softcap) * scale_CV

        case = [logits_CV, target_C]
        reason = verify(losses, reference_losses, [case], TOLERANCE[torch.float32])
        reason = reason or verify(gradient, reference_gradient, [case], tolerance)
        if reason is not None:
            return reason
    return None


def _gradient(logits_CV: Tensor, target_C: Tensor, softcap: float | None) -> Tensor:
    """Return the gradient of the sum of losses by PyTorch."""
    losses = F.cross_entropy(cap_logits(logits_CV, softcap), target_C, reduction="sum")
    return torch.autograd.grad(losses, logits_CV)[0]
