"""DenseFormer: after every few layers the stream becomes a weighted sum of all earlier layers' streams.

    X_0 = x0,  X_{l+1} = Block_l(x)
    x <- sum_j a[l, j] X_j over j <= l + 1 with j = l + 1 mod dilation     after layer l if period divides l + 1
    x <- X_{l+1}                                                          otherwise

Source: Pagliardini et al., "DenseFormer" (arXiv 2402.02622), section 3; epfml/DenseFormer.
At init (a = 1 on the newest stream, 0 elsewhere): vanilla.
Shape letters: Q averaging layers, J streams, P pairs of these, the first layer's first, its oldest first.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from src.kernels import depth_attention
from src.kernels.depth_attention import StaticSources
from src.residual.base import ParamGroup, ResidualStrategy, Site, StreamSpec
from src.source import Source


class StreamAndDepth(NamedTuple):
    """Stream, and the streams after each layer so far (x0 first)."""

    x_BTD: Tensor
    depth: StaticSources


class DenseFormer(ResidualStrategy[StreamAndDepth]):
    """Weighted sums of streams: about L * L / (2 * dilation * period) parameters, with weight decay.

    Args:
        dilation: distance between the streams of a sum (1; 4 in the source's 4x5).
        period: number of layers between two sums (1; 5 in the source's 4x5).

    Raises:
        ValueError: `dilation` or `period` is below 1 or above the number of layer visits.
    """

    source = Source("arXiv 2402.02622, section 3", "epfml/DenseFormer", "c99a623bdb5f")
    init_equivalent = "vanilla"

    def __init__(self, spec: StreamSpec, *, dilation: int, period: int) -> None:
        super().__init__()
        for key, value in (("dilation", dilation), ("period", period)):
            if not 1 <= value <= spec.n_block:
                raise ValueError(f"residual.{key} must be between 1 and n_layer={spec.n_block}, got {value}")
        self.dilation, self.period = dilation, period
        sources = [self._sources(newest) for newest in range(period, spec.n_block + 1, period)]
        weights: list[float] = []
        pair_JQ, first = torch.zeros(spec.n_block + 1, len(sources), dtype=torch.long), 0
        for query, read in enumerate(sources):
            weights += [0.0] * (len(read) - 1) + [1.0]
            pair_JQ[list(read), query] = torch.arange(first, len(weights))
            first = len(weights)
        self.a_P = nn.Parameter(torch.tensor(weights))
        self.register_buffer("pair_JQ", pair_JQ, persistent=False)  # the pair of a source and a query

    pair_JQ: Tensor

    def param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup((self.a_P,), decay=True)

    def _sources(self, newest: int) -> range:
        return range(newest % self.dilation, newest + 1, self.dilation)

    def begin(self, x0_BTD: Tensor) -> StreamAndDepth:
        depth = depth_attention.open_static(x0_BTD, self.a_P[self.pair_JQ])
        return StreamAndDepth(depth.v_BTD[0], depth)

    def read(self, state: StreamAndDepth, site: Site) -> tuple[Tensor, StreamAndDepth]:
        return state.x_BTD, state

    def write(self, state: StreamAndDepth, site: Site, y_BTD: Tensor) -> StreamAndDepth:
        x_BTD = state.x_BTD + y_BTD
        if not site.closes_block:
            return state._replace(x_BTD=x_BTD)
        depth = depth_attention.append_static(state.depth, x_BTD)
        newest = len(depth.v_BTD) - 1
        if newest % self.period:
            return StreamAndDepth(depth.v_BTD[-1], depth)
        query, members = newest // self.period - 1, self._sources(newest)
        return StreamAndDepth(depth_attention.sum_static(depth, query, members), depth)

    def end(self, state: StreamAndDepth) -> Tensor:
        return state.x_BTD
