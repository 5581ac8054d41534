"""SiameseNorm in its form for image models: a Post-LN and a Pre-LN stream; sublayers read their sum and write to both.

    x <- N_post_k(x);   z = F_k(N_k(x + N_pre_k(y)))        x = y = x0 initially
    x <- x + z / sqrt(2 l);   y <- y + z                    in layer l = 1..L
    out = N_a(x) + N_b(y)

The language models of the paper have another form, `siamesenorm_lm`.

Source: Li et al., "SiameseNorm" (arXiv 2602.08064), algorithm 1; Qwen-Applications/SiameseNorm (the DeiT port).
At init: not vanilla.
"""

from typing import ClassVar

from torch import Tensor, nn

from src.residual.base import Site, StreamSpec
from src.residual.families.siamese_streams import Siamese, SiameseStreams
from src.source import Source


class SiameseNorm(SiameseStreams):
    """Two streams; no parameters except norms: two per sublayer and two at the end, besides the trunk's."""

    source: ClassVar[Source] = Source("arXiv 2602.08064, algorithm 1", "Qwen-Applications/SiameseNorm", "70efa00c6e37")

    def __init__(self, spec: StreamSpec) -> None:
        super().__init__()
        self.rows = spec.rows
        self.post_norms = nn.ModuleList(spec.norm() for _ in range(len(spec.rows) + 1))
        self.pre_norms = nn.ModuleList(spec.norm() for _ in range(len(spec.rows) + 1))

    def read(self, state: Siamese, site: Site) -> tuple[Tensor, Siamese]:
        row = self.rows[site.sublayer]
        post_BTD = self.post_norms[row](state.post_BTD)
        return post_BTD + self.pre_norms[row](state.pre_BTD), state._replace(post_BTD=post_BTD)

    def end(self, state: Siamese) -> Tensor:
        out_BTD: Tensor = self.post_norms[-1](state.post_BTD) + self.pre_norms[-1](state.pre_BTD)
        return out_BTD
