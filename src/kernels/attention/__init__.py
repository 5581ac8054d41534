"""Causal attention: y = softmax(q k^T / sqrt(K), causal) v, over all earlier tokens or those that a mask allows.

`reference.py` defines it, and `mask.py` its masks. Without a mask, on a CPU a C++ kernel runs it in training (`cpp.py`),
torch's kernel in evaluation, where lengths vary; on a GPU it is torch's `scaled_dot_product_attention`, which prefers
cuDNN on Hopper within `fixed_shapes`.
"""

import contextlib
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from src.kernels.attention import cpp
from src.kernels.attention.mask import Mask, attend_in_blocks
from src.kernels.dispatch import Operation

HOPPER = 9  # major compute capability
#: Order in which torch tries its kernels on Hopper.
HOPPER_ORDER = (
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)

OPERATION = Operation("causal attention", cpp=cpp.why_not, compiled=("cpp",))


def causal_attention(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, mask: Mask | None = None, *, dropout: float = 0.0
) -> Tensor:
    """Return softmax(q k^T / sqrt(K), causal) v, [B, H, T, K]; `dropout` is applied to the attention weights."""
    if mask is not None:
        if mask.blocks is not None:
            return attend_in_blocks(q_BHTK, k_BHTK, v_BHTK, mask.blocks)
        return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, attn_mask=mask.allowed, dropout_p=dropout)
    backend = OPERATION.backend_for(q_BHTK, head_size=q_BHTK.shape[-1])
    if cpp.is_applicable(q_BHTK, k_BHTK, v_BHTK, dropout):
        by_kernel = backend == "cpp" and torch.is_grad_enabled()
        return cpp.attention(q_BHTK, k_BHTK, v_BHTK, by_kernel=by_kernel)
    return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, dropout_p=dropout, is_causal=True)


def fixed_shapes(x: Tensor) -> AbstractContextManager[None]:
    """Return a context for attention on the device of `x` whose shapes do not vary, as in training.

    On Hopper it prefers cuDNN's kernel, which makes a plan for every new shape: 1.7 to 2.3 times as fast as torch's first
    choice at training shapes, and slower than it on Ampere and Blackwell (measured in huggingface/transformers, pull
    request 48163). Elsewhere, and wherever cuDNN has no kernel, torch's own order remains.
    """
    if x.device.type == "cuda" and torch.cuda.get_device_capability(x.device)[0] == HOPPER:
        return sdpa_kernel(list(HOPPER_ORDER), set_priority=True)
    return contextlib.nullcontext()
