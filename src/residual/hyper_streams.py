"""What the hyper-connection strategies share: n streams of full width, and their published start.

    site k:   u = A_m^T H,  H' = A_r^T H     (read)      H <- H' + B y     (write)      out = mean_i H_i

The columns of A [N, N + 1] are A_m (what the sublayer is given) and A_r (what the streams become).

Source: Zhu et al., "Hyper-Connections" (arXiv 2409.19606), section 2 and algorithm 2.
The paper sums the streams at the end; the mean is the same model up to the final norm's eps, and exactly
vanilla at init.
Shape letters: N streams, M = N + 1 columns of A.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from src.residual.base import StreamSpec


class Streams(NamedTuple):
    """The streams, and the weights with which the sublayer being visited will write to them."""

    h_BTND: Tensor
    b: Tensor  # [N] static, [B, T, N] dynamic


def require_streams(n_stream: int) -> None:
    """Refuse one stream, which is worse than none."""
    if n_stream < 2:
        raise ValueError(
            f"residual.n_stream must be at least 2, got {n_stream}; for one stream use residual=vanilla"
        )


def static_mixing(spec: StreamSpec, n_stream: int) -> tuple[nn.Parameter, nn.Parameter]:
    """A [S, N, N + 1]: site k reads stream k mod N and leaves all as they are; B [S, N] of ones."""
    a_SNM = torch.zeros(spec.n_site, n_stream, n_stream + 1)
    for site in spec.sites:
        a_SNM[site.index, site.index % n_stream, 0] = 1.0
    a_SNM[:, :, 1:] = torch.eye(n_stream)
    return nn.Parameter(a_SNM), nn.Parameter(torch.ones(spec.n_site, n_stream))


def widen(x0_BTD: Tensor, n_stream: int, b: Tensor) -> Streams:
    """N copies of the embedding."""
    return Streams(x0_BTD.unsqueeze(2).expand(-1, -1, n_stream, -1), b)


def mix(a_NM: Tensor, h_BTND: Tensor) -> tuple[Tensor, Tensor]:
    """A^T H, split into what the sublayer is given [B, T, D] and what the streams become [B, T, N, D]."""
    m_BTMD = a_NM.transpose(-1, -2) @ h_BTND
    return m_BTMD[:, :, 0], m_BTMD[:, :, 1:]


def write_streams(state: Streams, y_BTD: Tensor) -> Streams:
    """H' + B y."""
    h_BTND = torch.addcmul(state.h_BTND, state.b.unsqueeze(-1), y_BTD.to(state.h_BTND.dtype).unsqueeze(2))
    return state._replace(h_BTND=h_BTND)
