"""Linear cross-entropy on a CPU by a C++ kernel: one tile of the vocabulary at a time, while it is in the cache.

    forward   l = W_tile x^T;  e = exp(l - top), saved, while tops rise;  loss = log(sum) + (top - l_target) of all tiles
    backward  g = (softmax(l) - onehot(target)) / N, from e;  dW_tile += g x;  dx += g^T W_tile

The products are torch's own of small blocks (`brgemm.py`).

Source: Milakov and Gimelshein, "Online normalizer calculation for softmax" (arXiv 1805.02867), algorithm 3.
Shape letters: N rows, D width, V vocabulary, R rows of a chunk, K tiles.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from src.kernels.brgemm import PRODUCTS, find_products
from src.kernels.cpp_build import Kernels, Source
from src.kernels.cross_entropy import reference
from src.kernels.dispatch import verify

SOURCE = Source("kernels/cross_entropy/cross_entropy")
ROWS, TILE = 256, 64  # of a chunk; of the vocabulary, as in the kernel
SUFFIXES = {torch.float32: "same", torch.bfloat16: "half"}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}

#: (x [N, D], weight [V, D], target [N], needs dx, needs dweight) -> losses [N], and the gradients of their mean that are
#: needed: [N, D], [V, D]; all results are float32.
HeadKernel = Callable[[Tensor, Tensor, Tensor, bool, bool], tuple[Tensor, Tensor | None, Tensor | None]]


def why_not(
    device: torch.device, dtype: torch.dtype, *, width: int, products: torch.dtype, softcap: float | None = None
) -> str | None:
    """Return why the kernel cannot run for x of a dtype and matrix products in another, or None."""
    if softcap is not None:
        return "it has no soft cap of the logits"
    if dtype == torch.float64 or products not in PRODUCTS:
        return f"there are kernels for products in float32 and bfloat16, not {products}"
    reason = SOURCE.why_not(device, torch.float32, width=width)
    return reason or verify_kernel(load_kernel(products, width), products, width)


@functools.cache
def load_kernel(dtype: torch.dtype, width: int) -> HeadKernel:
    """Return the kernel for products in a dtype.

    Raises:
        AttributeError, OSError, ValueError: torch has no product of small blocks for this processor.
    """
    kernels = SOURCE.load(torch.float32, width)
    products = find_products(kernels, f"head_try_{SUFFIXES[dtype]}", dtype)
    return functools.partial(_compute_losses, kernels, f"head_{SUFFIXES[dtype]}", products)


def _compute_losses(
    kernels: Kernels,
    name: str,
    products: tuple[int, int],
    x_ND: Tensor,
    w_VD: Tensor,
    target_N: Tensor,
    needs_x: bool,
    needs_w: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    (N, D), V = x_ND.shape, len(w_VD)
    accumulation = torch.float64 if x_ND.dtype == torch.float64 else torch.float32
    if N and not 0 <= int(target_N.min()) <= int(target_N.max()) < V:
        raise IndexError(f"targets must be between 0 and {V - 1}, got {target_N.min()} to {target_N.max()}")
    loss_N = x_ND.new_empty(N, dtype=accumulation)
    dx_ND = torch.empty_like(x_ND, dtype=accumulation) if needs_x else None
    dw_VD = torch.empty_like(w_VD, dtype=accumulation) if needs_w else None
    # Scratch: exponentials of a chunk, tops and sums of its tiles.
    padded_rows = min(ROWS, -(-N // 16) * 16)
    saved_VR = x_ND.new_empty(V, padded_rows) if needs_x or needs_w else None
    tops_2KR = loss_N.new_empty(2, -(-V // TILE), padded_rows)
    inputs = (x_ND.contiguous(), w_VD.contiguous(), target_N.contiguous())
    tensors = (*inputs, loss_N, dx_ND, dw_VD, saved_VR, tops_2KR)
    kernels(name, *products, *tensors, N, D, V, ROWS, torch.get_num_threads())
    return loss_N, dx_ND, dw_VD


def verify_kernel(kernel: HeadKernel, dtype: torch.dtype, width: int) -> str | None:
    """Compare losses and gradients with the reference; return how the kernel fails, or None."""
    generator = torch.Generator().manual_seed(0)
    x_ND, w_VD = (torch.randn(n, width, generator=generator) for n in (ROWS + 5, 2 * TILE + 3))
    x_ND, w_VD = x_ND.to(dtype), (4 * width**-0.5 * w_VD).to(dtype)
    target_N = torch.randint(len(w_VD), (len(x_ND),), generator=generator)

    def run_kernel(x_ND: Tensor, w_VD: Tensor, target_N: Tensor) -> list[Tensor]:
        alone_N, *_ = kernel(x_ND, w_VD, target_N, False, False)
        results = kernel(x_ND, w_VD, target_N, True, True)
        return [alone_N, *(x for x in results if x is not None)]

    def run_reference(x_ND: Tensor, w_VD: Tensor, target_N: Tensor) -> list[Tensor]:
        loss_N = reference.token_losses(x_ND, w_VD, target_N)
        return [loss_N.detach(), loss_N.detach(), *torch.autograd.grad(loss_N.mean(), [x_ND, w_VD])]

    return verify(run_kernel, run_reference, [[x_ND, w_VD, target_N]], TOLERANCE[dtype])
