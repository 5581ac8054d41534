"""Definition of the hyper-stream operations in PyTorch: N streams of full width, mixed and written by weights.

    read    u = A_m^T H,  H' = A_r^T H      A = [A_m | A_r]: [N, N + 1], or by token [B, T, N, N + 1]
    write   H <- H' + B y                   B: [N], or by token [B, T, N]

    DHC     [A | B] = static + scale * tanh(LayerNorm(H) W)
    mHC     [pre | post | res] = scale * (phi vec(H)) / rms(vec(H)) + bias
            A_m = sigmoid(pre),  A_r^T = sinkhorn(res),  B = 2 sigmoid(post)

Source: Zhu et al., "Hyper-Connections" (arXiv 2409.19606), section 2, equations 1-13; Xie et al., "mHC" (arXiv
2512.24880), section 4.2, equations 14-19.
Shape letters: N streams, M columns of a weight, V = N * D, C columns of W (N + 2) or rows of phi (N * N + 2 * N).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from src.kernels.hyper_streams.sinkhorn import FLOOR

EPS = 1e-5  # of DHC's LayerNorm


class SiteWeights(NamedTuple):
    """Weights of a site: A [N, N + 1] and B [N], or by token with [B, T] in front."""

    a: Tensor
    b: Tensor


def blend(weight: Tensor, h_BTND: Tensor) -> Tensor:
    """Return sum_i weight[..., i, :] H_i for weights [..., N, M], as one tensor [B, T, M, D]."""
    first, *others = weight.unsqueeze(-1).unbind(-3)
    out_BTMD = first * h_BTND[:, :, :1]
    for i, column in enumerate(others, start=1):
        out_BTMD.addcmul_(column, h_BTND[:, :, i : i + 1])
    return out_BTMD


def mix(a: Tensor, h_BTND: Tensor) -> tuple[Tensor, Tensor]:
    """Return A^T H: the sublayer's input [B, T, D] and the mixed streams [B, T, N, D]."""
    return blend(a[..., :1], h_BTND).squeeze(2), blend(a[..., 1:], h_BTND)


def write(h_BTND: Tensor, b: Tensor, y_BTD: Tensor) -> Tensor:
    """Return H + B y, [B, T, N, D]."""
    return torch.addcmul(h_BTND, b.unsqueeze(-1), y_BTD.unsqueeze(2))


def dhc_weights(
    h_BTND: Tensor,
    w_DC: Tensor,
    gain_D: Tensor,
    norm_bias_D: Tensor,
    scale_2: Tensor,
    a_NM: Tensor,
    b_N: Tensor,
) -> SiteWeights:
    """Return the weights of dynamic hyper-connections for every token."""
    z_BTNC = (F.layer_norm(h_BTND, gain_D.shape, gain_D, norm_bias_D, EPS) @ w_DC).tanh()
    return SiteWeights(a_NM + scale_2[0] * z_BTNC[..., :-1], b_N + scale_2[1] * z_BTNC[..., -1])


def mhc_weights(
    h_BTND: Tensor, phi_CV: Tensor, scale_3: Tensor, bias_C: Tensor, n_iteration: int, eps: float
) -> SiteWeights:
    """Return the weights of manifold-constrained hyper-connections for every token."""
    n, v_BTV = h_BTND.shape[2], h_BTND.flatten(2)
    z_BTC = F.linear(v_BTV, phi_CV) * (v_BTV.square().mean(-1, keepdim=True) + eps).rsqrt()
    pre_scale, post_scale, res_scale = scale_3
    pre_BTN = (pre_scale * z_BTC[..., :n] + bias_C[:n]).sigmoid()
    post_BTN = 2 * (post_scale * z_BTC[..., n : 2 * n] + bias_C[n : 2 * n]).sigmoid()
    logit_BTNN = (res_scale * z_BTC[..., 2 * n :] + bias_C[2 * n :]).unflatten(-1, (n, n))
    largest_BT11 = logit_BTNN.detach().amax((-2, -1), keepdim=True)
    m_BTNN = (logit_BTNN - largest_BT11).clamp_min(-FLOOR).exp()  # as `sinkhorn.py` starts
    for _ in range(n_iteration):  # Sinkhorn-Knopp: columns sum to 1, then rows
        m_BTNN = m_BTNN / m_BTNN.sum(-2, keepdim=True)
        m_BTNN = m_BTNN / m_BTNN.sum(-1, keepdim=True)
    return SiteWeights(torch.cat((pre_BTN.unsqueeze(-1), m_BTNN.transpose(-1, -2)), dim=-1), post_BTN)
