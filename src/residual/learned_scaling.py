"""Learned scaling: two scalars a block, on the carried stream and on the embedding.

    x <- Block_l(x) + (carry[l] - 1) * x + blend[l] * x0

The block itself reads the unscaled x, and x0 enters after it, unlike in `x0_blend`.

Source: MLS-Bench llm-pretrain-residual, baseline `learned_scaling`; Imbernoulli/innovation_proior,
trajectories/llm-pretrain-residual/03-learned_scaling-answer.md.
At init (carry 1, blend 0): vanilla.
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from src.kernels.fused_blend import blend_embedding
from src.residual.base import ResidualStrategy, Site, StreamSpec
from src.source import Source


class ScaledState(NamedTuple):
    """Stream that the block's sublayers read, the x that entered the block, and x0."""

    inner_BTD: Tensor
    x_BTD: Tensor
    x0_BTD: Tensor


class LearnedScaling(ResidualStrategy[ScaledState]):
    """Two scalars a block: 2 * n_layer parameters, lr x 1, no weight decay.

    Args:
        carry_init: initial weight of the stream (1.0 in the source).
        blend_init: initial weight of x0 (0.0 in the source).
    """

    source = Source(
        "MLS-Bench llm-pretrain-residual, baseline learned_scaling", "Imbernoulli/innovation_proior", "9e202f78df21"
    )
    may_skip: ClassVar[bool] = True
    init_equivalent = "vanilla"

    def __init__(self, spec: StreamSpec, *, carry_init: float, blend_init: float) -> None:
        super().__init__()
        self.carry_L = nn.Parameter(torch.full((spec.n_block,), carry_init))
        self.blend_L = nn.Parameter(torch.full((spec.n_block,), blend_init))

    def begin(self, x0_BTD: Tensor) -> ScaledState:
        return ScaledState(x0_BTD, x0_BTD, x0_BTD)

    def inject(self, state: ScaledState, site: Site, e_BTD: Tensor) -> tuple[ScaledState, None]:
        return state._replace(inner_BTD=state.inner_BTD + e_BTD), None

    def read(self, state: ScaledState, site: Site) -> tuple[Tensor, ScaledState]:
        return state.inner_BTD, state._replace(x_BTD=state.inner_BTD) if site.opens_block else state

    def write(self, state: ScaledState, site: Site, y_BTD: Tensor) -> ScaledState:
        if not site.closes_block:
            return state._replace(inner_BTD=state.inner_BTD + y_BTD)
        more, blend = self.carry_L[site.block] - 1, self.blend_L[site.block]
        inner_BTD = blend_embedding(state.x_BTD, state.x0_BTD, more, blend, state.inner_BTD, y_BTD)
        return state._replace(inner_BTD=inner_BTD)

    def end(self, state: ScaledState) -> Tensor:
        return state.inner_BTD
