"""Learned ResFormer: blends the values of attention with those of the first layer, by one learned pair a layer.

    v_l <- scale * softmax(logit)[l] * v_1 + own[l] * v_l    in every layer except the first;   x <- x + y

The softmax is over these layers, so that they share the weight of the first values. A branch strategy: it composes
with the stream of any other strategy. This is the baseline of SATFormer; `resformer` has the fixed weights of the
first paper's code.

Source: Zhou et al., "Value Residual Learning" (arXiv 2410.17897), section 3; SkyeGunasekaran/SATFormer,
models/resformer.
At init (scale L, logits 0, own 0.5): not vanilla.
Shape letters: A attention sites except the first.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from src.residual.base import ParamGroup, StreamSpec
from src.residual.families.value_residual import ValueResidual
from src.source import QK_NORM, Source


class LearnedResFormer(ValueResidual):
    """Blended values; 2 parameters per attention site except the first and 1 more, lr x 1, with weight decay.

    Args:
        spec: the trunk, with at least two layers.
        own_weight_init: initial weight of a layer's own values (0.5 in the source).
        scale_init: initial sum of the first values' weights; None selects the number of layers, as in the source.
    """

    source = Source("arXiv 2410.17897, section 3", "SkyeGunasekaran/SATFormer", "98520bff1ff1", (QK_NORM,))

    def __init__(self, spec: StreamSpec, *, own_weight_init: float, scale_init: float | None) -> None:
        super().__init__(spec, "resformer_learned")
        self.scale = nn.Parameter(torch.tensor([float(spec.n_layer) if scale_init is None else scale_init]))
        self.logit_A = nn.Parameter(torch.zeros(len(self.rows)))
        self.own_A = nn.Parameter(torch.full((len(self.rows),), own_weight_init))

    def param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup((self.scale, self.logit_A, self.own_A), decay=True)

    def mix(self, v_BHTK: Tensor, first_BHTK: Tensor, h_BTD: Tensor, row: int) -> Tensor:
        first, own = self.scale * self.logit_A.softmax(0)[row], self.own_A[row]
        return torch.addcmul(own.to(v_BHTK.dtype) * v_BHTK, first.to(v_BHTK.dtype), first_BHTK)
