"""Cosine between consecutive states of the stream, and between consecutive reads.

    cos_k = mean over tokens of <x_k, x_{k+1}> / (|x_k| |x_{k+1}|)

Near 1, a site changes the direction of the stream little.

Source: Men et al., "ShortGPT" (arXiv 2403.03853), equation 1, whose block influence is 1 - cos.
Shape letters: B batch, T tokens, D n_embd, S sites.
"""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from src.analysis.forward import Forward


def measure_cosines(forward: Forward) -> dict[str, Tensor | str]:
    """Return the cosines of consecutive `states` and `reads`, [B, S] each, or why there are none."""
    states = forward.state_BTD
    return {
        "states": states if isinstance(states, str) else cosines(states),
        "reads": cosines(forward.read_BTD),
    }


def cosines(x_BTD: tuple[Tensor, ...]) -> Tensor:
    """Return the cosine of each tensor and the next one, the mean over tokens, [B, S] for S + 1 tensors [B, T, D]."""
    return torch.stack([F.cosine_similarity(a, b, dim=-1).mean(1) for a, b in pairwise(x_BTD)], dim=1)
