"""HybridNorm: norms inside attention, and an MLP whose skip connection starts at the normed stream.

    h = x + Attn(x)           with an RMSNorm of q, k and v per head
    u = N_l(h);  x <- u + MLP(u)

Source: Zhuo et al., "HybridNorm" (arXiv 2503.04598), section 3; BryceZhuo/HybridNorm (norms per head).
At init: not vanilla.
Shape letters: A attention sites.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.bounds import PositiveFloat
from src.residual.base import Site, StreamSpec
from src.residual.families.single_stream import SingleStream


class HybridNorm(SingleStream):
    """Norms inside attention; 3 * K parameters per attention site, no weight decay; one norm per MLP, not the trunk's.

    Args:
        eps: epsilon of the norms inside attention.
    """

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
        q, k, v = (
            F.rms_norm(x.to(gain.dtype), gain.shape, gain, self.eps).to(x.dtype)
            for x, gain in zip((q_BHTK, k_BHTK, v_BHTK), self.gain_A3K[site.block], strict=True)
        )
        return q, k, v, state

    def read(self, state: Tensor, site: Site) -> tuple[Tensor, Tensor]:
        x_BTD = self.norms[site.layer](state) if site.kind == "mlp" else state
        return x_BTD, x_BTD

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        return state + y_BTD
