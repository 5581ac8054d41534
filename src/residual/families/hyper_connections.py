"""Shared base of the hyper-connection strategies: N streams, read, mixed and written by the weights of a site.

    u = A_m^T H,  H' = A_r^T H   (read);   H <- H' + B y   (write);   out = mean_i H_i

The paper sums the streams at the end; the mean is the same model up to the final norm's eps, and exactly vanilla at
init.

Source: Zhu et al., "Hyper-Connections" (arXiv 2409.19606), section 2 and algorithm 2.
Shape letters: N streams, M = N + 1 columns of A, J sources (the embedding, then each site's output).
"""

from abc import abstractmethod
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from src.kernels import hyper_streams
from src.kernels.hyper_streams import SiteWeights, Streams
from src.kernels.hyper_streams.reference import blend, mix, write
from src.residual.base import ResidualStrategy, Site, StreamSpec

StreamDtype = Literal["float32", "bfloat16"]
DTYPES: dict[StreamDtype, torch.dtype | None] = {
    "float32": None,
    "bfloat16": torch.bfloat16,
}  # None: that of the embedding output

#: Deviations that dynamic and static hyper-connections have in common.
HYPER_DEVIATIONS = (
    "The streams are averaged at the end, not summed: the same function up to the final norm's epsilon, and exactly "
    "vanilla at the start.",
    "Output projections keep their initial deviation (residual.output_init_scale): the paper's factor sqrt(n_stream) "
    "compensates for the sum.",
)

#: Of the dynamic forms, whose papers decay "the dynamic component" without a list of its parameters.
DYNAMIC_DECAY = (
    "Of the dynamic part only W has weight decay: norm and scale have none, as the trunk's norms, and the paper, which "
    "decays the dynamic part, does not name them."
)


class WeightedStreams(ResidualStrategy[Streams]):
    """N streams; subclasses return each site's weights.

    Args:
        n_stream: number of streams, at least 2.
        stream_dtype: of the streams in memory, `float32` or `bfloat16` (arithmetic is float32).
    """

    may_skip: ClassVar[bool] = True

    def __init__(self, n_stream: int, stream_dtype: StreamDtype = "float32") -> None:
        super().__init__()
        if n_stream < 2:
            raise ValueError(
                f"residual.n_stream must be >= 2, got {n_stream}; use residual=vanilla for a single stream"
            )
        self.n_stream, self.stored_dtype = n_stream, DTYPES[stream_dtype]

    @abstractmethod
    def site_weights(self, k: int, h_BTND: Tensor) -> SiteWeights:
        """Return the weights of site `k` for streams [B, T, N, D]."""

    def begin(self, x0_BTD: Tensor) -> Streams:
        return hyper_streams.widen(x0_BTD, self.n_stream, self.stored_dtype)

    def begin_streams(self, h_BTND: Tensor) -> Streams:
        return hyper_streams.start(h_BTND, self.stored_dtype)

    def read(self, state: Streams, site: Site) -> tuple[Tensor, Streams]:
        return hyper_streams.read(state, partial(self.site_weights, site.index))

    def write(self, state: Streams, site: Site, y_BTD: Tensor) -> Streams:
        return hyper_streams.write(state, y_BTD)

    def end(self, state: Streams) -> Tensor:
        return hyper_streams.end(state)

    def get_streams(self, state: Streams) -> Tensor:
        return hyper_streams.settle(state)

    def stream_map(self, state: Streams, site: Site) -> Tensor:
        h_BTND = hyper_streams.settle(state)
        return self.site_weights(site.index, h_BTND).a[..., 1:].transpose(-1, -2).expand(*h_BTND.shape[:2], -1, -1)

    def end_weights(self, h_BTND: Tensor) -> Tensor:
        """Return the weights [N] or [B, T, N] of `end`, for `mixing`."""
        return h_BTND.new_full((self.n_stream,), 1 / self.n_stream)

    def mixing(self, sites: tuple[Site, ...], x0_BTD: Tensor, y_BTD: tuple[Tensor, ...]) -> Tensor:
        h_BTND = x0_BTD.unsqueeze(2).expand(-1, -1, self.n_stream, -1)
        # Every stream as a sum of sources, token by token: its shares are mixed and written as the stream is.
        share_BTNJ = x0_BTD.new_zeros(*h_BTND.shape[:3], len(y_BTD) + 1)
        share_BTNJ[..., 0] = 1.0
        rows = []
        for k, (site, output_BTD) in enumerate(zip(sites, y_BTD, strict=True)):
            a, b = self.site_weights(site.index, h_BTND)
            read_BTJ, share_BTNJ = mix(a, share_BTNJ)
            rows.append(read_BTJ.mean((0, 1)))
            share_BTNJ[..., k + 1] += b
            h_BTND = write(mix(a, h_BTND)[1], b, output_BTD.to(h_BTND.dtype))
        out_BTJ = blend(self.end_weights(h_BTND).unsqueeze(-1), share_BTNJ).squeeze(2)
        return torch.stack([*rows, out_BTJ.mean((0, 1))])


def static_weights(spec: StreamSpec, n_stream: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Return A [S, N, M], by which site k reads stream k mod N and mixes nothing, and B [S, N] of ones."""
    a_SNM = torch.zeros(spec.n_site, n_stream, n_stream + 1)
    for site in spec.sites:
        a_SNM[site.index, site.index % n_stream, 0] = 1.0
    a_SNM[:, :, 1:] = torch.eye(n_stream)
    return nn.Parameter(a_SNM), nn.Parameter(torch.ones(spec.n_site, n_stream))
