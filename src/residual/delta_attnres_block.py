"""Delta attention residuals, block form: a plain stream, and attention over a few differences of its states.

    s_0 = x0;   s_n = x - s_{n-1}   with x the stream before group n of layers, n = 1, 2, ...
    input_k = x + sum_n softmax_n( w_k . RMSNorm_k(s_n) ) s_n    over the sources so far, k > 0;    input_0 = x0
    x <- x + y

s_1 is the sum of the first group's outputs. As the code subtracts the newest source, not the stream at the last
boundary, a later s_n is the sum of the outputs of groups n, n - 2, ... (and of x0, where n is even). A source is
appended after the attention of a group's first layer has read: the MLP of that layer is the first to see it.

Source: Luo et al., "Delta Attention Residuals" (arXiv 2605.18855); wdlctc/delta-attention-residuals-code @ fc11c3e,
mode `delta_block`.
At init (queries of standard deviation 0.02): nearly the mean of the sources is added; not vanilla.
Shape letters: Q queries (sites that meet two sources or more); of `mixing`, K readers, J of x0 and outputs, N sources.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from src.bounds import NonNegativeFloat, PositiveFloat
from src.kernels import depth_attention
from src.residual.base import ParamGroup, Site, StreamSpec
from src.residual.families.delta_attention import DeltaAttention, RoutedDeltas
from src.residual.families.groups import describe_groups, group_size
from src.source import QK_NORM, Source


class BlockDeltaAttentionResiduals(DeltaAttention):
    """Attention over differences of the stream's states: 2 * D parameters a query, with weight decay.

    Args:
        n_block: number of groups, of ceil(n_layer / n_block) layers each (4 in the source).
        query_std: standard deviation of the initial queries (0.02 in the source, as of all its matrices).
        eps: added to the mean square in the key norm (1e-6 in the source).

    Raises:
        ValueError: `n_block` gives fewer than two groups.
    """

    source = Source("arXiv 2605.18855", "wdlctc/delta-attention-residuals-code", "fc11c3e570f4", deviations=(QK_NORM,))

    def __init__(self, spec: StreamSpec, *, n_block: int, query_std: NonNegativeFloat, eps: PositiveFloat) -> None:
        if min(n_block, spec.n_block) < 2:
            raise ValueError(
                f"residual.n_block and the number of layers must be >= 2, got {n_block} and {spec.n_block}: "
                "x0 would be the only source"
            )
        group_layers = group_size(spec.n_block, n_block)
        boundaries = [site.index for site in spec.sites if site.opens_block][group_layers::group_layers]
        super().__init__(spec, n_query=spec.n_site - 1 - boundaries[0], eps=eps)
        self.n_layers, self.group_layers, self.boundaries = spec.n_block, group_layers, boundaries
        self.query_std = query_std

    def reset(self) -> None:
        nn.init.normal_(self.query_QD, std=self.query_std)

    def param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup((self.query_QD, self.key_gain_QD), decay=True)

    def describe(self) -> str:
        return describe_groups(self.n_layers, self.group_layers, "layer")

    def begin(self, x0_BTD: Tensor) -> RoutedDeltas:
        key_QD, between = self.query_QD * self.key_gain_QD, 2 * self.group_layers
        sources = depth_attention.open(x0_BTD, key_QD, self.eps, queries_per_source=between)
        return RoutedDeltas(sources.v_BTD[0], sources)

    def read(self, state: RoutedDeltas, site: Site) -> tuple[Tensor, RoutedDeltas]:
        if site.index == 0:
            return state.x_BTD, state
        return state.x_BTD + depth_attention.attend(state.sources, self._query(site)), state

    def write(self, state: RoutedDeltas, site: Site, y_BTD: Tensor) -> RoutedDeltas:
        x_BTD, sources = state
        if site.index in self.boundaries:
            sources = depth_attention.append(sources, x_BTD - sources.v_BTD[-1], self._query(site) + 1)
        return RoutedDeltas(x_BTD + y_BTD, sources)

    def mixing(self, sites: tuple[Site, ...], x0_BTD: Tensor, y_BTD: tuple[Tensor, ...]) -> Tensor:
        state = self.begin(x0_BTD)
        weight_KJ = x0_BTD.new_ones(len(y_BTD) + 1, len(y_BTD) + 1).tril()
        stream_KJ = weight_KJ.clone()
        source_NJ = [stream_KJ[0]]
        for k, (site, output_BTD) in enumerate(zip(sites, y_BTD, strict=True)):
            if site.index > 0:
                weight_N = depth_attention.average_weights(state.sources, self._query(site))
                weight_KJ[k] += weight_N @ torch.stack(source_NJ)
            if site.index in self.boundaries:
                source_NJ.append(stream_KJ[k] - source_NJ[-1])
            state = self.write(state, site, output_BTD)
        return weight_KJ

    def _query(self, site: Site) -> int:
        """Return the query of a site; it is negative where x0 is the only source, which needs none."""
        return site.index - self.boundaries[0] - 1
