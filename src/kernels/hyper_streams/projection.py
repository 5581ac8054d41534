"""Weights of the constrained hyper-connections: projected from all streams at once, under a sigmoid.

    v = vec(H);   z = (phi v) / rms(v), in columns for the read, the write and the mixing
    read  sigmoid(scale_0 z_pre + bias_pre);     write  2 sigmoid(scale_1 z_post + bias_post)

mHC, mHC-lite and iHC share them; it stands here because mHC's kernels compute them too. Streams that are equal and have
equal weights stay equal forever, and the model is a vanilla one at N times the memory: initial values must tell the
streams apart.

Source: Xie et al., "mHC" (arXiv 2512.24880), section 4.2, equations 14-18.
Shape letters: N streams, C columns of z, R = C - 2 * N of them for the mixing.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Projected(NamedTuple):
    """Weights of a site's read and write, and what its mixing is computed from."""

    pre_BTN: Tensor
    post_BTN: Tensor
    mixing_BTR: Tensor


def project(h_BTND: Tensor, phi_CV: Tensor, scale: Tensor, bias_C: Tensor, eps: float) -> Projected:
    """Return the weights of every token; `scale` holds a factor for read, write and, if it has three, the mixing."""
    n = h_BTND.shape[2]
    z_BTC = _project_normalized(h_BTND, phi_CV, eps)
    pre_BTN = (scale[0] * z_BTC[..., :n] + bias_C[:n]).sigmoid()
    post_BTN = 2 * (scale[1] * z_BTC[..., n : 2 * n] + bias_C[n : 2 * n]).sigmoid()
    mixing_BTR = z_BTC[..., 2 * n :]
    if len(scale) > 2:
        mixing_BTR = scale[2] * mixing_BTR + bias_C[2 * n :]
    return Projected(pre_BTN, post_BTN, mixing_BTR)


def project_read(h_BTND: Tensor, phi_NV: Tensor, scale_1: Tensor, bias_N: Tensor, eps: float) -> Tensor:
    """Return the weights [B, T, N] of a read that no write follows."""
    return (scale_1 * _project_normalized(h_BTND, phi_NV, eps) + bias_N).sigmoid()


def _project_normalized(h_BTND: Tensor, phi_CV: Tensor, eps: float) -> Tensor:
    v_BTV = h_BTND.flatten(2)
    norm_BT1: Tensor = torch.linalg.vector_norm(v_BTV, dim=-1, keepdim=True)
    return F.linear(v_BTV, phi_CV) * (norm_BT1.square() / v_BTV.shape[-1] + eps).rsqrt()


def mixing_weights(pre_BTN: Tensor, res_BTNN: Tensor) -> Tensor:
    """Return A [B, T, N, N + 1] of the read `pre` and the mixing H <- res H."""
    return torch.cat((pre_BTN.unsqueeze(-1), res_BTNN.transpose(-1, -2)), dim=-1)
