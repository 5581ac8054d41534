"""SiameseNorm in its form for language models: a HybridNorm and a Pre-LN stream with the same updates.

    attention   z = Attn(c_l x + N_y(y))                     with an RMSNorm of q, k and v per head
    MLP         x <- N_x(x);   z = MLP(N(x + N_y(y)))        N the trunk's norm
    both        x <- x + z / sqrt(2 l);   y <- y + z         x = y = x0 initially, in layer l = 1..L
    out = N_a(x) + N_b(y)

The scale c_l [D] is learned. An attention sublayer has no norm on its input.

Source: Li et al., "SiameseNorm" (arXiv 2602.08064), algorithm 1; Qwen-Applications/SiameseNorm (`hybrid_pre`).
At init (c and all gains 1): not vanilla.
Shape letters: A attention sites.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from src.bounds import PositiveFloat
from src.residual.base import Site, StreamSpec
from src.residual.families.head_norms import norm_heads
from src.residual.families.siamese_streams import Siamese, SiameseStreams
from src.source import Source


class SiameseNormLM(SiameseStreams):
    """Two streams; D + 3 * K parameters per attention site and 3 norms a layer, 2 at the end; no weight decay.

    Args:
        eps: epsilon of the norms inside attention.
    """

    source: ClassVar[Source] = Source(
        "arXiv 2602.08064, algorithm 1",
        "Qwen-Applications/SiameseNorm",
        "70efa00c6e37",
        deviations=(
            "The release keeps its configuration and optimizer in a patch that could not be read: which norms are on "
            "is taken from HybridNorm's configuration. That one decays norms and biases too; here the scale c and the "
            "norms have no weight decay, like all norms of this project.",
        ),
    )
    taps_qkv: ClassVar[bool] = True

    def __init__(self, spec: StreamSpec, *, eps: PositiveFloat) -> None:
        super().__init__()
        self.eps = eps
        self.rows = spec.rows
        self.scale_AD = nn.Parameter(torch.ones(spec.n_block, spec.n_embd))
        self.gain_A3K = nn.Parameter(torch.ones(spec.n_block, 3, spec.n_embd // spec.n_head))
        self.post_norms = nn.ModuleList(spec.norm() for _ in range(spec.n_layer + 1))  # of each MLP, and at the end
        self.pre_norms = nn.ModuleList(spec.norm() for _ in range(len(spec.rows) + 1))

    def owns_norm(self, site: Site | None) -> bool:
        return site is not None and site.kind == "attn"

    def read(self, state: Siamese, site: Site) -> tuple[Tensor, Siamese]:
        pre_BTD = self.pre_norms[self.rows[site.sublayer]](state.pre_BTD)
        if site.kind == "attn":
            return torch.addcmul(pre_BTD, self.scale_AD[site.block], state.post_BTD), state
        post_BTD = self.post_norms[site.layer](state.post_BTD)
        return post_BTD + pre_BTD, state._replace(post_BTD=post_BTD)

    def tap_qkv(
        self, state: Siamese, site: Site, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Siamese]:
        q_BHTK, k_BHTK, v_BHTK = norm_heads(self.gain_A3K[site.block], self.eps, q_BHTK, k_BHTK, v_BHTK)
        return q_BHTK, k_BHTK, v_BHTK, state

    def end(self, state: Siamese) -> Tensor:
        out_BTD: Tensor = self.post_norms[-1](state.post_BTD) + self.pre_norms[-1](state.pre_BTD)
        return out_BTD
