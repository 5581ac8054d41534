"""Dynamic frac-connections: fractions of one stream, read, mixed and written like the streams of hyper-connections.

    H = x split into N fractions;   H~ = LayerNorm(H) per fraction;   [Y | A_r | B] = static + scale * tanh(H~ W)
    u = concat(Y^T H);   H <- A_r^T H + B * (y split likewise)

Source: Zhu et al., "Frac-Connections" (arXiv 2503.14125), section 4, equations 6-15, algorithm 2; and
`hcfactory/connections/hyper.py` in wdlctc/hyper-connection-factory, which gives no parameter of a connection weight
decay, while the paper decays W.
At init (W = 0, Y = A_r = identity, B = 1): vanilla.
Shape letters: N fractions, F = D / N their width, M = 2 * N columns of [Y | A_r], C = M + 1 columns of W.
"""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from src.kernels import hyper_streams
from src.kernels.hyper_streams import DHCParameters, SiteWeights, Streams
from src.residual.base import ParamGroup, ResidualStrategy, Site, StreamSpec
from src.residual.families.hyper_connections import DYNAMIC_DECAY
from src.source import Source


class FracConnections(ResidualStrategy[Streams]):
    """Frac-connections: N * (2 * N + 1) + F * (2 * N + 3) + 2 parameters a site; only W has weight decay.

    Args:
        n_frac: N, at least 2 and a divisor of n_embd (4 in the source).
        scale_init: initial factor of the dynamic part (0.01 in the source).
    """

    source = Source(
        "arXiv 2503.14125, equations 6-15",
        "wdlctc/hyper-connection-factory",
        "412aeba8be65",
        deviations=(DYNAMIC_DECAY,),
    )
    may_skip: ClassVar[bool] = True
    init_equivalent = "vanilla"
    width_readers = ("w_SFC",)

    def __init__(self, spec: StreamSpec, *, n_frac: int, scale_init: float) -> None:
        super().__init__()
        if n_frac < 2 or spec.n_embd % n_frac:
            raise ValueError(
                f"residual.n_frac must be >= 2 and divide model.n_embd={spec.n_embd}, got {n_frac}; "
                "use residual=vanilla for one fraction"
            )
        self.n_frac = n_frac
        width = spec.n_embd // n_frac
        self.a_SNM = nn.Parameter(torch.eye(n_frac).repeat(spec.n_site, 1, 2))
        self.b_SN = nn.Parameter(torch.ones(spec.n_site, n_frac))
        self.w_SFC = nn.Parameter(torch.zeros(spec.n_site, width, 2 * n_frac + 1))
        self.norm_weight_SF = nn.Parameter(torch.ones(spec.n_site, width))
        self.norm_bias_SF = nn.Parameter(torch.zeros(spec.n_site, width))
        self.scale_S2 = nn.Parameter(torch.full((spec.n_site, 2), scale_init))  # of [Y | A_r], of B

    def param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup((self.w_SFC,), decay=True)
        yield ParamGroup((self.a_SNM, self.b_SN, self.norm_weight_SF, self.norm_bias_SF, self.scale_S2))

    def begin(self, x0_BTD: Tensor) -> Streams:
        return Streams(self._split(x0_BTD), self.b_SN[0])

    def read(self, state: Streams, site: Site) -> tuple[Tensor, Streams]:
        a_BTNM, b_BTN = self._weigh(state, site)
        u_BTNF, h_BTNF = hyper_streams.blend(a_BTNM, state.h_BTND).chunk(2, dim=2)
        return u_BTNF.flatten(2), Streams(h_BTNF, b_BTN)

    def write(self, state: Streams, site: Site, y_BTD: Tensor) -> Streams:
        h_BTNF = torch.addcmul(state.h_BTND, state.b.unsqueeze(-1), self._split(y_BTD))
        return state._replace(h_BTND=h_BTNF)

    def end(self, state: Streams) -> Tensor:
        return state.h_BTND.flatten(2)

    def stream_map(self, state: Streams, site: Site) -> Tensor:
        return self._weigh(state, site).a[..., self.n_frac :].transpose(-1, -2)

    def _weigh(self, state: Streams, site: Site) -> SiteWeights:
        packed = (self.w_SFC, self.norm_weight_SF, self.norm_bias_SF, self.scale_S2, self.a_SNM, self.b_SN)
        return hyper_streams.dhc_weights(state.h_BTND, DHCParameters(*(tensor[site.index] for tensor in packed)))

    def _split(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.view(*x_BTD.shape[:2], self.n_frac, -1)
