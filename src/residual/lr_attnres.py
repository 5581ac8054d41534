"""LR-AttnRes: attention residuals with static queries and low-rank keys that a projection makes of each output.

    v_0 = x0,  v_i = y of the i-th sublayer;   k_i = RMS( A_i RMS(v_i) ) of R channels
    h_k = sum_i softmax_i( w_k . k_i / sqrt(R) ) v_i    for site k over v_0..v_k, and at the end over all

RMS has no gain. `lr_attnres_dynamic_query` adds the queries that depend on the input.

Source: jon123boss/LR-AttnRes @ 14784c7, LR_ATTNRES.md and model.py, with attnres_type full and lrid_key_from_value.
At init (w = 0): the uniform mean of all sources; not vanilla.
Shape letters: Q queries (sites 1..S-1, and the end), R rank, J sources.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.bounds import NonNegativeFloat, PositiveFloat, PositiveInt
from src.kernels import depth_attention
from src.residual.base import ParamGroup, ResidualStrategy, Site, StreamSpec
from src.source import Source

#: Deviations of both forms.
LR_ATTNRES_DEVIATIONS = (
    "Attention over all outputs (attnres_type full); the source recommends block means of them.",
    "A_i projects the output itself (lrid_key_from_value, an option of the source); by default the source widens the "
    "sublayers' output projections, which belong to the trunk here.",
    "The optimizer's AdamW trains the projections, which the source gives to Muon with the trunk's matrices.",
)


class LowRankSources(NamedTuple):
    """Sources and their keys."""

    v_BTD: tuple[Tensor, ...]
    key_BTR: tuple[Tensor, ...]


class LowRankAttentionResiduals(ResidualStrategy[LowRankSources]):
    """Low-rank attention over depth: (S + 1) * R * D weights with decay, S * R parameters without.

    Args:
        spec: the trunk. The first site has one source and therefore no query.
        rank: channels R of keys and queries (64 in LR_ATTNRES.md).
        projection_std: standard deviation of the initial A (0.02 in the source).
        eps: added to the mean squares (that of float32 in the source, 1.2e-7).
    """

    source = Source(
        "LR_ATTNRES.md of its repository",
        "jon123boss/LR-AttnRes",
        "14784c7b486f",
        deviations=LR_ATTNRES_DEVIATIONS,
        changed_in="0.8.0",
    )
    width_readers = ("embedding_key_RD", "key_SRD")

    def __init__(
        self, spec: StreamSpec, *, rank: PositiveInt, projection_std: NonNegativeFloat, eps: PositiveFloat
    ) -> None:
        super().__init__()
        self.projection_std, self.eps = projection_std, eps
        self.embedding_key_RD = nn.Parameter(torch.zeros(rank, spec.n_embd))
        self.key_SRD = nn.Parameter(torch.zeros(spec.n_site, rank, spec.n_embd))
        self.query_QR = nn.Parameter(torch.zeros(spec.n_site, rank))

    def reset(self) -> None:
        for weight in (self.embedding_key_RD, self.key_SRD):
            nn.init.normal_(weight, std=self.projection_std)

    def param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup((self.embedding_key_RD, self.key_SRD), decay=True)
        yield ParamGroup((self.query_QR,))

    def begin(self, x0_BTD: Tensor) -> LowRankSources:
        key_BTR = depth_attention.scores(x0_BTD, self.embedding_key_RD, self.eps)
        return LowRankSources((x0_BTD,), (normalize(key_BTR, self.eps),))

    def read(self, state: LowRankSources, site: Site) -> tuple[Tensor, LowRankSources]:
        if site.index == 0:
            return state.v_BTD[0], state
        return attend(self.query_QR[site.index - 1], *state), state

    def write(self, state: LowRankSources, site: Site, y_BTD: Tensor) -> LowRankSources:
        y_BTD = y_BTD.to(self.key_SRD.dtype)
        key_BTR = depth_attention.scores(y_BTD, self.key_SRD[site.index], self.eps)
        return LowRankSources((*state.v_BTD, y_BTD), (*state.key_BTR, normalize(key_BTR, self.eps)))

    def end(self, state: LowRankSources) -> Tensor:
        return attend(self.query_QR[-1], *state)


def normalize(key_BTR: Tensor, eps: float) -> Tensor:
    """Return keys divided by their root mean square."""
    return F.rms_norm(key_BTR, key_BTR.shape[-1:], eps=eps)


def attend(query: Tensor, v_BTD: Sequence[Tensor], key_BTR: Sequence[Tensor]) -> Tensor:
    """Return the mean of the sources [B, T, D], weighted by the softmax of query . key / sqrt(R).

    Args:
        query: of the site, [R] or one per token, [B, T, R].
        v_BTD: the sources.
        key_BTR: their keys.
    """
    scaled = query * query.shape[-1] ** -0.5
    score_BTJ = torch.stack([(scaled * key).sum(-1) for key in key_BTR], dim=-1)
    return depth_attention.sum_by_token(score_BTJ.softmax(-1), v_BTD)
