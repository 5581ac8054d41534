"""Dynamic hyper-connections (DHC): n streams, read, mixed and written with weights that depend on them.

    H~ = LayerNorm(H) per stream;   [A | B] = static + scale * tanh(H~ W)
    u = A_m^T H,  H' = A_r^T H;   H <- H' + B y;   out = mean_i H_i

The norm is folded into the projection (its gain into W, its mean into one column), so H~ never exists, and
the backward recomputes the mixing from H: a site keeps its streams and its output, no more.

Source: Zhu et al., "Hyper-Connections" (arXiv 2409.19606), section 2.2, equations 10-13, algorithm 2.
At init (W = 0): vanilla.
Shape letters: N streams, C = N + 2 columns of W (A_m, A_r, B).
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from src.residual.base import ParamGroup, ResidualStrategy, Site, StreamSpec
from src.residual.hyper_streams import Streams, mix, require_streams, static_mixing, widen, write_streams

EPS = 1e-5


class HyperConnections(ResidualStrategy[Streams]):
    """N * (N + 2) + D * (N + 4) + 2 parameters a site; only W has weight decay, as in the paper.

    Args:
        spec: the trunk.
        n_stream: streams (4 in the paper).
        scale_init: initial factor of the dynamic part (0.01 in the paper).
    """

    def __init__(self, spec: StreamSpec, *, n_stream: int, scale_init: float) -> None:
        super().__init__()
        require_streams(n_stream)
        self.n_stream = n_stream
        self.a_SNM, self.b_SN = static_mixing(spec, n_stream)
        self.w_SDC = nn.Parameter(torch.zeros(spec.n_site, spec.n_embd, n_stream + 2))
        self.norm_weight_SD = nn.Parameter(torch.ones(spec.n_site, spec.n_embd))
        self.norm_bias_SD = nn.Parameter(torch.zeros(spec.n_site, spec.n_embd))
        self.scale_S2 = nn.Parameter(torch.full((spec.n_site, 2), scale_init))  # of A, of B

    def param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup((self.w_SDC,), decay=True)
        yield ParamGroup((self.a_SNM, self.b_SN, self.norm_weight_SD, self.norm_bias_SD, self.scale_S2))

    def begin(self, x0_BTD: Tensor) -> Streams:
        return widen(x0_BTD, self.n_stream, self.b_SN[0])

    def read(self, state: Streams, site: Site) -> tuple[Tensor, Streams]:
        k = site.index
        u_BTD, h_BTND, b_BTN = checkpoint(
            _read,
            state.h_BTND,
            self.w_SDC[k],
            self.norm_weight_SD[k],
            self.norm_bias_SD[k],
            self.scale_S2[k],
            self.a_SNM[k],
            self.b_SN[k],
            use_reentrant=False,
            preserve_rng_state=False,
        )
        return u_BTD, Streams(h_BTND, b_BTN)

    def write(self, state: Streams, site: Site, y_BTD: Tensor) -> Streams:
        return write_streams(state, y_BTD)

    def end(self, state: Streams) -> Tensor:
        return state.h_BTND.mean(2)


def _read(
    h_BTND: Tensor, w_DC: Tensor, gain_D: Tensor, bias_D: Tensor, scale_2: Tensor, a_NM: Tensor, b_N: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One site's read: the sublayer's input, the mixed streams, and the weights of its write."""
    D = h_BTND.shape[-1]
    gained_DC = gain_D.unsqueeze(-1) * w_DC
    with_mean = torch.cat((gained_DC, torch.full_like(gained_DC[:, :1], 1 / D)), dim=1)
    product = h_BTND @ with_mean
    raw_BTNC, mean_BTN1 = product[..., :-1], product[..., -1:]
    rstd_BTN1 = (h_BTND.square().mean(-1, keepdim=True) - mean_BTN1.square() + EPS).rsqrt()
    z_BTNC = (raw_BTNC - mean_BTN1 * gained_DC.sum(0)) * rstd_BTN1 + bias_D @ w_DC
    dynamic_BTNC = z_BTNC.tanh()
    a_BTNM = a_NM + scale_2[0] * dynamic_BTNC[..., :-1]
    b_BTN = b_N + scale_2[1] * dynamic_BTNC[..., -1]
    return (*mix(a_BTNM, h_BTND), b_BTN)
