"""Rotary positions: rotates queries and keys by angles proportional to the position.

    (a, b) <- (a cos - b sin, b cos + a sin),   angle of pair i at position t = t f_i,   f_i = base^(-2 i / K)

A pair is channels i and i + K/2. Attention scores depend on differences of positions only. A model reads contexts longer
than those of its training, of `original` tokens, with lower frequencies:

    linear   f_i / scale
    llama3   (s + (1 - s) / scale) f_i,   s = (n_i - low) / (high - low) in [0, 1],   n_i = original f_i / (2 pi)

n_i is the number of turns of pair i over the original context: pairs that turn often keep their frequency.

Source: Su et al., "RoFormer" (arXiv 2104.09864), section 3.2.2; pairs as in GPT-NeoX. linear: Chen et al. (arXiv
2306.15595), equation 4. llama3: meta-llama/llama-models, models/llama3/model.py (`apply_scaling`: scale 8, low 1, high 4,
original 8192). Both are `rope_type`s of Hugging Face transformers, modeling_rope_utils.py.
Shape letters: B batch, H heads, T tokens, K head size, P = K / 2 pairs.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from src.models.config import GPTConfig


class Rope(NamedTuple):
    """Frequencies of the rotations: the keys `rope_*` of `GPTConfig`."""

    base: float = 10000.0
    scale: float = 1.0
    scaling: str = "linear"
    original: int | None = None
    low: float = 1.0
    high: float = 4.0


def build_rope(config: GPTConfig) -> Rope | None:
    """Return the rotations of a model; None if it has none."""
    if config.positions != "rope":
        return None
    ends = (config.rope_original, config.rope_low_turns, config.rope_high_turns)
    return Rope(config.rope_base, config.rope_scale, config.rope_scaling, *ends)


def rotate(x_BHTK: Tensor, rope: Rope) -> Tensor:
    """Return queries or keys [B, H, T, K], rotated, in their dtype; angles are computed in float32 or wider."""
    T, K = x_BHTK.shape[-2:]
    wide = torch.promote_types(x_BHTK.dtype, torch.float32)
    pair_P = torch.arange(0, K, 2, device=x_BHTK.device, dtype=wide)
    pos_T = torch.arange(T, device=x_BHTK.device, dtype=wide)
    frequency_P = rope.base ** (-pair_P / K)
    if rope.scaling == "llama3":
        frequency_P = _lower_slow_pairs(frequency_P, rope)
    elif rope.scale != 1:
        pos_T = pos_T / rope.scale
    angle_TP = torch.outer(pos_T, frequency_P)
    a_BHTP, b_BHTP = x_BHTK.to(wide).chunk(2, dim=-1)
    cos_TP, sin_TP = angle_TP.cos(), angle_TP.sin()
    pairs = (a_BHTP * cos_TP - b_BHTP * sin_TP, b_BHTP * cos_TP + a_BHTP * sin_TP)
    return torch.cat(pairs, dim=-1).to(x_BHTK.dtype)


def _lower_slow_pairs(frequency_P: Tensor, rope: Rope) -> Tensor:
    assert rope.original is not None  # GPTConfig requires it
    turns_P = rope.original * frequency_P / (2 * math.pi)
    kept_P = ((turns_P - rope.low) / (rope.high - rope.low)).clamp(0, 1)
    return frequency_P * (kept_P + (1 - kept_P) / rope.scale)
