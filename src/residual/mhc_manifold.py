"""mHC with another map to the mixing: what `mhc` is, except for the set that its mixing matrix lies in.

    [pre | post | res] = scale * (phi vec(H)) / rms(vec(H)) + bias
    u = sigmoid(pre) . H;   H <- map(res) H + 2 sigmoid(post)^T y;   out = mean_i H_i

The maps are those of `families/manifolds.py`. With `sinkhorn` the strategy is `mhc`, kernels included.

Source: Xie et al., "mHC" (arXiv 2512.24880), equations 3, 7 and 8, with the map of equation 8 replaced.
At init: equal to vanilla up to rounding, like `mhc`; with every map, since all rows of the mixing sum to 1.
Shape letters: N streams, L logits of the map, C = 2 * N + L columns of phi, V = N * D.
"""

import torch
from torch import Tensor, nn

from src.bounds import Count, PositiveFloat, StreamCount
from src.kernels import hyper_streams
from src.kernels.hyper_streams import SiteWeights, Streams
from src.residual.base import Site, StreamSpec
from src.residual.families.hyper_connections import StreamDtype, WeightedStreams
from src.residual.families.manifolds import ManifoldName, Sinkhorn, build_manifold
from src.residual.mhc import ManifoldHyperConnections
from src.source import Source


class OtherManifoldHyperConnections(ManifoldHyperConnections):
    """mHC with a map of choice: (V + 1) * C + 3 parameters a site, lr x 1; only phi has weight decay.

    Args:
        n_stream: N, at least 2 (4 in the paper of mHC).
        manifold: `orthostochastic`, `cayley`, `permutations` (at most 5 streams) or `sinkhorn`.
        n_iteration: rounds of Sinkhorn-Knopp; the other maps have none.
        scale_init: initial factor of the dynamic part (0.01 in the paper of mHC).
        own_share: initial weight of stream k mod N in site k's read; the others have equal parts of the rest.
        res_logit: logarithm of the initial ratio of the mixing's diagonal to its other entries, approximately.
        eps: added to the mean square of vec(H).
        stream_dtype: dtype of the streams in memory, `float32` or `bfloat16` (half the bytes; arithmetic is float32).
    """

    source = Source(
        "arXiv 2512.24880, equations 3, 7 and 8 with other maps: the Cayley transform, squares of orthogonal matrices, "
        "blends of permutations",
        deviations=(
            "The maps are textbook definitions and not those of one publication, so that they differ by nothing else; "
            "initial values, readout and weight decay are those of mhc.",
        ),
    )
    init_equivalent = "vanilla"

    def __init__(
        self,
        spec: StreamSpec,
        *,
        n_stream: StreamCount,
        manifold: ManifoldName,
        n_iteration: Count,
        scale_init: float,
        own_share: float,
        res_logit: float,
        eps: PositiveFloat,
        stream_dtype: StreamDtype,
    ) -> None:
        super().__init__(
            spec,
            n_stream=n_stream,
            n_iteration=n_iteration,
            scale_init=scale_init,
            own_share=own_share,
            res_logit=res_logit,
            eps=eps,
            stream_dtype=stream_dtype,
        )
        self.manifold = build_manifold(manifold, n_stream, res_logit, n_iteration)
        gates_SC, logits_L = self.bias_SC.detach()[:, : 2 * n_stream], torch.tensor(self.manifold.logits)
        self.bias_SC = nn.Parameter(torch.cat((gates_SC, logits_L.repeat(spec.n_site, 1)), dim=1))
        self.phi_SCV = nn.Parameter(torch.zeros(*self.bias_SC.shape, n_stream * spec.n_embd))

    def read(self, state: Streams, site: Site) -> tuple[Tensor, Streams]:
        if isinstance(self.manifold, Sinkhorn):
            return super().read(state, site)
        return WeightedStreams.read(self, state, site)

    def site_weights(self, k: int, h_BTND: Tensor) -> SiteWeights:
        pre_BTN, post_BTN, logit_BTL = hyper_streams.project(h_BTND, *self._site(k), self.eps)
        return SiteWeights(hyper_streams.mixing_weights(pre_BTN, self.manifold(logit_BTL)), post_BTN)
