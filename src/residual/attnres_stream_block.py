"""Attention over streams: every few layers the stream becomes a mixture of its own earlier states.

    S_0 = x0,  S_j = the stream after the j-th group of layers
    x <- sum_j softmax_j( q_g . RMS(S_j) ) S_j    before every group but the first, and at the end
    x <- x + y                                    after every sublayer

Not the attention residuals of the paper (`attnres`, `attnres_block`): the sources are streams, which already
hold each other, not the outputs between them. RMS has no gain.

Source: MLS-Bench llm-pretrain-residual, baseline `full_attnres`.
At init (q = 0): the uniform mean of the streams; not vanilla.
Shape letters: Q queries (groups after the first, and the end).
"""

import torch
from torch import Tensor, nn

from src.kernels.depth_attention.reference import StreamAndSources, attend, emit, open_native
from src.residual.base import ResidualStrategy, Site, StreamSpec


class StreamBlockAttention(ResidualStrategy[StreamAndSources]):
    """D parameters a query, ceil(n_layer / group_layers) queries; lr x 1, no weight decay.

    Args:
        spec: the trunk.
        group_layers: layers between two mixtures (4 in the source).
        eps: of the key norm.
    """

    def __init__(self, spec: StreamSpec, *, group_layers: int, eps: float) -> None:
        super().__init__()
        if group_layers < 1:
            raise ValueError(f"residual.group_layers must be at least 1, got {group_layers}; the source uses 4")
        opening = [site.index for site in spec.sites if site.opens_block]
        self.opens_group = frozenset(opening[group_layers::group_layers])
        self.eps = eps
        self.query_QD = nn.Parameter(torch.zeros(len(self.opens_group) + 1, spec.n_embd))

    def begin(self, x0_BTD: Tensor) -> StreamAndSources:
        sources = open_native(x0_BTD, self.query_QD, self.eps)
        return StreamAndSources(sources.v_BTD[0], sources)

    def read(self, state: StreamAndSources, site: Site) -> tuple[Tensor, StreamAndSources]:
        if site.index in self.opens_group:
            state = self._mix(state)
        return state.x_BTD, state

    def write(self, state: StreamAndSources, site: Site, y_BTD: Tensor) -> StreamAndSources:
        return state._replace(x_BTD=state.x_BTD + y_BTD)

    def end(self, state: StreamAndSources) -> Tensor:
        return self._mix(state).x_BTD

    def _mix(self, state: StreamAndSources) -> StreamAndSources:
        sources = emit(state.sources, state.x_BTD, self.eps)
        return StreamAndSources(attend(sources, len(sources.v_BTD) - 2), sources)
