"""Attention over streams: base of strategies that replace the stream by a mixture of its earlier states.

    x <- sum_j softmax_j( q . RMS(S_j) + b_j ) S_j     over the streams kept so far and x itself, which is kept too
    x <- x + y                                         after every sublayer

RMS has no gain.
"""

from typing import NamedTuple

from torch import Tensor

from src.kernels import depth_attention
from src.kernels.depth_attention import Sources
from src.residual.base import ResidualStrategy, Site


class StreamAndSources(NamedTuple):
    """Stream since the last mixture, and the streams kept so far."""

    x_BTD: Tensor
    sources: Sources


class StreamAttention(ResidualStrategy[StreamAndSources]):
    """Base without parameters: the stream becomes a mixture before the sites `mixes_before`, and at the end."""

    mixes_before: frozenset[int]

    def read(self, state: StreamAndSources, site: Site) -> tuple[Tensor, StreamAndSources]:
        if site.index in self.mixes_before:
            state = _mix(state)
        return state.x_BTD, state

    def write(self, state: StreamAndSources, site: Site, y_BTD: Tensor) -> StreamAndSources:
        return state._replace(x_BTD=state.x_BTD + y_BTD)

    def end(self, state: StreamAndSources) -> Tensor:
        return _mix(state).x_BTD


def open_streams(x0_BTD: Tensor, key_QD: Tensor, eps: float, bias_QJ: Tensor | None = None) -> StreamAndSources:
    """Return the state on the embedding, which is the first stream; each mixture has a key."""
    sources = depth_attention.open(x0_BTD, key_QD, eps, bias_QJ)
    return StreamAndSources(sources.v_BTD[0], sources)


def _mix(state: StreamAndSources) -> StreamAndSources:
    sources = depth_attention.append(state.sources, state.x_BTD)
    return StreamAndSources(depth_attention.attend(sources), sources)
