"""ProRes per layer: the weight of a whole layer's output grows from 0 to 1 over a warm-up.

    x <- x + alpha[l](t) * (Block_l(x) - x)    alpha = 1 in evaluation

The benchmark's variant of `prores`; its t counts forward passes, here it counts optimizer steps. The sublayers of a
layer read the layer's own unscaled outputs, so it has a stream of its own and is not a branch strategy.

Source: MLS-Bench llm-pretrain-residual, baseline `prores`; Imbernoulli/innovation_proior @ 9e202f7,
trajectories/llm-pretrain-residual/02-prores-answer.md.
At init (t = 0, alpha 0 with the default schedule): the identity, so sublayers have zero gradients in the first
step; vanilla after the warm-up.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from src.residual.base import Site
from src.residual.families.warmup_schedules import WarmupStrategy
from src.source import Source


class ProResBlockState(NamedTuple):
    """Input of the current layer's sublayers, and the stream behind the layer."""

    inner_BTD: Tensor
    outer_BTD: Tensor


class ProResBlock(WarmupStrategy[ProResBlockState]):
    """Scheduled layer weights; no parameters.

    Args:
        schedule: key of `warmup_schedules.SCHEDULES` (linear in the source).
        warmup_fraction: share of the run until every weight is 1.
        warmup_steps: the same in optimizer steps (3,000 of 13,535 in the source); exactly one of the two must be
            None.
    """

    source = Source(
        "MLS-Bench llm-pretrain-residual, baseline `prores`",
        "Imbernoulli/innovation_proior",
        "9e202f78df21",
        deviations=(
            "alpha is 0 in the first step, as the source's text has it; its code counts a forward pass before its use.",
            "The warm-up counts optimizer steps, not forward passes, so that gradient accumulation does not shorten it.",
        ),
    )
    init_equivalent = "identity"

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
