"""LR-AttnRes with dynamic queries: low-rank depth attention whose queries depend on the newest output.

    v_0 = x0,  v_i = y of the i-th sublayer;   k_i = RMS( A_i RMS(v_i) ),  u_i = B_i RMS(v_i)   of R channels
    h_k = sum_i softmax_i( (w_k + g_k u_k) . k_i / sqrt(R) ) v_i    for site k over v_0..v_k, and at the end over all

RMS has no gain. w_k is the static query of `lr_attnres`; the scalar g_k opens the input-dependent part u_k of the newest
output. The source offers this as an ablation and warns of large gradients.

Source: jon123boss/LR-AttnRes @ 14784c7, LR_ATTNRES.md and model.py, with attnres_type full, lrid_key_from_value,
lrid_input_dependent_query and lrid_query_from_value. Kimi team, "Attention Residuals" (arXiv 2603.15031), section 5.3,
reports an input-dependent query too, without its equation.
At init (w = 0, g = 0): the uniform mean of all sources; not vanilla.
Shape letters: Q queries (sites 1..S-1, and the end), R rank, P = 2 R (A above B).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from src.bounds import NonNegativeFloat, PositiveFloat, PositiveInt
from src.kernels import depth_attention
from src.residual.base import ParamGroup, ResidualStrategy, Site, StreamSpec
from src.residual.lr_attnres import LR_ATTNRES_DEVIATIONS, attend, normalize
from src.source import Source


class QueryingSources(NamedTuple):
    """Sources, their keys, and the query of the newest (None of the embedding)."""

    v_BTD: tuple[Tensor, ...]
    key_BTR: tuple[Tensor, ...]
    query_BTR: Tensor | None


class DynamicQueryLowRankAttentionResiduals(ResidualStrategy[QueryingSources]):
    """Low-rank attention over depth: (2 S + 1) * R * D weights with decay, S * (R + 1) parameters without.

    Args:
        spec: the trunk. The first site has one source and therefore no query.
        rank: channels R of keys and queries (64 in LR_ATTNRES.md).
        projection_std: standard deviation of the initial A and B (0.02 in the source).
        eps: added to the mean squares (that of float32 in the source, 1.2e-7).
    """

    source = Source(
        "LR_ATTNRES.md of its repository, `lrid_input_dependent_query`",
        "jon123boss/LR-AttnRes",
        "14784c7b486f",
        deviations=LR_ATTNRES_DEVIATIONS,
    )
    width_readers = ("embedding_key_RD", "key_query_SPD")

    def __init__(
        self, spec: StreamSpec, *, rank: PositiveInt, projection_std: NonNegativeFloat, eps: PositiveFloat
    ) -> None:
        super().__init__()
        self.projection_std, self.eps = projection_std, eps
        self.embedding_key_RD = nn.Parameter(torch.zeros(rank, spec.n_embd))
        self.key_query_SPD = nn.Parameter(torch.zeros(spec.n_site, 2 * rank, spec.n_embd))
        self.query_QR = nn.Parameter(torch.zeros(spec.n_site, rank))
        self.gate_Q = nn.Parameter(torch.zeros(spec.n_site))

    def reset(self) -> None:
        for weight in (self.embedding_key_RD, self.key_query_SPD):
            nn.init.normal_(weight, std=self.projection_std)

    def param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup((self.embedding_key_RD, self.key_query_SPD), decay=True)
        yield ParamGroup((self.query_QR, self.gate_Q))

    def begin(self, x0_BTD: Tensor) -> QueryingSources:
        key_BTR = depth_attention.scores(x0_BTD, self.embedding_key_RD, self.eps)
        return QueryingSources((x0_BTD,), (normalize(key_BTR, self.eps),), None)

    def read(self, state: QueryingSources, site: Site) -> tuple[Tensor, QueryingSources]:
        return self._attend(state, site.index - 1), state

    def write(self, state: QueryingSources, site: Site, y_BTD: Tensor) -> QueryingSources:
        y_BTD = y_BTD.to(self.key_query_SPD.dtype)
        both_BTP = depth_attention.scores(y_BTD, self.key_query_SPD[site.index], self.eps)
        key_BTR, query_BTR = both_BTP.chunk(2, dim=-1)
        return QueryingSources((*state.v_BTD, y_BTD), (*state.key_BTR, normalize(key_BTR, self.eps)), query_BTR)

    def end(self, state: QueryingSources) -> Tensor:
        return self._attend(state, len(self.gate_Q) - 1)

    def _attend(self, state: QueryingSources, query: int) -> Tensor:
        if state.query_BTR is None:
            return state.v_BTD[0]
        query_BTR = torch.addcmul(self.query_QR[query], self.gate_Q[query], state.query_BTR)
        return attend(query_BTR, state.v_BTD, state.key_BTR)
