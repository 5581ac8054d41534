"""Delta attention residuals: a plain stream, on which each sublayer's input adds attention over depth.

    v_0 = x0,  v_i = y of the i-th sublayer
    input_k = x + sum_i softmax_i( w_k . RMSNorm_k(v_i) ) v_i    over v_0..v_k, k > 0;    input_0 = x0;    x <- x + y

Attention runs over the stream's deltas, not its states, and nothing scales what it adds. RMSNorm_k has a learned gain,
which folds into the query. The head reads the stream itself. The code's other modes are not part of this: a null
source and gates (for pretrained checkpoints; `delta_attnres_gated`), and a second query for values.

Source: Luo et al., "Delta Attention Residuals" (arXiv 2605.18855); wdlctc/delta-attention-residuals-code @ fc11c3e,
mode `delta`.
At init (queries of standard deviation 0.02): nearly the mean of the sources is added; not vanilla.
Shape letters: Q queries (all sites but the first); of `mixing`, K readers, J sources.
"""

from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor, nn

from src.bounds import NonNegativeFloat, PositiveFloat
from src.kernels import depth_attention
from src.residual.base import ParamGroup, Site, StreamSpec
from src.residual.families.delta_attention import DeltaAttention, RoutedDeltas
from src.source import QK_NORM, Source


class DeltaAttentionResiduals(DeltaAttention):
    """Attention over the stream's deltas: 2 * D parameters a site but the first, with weight decay.

    Args:
        spec: the trunk. The first site reads x0 alone and has no query.
        query_std: standard deviation of the initial queries (0.02 in the source, as of all its matrices).
        eps: added to the mean square in the key norm (1e-6 in the source).
    """

    source = Source(
        "arXiv 2605.18855",
        "wdlctc/delta-attention-residuals-code",
        "fc11c3e570f4",
        deviations=(QK_NORM,),
        changed_in="0.3.0",
    )
    may_skip: ClassVar[bool] = True

    def __init__(self, spec: StreamSpec, *, query_std: NonNegativeFloat, eps: PositiveFloat) -> None:
        super().__init__(spec, n_query=spec.n_site - 1, eps=eps)
        self.query_std = query_std

    def reset(self) -> None:
        nn.init.normal_(self.query_QD, std=self.query_std)

    def param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup((self.query_QD, self.key_gain_QD), decay=True)

    def read(self, state: RoutedDeltas, site: Site) -> tuple[Tensor, RoutedDeltas]:
        if site.index == 0:
            return state.x_BTD, state
        return state.x_BTD + depth_attention.attend(state.sources, site.index - 1), state

    def mixing(self, sites: tuple[Site, ...], x0_BTD: Tensor, y_BTD: tuple[Tensor, ...]) -> Tensor:
        state = self.begin(x0_BTD)
        weight_KJ = x0_BTD.new_ones(len(y_BTD) + 1, len(y_BTD) + 1).tril()
        for k, (site, output_BTD) in enumerate(zip(sites, y_BTD, strict=True)):
            if site.index > 0:
                weight_KJ[k, : k + 1] += depth_attention.average_weights(state.sources, site.index - 1)
            state = self.write(state, site, output_BTD)
        return weight_KJ
