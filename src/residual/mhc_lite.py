"""mHC-lite: hyper-connections whose mixing is a blend of permutations, hence exactly doubly stochastic.

    v = gain * vec(H);   [pre | post | res] from v / rms, under sigmoid, 2 sigmoid, softmax
    u = pre . H;   H <- (sum_r res_r P_r) H + post^T y;   out = sum_i H_i

P_r are all N! permutations, the identity first. No Sinkhorn is needed.

Source: "mHC-lite" (arXiv 2601.05732), section 3; FFTYYY/mhc-lite (initial biases).
At init: not vanilla (site k reads and writes mostly stream k mod N; the mixing is close to the identity).
Shape letters: N streams, C = N! + 2 * N columns of phi, V = N * D.
"""

from collections.abc import Iterator
from itertools import permutations

import torch
from torch import Tensor, nn

from src.bounds import PositiveFloat, StreamCount
from src.kernels import hyper_streams
from src.kernels.hyper_streams import SiteWeights, Streams
from src.residual.base import ParamGroup, StreamSpec
from src.residual.families.hyper_connections import WeightedStreams

MAX_STREAM = 5  # 120 permutations; 6 streams would have 720


class ManifoldHyperConnectionsLite(WeightedStreams):
    """mHC-lite: (C + 1) * V + C + 3 parameters a site, lr x 1; only phi has weight decay.

    Args:
        n_stream: N, 2 to 5 (4 in the source).
        scale_init: initial factor of the dynamic part (0.01 in the source).
        gate_logit: initial logit of site k's own stream in read and write, its negative for the others (1).
        res_logit: initial logit of all permutations but the identity (-8 in the source).
        eps: added to the mean square of vec(H).
    """

    perm_RNN: Tensor

    def __init__(
        self,
        spec: StreamSpec,
        *,
        n_stream: StreamCount,
        scale_init: float,
        gate_logit: float,
        res_logit: float,
        eps: PositiveFloat,
    ) -> None:
        super().__init__(n_stream)
        if n_stream > MAX_STREAM:
            raise ValueError(
                f"residual.n_stream must be <= {MAX_STREAM} for mhc_lite, which has n_stream! permutations, "
                f"got {n_stream}; for more streams use residual=mhc"
            )
        self.eps = eps
        orders = torch.tensor(list(permutations(range(n_stream))))
        self.register_buffer("perm_RNN", nn.functional.one_hot(orders, n_stream).float(), persistent=False)
        width, n_column = n_stream * spec.n_embd, len(orders) + 2 * n_stream
        self.gain_SV = nn.Parameter(torch.ones(spec.n_site, width))
        self.phi_SCV = nn.Parameter(torch.zeros(spec.n_site, n_column, width))
        self.scale_S3 = nn.Parameter(torch.full((spec.n_site, 3), scale_init))  # of pre, post, res
        gate_NN = torch.full((n_stream, n_stream), -gate_logit).fill_diagonal_(gate_logit)
        bias_SC = torch.full((spec.n_site, n_column), res_logit)
        bias_SC[:, : 2 * n_stream] = gate_NN.repeat(1, 2)[torch.arange(spec.n_site) % n_stream]
        bias_SC[:, 2 * n_stream] = 0.0
        self.bias_SC = nn.Parameter(bias_SC)

    def param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup((self.phi_SCV,), decay=True)
        yield ParamGroup((self.gain_SV, self.scale_S3, self.bias_SC))

    def site_weights(self, k: int, h_BTND: Tensor) -> SiteWeights:
        phi_CV = self.phi_SCV[k] * self.gain_SV[k]
        weights = hyper_streams.project(h_BTND, phi_CV, self.scale_S3[k], self.bias_SC[k], self.eps)
        res_BTNN = torch.tensordot(weights.mixing_BTR.softmax(-1), self.perm_RNN, dims=1)
        return SiteWeights(hyper_streams.mixing_weights(weights.pre_BTN, res_BTNN), weights.post_BTN)

    def end(self, state: Streams) -> Tensor:
        return hyper_streams.settle(state).sum(2)

    def end_weights(self, h_BTND: Tensor) -> Tensor:
        return h_BTND.new_ones(self.n_stream)
