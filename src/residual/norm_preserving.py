"""Norm-preserving residual: each layer learns the weights of stream and branch, whose squares sum to 1.

    x <- sqrt(1 - beta_l / L) x + sqrt(beta_l / L) y,   beta_l = softplus(theta_l)       both sublayers of layer l

A sum of uncorrelated vectors of one norm keeps that norm.

Source: marin-community/marin, issue 8860 and experiments/grug/moe_norm_preserving_residual; a negative result there:
1.018 times the baseline's effective speed at 512 channels, 0.950 times at 768.
At init (theta 0, beta = ln 2): not vanilla.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.residual.base import Site, StreamSpec
from src.residual.families.single_stream import SingleStream
from src.source import EMBEDDING_NORM, Source

#: Largest share of the branch, as in the source: sqrt(1 - share) has no finite gradient at 1.
MAX_SHARE = 1 - 1e-6


class NormPreserving(SingleStream):
    """Stream with one scalar per layer; n_layer parameters, lr x 1, no weight decay.

    Args:
        theta_init: initial theta of every layer (0 in the source).
    """

    source: ClassVar[Source] = Source(
        "marin-community/marin issue 8860",
        "marin-community/marin",
        "959fdb2b22b9",
        deviations=(
            EMBEDDING_NORM,
            "The trunk's output projections start smaller by 1/sqrt(2 L), since the trunk starts the same under every "
            "strategy; the source's start like all other matrices.",
        ),
    )
    has_depth_rule = True

    def __init__(self, spec: StreamSpec, *, theta_init: float) -> None:
        super().__init__()
        self.theta_L = nn.Parameter(torch.full((spec.n_block,), theta_init))

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        share = (F.softplus(self.theta_L[site.block]) / len(self.theta_L)).clamp(max=MAX_SHARE)
        return torch.addcmul((1 - share).sqrt() * state, share.sqrt(), y_BTD)
