"""Identity hyper-connections (iHC): N streams, read and written with weights that depend on them, never mixed.

    [pre | post] from vec(H), under sigmoid + eps and 2 sigmoid + eps;   u = pre . H;   H <- H + post^T y
    out = head . H,  head computed from the last H like `pre`

The source is inference code; that phi has weight decay, and nothing else, is this project's choice.

Source: Tencent HY V4, `src/transformers/models/hy_v4/modular_hy_v4.py` in huggingface/transformers.
At init: close to vanilla (every read is close to the streams' mean), but not equal: the random phi makes the streams
differ, which would stay equal without it.
Shape letters: N streams, V = N * D.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from src.bounds import NonNegativeFloat, PositiveFloat, StreamCount
from src.kernels import hyper_streams
from src.kernels.hyper_streams import SiteWeights, Streams
from src.residual.base import ParamGroup, Site, StreamSpec
from src.residual.families.hyper_connections import WeightedStreams
from src.source import Source


class IdentityHyperConnections(WeightedStreams):
    """iHC: 2 * N * (V + 1) + 2 parameters a site and N * (V + 1) + 1 at the end; only phi has weight decay.

    Args:
        n_stream: N, at least 2 (4 in the source).
        scale_init: initial factor of the dynamic part (0.01 in the source).
        phi_std: standard deviation of the initial phi (0.006 in the source).
        eps: added to the weights of every read and write (1e-6 in the source).
        norm_eps: added to the mean square of vec(H) (1e-5 in the source).
    """

    source = Source("Tencent HY V4, iHC", "huggingface/transformers", "cdda7eb050c0", changed_in="0.3.0")
    init_equivalent = "near vanilla"
    width_readers = ("phi_SCV", "head_phi_NV")

    def __init__(
        self,
        spec: StreamSpec,
        *,
        n_stream: StreamCount,
        scale_init: float,
        phi_std: NonNegativeFloat,
        eps: PositiveFloat,
        norm_eps: PositiveFloat,
    ) -> None:
        super().__init__(n_stream)
        self.phi_std, self.eps, self.norm_eps = phi_std, eps, norm_eps
        width = n_stream * spec.n_embd
        mean_logit = -math.log(n_stream - 1)  # sigmoid gives 1 / n_stream
        self.phi_SCV = nn.Parameter(torch.zeros(spec.n_site, 2 * n_stream, width))
        self.head_phi_NV = nn.Parameter(torch.zeros(n_stream, width))
        self.scale_S2 = nn.Parameter(torch.full((spec.n_site, 2), scale_init))  # of pre, of post
        self.head_scale = nn.Parameter(torch.full((1,), scale_init))
        bias_SC = torch.zeros(spec.n_site, 2 * n_stream)
        bias_SC[:, :n_stream] = mean_logit
        self.bias_SC = nn.Parameter(bias_SC)
        self.head_bias_N = nn.Parameter(torch.full((n_stream,), mean_logit))

    def reset(self) -> None:
        nn.init.normal_(self.phi_SCV, std=self.phi_std)
        nn.init.normal_(self.head_phi_NV, std=self.phi_std)

    def param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup((self.phi_SCV, self.head_phi_NV), decay=True)
        yield ParamGroup((self.scale_S2, self.head_scale, self.bias_SC, self.head_bias_N))

    def read(self, state: Streams, site: Site) -> tuple[Tensor, Streams]:
        h_BTND = hyper_streams.settle(state)
        pre_BTN, post_BTN = self._weights(site.index, h_BTND)
        u_BTD = hyper_streams.blend(pre_BTN.unsqueeze(-1), h_BTND).squeeze(2)
        return u_BTD, Streams(h_BTND, post_BTN)

    def end(self, state: Streams) -> Tensor:
        h_BTND = hyper_streams.settle(state)
        return hyper_streams.blend(self.end_weights(h_BTND).unsqueeze(-1), h_BTND).squeeze(2)

    def site_weights(self, k: int, h_BTND: Tensor) -> SiteWeights:
        pre_BTN, post_BTN = self._weights(k, h_BTND)
        same_NN = torch.eye(self.n_stream, dtype=pre_BTN.dtype, device=pre_BTN.device)
        return SiteWeights(hyper_streams.mixing_weights(pre_BTN, same_NN.expand(*pre_BTN.shape, -1)), post_BTN)

    def _weights(self, k: int, h_BTND: Tensor) -> tuple[Tensor, Tensor]:
        weights = hyper_streams.project(h_BTND, self.phi_SCV[k], self.scale_S2[k], self.bias_SC[k], self.norm_eps)
        return weights.pre_BTN + self.eps, weights.post_BTN + self.eps

    def end_weights(self, h_BTND: Tensor) -> Tensor:
        read = hyper_streams.project_read(h_BTND, self.head_phi_NV, self.head_scale, self.head_bias_N, self.norm_eps)
        return read + self.eps
