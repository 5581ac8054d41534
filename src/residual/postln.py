"""Post-LN: a norm on the stream after every sum.

    x <- N_k(x + F_k(x))

There is no norm before a sublayer or before the head. Post-LN needs a warm-up and a lower learning rate than Pre-LN
(at 1e-3 it is known to stay at the unigram loss).

Source: Vaswani et al., "Attention is All You Need" (arXiv 1706.03762), section 3.1.
At init: not vanilla.
"""

from typing import ClassVar

from torch import Tensor, nn

from src.residual.base import Site, StreamSpec
from src.residual.families.single_stream import SingleStream
from src.source import Source


class PostLN(SingleStream):
    """Normed stream; no parameters except one norm per sublayer, instead of the trunk's."""

    source: ClassVar[Source] = Source(
        "arXiv 1706.03762, section 3.1",
        deviations=(
            "The embedding is not multiplied by sqrt(D), as in section 3.4 of the paper, since the trunk starts the "
            "same under every strategy.",
        ),
    )

    def __init__(self, spec: StreamSpec) -> None:
        super().__init__()
        self.norms = nn.ModuleList(spec.norm() for _ in spec.rows)
        self.rows = spec.rows

    def owns_norm(self, site: Site | None) -> bool:
        return True

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        x_BTD: Tensor = self.norms[self.rows[site.sublayer]](state + y_BTD)
        return x_BTD
