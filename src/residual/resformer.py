"""ResFormer: blends the values of attention with those of the first layer, by fixed weights.

    v_l <- first_weight * v_1 + own_weight * v_l    in every layer except the first;   x <- x + y

A branch strategy: it composes with the stream of any other strategy. `resformer_learned` learns the weights.

Source: Zhou et al., "Value Residual Learning" (arXiv 2410.17897), section 3; Zcchill/Value-Residual-Learning.
At init: not vanilla (vanilla with `first_weight` 0 and `own_weight` 1).
"""

import torch
from torch import Tensor

from src.residual.base import StreamSpec
from src.residual.families.value_residual import ValueResidual
from src.source import Source


class ResFormer(ValueResidual):
    """Blended values; no parameters.

    Args:
        spec: the trunk, with at least two layers.
        first_weight: weight of the first layer's values (0.5 in the source).
        own_weight: weight of a layer's own values (0.5 in the source).
    """

    source = Source(
        "arXiv 2410.17897, section 3", "Zcchill/Value-Residual-Learning", "95652f64aba7", changed_in="0.3.0"
    )

    def __init__(self, spec: StreamSpec, *, first_weight: float, own_weight: float) -> None:
        super().__init__(spec, "resformer")
        self.first_weight, self.own_weight = first_weight, own_weight

    def mix(self, v_BHTK: Tensor, first_BHTK: Tensor, h_BTD: Tensor, row: int) -> Tensor:
        return torch.add(self.own_weight * v_BHTK, first_BHTK, alpha=self.first_weight)
