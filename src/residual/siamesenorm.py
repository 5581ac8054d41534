"""SiameseNorm: a Post-LN and a Pre-LN stream; sublayers read their sum and write to both.

    x <- N_post_k(x);   z = F_k(N_k(x + N_pre_k(y)))        x = y = x0 initially
    x <- x + z / sqrt(2 l);   y <- y + z                    in layer l = 1..L
    out = N_a(x) + N_b(y)

Source: Li et al., SiameseNorm (Qwen-Applications/SiameseNorm, the DeiT port; only x is scaled).
At init: not vanilla.
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from src.residual.base import ResidualStrategy, Site, StreamSpec


class Siamese(NamedTuple):
    """Stream that is normed at every site, and stream that is not."""

    post_BTD: Tensor
    pre_BTD: Tensor


class SiameseNorm(ResidualStrategy[Siamese]):
    """Two streams; no parameters except norms: two per sublayer and two at the end, besides the trunk's."""

    may_skip: ClassVar[bool] = True

    def __init__(self, spec: StreamSpec) -> None:
        super().__init__()
        self.rows = spec.rows
        self.post_norms = nn.ModuleList(spec.norm() for _ in range(len(spec.rows) + 1))
        self.pre_norms = nn.ModuleList(spec.norm() for _ in range(len(spec.rows) + 1))

    def begin(self, x0_BTD: Tensor) -> Siamese:
        return Siamese(x0_BTD, x0_BTD)

    def inject(self, state: Siamese, site: Site, e_BTD: Tensor) -> tuple[Siamese, None]:
        return Siamese(*(x_BTD + e_BTD for x_BTD in state)), None

    def read(self, state: Siamese, site: Site) -> tuple[Tensor, Siamese]:
        row = self.rows[site.sublayer]
        post_BTD = self.post_norms[row](state.post_BTD)
        return post_BTD + self.pre_norms[row](state.pre_BTD), state._replace(post_BTD=post_BTD)

    def write(self, state: Siamese, site: Site, y_BTD: Tensor) -> Siamese:
        scale = (2 * (site.block + 1)) ** -0.5
        return Siamese(torch.add(state.post_BTD, y_BTD, alpha=scale), state.pre_BTD + y_BTD)

    def end(self, state: Siamese) -> Tensor:
        out_BTD: Tensor = self.post_norms[-1](state.post_BTD) + self.pre_norms[-1](state.pre_BTD)
        return out_BTD
