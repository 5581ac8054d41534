"""Spread of several streams, and the gain of their composed mixing.

    cosine      mean over pairs i < j of cos(H_i, H_j)                     1: the streams are copies of each other
    spread      sum_i |H_i - mean|^2 / sum_i |H_i|^2                        0: copies; 1: their mean is zero
    gains of a matrix M [N, N]:  forward = max_i sum_j |M_ij|,  backward = max_j sum_i |M_ij|
    site        gains of R_k, by which site k maps the streams H to R_k H
    composed    gains of R_S .. R_k, the mixing from site k to the end

All are computed for every token and averaged over tokens. Doubly stochastic mixing has gains of 1.

Source: Xie et al., "mHC" (arXiv 2512.24880), section 3.1, figure 3 (gains of single and composed mappings).
Shape letters: B batch, T tokens, D n_embd, N streams, S sites, K = S + 1 states.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from src.analysis.forward import Forward

#: Smallest sum of squares that a spread is divided by.
TINY = torch.finfo(torch.float32).tiny


def measure_streams(forward: Forward) -> dict[str, Tensor | str]:
    """Return cosine and spread [B, K], and the gains [B, S], or why there are none."""
    found: dict[str, Tensor | str] = {}
    streams = forward.streams_BTND
    for name, measure in (("cosine", pair_cosine), ("spread", spread)):
        found[name] = streams if isinstance(streams, str) else torch.stack([measure(h) for h in streams], dim=1)
    maps = forward.map_BTNN
    if isinstance(maps, str):
        return found | dict.fromkeys(("site_forward", "site_backward", "composed_forward", "composed_backward"), maps)
    for name, matrices in (("site", maps), ("composed", compose_to_end(maps))):
        found[f"{name}_forward"] = torch.stack([forward_gain(m_BTNN).mean(1) for m_BTNN in matrices], dim=1)
        found[f"{name}_backward"] = torch.stack([backward_gain(m_BTNN).mean(1) for m_BTNN in matrices], dim=1)
    return found


def pair_cosine(h_BTND: Tensor) -> Tensor:
    """Return the mean cosine of two different streams, [B]."""
    unit_BTND = F.normalize(h_BTND, dim=-1)
    cosine_BTNN = unit_BTND @ unit_BTND.mT
    n = cosine_BTNN.shape[-1]
    upper_NN = torch.ones(n, n, dtype=torch.bool, device=cosine_BTNN.device).triu(1)
    return cosine_BTNN[..., upper_NN].mean((1, 2))


def spread(h_BTND: Tensor) -> Tensor:
    """Return the share of the streams' sum of squares that lies around their mean, [B]."""
    around_BT = (h_BTND - h_BTND.mean(2, keepdim=True)).square().sum((2, 3))
    return (around_BT / h_BTND.square().sum((2, 3)).clamp_min(TINY)).mean(1)


def compose_to_end(map_BTNN: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return R_S .. R_k for every site k."""
    composed = [map_BTNN[-1]]
    for r_BTNN in reversed(map_BTNN[:-1]):
        composed.append(composed[-1] @ r_BTNN)
    return tuple(reversed(composed))


def forward_gain(m_BTNN: Tensor) -> Tensor:
    """Return the largest absolute row sum, [B, T]: the bound of what the matrix does to the largest stream."""
    return m_BTNN.abs().sum(-1).amax(-1)


def backward_gain(m_BTNN: Tensor) -> Tensor:
    """Return the largest absolute column sum, [B, T]: the same for gradients."""
    return m_BTNN.abs().sum(-2).amax(-1)
