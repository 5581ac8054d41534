"""ProRes by whole layers: a layer reads itself whole, and what leaves it is let in over a warm-up.

    x <- x + alpha[l](t) * (Block_l(x) - x)    alpha = 1 in evaluation

The benchmark's form of `prores`; there t counted forward passes, here optimizer steps.

Source: MLS-Bench llm-pretrain-residual, baseline `prores`.
At init (t = 0, alpha 0 under the default schedule): the identity, so that the sublayers' gradients are 0 in
the first step; after the warm-up, vanilla.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from src.residual.base import Site, StreamSpec
from src.residual.families.warmup_schedules import WarmedUp


class ProResBlockState(NamedTuple):
    """What the sublayers of the layer under way read, and what leaves it."""

    inner_BTD: Tensor
    outer_BTD: Tensor


class ProResBlock(WarmedUp[ProResBlockState]):
    """No parameters.

    Args:
        spec: the trunk.
        schedule: a name in `prores_schedules.SCHEDULES` (linear in the source).
        warmup_fraction: of the run, until the last layer is whole.
        warmup_steps: the same in optimizer steps (3,000 of 13,535 in the source); exactly one of the two is
            None.
    """

    init_equivalent = "identity"

    def __init__(
        self, spec: StreamSpec, *, schedule: str, warmup_fraction: float | None, warmup_steps: int | None
    ) -> None:
        super().__init__(spec, schedule, warmup_fraction, warmup_steps)

    def begin(self, x0_BTD: Tensor) -> ProResBlockState:
        return ProResBlockState(x0_BTD, x0_BTD)

    def inject(self, state: ProResBlockState, site: Site, e_BTD: Tensor) -> tuple[ProResBlockState, None]:
        return ProResBlockState(*(x_BTD + e_BTD for x_BTD in state)), None

    def read(self, state: ProResBlockState, site: Site) -> tuple[Tensor, ProResBlockState]:
        return state.inner_BTD, state

    def write(self, state: ProResBlockState, site: Site, y_BTD: Tensor) -> ProResBlockState:
        if self.training:
            outer_BTD = torch.addcmul(state.outer_BTD, self.alpha_L[site.block], y_BTD)
        else:
            outer_BTD = state.outer_BTD + y_BTD
        return ProResBlockState(outer_BTD if site.closes_block else state.inner_BTD + y_BTD, outer_BTD)

    def end(self, state: ProResBlockState) -> Tensor:
        return state.outer_BTD
