"""Causal attention on a CPU by a C++ kernel: one head at a time, tiles of 64 queries, in the cache.

    S^T = K Q_tile^T / sqrt(head size);  P^T = exp(S^T - lse);  y_tile^T = V^T P^T
    dP^T = V dy_tile^T;  dS^T = P^T (dP^T - <dy, y>);  dV += P^T dy_tile;  dK += dS^T Q_tile;  dQ_tile^T = K^T dS^T

Softmax and sums are float32, for bfloat16 inputs too. The products are torch's own of small blocks (`brgemm.py`). Where
the kernel cannot run, torch's does. Its products stay MKL's even if oneDNN computes all others (`cpu_matmul.py`): its
blocks are so small that a call of oneDNN costs more than they take.

Source: Dao et al., "FlashAttention" (arXiv 2205.14135), algorithms 1 and 4; here a tile's scores are computed once for
all keys, which a cache holds.
Shape letters: B batch, T tokens, H heads, K head size.
"""

import contextlib
import functools

import torch
from torch import Tensor

from src.kernels.attention import reference
from src.kernels.brgemm import find_products
from src.kernels.cpp_build import Kernels, Source, table
from src.kernels.cpu_matmul import MATMUL
from src.kernels.custom_op import Context, differentiable, operator
from src.kernels.dispatch import verify

SOURCE = Source("kernels/attention/attention")
_torch_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_torch_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
SUFFIXES = {torch.float32: "same", torch.bfloat16: "half"}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def is_applicable(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, dropout: float) -> bool:
    """Return whether `attention` computes the same as torch's `scaled_dot_product_attention`, and is as fast or faster.

    It is where torch would call its CPU kernel and either gradients are required or oneDNN computes other products.
    """
    return (
        q_BHTK.device.type == "cpu"
        and dropout == 0
        and q_BHTK.dim() == 4
        and q_BHTK.shape == k_BHTK.shape == v_BHTK.shape
        and q_BHTK.dtype in SUFFIXES
        and q_BHTK.dtype == k_BHTK.dtype == v_BHTK.dtype
        and (MATMUL.onednn or torch.is_grad_enabled())
    )


def attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, *, by_kernel: bool) -> Tensor:
    """Return causal attention [B, H, T, K], by the C++ kernel or torch's; it is once differentiable, like torch's."""
    y_BHTK: Tensor = _attention(q_BHTK, k_BHTK, v_BHTK, by_kernel)[0]
    return y_BHTK


def why_not(device: torch.device, dtype: torch.dtype, *, head_size: int) -> str | None:
    """Return why the kernel cannot run, or None."""
    if dtype not in SUFFIXES:
        return f"there are kernels for float32 and bfloat16, not {dtype}"
    reason = SOURCE.why_not(device, torch.float32, width=head_size)
    return reason or verify_kernel(load_kernel(dtype, head_size), dtype, head_size)


