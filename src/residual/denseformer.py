"""DenseFormer: after every few layers the stream becomes a weighed sum of all earlier layers' streams.

    X_0 = x0,  X_{l+1} = Block_l(x)
    x <- sum_j a[l, j] X_j over j <= l + 1 with j = l + 1 mod dilation     after layer l if period divides l + 1
    x <- X_{l+1}                                                          otherwise

Source: Pagliardini et al., "DenseFormer" (arXiv 2402.02622), section 3; epfml/DenseFormer.
At init (a = 1 on the newest stream, 0 elsewhere): vanilla.
Shape letters: P pairs of an averaging layer and a stream, the first layer's first, its oldest first.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from src.residual.base import ResidualStrategy, Site, StreamSpec


class Depths(NamedTuple):
    """The stream, and what the layers so far left (x0 first)."""

    x_BTD: Tensor
    depth_BTD: tuple[Tensor, ...]


class DenseFormer(ResidualStrategy[Depths]):
    """About L * L / (2 * dilation * period) parameters, lr x 1, no weight decay.

    Args:
        spec: the trunk.
        dilation: every how many earlier streams are averaged (1; 4 in the source's 4x5).
        period: every how many layers there is an average (1; 5 in the source's 4x5).

    Raises:
        ValueError: a dilation or period below 1, or a period longer than the model is deep.
    """

    def __init__(self, spec: StreamSpec, *, dilation: int, period: int) -> None:
        super().__init__()
        for key, value in (("dilation", dilation), ("period", period)):
            if not 1 <= value <= spec.n_block:
                raise ValueError(f"residual.{key} must be between 1 and n_layer={spec.n_block}, got {value}")
        self.dilation, self.period = dilation, period
        self.n_streams = [len(self._sources(n)) for n in range(period, spec.n_block + 1, period)]
        self.a_P = nn.Parameter(torch.zeros(sum(self.n_streams)))
        with torch.no_grad():
            for a_J in torch.split(self.a_P, self.n_streams):
                a_J[-1] = 1.0

    def _sources(self, newest: int) -> range:
        return range(newest % self.dilation, newest + 1, self.dilation)

    def begin(self, x0_BTD: Tensor) -> Depths:
        return Depths(x0_BTD, (x0_BTD,))

    def read(self, state: Depths, site: Site) -> tuple[Tensor, Depths]:
        return state.x_BTD, state

    def write(self, state: Depths, site: Site, y_BTD: Tensor) -> Depths:
        x_BTD = state.x_BTD + y_BTD
        if not site.closes_block:
            return state._replace(x_BTD=x_BTD)
        depth_BTD = (*state.depth_BTD, x_BTD)
        newest = len(depth_BTD) - 1
        if newest % self.period == 0:
            a_J = torch.split(self.a_P, self.n_streams)[newest // self.period - 1]
            first, *others = self._sources(newest)
            x_BTD = a_J[0] * depth_BTD[first]
            for a, j in zip(a_J[1:], others, strict=True):
                x_BTD = torch.addcmul(x_BTD, a, depth_BTD[j])
        return Depths(x_BTD, depth_BTD)

    def end(self, state: Depths) -> Tensor:
        return state.x_BTD
