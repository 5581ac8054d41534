"""Gated delta attention residuals: delta attention residuals whose additions a learned scalar scales.

    v_0 = x0,  v_i = y of the i-th sublayer
    input_k = x + gate[k] * sum_i softmax_i( w_k . RMSNorm_k(v_i) ) v_i    over v_0..v_k;    x <- x + y

The gate starts at 0, which turns a pretrained Pre-LN model into this one without a change of its function: this is the
form for continued training of a checkpoint (`init_from`). For training from scratch the source uses no gate:
`delta_attnres`. RMSNorm_k has a learned gain, which folds into the query.

Source: Luo et al., "Delta Attention Residuals" (arXiv 2605.18855); wdlctc/hyper-connection-factory @ c1562d7,
connections/depth_attention.py, `DeltaAttnRes` with gate="zero".
At init (gate 0): vanilla.
Shape letters: Q queries (all sites but the first, which has one source); of `mixing`, K readers, J sources.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from src.bounds import PositiveFloat
from src.kernels import depth_attention
from src.residual.base import Site, StreamSpec
from src.residual.families.delta_attention import DeltaAttention, RoutedDeltas
from src.source import Source


class GatedDeltaAttentionResiduals(DeltaAttention):
    """Gated attention over the stream's deltas: 2 * D + 1 parameters a site (1 at the first); no weight decay.

    Args:
        spec: the trunk. The first site has one source, which it reads with weight 1, and therefore no query.
        gate_init: initial gate (0 in the source).
        eps: added to the mean square in the key norm (1e-6 in the source).
    """

    source = Source("arXiv 2605.18855", "wdlctc/hyper-connection-factory", "c1562d7e6675")
    may_skip: ClassVar[bool] = True
    init_equivalent = "vanilla"

    def __init__(self, spec: StreamSpec, *, gate_init: float, eps: PositiveFloat) -> None:
        super().__init__(spec, n_query=spec.n_site - 1, eps=eps)
        self.gate_S = nn.Parameter(torch.full((spec.n_site,), gate_init))

    def read(self, state: RoutedDeltas, site: Site) -> tuple[Tensor, RoutedDeltas]:
        routed_BTD = depth_attention.attend(state.sources, site.index - 1)
        return torch.addcmul(state.x_BTD, self.gate_S[site.index], routed_BTD), state

    def mixing(self, sites: tuple[Site, ...], x0_BTD: Tensor, y_BTD: tuple[Tensor, ...]) -> Tensor:
        state = self.begin(x0_BTD)
        weight_KJ = x0_BTD.new_ones(len(y_BTD) + 1, len(y_BTD) + 1).tril()
        for k, (site, output_BTD) in enumerate(zip(sites, y_BTD, strict=True)):
            weight_J = depth_attention.average_weights(state.sources, site.index - 1)
            weight_KJ[k, : k + 1] += self.gate_S[site.index] * weight_J
            state = self.write(state, site, output_BTD)
        return weight_KJ
