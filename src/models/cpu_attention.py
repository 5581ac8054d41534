"""Causal attention on a CPU whose products stay MKL's while oneDNN makes the others (`src/cpu_products.py`).

torch's own kernel works on blocks of 32 to 256 rows, whose products cost a call of oneDNN more than they take:
1.5 times the time in both directions. Where oneDNN is not chosen, it is called as ever.

Shape letters: B batch, T tokens, H heads, K head size.
"""

from typing import Any  # autograd's context

import torch
from torch import Tensor

from src.cpu_products import chosen, for_now
from src.operators import differentiable, operator

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def serves(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, dropout: float) -> bool:
    """Whether torch would call its kernel for these, and oneDNN make its products."""
    return (
        chosen()
        and q_BHTK.device.type == "cpu"
        and dropout == 0
        and q_BHTK.dim() == 4
        and q_BHTK.shape == k_BHTK.shape == v_BHTK.shape
        and q_BHTK.dtype == k_BHTK.dtype == v_BHTK.dtype == torch.float32
    )


def _cpu_attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> tuple[Tensor, Tensor]:
    with for_now(False):
        y_BHTK, top_BHT = _forward(q_BHTK, k_BHTK, v_BHTK, 0.0, True)
    return y_BHTK, top_BHT


def _cpu_attention_backward(
    dy_BHTK: Tensor, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, y_BHTK: Tensor, top_BHT: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    with for_now(False):
        dq, dk, dv = _backward(dy_BHTK, q_BHTK, k_BHTK, v_BHTK, y_BHTK, top_BHT, 0.0, True)
    return dq, dk, dv


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _pull(ctx: Any, dy_BHTK: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = _attention_backward(dy_BHTK, *ctx.saved_tensors)
    return dq, dk, dv


_attention_backward = operator(_cpu_attention_backward, lambda *given: _backward(*given, 0.0, True))
_attention = differentiable(
    operator(_cpu_attention, lambda *qkv: _forward(*qkv, 0.0, True)), kept=_keep, backward=_pull
)


def attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
    """`softmax(q k^T / sqrt(K), causal) v`, [B, H, T, K]; not twice differentiable, like torch's kernel."""
    y_BHTK: Tensor = _attention(q_BHTK, k_BHTK, v_BHTK)[0]
    return y_BHTK
