"""Definition of causal attention in PyTorch.

    y_t = sum_s softmax_s(q_t . k_s / sqrt(K)) v_s   over s <= t

Source: Vaswani et al., "Attention Is All You Need" (arXiv 1706.03762), section 3.2.1.
Shape letters: B batch, T tokens, H heads, K head size.
"""

import torch
from torch import Tensor


def causal_attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
    """Return the attention of every token over itself and those before it, [B, H, T, K]."""
    T, K = q_BHTK.shape[-2:]
    future_TT = torch.ones(T, T, dtype=torch.bool, device=q_BHTK.device).triu(1)
    score_BHTT = (q_BHTK @ k_BHTK.transpose(-1, -2) * K**-0.5).masked_fill(future_TT, -torch.inf)
    y_BHTK: Tensor = score_BHTT.softmax(-1) @ v_BHTK
    return y_BHTK