class AttentionKernel:
    """Kernel for one dtype.

    Args:
        kernels: the compiled functions.
        dtype: of q, k and v.
        products: addresses from `find_products`, or zeros for a product of the kernel's own.
    """

    def __init__(self, kernels: Kernels, dtype: torch.dtype, products: tuple[int, int]) -> None:
        self.kernels, self.products = kernels, products
        self.suffix = SUFFIXES.get(dtype, "same")
        self.accumulation = torch.float64 if dtype == torch.float64 else torch.float32

    def forward(self, *qkv_BHTK: Tensor) -> tuple[Tensor, Tensor]:
        """Return y [B, H, T, K] and the logarithm of each query's sum of exponentials [B, H, T]."""
        q_BHTK = qkv_BHTK[0]
        y_BHTK, lse_BHT = _empty_as(q_BHTK), q_BHTK.new_empty(q_BHTK.shape[:3], dtype=self.accumulation)
        self("attention", [_with_dense_rows(x) for x in qkv_BHTK], (y_BHTK.transpose(1, 2), lse_BHT))
        return y_BHTK, lse_BHT

    def backward(
        self, dy_BHTK: Tensor, qkv_BHTK: tuple[Tensor, ...], y_BHTK: Tensor, lse_BHT: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of q, k and v."""
        dq, dk, dv = (_empty_as(dy_BHTK) for _ in range(3))
        results = (d.transpose(1, 2) for d in (dq, dk, dv))
        others = (y_BHTK.transpose(1, 2).contiguous(), lse_BHT, *results)
        self("attention_backward", [_with_dense_rows(x) for x in (*qkv_BHTK, dy_BHTK)], others)
        return dq, dk, dv

    def __call__(self, name: str, strided: list[Tensor], contiguous: tuple[Tensor, ...]) -> None:
        """Call the function `name`; the kernel takes the strides of batch, head and token of `strided` tensors."""
        B, H, T, K = strided[0].shape
        strides = table(x.stride(dim) for x in strided for dim in range(3))
        addresses = [x.data_ptr() for x in strided]
        sizes = (B, H, T, K, torch.get_num_threads())
        self.kernels(f"{name}_{self.suffix}", *self.products, *addresses, strides, *contiguous, *sizes)


@functools.cache
def load_kernel(dtype: torch.dtype, head_size: int) -> AttentionKernel:
    """Return the kernel for a dtype.

    Raises:
        AttributeError, OSError, ValueError: torch has no product of small blocks for this processor.
    """
    kernels = SOURCE.load(torch.float32, head_size)
    return AttentionKernel(kernels, dtype, find_products(kernels, "attention_try", torch.float32))


def verify_kernel(kernel: AttentionKernel, dtype: torch.dtype, head_size: int) -> str | None:
    """Compare values and gradients with the reference; return how the kernel fails, or None."""
    generator = torch.Generator().manual_seed(0)
    B, H, T = 1, 2, 70
    qkv = torch.randn(B, T, 3, H, head_size, generator=generator).to(dtype).transpose(1, 3).unbind(2)
    dy = torch.randn(B, T, H, head_size, generator=generator).to(dtype).transpose(1, 2)

    def run_kernel(q: Tensor, k: Tensor, v: Tensor, dy: Tensor) -> list[Tensor]:
        y, lse = kernel.forward(q, k, v)
        return [y, *kernel.backward(dy, (q, k, v), y, lse)]

    def run_reference(q: Tensor, k: Tensor, v: Tensor, dy: Tensor) -> list[Tensor]:
        y = reference.causal_attention(q, k, v)
        return [y.detach(), *torch.autograd.grad(y, [q, k, v], dy)]

    return verify(run_kernel, run_reference, [[*qkv, dy]], TOLERANCE[dtype])


def _with_dense_rows(x_BHTK: Tensor) -> Tensor:
    """Return a tensor whose last dimension has stride 1."""
    return x_BHTK if x_BHTK.stride(-1) == 1 else x_BHTK.contiguous()


def _empty_as(x_BHTK: Tensor) -> Tensor:
    """Return an uninitialized tensor in the layout of torch's kernel: [B, T, H, K] in memory."""
    B, H, T, K = x_BHTK.shape
    return x_BHTK.new_empty(B, T, H, K).transpose(1, 2)


def _without_onednn() -> contextlib.AbstractContextManager[None]:
    return MATMUL.hold(False) if MATMUL.onednn else contextlib.nullcontext()


# ---- operator


def _cpu_attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, by_kernel: bool) -> tuple[Tensor, Tensor]:
    if by_kernel:
        return load_kernel(q_BHTK.dtype, q_BHTK.shape[-1]).forward(q_BHTK, k_BHTK, v_BHTK)
    with _without_onednn():
        y_BHTK, lse_BHT = _torch_forward(q_BHTK, k_BHTK, v_BHTK, 0.0, True)
    return y_BHTK.transpose(1, 2).contiguous().transpose(1, 2), lse_BHT.contiguous()


def _cpu_attention_backward(
    dy_BHTK: Tensor,
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTK: Tensor,
    y_BHTK: Tensor,
    lse_BHT: Tensor,
    by_kernel: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if by_kernel:
        kernel = load_kernel(q_BHTK.dtype, q_BHTK.shape[-1])
        return kernel.backward(dy_BHTK, (q_BHTK, k_BHTK, v_BHTK), y_BHTK, lse_BHT)
    with _without_onednn():
        dq, dk, dv = _torch_backward(dy_BHTK, q_BHTK, k_BHTK, v_BHTK, y_BHTK, lse_BHT, 0.0, True)
    return dq, dk, dv


def _save(ctx: Context, inputs: tuple[Tensor, Tensor, Tensor, bool], output: tuple[Tensor, Tensor]) -> None:
    *qkv, ctx.by_kernel = inputs
    ctx.save_for_backward(*qkv, *output)


def _backward(ctx: Context, dy_BHTK: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor, Tensor, None]:
    dq, dk, dv = _attention_backward(dy_BHTK, *ctx.saved_tensors, ctx.by_kernel)
    return dq, dk, dv, None


_attention_backward = operator(
    _cpu_attention_backward, lambda dy, q, k, v, y, lse, by_kernel: tuple(_empty_as(x) for x in (q, k, v))
)
_attention = differentiable(
    operator(
        _cpu_attention,
        lambda q, k, v, by_kernel: (_empty_as(q), q.new_empty(q.shape[:3], dtype=torch.float32)),
    ),
    kept=_save,
    backward=_backward,
)
