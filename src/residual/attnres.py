"""Attention residuals (full): every sublayer attends over the embedding and all earlier outputs.

    v_0 = x0,  v_i = y of the i-th sublayer
    h_k = sum_i softmax_i( w_k . RMSNorm_k(v_i) ) v_i      for site k over v_0..v_k, and at the end over all

Queries are static, so a source's logits for all later sites are one thin product when it appears:
(v W^T) * rms(v)^-1 with rows w_k * g_k. The mixing is a running sum over the list of sources: nothing of
shape [sources, B, T, D] exists, and the backward keeps each source once.

Source: Kimi team, "Attention Residuals" (arXiv 2603.15031), section 3.1; K3 = no 1/sqrt(D).
At init (w = 0): the uniform mean of all sources; not vanilla.
Shape letters: Q queries (sites 1..S-1, and the end), J sources so far.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from src.residual.base import ResidualStrategy, Site, StreamSpec


class Sources(NamedTuple):
    """All sources so far, and each one's logits for every query."""

    v_BTD: tuple[Tensor, ...]
    logits_BTQ: tuple[Tensor, ...]


class AttentionResiduals(ResidualStrategy[Sources]):
    """2 * D parameters a query (a query and its key norm's gain), S queries; lr x 1, no weight decay.

    Args:
        spec: the trunk. The first site has one source, hence no query.
        eps: of the key norm.
    """

    def __init__(self, spec: StreamSpec, *, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.query_QD = nn.Parameter(torch.zeros(spec.n_site, spec.n_embd))
        self.key_gain_QD = nn.Parameter(torch.ones(spec.n_site, spec.n_embd))

    def begin(self, x0_BTD: Tensor) -> Sources:
        return self._emit(Sources((), ()), x0_BTD)

    def read(self, state: Sources, site: Site) -> tuple[Tensor, Sources]:
        if site.index == 0:
            return state.v_BTD[0], state
        return attend(state, site.index - 1), state

    def write(self, state: Sources, site: Site, y_BTD: Tensor) -> Sources:
        return self._emit(state, y_BTD)

    def end(self, state: Sources) -> Tensor:
        return attend(state, len(self.query_QD) - 1)

    def _emit(self, state: Sources, v_BTD: Tensor) -> Sources:
        wide_BTD = v_BTD.to(self.query_QD.dtype)
        rrms_BT1 = (wide_BTD.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        logits_BTQ = (wide_BTD @ (self.query_QD * self.key_gain_QD).T) * rrms_BT1
        return Sources((*state.v_BTD, wide_BTD), (*state.logits_BTQ, logits_BTQ))


def attend(state: Sources, query: int) -> Tensor:
    """The softmax mixture of all sources under one query, [B, T, D]."""
    p_BTJ = torch.stack([logits[..., query] for logits in state.logits_BTQ], dim=-1).softmax(-1)
    weights = p_BTJ.unsqueeze(-1).unbind(-2)
    x_BTD = weights[0] * state.v_BTD[0]
    for weight, v_BTD in zip(weights[1:], state.v_BTD[1:], strict=True):
        x_BTD = torch.addcmul(x_BTD, weight, v_BTD)
    return x_BTD
