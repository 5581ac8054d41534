"""Delta attention residuals: a plain stream, on which each sublayer's input adds attention over depth.

    v_0 = x0,  v_i = y of the i-th sublayer
    input_k = x + gate[k] * sum_i softmax_i( w_k . RMSNorm_k(v_i) ) v_i    over v_0..v_k;    x <- x + y

Attention runs over the stream's deltas, not its states. RMSNorm_k has a learned gain, which folds into the
query.

Source: "Delta Attention Residuals"; wdlctc/hyper-connection-factory, with its zero-initialised gate.
At init (gate 0): vanilla.
Shape letters: Q queries (all sites but the first, which has one source); of `mixing`, K readers, J
sources.
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from src.bounds import PositiveFloat
from src.kernels import depth_attention
from src.kernels.depth_attention import Sources
from src.residual.base import ResidualStrategy, Site, StreamSpec


class RoutedDeltas(NamedTuple):
    """Stream, and the outputs that it is the sum of."""

    x_BTD: Tensor
    sources: Sources


class DeltaAttentionResiduals(ResidualStrategy[RoutedDeltas]):
    """Gated attention over the stream's deltas: 2 * D + 1 parameters a site (1 at the first); no weight decay.

    Args:
        gate_init: initial gate (0 in the source).
        eps: added to the mean square in the key norm.
    """

    may_skip: ClassVar[bool] = True
    init_equivalent = "vanilla"

    def __init__(self, spec: StreamSpec, *, gate_init: float, eps: PositiveFloat) -> None:
        super().__init__()
        self.eps = eps
        self.gate_S = nn.Parameter(torch.full((spec.n_site,), gate_init))
        self.query_QD = nn.Parameter(torch.zeros(spec.n_site - 1, spec.n_embd))
        self.key_gain_QD = nn.Parameter(torch.ones(spec.n_site - 1, spec.n_embd))

    def begin(self, x0_BTD: Tensor) -> RoutedDeltas:
        key_QD = self.query_QD * self.key_gain_QD
        return RoutedDeltas(x0_BTD, depth_attention.open(x0_BTD, key_QD, self.eps))

    def read(self, state: RoutedDeltas, site: Site) -> tuple[Tensor, RoutedDeltas]:
        routed_BTD = depth_attention.attend(state.sources, site.index - 1)
        return torch.addcmul(state.x_BTD, self.gate_S[site.index], routed_BTD), state

    def write(self, state: RoutedDeltas, site: Site, y_BTD: Tensor) -> RoutedDeltas:
        x_BTD = state.x_BTD + y_BTD
        if site.index == len(self.gate_S) - 1:
            return state._replace(x_BTD=x_BTD)
        return RoutedDeltas(x_BTD, depth_attention.append(state.sources, y_BTD, site.index))

    def end(self, state: RoutedDeltas) -> Tensor:
        return state.x_BTD

    def mixing(self, sites: tuple[Site, ...], x0_BTD: Tensor, y_BTD: tuple[Tensor, ...]) -> Tensor:
        state = self.begin(x0_BTD)
        weight_KJ = x0_BTD.new_ones(len(y_BTD) + 1, len(y_BTD) + 1).tril()
        for k, (site, output_BTD) in enumerate(zip(sites, y_BTD, strict=True)):
            weight_J = depth_attention.average_weights(state.sources, site.index - 1)
            weight_KJ[k, : k + 1] += self.gate_S[site.index] * weight_J
            state = self.write(state, site, output_BTD)
        return weight_KJ
