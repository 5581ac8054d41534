"""HybridNorm: norms inside attention, and an MLP whose skip connection starts at the normed stream.

    h = x + Attn(x)           with an RMSNorm of q, k and v per head
    u = N_l(h);  x <- u + MLP(u)

Source: Zhuo et al., "HybridNorm" (arXiv 2503.04598), section 3; BryceZhuo/HybridNorm (dense model, norms per
head).
At init: not vanilla.
Shape letters: A attention sites.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from src.bounds import PositiveFloat
from src.residual.base import Site, StreamSpec
from src.residual.families.head_norms import norm_heads
from src.residual.families.single_stream import SingleStream
from src.source import Source


class HybridNorm(SingleStream):
    """Norms inside attention; 3 * K parameters per attention site, no weight decay; one norm per MLP, not the trunk's.

    Args:
        eps: epsilon of the norms inside attention.
    """

    source: ClassVar[Source] = Source(
        "arXiv 2503.04598, section 3",
        "BryceZhuo/HybridNorm",
        "f0dd60589c4c",
        deviations=(
            "Norms have no weight decay, like all norms of this project; the source's recipe decays the norms of every "
            "model, its Pre-LN baseline included.",
        ),
    )
    taps_qkv: ClassVar[bool] = True

    def __init__(self, spec: StreamSpec, *, eps: PositiveFloat) -> None:
        super().__init__()
        self.eps = eps
        self.gain_A3K = nn.Parameter(torch.ones(spec.n_block, 3, spec.n_embd // spec.n_head))
        self.norms = nn.ModuleList(spec.norm() for _ in range(spec.n_layer))

    def owns_norm(self, site: Site | None) -> bool:
        return site is not None

    def tap_qkv(
        self, state: Tensor, site: Site, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q_BHTK, k_BHTK, v_BHTK = norm_heads(self.gain_A3K[site.block], self.eps, q_BHTK, k_BHTK, v_BHTK)
        return q_BHTK, k_BHTK, v_BHTK, state

    def read(self, state: Tensor, site: Site) -> tuple[Tensor, Tensor]:
        x_BTD = self.norms[site.layer](state) if site.kind == "mlp" else state
        return x_BTD, x_BTD

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        return state + y_BTD
