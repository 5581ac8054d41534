"""KEEL: Post-LN with a stream of weight alpha and a norm on the input of every branch.

    x <- N_post_k(alpha x + F_k(N_k(x))),   alpha = S, the number of sublayers
    x <- x + F_1(N_1(x))                    first attention
    x <- N_post_2(x + F_2(N_2(x)))          first MLP

There is no norm before the head besides the last N_post. The source's norms are RMSNorms with gains, without biases.

Source: Chen and Wei, "Post-LayerNorm Is Back" (arXiv 2601.19895), equation 8 and section 3.1.
At init: not vanilla.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from src.residual.base import Site, StreamSpec
from src.residual.families.single_stream import SingleStream
from src.source import Source

Alpha = Annotated[float, Field(ge=1)]


class Keel(SingleStream):
    """Up-weighted Post-LN stream; no parameters except a norm per sublayer without the first, besides the trunk's.

    Args:
        alpha: weight of the stream; None: the number of sublayers visited, as in the source, which calls it tunable for
            small models.
    """

    source: ClassVar[Source] = Source("arXiv 2601.19895, equation 8 and section 3.1")
    has_depth_rule = True

    def __init__(self, spec: StreamSpec, *, alpha: Alpha | None) -> None:
        super().__init__()
        self.alpha = spec.n_site if alpha is None else alpha
        self.rows = spec.rows
        self.norms = nn.ModuleList(spec.norm() for _ in range(len(spec.rows) - 1))

    def owns_norm(self, site: Site | None) -> bool:
        return site is None

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        row = self.rows[site.sublayer]
        x_BTD = torch.add(y_BTD, state, alpha=1.0 if row < 2 else self.alpha)
        if row > 0:
            x_BTD = self.norms[row - 1](x_BTD)
        return x_BTD
