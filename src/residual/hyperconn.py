"""Dynamic hyper-connections (DHC): N streams, read, mixed and written with weights that depend on them.

    H~ = LayerNorm(H) per stream;   [A | B] = static + scale * tanh(H~ W)
    u = A_m^T H;   H <- A_r^T H + B y;   out = mean_i H_i

Source: Zhu et al., "Hyper-Connections" (arXiv 2409.19606), section 2.2, equations 10-14, algorithm 2.
At init (W = 0): vanilla (with `output_init_scale` 1).
Shape letters: N streams, C = N + 2 columns of W (A_m, A_r, B).
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from src.bounds import StreamCount
from src.kernels import hyper_streams
from src.kernels.hyper_streams import DHCParameters, SiteWeights, Streams
from src.residual.base import ParamGroup, Site, StreamSpec
from src.residual.families.hyper_connections import (
    DYNAMIC_DECAY,
    HYPER_DEVIATIONS,
    StreamDtype,
    WeightedStreams,
    static_weights,
)
from src.source import Source


class HyperConnections(WeightedStreams):
    """DHC: N * (N + 2) + D * (N + 4) + 2 parameters a site; only W has weight decay.

    Args:
        n_stream: N, at least 2 (4 in the paper).
        scale_init: initial factor of the dynamic part (0.01 in the paper).
        output_init_scale: factor on the sublayers' initial output projections (1; the paper scales
            them by sqrt(N) so that the sum of the streams has vanilla's deviation, which their mean has anyway).
        stream_dtype: dtype of the streams in memory, `float32` or `bfloat16` (half the bytes; arithmetic is float32).
    """

    source = Source(
        "arXiv 2409.19606, sections 2 and 4, algorithms 2 and 3", deviations=(*HYPER_DEVIATIONS, DYNAMIC_DECAY)
    )
    init_equivalent = "vanilla"
    width_readers = ("w_SDC",)

    def __init__(
        self,
        spec: StreamSpec,
        *,
        n_stream: StreamCount,
        scale_init: float,
        output_init_scale: float,
        stream_dtype: StreamDtype,
    ) -> None:
        super().__init__(n_stream, stream_dtype)
        self.output_init_scale = output_init_scale
        self.a_SNM, self.b_SN = static_weights(spec, n_stream)
        self.w_SDC = nn.Parameter(torch.zeros(spec.n_site, spec.n_embd, n_stream + 2))
        self.norm_weight_SD = nn.Parameter(torch.ones(spec.n_site, spec.n_embd))
        self.norm_bias_SD = nn.Parameter(torch.zeros(spec.n_site, spec.n_embd))
        self.scale_S2 = nn.Parameter(torch.full((spec.n_site, 2), scale_init))  # of A, of B

    def param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup((self.w_SDC,), decay=True)
        yield ParamGroup((self.a_SNM, self.b_SN, self.norm_weight_SD, self.norm_bias_SD, self.scale_S2))

    def init_sublayer_(self, site: Site, sublayer: nn.Module) -> None:
        sublayer.get_parameter("c_proj.weight").mul_(self.output_init_scale)

    def read(self, state: Streams, site: Site) -> tuple[Tensor, Streams]:
        return hyper_streams.read_dhc(state, self._site(site.index))

    def _site(self, k: int) -> DHCParameters:
        packed = (self.w_SDC, self.norm_weight_SD, self.norm_bias_SD, self.scale_S2, self.a_SNM, self.b_SN)
        return DHCParameters(*(tensor[k] for tensor in packed))

    def site_weights(self, k: int, h_BTND: Tensor) -> SiteWeights:
        return hyper_streams.dhc_weights(h_BTND, self._site(k))
