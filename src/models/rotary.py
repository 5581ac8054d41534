"""Rotary positions: rotates queries and keys by angles proportional to the position.

    (a, b) <- (a cos - b sin, b cos + a sin),   angle of pair i at position t = t / (scale * base^(2 i / K))

A pair is channels i and i + K/2. Attention scores depend on differences of positions only. A scale above 1 interpolates
positions, so that a model reads contexts longer than those it was trained on.

Source: Su et al., "RoFormer" (arXiv 2104.09864), section 3.2.2; pairs as in GPT-NeoX. Scale: Chen et al. (arXiv
2306.15595), equation 4, which is `rope_type: linear` in Hugging Face transformers.
Shape letters: B batch, H heads, T tokens, K head size, P = K / 2 pairs.
"""

import torch
from torch import Tensor

BASE = 10000.0


def rotate(x_BHTK: Tensor, base: float = BASE, scale: float = 1.0) -> Tensor:
    """Return queries or keys [B, H, T, K], rotated, in their dtype; angles are computed in float32 or wider."""
    T, K = x_BHTK.shape[-2:]
    wide = torch.promote_types(x_BHTK.dtype, torch.float32)
    pair_P = torch.arange(0, K, 2, device=x_BHTK.device, dtype=wide)
    pos_T = torch.arange(T, device=x_BHTK.device, dtype=wide)
    pos_T = pos_T if scale == 1 else pos_T / scale
    angle_TP = torch.outer(pos_T, base ** (-pair_P / K))
    a_BHTP, b_BHTP = x_BHTK.to(wide).chunk(2, dim=-1)
    cos_TP, sin_TP = angle_TP.cos(), angle_TP.sin()
    pairs = (a_BHTP * cos_TP - b_BHTP * sin_TP, b_BHTP * cos_TP + a_BHTP * sin_TP)
    return torch.cat(pairs, dim=-1).to(x_BHTK.dtype)
