"""ResFormer: blends the values of attention with those of the first layer.

    v_l <- lambda[l, 0] v_0 + lambda[l, 1] v_l    in every layer except the first;   x <- x + y

Source: Zhou et al., "Value Residual Learning" (arXiv 2410.17897), section 3; Zcchill/Value-Residual-Learning.
At init (lambda 0.5 and 0.5): not vanilla (vanilla with `first_init` 0 and `own_init` 1).
Shape letters: A attention sites except the first.
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from src.residual.base import ResidualStrategy, Site, StreamSpec


class ValueState(NamedTuple):
    """Stream, and the first layer's values once they are known."""

    x_BTD: Tensor
    v0_BHTK: tuple[Tensor, ...]


class ResFormer(ResidualStrategy[ValueState]):
    """Blended values; 2 parameters per attention site except the first, lr x 1, no weight decay.

    Args:
        spec: the trunk, with at least two layers.
        first_init: initial weight of the first layer's values (0.5 in the source).
        own_init: initial weight of a layer's own values (0.5 in the source).
    """

    may_skip: ClassVar[bool] = True
    taps_qkv: ClassVar[bool] = True

    def __init__(self, spec: StreamSpec, *, first_init: float, own_init: float) -> None:
        super().__init__()
        if spec.n_block < 2:
            raise ValueError("residual=resformer needs model.n_layer >= 2, got 1")
        self.lambda_A2 = nn.Parameter(torch.tensor([first_init, own_init]).repeat(spec.n_block - 1, 1))

    def begin(self, x0_BTD: Tensor) -> ValueState:
        return ValueState(x0_BTD, ())

    def read(self, state: ValueState, site: Site) -> tuple[Tensor, ValueState]:
        return state.x_BTD, state

    def tap_qkv(
        self, state: ValueState, site: Site, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, ValueState]:
        if not state.v0_BHTK:
            return q_BHTK, k_BHTK, v_BHTK, state._replace(v0_BHTK=(v_BHTK,))
        first, own = self.lambda_A2[site.block - 1].to(v_BHTK.dtype)
        return q_BHTK, k_BHTK, torch.addcmul(own * v_BHTK, first, state.v0_BHTK[0]), state

    def write(self, state: ValueState, site: Site, y_BTD: Tensor) -> ValueState:
        return state._replace(x_BTD=state.x_BTD + y_BTD)

    def end(self, state: ValueState) -> Tensor:
        return state.x_BTD
