"""Static hyper-connections (SHC): n streams read, mixed and written with learned constants.

    u = A_m^T H,  H' = A_r^T H;   H <- H' + B y;   out = mean_i H_i

Source: Zhu et al., "Hyper-Connections" (arXiv 2409.19606), section 2.1, equations 1-5.
At init: vanilla (all streams are equal; site k reads stream k mod n), with `output_init_scale` 1.
Shape letters: N streams.
"""

from typing import ClassVar

from torch import Tensor, nn

from src.residual.base import ResidualStrategy, Site, StreamSpec
from src.residual.hyper_streams import (
    Streams,
    mix,
    require_streams,
    scale_output_,
    static_mixing,
    widen,
    write_streams,
)


class StaticHyperConnections(ResidualStrategy[Streams]):
    """N * (N + 2) parameters a site, lr x 1, no weight decay.

    Args:
        spec: the trunk.
        n_stream: streams (4 in the paper).
        output_init_scale: factor on the sublayers' initial output projections (1, as in the published code;
            the paper's text scales by sqrt(n) to keep the output's deviation, which takes n_stream^-0.5).
    """

    may_skip: ClassVar[bool] = True

    def __init__(self, spec: StreamSpec, *, n_stream: int, output_init_scale: float) -> None:
        super().__init__()
        require_streams(n_stream)
        self.n_stream, self.output_init_scale = n_stream, output_init_scale
        self.a_SNM, self.b_SN = static_mixing(spec, n_stream)

    def init_sublayer_(self, site: Site, sublayer: nn.Module) -> None:
        scale_output_(sublayer, self.output_init_scale)

    def begin(self, x0_BTD: Tensor) -> Streams:
        return widen(x0_BTD, self.n_stream, self.b_SN[0])

    def read(self, state: Streams, site: Site) -> tuple[Tensor, Streams]:
        u_BTD, h_BTND = mix(self.a_SNM[site.index], state.h_BTND)
        return u_BTD, Streams(h_BTND, self.b_SN[site.index])

    def write(self, state: Streams, site: Site, y_BTD: Tensor) -> Streams:
        return write_streams(state, y_BTD)

    def end(self, state: Streams) -> Tensor:
        return state.h_BTND.mean(2)
