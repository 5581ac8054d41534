"""SATFormer: every token and head decides how much of the first layer's values it adds to its own.

    v_l <- v_l + gate * v_1,  gate = relu(W_l h)    in every layer except the first;   x <- x + y

h is the normed input of attention. A branch strategy: it composes with the stream of any other strategy.

Source: Gunasekaran et al., "Transformers with Selective Access to Early Representations" (arXiv 2605.03953);
SkyeGunasekaran/SATFormer, models/satformer.
At init (W small and random): not vanilla.
Shape letters: A attention sites except the first, H heads.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.bounds import NonNegativeFloat
from src.residual.base import ParamGroup, StreamSpec
from src.residual.families.value_residual import ValueResidual
from src.source import QK_NORM, Source


class SATFormer(ValueResidual):
    """Gated first values; H * D parameters per attention site except the first, lr x 1, with weight decay.

    Args:
        spec: the trunk, with at least two layers.
        init_std: deviation of W at init (0.02 in the source).
    """

    source = Source("arXiv 2605.03953", "SkyeGunasekaran/SATFormer", "98520bff1ff1", (QK_NORM,))
    width_readers = ("gate_AHD",)

    def __init__(self, spec: StreamSpec, *, init_std: NonNegativeFloat) -> None:
        super().__init__(spec, "satformer")
        self.init_std = init_std
        self.gate_AHD = nn.Parameter(torch.zeros(len(self.rows), spec.n_head, spec.n_embd))

    def reset(self) -> None:
        nn.init.normal_(self.gate_AHD, std=self.init_std)

    def param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup((self.gate_AHD,), decay=True)

    def mix(self, v_BHTK: Tensor, first_BHTK: Tensor, h_BTD: Tensor, row: int) -> Tensor:
        gate_BTH = F.linear(h_BTD.to(self.gate_AHD.dtype), self.gate_AHD[row]).relu().to(v_BHTK.dtype)
        return torch.addcmul(v_BHTK, gate_BTH.transpose(1, 2).unsqueeze(-1), first_BHTK)
