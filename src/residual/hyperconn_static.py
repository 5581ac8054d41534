"""Static hyper-connections (SHC): N streams, read, mixed and written with learned constants.

    u = A_m^T H,  H' = A_r^T H;   H <- H' + B y;   out = mean_i H_i

Source: Zhu et al., "Hyper-Connections" (arXiv 2409.19606), section 2.1, equations 1-5 and 14.
At init: vanilla (all streams are equal; site k reads stream k mod N), with `output_init_scale` 1.
Shape letters: N streams.
"""

from torch import Tensor, nn

from src.bounds import StreamCount
from src.kernels.hyper_streams import SiteWeights
from src.residual.base import Site, StreamSpec
from src.residual.families.hyper_connections import HYPER_DEVIATIONS, WeightedStreams, static_weights
from src.source import Source


class StaticHyperConnections(WeightedStreams):
    """SHC: N * (N + 2) parameters a site, lr x 1, no weight decay.

    Args:
        n_stream: N, at least 2 (4 in the paper).
        output_init_scale: factor on the sublayers' initial output projections (1; the paper scales
            them by sqrt(N) so that the sum of the streams has vanilla's deviation, which their mean has anyway).
    """

    source = Source("arXiv 2409.19606, section 2.1, equations 1-5 and 14", deviations=HYPER_DEVIATIONS)
    init_equivalent = "vanilla"

    def __init__(self, spec: StreamSpec, *, n_stream: StreamCount, output_init_scale: float) -> None:
        super().__init__(n_stream)
        self.output_init_scale = output_init_scale
        self.a_SNM, self.b_SN = static_weights(spec, n_stream)

    def init_sublayer_(self, site: Site, sublayer: nn.Module) -> None:
        sublayer.get_parameter("c_proj.weight").mul_(self.output_init_scale)

    def site_weights(self, k: int, h_BTND: Tensor) -> SiteWeights:
        return SiteWeights(self.a_SNM[k], self.b_SN[k])
