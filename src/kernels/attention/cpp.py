"""Causal attention on a CPU by a kernel in C++: a head at a time, blocks of 64 queries, in the cache.

    S^T = K Q_block^T / sqrt(head size);  P^T = exp(S^T - lse);  y_block^T = V^T P^T
    dP^T = V dy_block^T;  dS^T = P^T (dP^T - <dy, y>);  dV += P^T dy_block;  dK += dS^T Q_block;  dQ_block^T = K^T dS^T

Softmax and sums are float32, of bfloat16 too. Its products are torch's own of small blocks
(`src/kernels/brgemm.py`). Each process tries it at its first use. Where it does not serve, torch's kernel does,
whose products stay MKL's when oneDNN makes the others (`src/kernels/cpu_matmul.py`): its blocks are so small that a
call of oneDNN costs more than they take. Scoring, whose lengths vary, is torch's kernel's as well.

Source: Dao et al., "FlashAttention" (arXiv 2205.14135), algorithms 1 and 4; here a head's scores are made once for all
keys, which a cache holds.
Shape letters: B batch, T tokens, H heads, K head size.
"""

import contextlib
import functools
from typing import Any  # autograd's context

import torch
from torch import Tensor

from src.kernels.brgemm import small_products, tried
from src.kernels.cpp_build import Kernels, built_for, table
from src.kernels.cpu_matmul import chosen, for_now
from src.kernels.custom_op import differentiable, operator

_torchs = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_torchs_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
NAMES = {torch.float32: "same", torch.bfloat16: "half"}
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def serves(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, dropout: float) -> bool:
    """Whether `attention` is for these: on a CPU, to be trained or beside oneDNN, where torch would call its kernel."""
    return (
        q_BHTK.device.type == "cpu"
        and dropout == 0
        and q_BHTK.dim() == 4
        and q_BHTK.shape == k_BHTK.shape == v_BHTK.shape
        and q_BHTK.dtype in NAMES
        and q_BHTK.dtype == k_BHTK.dtype == v_BHTK.dtype
        and (chosen() or torch.is_grad_enabled())
    )


def attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
    """`softmax(q k^T / sqrt(K), causal) v`, [B, H, T, K]; not twice differentiable, like torch's kernel."""
    y_BHTK: Tensor = _attention(q_BHTK, k_BHTK, v_BHTK, torch.is_grad_enabled())[0]
    return y_BHTK


def _cpu_attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, training: bool) -> tuple[Tensor, Tensor]:
    kernels = _tried(q_BHTK.dtype, q_BHTK.shape[-1]) if training else None
    if kernels is None:
        with _as_ever():
            y_BHTK, lse_BHT = _torchs(q_BHTK, k_BHTK, v_BHTK, 0.0, True)
        return y_BHTK.transpose(1, 2).contiguous().transpose(1, 2), lse_BHT.contiguous()
    return kernels.forward(q_BHTK, k_BHTK, v_BHTK)


