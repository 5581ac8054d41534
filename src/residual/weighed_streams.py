"""What the hyper-connection strategies do alike: read, mix and write n streams by the weights of a site.

    u = A_m^T H,  H' = A_r^T H   (read);   H <- H' + B y   (write);   out = mean_i H_i

Source: Zhu et al., "Hyper-Connections" (arXiv 2409.19606), section 2.1.
Shape letters: N streams.
"""

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from src.residual.base import ResidualStrategy, Site
from src.residual.hyper_streams import (
    SiteWeights,
    Streams,
    mix,
    require_streams,
    stream_mixing,
    widen,
    written,
)


class WeighedStreams(ResidualStrategy[Streams]):
    """Subclasses give each site's weights."""

    may_skip: ClassVar[bool] = True

    def __init__(self, n_stream: int) -> None:
        super().__init__()
        require_streams(n_stream)
        self.n_stream = n_stream

    @abstractmethod
    def site_weights(self, k: int, h_BTND: Tensor) -> SiteWeights:
        """The weights of site `k` for streams [B, T, N, D]."""

    def begin(self, x0_BTD: Tensor) -> Streams:
        return widen(x0_BTD, self.n_stream, x0_BTD.new_ones(self.n_stream))

    def read(self, state: Streams, site: Site) -> tuple[Tensor, Streams]:
        h_BTND = written(state)
        a, b = self.site_weights(site.index, h_BTND)
        u_BTD, h_BTND = mix(a, h_BTND)
        return u_BTD, Streams(h_BTND, b)

    def write(self, state: Streams, site: Site, y_BTD: Tensor) -> Streams:
        return state._replace(y_BTD=y_BTD if state.replay else y_BTD.to(state.h_BTND.dtype))

    def end(self, state: Streams) -> Tensor:
        return written(state).mean(2)

    def end_weights(self, h_BTND: Tensor) -> Tensor:
        """The weights [N] or [B, T, N] of `end`, for `mixing`."""
        return h_BTND.new_full((self.n_stream,), 1 / self.n_stream)

    def mixing(self, sites: tuple[Site, ...], x0_BTD: Tensor, y_BTD: tuple[Tensor, ...]) -> Tensor:
        return stream_mixing(sites, x0_BTD, y_BTD, self.n_stream, self.site_weights, self.end_weights)
