"""Delta attention: base of strategies whose sites read a plain stream, plus attention over what was added to it.

    input_k = x + gate_k * sum_i softmax_i( w_k . RMSNorm_k(v_i) ) v_i;    x <- x + y

RMSNorm_k has a learned gain, which folds into the query. There is no mixture at the end: the stream is the output.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from src.kernels import depth_attention
from src.kernels.depth_attention import Sources
from src.residual.base import ResidualStrategy, Site, StreamSpec


class RoutedDeltas(NamedTuple):
    """Stream, and the outputs or sums of outputs that were added to it."""

    x_BTD: Tensor
    sources: Sources


class DeltaAttention(ResidualStrategy[RoutedDeltas]):
    """Base with 2 * D parameters a query (query, key gain).

    Args:
        n_query: number of queries, one for each site that meets two sources or more.
        eps: added to the mean square in the key norm.
    """

    width_readers = ("query_QD",)

    def __init__(self, spec: StreamSpec, *, n_query: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.last_site = spec.n_site - 1
        self.query_QD = nn.Parameter(torch.zeros(n_query, spec.n_embd))
        self.key_gain_QD = nn.Parameter(torch.ones(n_query, spec.n_embd))

    def begin(self, x0_BTD: Tensor) -> RoutedDeltas:
        key_QD = self.query_QD * self.key_gain_QD
        return RoutedDeltas(x0_BTD, depth_attention.open(x0_BTD, key_QD, self.eps))

    def write(self, state: RoutedDeltas, site: Site, y_BTD: Tensor) -> RoutedDeltas:
        x_BTD = state.x_BTD + y_BTD
        if site.index == self.last_site:  # no site reads after it
            return state._replace(x_BTD=x_BTD)
        return RoutedDeltas(x_BTD, depth_attention.append(state.sources, y_BTD, site.index))

    def end(self, state: RoutedDeltas) -> Tensor:
        return state.x_BTD
