"""Attention residuals (full): every sublayer attends over the embedding and all earlier outputs.

    v_0 = x0,  v_i = y of the i-th sublayer
    h_k = sum_i softmax_i( w_k . RMSNorm_k(v_i) ) v_i      for site k over v_0..v_k, and at the end over all

RMSNorm_k has a learned gain, which folds into the query; there is no 1/sqrt(D).

Source: Kimi team, "Attention Residuals" (arXiv 2603.15031), section 3.1, equations 1-4; zero queries: section 5.
At init (w = 0): the uniform mean of all sources; not vanilla.
Shape letters: Q queries (sites 1..S-1, and the end); of `mixing`, K readers and J sources.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from src.bounds import PositiveFloat
from src.kernels import depth_attention
from src.kernels.depth_attention import Sources
from src.residual.base import ResidualStrategy, Site, StreamSpec
from src.source import Source


class AttentionResiduals(ResidualStrategy[Sources]):
    """Attention over all earlier outputs: 2 * D parameters a query (query, key gain), S queries; no weight decay.

    Args:
        spec: the trunk. The first site has one source and therefore no query.
        eps: added to the mean square in the key norm.
    """

    source = Source("arXiv 2603.15031, section 3.1, equations 1-4")
    may_skip: ClassVar[bool] = True
    width_readers = ("query_QD",)

    def __init__(self, spec: StreamSpec, *, eps: PositiveFloat) -> None:
        super().__init__()
        self.eps = eps
        self.query_QD = nn.Parameter(torch.zeros(spec.n_site, spec.n_embd))
        self.key_gain_QD = nn.Parameter(torch.ones(spec.n_site, spec.n_embd))

    def begin(self, x0_BTD: Tensor) -> Sources:
        return depth_attention.open(x0_BTD, self.query_QD * self.key_gain_QD, self.eps)

    def read(self, state: Sources, site: Site) -> tuple[Tensor, Sources]:
        return depth_attention.attend(state, site.index - 1), state

    def write(self, state: Sources, site: Site, y_BTD: Tensor) -> Sources:
        return depth_attention.append(state, y_BTD, site.index)

    def end(self, state: Sources) -> Tensor:
        return depth_attention.attend(state, len(self.query_QD) - 1)

    def mixing(self, sites: tuple[Site, ...], x0_BTD: Tensor, y_BTD: tuple[Tensor, ...]) -> Tensor:
        state = self.begin(x0_BTD)
        weight_KJ = x0_BTD.new_zeros(len(y_BTD) + 1, len(y_BTD) + 1)
        for k, (site, output_BTD) in enumerate(zip(sites, y_BTD, strict=True)):
            weight_KJ[k, : k + 1] = depth_attention.average_weights(state, site.index - 1)
            state = self.write(state, site, output_BTD)
        weight_KJ[-1] = depth_attention.average_weights(state, len(self.query_QD) - 1)
        return weight_KJ
