"""The head and its loss on a CPU by a kernel in C++: a tile of the vocabulary at a time, while it is in the cache.

    forward   l = W_tile x^T;  e = exp(l - top), kept, as tops rise;  loss = log(sum) + (top - l_target) over all tiles
    backward  g = (softmax(l) - onehot(target)) / N, from e;  dW_tile += g x;  dx += g^T W_tile

Its products are torch's own of small blocks (`src/kernels/brgemm.py`). Where they are missing, or throw, or
something comes out wrong, or the kernel cannot be built, `loss.py` takes its plain form: a line in the log says so.

Source: Milakov and Gimelshein, "Online normalizer calculation for softmax" (arXiv 1805.02867), algorithm 3.
Shape letters: N rows, D width, V vocabulary, R rows of a chunk, K tiles.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from src.kernels.brgemm import PRODUCTS, small_products, tried
from src.kernels.cpp_build import Kernels, built_for

ROWS, TILE = 256, 64  # of a chunk; of the vocabulary, as in the kernel
NAMES = {torch.float32: "same", torch.bfloat16: "half"}
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2e-2}

#: Losses [N], and the gradients of their mean, where they are asked for: [N, D], [V, D]; all float32.
Head = Callable[[Tensor, Tensor, Tensor, bool, bool], tuple[Tensor, Tensor | None, Tensor | None]]


def head_for(x: Tensor, dtype: torch.dtype) -> Head | None:
    """The kernel for rows like those of `x` and products in `dtype`, or None: the plain form has to do.

    It takes x [N, D], the head's weights [V, D], both in `dtype`, targets [N], and which gradients are wanted.
    """
    if torch.compiler.is_compiling() or type(x) is not Tensor or x.device.type != "cpu":
        return None
    return _tried(dtype, x.shape[-1]) if dtype in PRODUCTS and x.dtype != torch.float64 else None


@functools.cache
def _tried(dtype: torch.dtype, width: int) -> Head | None:
    kernels = built_for(torch.float32, width, "kernels/cross_entropy/cross_entropy")
    if kernels is None:
        return None
    return tried(
        "head",
        dtype,
        lambda: _head(kernels, dtype),
        lambda head: _error(head, dtype, width),
        ROUNDING[dtype],
    )


def _head(kernels: Kernels, dtype: torch.dtype) -> Head:
    products = small_products(kernels, f"head_try_{NAMES[dtype]}", dtype)
    return functools.partial(_losses, kernels, f"head_{NAMES[dtype]}", products)


def _losses(
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
    kind = torch.float64 if x_ND.dtype == torch.float64 else torch.float32
    if N and not 0 <= int(target_N.min()) <= int(target_N.max()) < V:
        raise IndexError(f"targets must be between 0 and {V - 1}, got {target_N.min()} to {target_N.max()}")
    loss_N = x_ND.new_empty(N, dtype=kind)
    dx_ND = torch.empty_like(x_ND, dtype=kind) if needs_x else None
    dw_VD = torch.empty_like(w_VD, dtype=kind) if needs_w else None
    wide = min(ROWS, -(-N // 16) * 16)
    kept_VR = x_ND.new_empty(V, wide) if needs_x or needs_w else None
    tops_2KR = loss_N.new_empty(2, -(-V // TILE), wide)
    tensors = (
        x_ND.contiguous(),
        w_VD.contiguous(),
        target_N.contiguous(),
        loss_N,
        dx_ND,
        dw_VD,
        kept_VR,
        tops_2KR,
    )
    kernels(name, *products, *tensors, N, D, V, ROWS, torch.get_num_threads())
    return loss_N, dx_ND, dw_VD


def _error(head: Head, dtype: torch.dtype, width: int) -> float:
    """How far losses and gradients are off at most, in their sizes."""
    generator = torch.Generator().manual_seed(0)
    x_ND, w_VD = (torch.randn(n, width, generator=generator) for n in (ROWS + 5, 2 * TILE + 3))
    x_ND, w_VD = x_ND.to(dtype), (4 * width**-0.5 * w_VD).to(dtype)
    target_N = torch.randint(len(w_VD), (len(x_ND),), generator=generator)
    leaves = [leaf.double().requires_grad_() for leaf in (x_ND, w_VD)]
    plain_N = F.cross_entropy(leaves[0] @ leaves[1].T, target_N, reduction="none")
    plain = [plain_N.detach(), *torch.autograd.grad(plain_N.mean(), leaves)]
    quiet_N, *_ = head(x_ND, w_VD, target_N, False, False)
    parts = [(quiet_N, plain[0]), *zip(head(x_ND, w_VD, target_N, True, True), plain, strict=True)]
    off = [(ours - theirs).abs().amax() / theirs.abs().amax() for ours, theirs in parts if ours is not None]
    return float(torch.stack(off).nan_to_num(nan=torch.inf).amax())
