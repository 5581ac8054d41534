"""x0 blending: rescale the stream and add the input embedding again, at every block.

    x <- keep[l] * x + blend[l] * x0    before block l; then x <- x + y after every sublayer

The carried stream itself is rescaled, not only what the block reads.

Source: KellerJordan/modded-nanogpt, record 2024-11-06 ("embed shortcut"); karpathy/nanochat, gpt.py.
At init (keep 1, blend 0): vanilla. In nanochat, keep learns 100 times slower than blend.
"""

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from src.bounds import NonNegativeFloat
from src.kernels.fused_blend import blend_embedding
from src.residual.base import ParamGroup, ResidualStrategy, Site, StreamSpec


class X0State(NamedTuple):
    """Stream, and the embedding that it started from."""

    x_BTD: Tensor
    x0_BTD: Tensor


class X0Blend(ResidualStrategy[X0State]):
    """Learned (keep, blend) pair for each block: 2 * n_layer parameters, no weight decay.

    Args:
        keep_init: initial weight of the running stream (1.0 in the sources).
        blend_init: initial weight of x0 (0.0 in the sources).
        keep_lr_scale: multiplies the learning rate of keep.
        blend_lr_scale: multiplies the learning rate of blend (10 with one AdamW, by the sources' ratios).
    """

    may_skip: ClassVar[bool] = True
    init_equivalent = "vanilla"

    def __init__(
        self,
        spec: StreamSpec,
        *,
        keep_init: float,
        blend_init: float,
        keep_lr_scale: NonNegativeFloat,
        blend_lr_scale: NonNegativeFloat,
    ) -> None:
        super().__init__()
        self.keep_L = nn.Parameter(torch.full((spec.n_block,), keep_init))
        self.blend_L = nn.Parameter(torch.full((spec.n_block,), blend_init))
        self.lr_scales = keep_lr_scale, blend_lr_scale

    def param_groups(self) -> Iterator[ParamGroup]:
        for param, lr_scale in zip((self.keep_L, self.blend_L), self.lr_scales, strict=True):
            yield ParamGroup((param,), lr_scale)

    def begin(self, x0_BTD: Tensor) -> X0State:
        return X0State(x_BTD=x0_BTD, x0_BTD=x0_BTD)

    def inject(self, state: X0State, site: Site, e_BTD: Tensor) -> tuple[X0State, None]:
        return state._replace(x_BTD=state.x_BTD + e_BTD), None

    def read(self, state: X0State, site: Site) -> tuple[Tensor, X0State]:
        if site.opens_block:
            keep, blend = self.keep_L[site.block], self.blend_L[site.block]
            state = state._replace(x_BTD=blend_embedding(state.x_BTD, state.x0_BTD, keep, blend))
        return state.x_BTD, state

    def write(self, state: X0State, site: Site, y_BTD: Tensor) -> X0State:
        return state._replace(x_BTD=state.x_BTD + y_BTD)

    def end(self, state: X0State) -> Tensor:
        return state.x_BTD
