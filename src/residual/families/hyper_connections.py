"""What the hyper-connection strategies do alike: read, mix and write n streams by the weights of a site.

    u = A_m^T H,  H' = A_r^T H   (read);   H <- H' + B y   (write);   out = mean_i H_i

Source: Zhu et al., "Hyper-Connections" (arXiv 2409.19606), section 2.1.
Shape letters: N streams.
"""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from src.kernels.hyper_streams.reference import (
    SiteWeights,
    Streams,
    in_type,
    mix,
    require_streams,
    stored_type,
    stream_mixing,
    widen,
    written,
)
from src.residual.base import ResidualStrategy, Site


class WeighedStreams(ResidualStrategy[Streams]):
    """Subclasses give each site's weights; streams stored in bfloat16 are reckoned with in float32."""

    may_skip: ClassVar[bool] = True

    def __init__(self, n_stream: int, stream_dtype: str = "float32") -> None:
        super().__init__()
        require_streams(n_stream)
        self.n_stream, self.stored = n_stream, stored_type(stream_dtype)
        self.reckoned = None if self.stored is None else torch.float32

    @abstractmethod
    def site_weights(self, k: int, h_BTND: Tensor) -> SiteWeights:
        """The weights of site `k` for streams [B, T, N, D]."""

    def begin(self, x0_BTD: Tensor) -> Streams:
        b_N = x0_BTD.new_ones(self.n_stream)
        return widen(x0_BTD if self.stored is None else x0_BTD.to(self.stored), self.n_stream, b_N)

    def read(self, state: Streams, site: Site) -> tuple[Tensor, Streams]:
        h_BTND = written(in_type(state, self.reckoned))
        a, b = self.site_weights(site.index, h_BTND)
        u_BTD, h_BTND = mix(a, h_BTND)
        return u_BTD, in_type(Streams(h_BTND, b), self.stored)

    def write(self, state: Streams, site: Site, y_BTD: Tensor) -> Streams:
        return state._replace(y_BTD=y_BTD if state.replay else y_BTD.to(self.reckoned or state.h_BTND.dtype))

    def end(self, state: Streams) -> Tensor:
        return written(in_type(state, self.reckoned)).mean(2)

    def end_weights(self, h_BTND: Tensor) -> Tensor:
        """The weights [N] or [B, T, N] of `end`, for `mixing`."""
        return h_BTND.new_full((self.n_stream,), 1 / self.n_stream)

    def mixing(self, sites: tuple[Site, ...], x0_BTD: Tensor, y_BTD: tuple[Tensor, ...]) -> Tensor:
        return stream_mixing(sites, x0_BTD, y_BTD, self.n_stream, self.site_weights, self.end_weights)
