"""LAuReL-PA: adds the streams from before the last few sublayers to every sum.

    x_{k+1} = F_k(N_k(x_k)) + x_k + sum_{j < n} gamma[k, j] x_{k-j}

Source: Menghani et al., "LAuReL" (arXiv 2411.07501), section 2.3, equation 4, with h the identity.
At init (gamma = 0): vanilla.
Shape letters: P pairs (site, earlier stream), site by site, newest stream first; J streams.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from src.residual.base import ResidualStrategy, Site, StreamSpec
from src.source import Source


class RecentStreams(NamedTuple):
    """Stream, now and before the last few sublayers, newest first."""

    x_BTD: tuple[Tensor, ...]


class LaurelPA(ResidualStrategy[RecentStreams]):
    """Weights on recent streams; `n_previous` parameters per site (fewer at the first), lr x 1, no weight decay.

    Args:
        n_previous: number of streams in the sum, the current one included, at least 1.
    """

    source = Source(
        "arXiv 2411.07501, equation 4",
        deviations=("The maps h of earlier streams are the identity; the runs of the paper have low-rank maps.",),
    )
    init_equivalent = "vanilla"

    def __init__(self, spec: StreamSpec, *, n_previous: int) -> None:
        super().__init__()
        if n_previous < 1:
            raise ValueError(f"residual.n_previous must be >= 1, got {n_previous}; for none use residual=vanilla")
        self.n_streams = [min(site.index + 1, n_previous) for site in spec.sites]
        self.gamma_P = nn.Parameter(torch.zeros(sum(self.n_streams)))

    def begin(self, x0_BTD: Tensor) -> RecentStreams:
        return RecentStreams((x0_BTD,))

    def read(self, state: RecentStreams, site: Site) -> tuple[Tensor, RecentStreams]:
        return state.x_BTD[0], state

    def write(self, state: RecentStreams, site: Site, y_BTD: Tensor) -> RecentStreams:
        gamma_J = torch.split(self.gamma_P, self.n_streams)[site.index]
        x_BTD = state.x_BTD[0] + y_BTD
        for gamma, old_BTD in zip(gamma_J, state.x_BTD, strict=True):
            x_BTD = torch.addcmul(x_BTD, gamma, old_BTD)
        kept = self.n_streams[min(site.index + 1, len(self.n_streams) - 1)]
        return RecentStreams((x_BTD, *state.x_BTD)[:kept])

    def end(self, state: RecentStreams) -> Tensor:
        return state.x_BTD[0]
