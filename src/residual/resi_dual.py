"""ResiDual: a Post-LN stream that sublayers read, and a Pre-LN stream that only the end reads.

    x <- N_k(x + y);   d <- d + scale * y       x = x0, d = scale * x0 initially;  y = F_k(x)
    out = alpha * x + N(d)

There is no norm before a sublayer, and none before the head but that of d.

Source: Xie et al., "ResiDual" (arXiv 2304.14802), section 3; microsoft/ResiDual (`ResiDualDecoderLayer`).
At init: not vanilla.
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from src.bounds import PositiveFloat
from src.residual.base import ResidualStrategy, Site, StreamSpec
from src.source import Source


class DualStreams(NamedTuple):
    """Stream that is normed after every sum (x, Post-LN), and the scaled sum of all outputs (d, Pre-LN)."""

    post_BTD: Tensor
    pre_BTD: Tensor


class ResiDual(ResidualStrategy[DualStreams]):
    """Two streams; no parameters except one norm per sublayer and one at the end, instead of the trunk's.

    Args:
        alpha: weight of the Post-LN stream at the end (1 in the source).
        scale: factor on all that is added to the Pre-LN stream, against overflow in float16 (1 in the source).
    """

    source: ClassVar[Source] = Source(
        "arXiv 2304.14802, section 3",
        "microsoft/ResiDual",
        "4fd4dc537928",
        deviations=(
            "The embedding is not multiplied by sqrt(D), since the trunk starts the same under every strategy.",
            "All norms have the epsilon of the trunk's; the source's last one has 1e-7.",
        ),
    )
    may_skip: ClassVar[bool] = True

    def __init__(self, spec: StreamSpec, *, alpha: float, scale: PositiveFloat) -> None:
        super().__init__()
        self.alpha, self.scale = alpha, scale
        self.rows = spec.rows
        self.norms = nn.ModuleList(spec.norm() for _ in range(len(spec.rows) + 1))

    def owns_norm(self, site: Site | None) -> bool:
        return True

    def begin(self, x0_BTD: Tensor) -> DualStreams:
        return DualStreams(x0_BTD, self.scale * x0_BTD)

    def inject(self, state: DualStreams, site: Site, e_BTD: Tensor) -> tuple[DualStreams, None]:
        return DualStreams(state.post_BTD + e_BTD, torch.add(state.pre_BTD, e_BTD, alpha=self.scale)), None

    def read(self, state: DualStreams, site: Site) -> tuple[Tensor, DualStreams]:
        return state.post_BTD, state

    def write(self, state: DualStreams, site: Site, y_BTD: Tensor) -> DualStreams:
        post_BTD = self.norms[self.rows[site.sublayer]](state.post_BTD + y_BTD)
        return DualStreams(post_BTD, torch.add(state.pre_BTD, y_BTD, alpha=self.scale))

    def end(self, state: DualStreams) -> Tensor:
        out_BTD: Tensor = torch.add(self.norms[-1](state.pre_BTD), state.post_BTD, alpha=self.alpha)
        return out_BTD

    def get_streams(self, state: DualStreams) -> Tensor:
        return torch.stack(state, dim=2)
