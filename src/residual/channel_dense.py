"""Channel-wise dense residual: each layer adds all earlier streams, weighted per channel, to input and output.

    x_in = h_i + sum_{j<=i} h_j * W_in[i, j]
    h_{i+1} = h_i + (Block_i(x_in) - x_in) + sum_{j<=i} h_j * W_out[i, j]        h_0 = x0

Source: MLS-Bench llm-pretrain-residual, a submission as its published annotation b574219 describes it; there is no
public code.
At init (W = 0): vanilla.
Shape letters: P pairs (layer, earlier stream), layer by layer; J streams.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from src.residual.base import ResidualStrategy, Site, StreamSpec
from src.source import Source


class DenseState(NamedTuple):
    """Streams between layers, and the current layer's input side and output side."""

    h_BTD: tuple[Tensor, ...]
    inner_BTD: Tensor
    outer_BTD: Tensor


class ChannelDense(ResidualStrategy[DenseState]):
    """Dense sums over earlier streams; n_layer * (n_layer + 1) * D parameters, lr x 1, no weight decay."""

    source = Source("MLS-Bench llm-pretrain-residual, a submission as described in the published annotation b574219")
    init_equivalent = "vanilla"

    def __init__(self, spec: StreamSpec) -> None:
        super().__init__()
        self.n_streams = list(range(1, spec.n_block + 1))
        self.w_in_PD = nn.Parameter(torch.zeros(sum(self.n_streams), spec.n_embd))
        self.w_out_PD = nn.Parameter(torch.zeros(sum(self.n_streams), spec.n_embd))

    def begin(self, x0_BTD: Tensor) -> DenseState:
        return DenseState((), x0_BTD, x0_BTD)

    def inject(self, state: DenseState, site: Site, e_BTD: Tensor) -> tuple[DenseState, None]:
        return state._replace(outer_BTD=state.outer_BTD + e_BTD), None

    def read(self, state: DenseState, site: Site) -> tuple[Tensor, DenseState]:
        if site.opens_block:
            h_BTD = (*state.h_BTD, state.outer_BTD)
            visit = len(state.h_BTD)
            inner_BTD = _add_weighted(state.outer_BTD, h_BTD, torch.split(self.w_in_PD, self.n_streams)[visit])
            outer_BTD = _add_weighted(state.outer_BTD, h_BTD, torch.split(self.w_out_PD, self.n_streams)[visit])
            state = DenseState(h_BTD, inner_BTD, outer_BTD)
        return state.inner_BTD, state

    def write(self, state: DenseState, site: Site, y_BTD: Tensor) -> DenseState:
        outer_BTD = state.outer_BTD + y_BTD
        inner_BTD = outer_BTD if site.closes_block else state.inner_BTD + y_BTD
        return state._replace(inner_BTD=inner_BTD, outer_BTD=outer_BTD)

    def end(self, state: DenseState) -> Tensor:
        return state.outer_BTD


def _add_weighted(x_BTD: Tensor, h_BTD: tuple[Tensor, ...], w_JD: Tensor) -> Tensor:
    for stream_BTD, w_D in zip(h_BTD, w_JD, strict=True):
        x_BTD = torch.addcmul(x_BTD, stream_BTD, w_D)
    return x_BTD