def _cpu_attention_backward(
    dy_BHTK: Tensor,
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTK: Tensor,
    y_BHTK: Tensor,
    lse_BHT: Tensor,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    kernels = _tried(q_BHTK.dtype, q_BHTK.shape[-1]) if training else None
    if kernels is None:
        with _as_ever():
            dq, dk, dv = _torchs_backward(dy_BHTK, q_BHTK, k_BHTK, v_BHTK, y_BHTK, lse_BHT, 0.0, True)
        return dq, dk, dv
    return kernels.backward(dy_BHTK, (q_BHTK, k_BHTK, v_BHTK), y_BHTK, lse_BHT)


class _Attention:
    """The kernel for one type: `products` are addresses, or zeros for a plain product of its own."""

    def __init__(self, kernels: Kernels, dtype: torch.dtype, products: tuple[int, int]) -> None:
        self.kernels, self.products = kernels, products
        self.suffix = NAMES.get(dtype, "same")
        self.sums = torch.float64 if dtype == torch.float64 else torch.float32

    def forward(self, *qkv_BHTK: Tensor) -> tuple[Tensor, Tensor]:
        """y [B, H, T, K], and by query the logarithm of its sum of exponentials [B, H, T]."""
        q_BHTK = qkv_BHTK[0]
        y_BHTK, lse_BHT = _empty_as(q_BHTK), q_BHTK.new_empty(q_BHTK.shape[:3], dtype=self.sums)
        self("attention", [_rows(x) for x in qkv_BHTK], (y_BHTK.transpose(1, 2), lse_BHT))
        return y_BHTK, lse_BHT

    def backward(
        self, dy_BHTK: Tensor, qkv_BHTK: tuple[Tensor, ...], y_BHTK: Tensor, lse_BHT: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of q, k and v."""
        dq, dk, dv = (_empty_as(dy_BHTK) for _ in range(3))
        made = (d.transpose(1, 2) for d in (dq, dk, dv))
        others = (y_BHTK.transpose(1, 2).contiguous(), lse_BHT, *made)
        self("attention_backward", [_rows(x) for x in (*qkv_BHTK, dy_BHTK)], others)
        return dq, dk, dv

    def __call__(self, name: str, given: list[Tensor], others: tuple[Tensor, ...]) -> None:
        B, H, T, K = given[0].shape
        apart = table(x.stride(dim) for x in given for dim in range(3))
        starts = [x.data_ptr() for x in given]
        sizes = (B, H, T, K, torch.get_num_threads())
        self.kernels(f"{name}_{self.suffix}", *self.products, *starts, apart, *others, *sizes)


def _rows(x_BHTK: Tensor) -> Tensor:
    """With the elements of a token's head beside each other."""
    return x_BHTK if x_BHTK.stride(-1) == 1 else x_BHTK.contiguous()


def _empty_as(x_BHTK: Tensor) -> Tensor:
    """As torch's kernel lays out what it makes: heads of a token beside each other."""
    B, H, T, K = x_BHTK.shape
    return x_BHTK.new_empty(B, T, H, K).transpose(1, 2)


def _as_ever() -> contextlib.AbstractContextManager[None]:
    return for_now(False) if chosen() else contextlib.nullcontext()


@functools.cache
def _tried(dtype: torch.dtype, head_size: int) -> _Attention | None:
    kernels = built_for(torch.float32, head_size, "kernels/attention/attention")
    if kernels is None:
        return None
    return tried(
        "attention",
        dtype,
        lambda: _Attention(kernels, dtype, small_products(kernels, "attention_try", torch.float32)),
        lambda made: error(made, dtype, head_size),
        ROUNDING[dtype],
    )


def error(kernels: _Attention, dtype: torch.dtype, head_size: int) -> float:
    """How far it is off at most, in value and gradient, of their sizes."""
    generator = torch.Generator().manual_seed(0)
    B, H, T = 1, 2, 70
    qkv = torch.randn(B, T, 3, H, head_size, generator=generator).to(dtype).transpose(1, 3).unbind(2)
    dy = torch.randn(B, T, H, head_size, generator=generator).to(dtype).transpose(1, 2)
    leaves = [part.double().requires_grad_() for part in qkv]
    q, k, v = leaves
    unseen = torch.ones(T, T, dtype=torch.bool).triu(1)
    scores = (q @ k.transpose(-1, -2) * head_size**-0.5).masked_fill(unseen, -torch.inf)
    plain = scores.softmax(-1) @ v
    wanted = [plain.detach(), *torch.autograd.grad(plain, leaves, dy.double())]
    y, lse = kernels.forward(*qkv)
    found = [y, *kernels.backward(dy, qkv, y, lse)]
    off = [(one - other).abs().amax() / other.abs().amax() for one, other in zip(found, wanted, strict=True)]
    return float(torch.stack(off).nan_to_num(nan=torch.inf).amax())


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool], output: tuple[Tensor, Tensor]) -> None:
    *qkv, ctx.training = inputs
    ctx.save_for_backward(*qkv, *output)


def _pull(ctx: Any, dy_BHTK: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor, Tensor, None]:
    dq, dk, dv = _attention_backward(dy_BHTK, *ctx.saved_tensors, ctx.training)
    return dq, dk, dv, None


_attention_backward = operator(
    _cpu_attention_backward, lambda dy, q, k, v, y, lse, training: tuple(_empty_as(x) for x in (q, k, v))
)
_attention = differentiable(
    operator(
        _cpu_attention,
        lambda q, k, v, training: (_empty_as(q), q.new_empty(q.shape[:3], dtype=torch.float32)),
    ),
    kept=_keep,
    backward=_pull,
)
