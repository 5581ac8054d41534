"""Base class of SiameseNorm: two streams that receive the same outputs, one of them normed, the other not.

    x = y = x0;   x <- x + z / sqrt(2 l);   y <- y + z      for the output z of a sublayer in layer l = 1..L

Subclasses define what a sublayer reads, which may norm x, and the end.

Source: Li et al., "SiameseNorm" (arXiv 2602.08064), algorithm 1; Qwen-Applications/SiameseNorm.
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from src.residual.base import ResidualStrategy, Site


class Siamese(NamedTuple):
    """Stream that is normed in the flow (x, Post-LN), and stream that is not (y, Pre-LN)."""

    post_BTD: Tensor
    pre_BTD: Tensor


class SiameseStreams(ResidualStrategy[Siamese]):
    """Two streams from the embedding, written by every sublayer."""

    may_skip: ClassVar[bool] = True

    def begin(self, x0_BTD: Tensor) -> Siamese:
        return Siamese(x0_BTD, x0_BTD)

    def inject(self, state: Siamese, site: Site, e_BTD: Tensor) -> tuple[Siamese, None]:
        return Siamese(*(x_BTD + e_BTD for x_BTD in state)), None

    def write(self, state: Siamese, site: Site, y_BTD: Tensor) -> Siamese:
        scale = (2 * (site.block + 1)) ** -0.5
        return Siamese(torch.add(state.post_BTD, y_BTD, alpha=scale), state.pre_BTD + y_BTD)

    def get_streams(self, state: Siamese) -> Tensor:
        return torch.stack(state, dim=2)
