"""Manifold-constrained hyper-connections (mHC): N streams whose mixing is doubly stochastic.

    [pre | post | res] = scale * (phi vec(H)) / rms(vec(H)) + bias, under sigmoid, 2 sigmoid, Sinkhorn-Knopp
    u = pre . H;   H <- res H + post^T y;   out = mean_i H_i

The paper states only the scales' initial value. The initial biases here make the streams differ (site k reads mostly
stream k mod N) and start the mixing close to the identity.

Source: Xie et al., "mHC" (arXiv 2512.24880), section 4.2, equations 7-9 and 14-19, table 5.
At init: equal to vanilla up to the rounding of the read's weights, whose sum is 1 (about 1e-7).
Shape letters: N streams, C = N * N + 2 * N columns of phi, V = N * D.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from src.bounds import Count, PositiveFloat, StreamCount
from src.kernels import hyper_streams
from src.kernels.hyper_streams import MHCParameters, SiteWeights, Streams
from src.residual.base import ParamGroup, Site, StreamSpec
from src.residual.families.hyper_connections import StreamDtype, WeightedStreams
from src.source import Source


class ManifoldHyperConnections(WeightedStreams):
    """mHC: (V + 1) * C + 3 parameters a site, lr x 1; only phi has weight decay.

    Args:
        n_stream: N, at least 2 (4 in the paper).
        n_iteration: rounds of Sinkhorn-Knopp (20 in the paper).
        scale_init: initial factor of the dynamic part (0.01 in the paper).
        own_share: initial weight of stream k mod N in site k's read; the others have equal parts of the rest.
        res_logit: initial logit of the mixing's diagonal (0 elsewhere).
        eps: added to the mean square of vec(H).
        stream_dtype: dtype of the streams in memory, `float32` or `bfloat16` (half the bytes; arithmetic is float32).
    """

    source = Source(
        "arXiv 2512.24880, equations 3 and 7-9, table 5",
        deviations=(
            "The paper gives no initial values but the scales': phi starts at 0, each site reads mostly one stream, and "
            "the mixing starts close to the identity, so that the model starts as vanilla.",
            "The paper gives no readout: the streams are averaged, where the later kernels of its authors "
            "(deepseek-ai/TileKernels) have a learned one.",
            "The paper excepts nothing from weight decay: phi has it, scales and biases have none.",
        ),
    )
    init_equivalent = "vanilla"
    width_readers = ("phi_SCV",)

    def __init__(
        self,
        spec: StreamSpec,
        *,
        n_stream: StreamCount,
        n_iteration: Count,
        scale_init: float,
        own_share: float,
        res_logit: float,
        eps: PositiveFloat,
        stream_dtype: StreamDtype,
    ) -> None:
        super().__init__(n_stream, stream_dtype)
        if not 0 < own_share < 1:
            raise ValueError(f"residual.own_share must be > 0 and < 1, got {own_share}; 0.7 is the default")
        self.n_iteration, self.eps = n_iteration, eps
        n_column = n_stream * (n_stream + 2)
        self.phi_SCV = nn.Parameter(torch.zeros(spec.n_site, n_column, n_stream * spec.n_embd))
        self.scale_S3 = nn.Parameter(torch.full((spec.n_site, 3), scale_init))  # of pre, post, res
        share_NN = torch.full((n_stream, n_stream), (1 - own_share) / (n_stream - 1)).fill_diagonal_(own_share)
        bias_SC = torch.zeros(spec.n_site, n_column)
        bias_SC[:, :n_stream] = share_NN.logit()[torch.arange(spec.n_site) % n_stream]
        bias_SC[:, 2 * n_stream :] = res_logit * torch.eye(n_stream).flatten()
        self.bias_SC = nn.Parameter(bias_SC)

    def param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup((self.phi_SCV,), decay=True)
        yield ParamGroup((self.scale_S3, self.bias_SC))

    def read(self, state: Streams, site: Site) -> tuple[Tensor, Streams]:
        return hyper_streams.read_mhc(state, self._site(site.index), self.n_iteration, self.eps)

    def _site(self, k: int) -> MHCParameters:
        return MHCParameters(self.phi_SCV[k], self.scale_S3[k], self.bias_SC[k])

    def site_weights(self, k: int, h_BTND: Tensor) -> SiteWeights:
        return hyper_streams.mhc_weights(h_BTND, self._site(k), self.n_iteration, self.eps)
