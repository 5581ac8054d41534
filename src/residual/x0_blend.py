"""x0 blending: rescale the stream and add the input embedding again, at every block.

    x <- keep[l] * x + blend[l] * x0    before block l; then x <- x + y after every sublayer

The carried stream itself is rescaled, not only what the block reads.

Source: KellerJordan/modded-nanogpt, record 2024-11-06 ("embed shortcut"); karpathy/nanochat, nanochat/gpt.py, whose
values are `x0_blend_nanochat`.
At init (keep 1, blend 0): vanilla.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from src.bounds import ByDepth, NonNegativeFloat, PositiveFloat
from src.kernels.fused_blend import blend_embedding
from src.residual.base import InitEquivalent, ParamGroup, ResidualStrategy, Site, StreamSpec
from src.source import EMBEDDING_NORM, QK_NORM, Source


class X0State(NamedTuple):
    """Stream, and the embedding that it started from."""

    x_BTD: Tensor
    x0_BTD: Tensor


class X0Blend(ResidualStrategy[X0State]):
    """Learned (keep, blend) pair for each block: 2 * n_layer parameters.

    Args:
        keep_init: initial weight of the running stream, a number or [first block, last block].
        blend_init: initial weight of x0, likewise.
        lr: peak learning rate (0.02 in the source); None: `optimizer.lr`.
        keep_lr_scale, blend_lr_scale: factors on `lr` (both 1 in the source).
        keep_weight_decay: weight decay of keep (0 in the source); blend has none.
    """

    source = Source(
        "modded-nanogpt record 2024-11-06",
        "KellerJordan/modded-nanogpt",
        "f411b3d346aa",
        deviations=(
            "Only the embedding shortcut of the record, without its value residual, so as to compare one rule.",
            EMBEDDING_NORM,
            QK_NORM,
        ),
    )
    may_skip: ClassVar[bool] = True
    init_equivalent: ClassVar[InitEquivalent] = "vanilla"

    added_keys: ClassVar[Mapping[str, object]] = {"lr": None, "keep_weight_decay": 0.0}

    def __init__(
        self,
        spec: StreamSpec,
        *,
        keep_init: ByDepth,
        blend_init: ByDepth,
        lr: PositiveFloat | None,
        keep_lr_scale: NonNegativeFloat,
        blend_lr_scale: NonNegativeFloat,
        keep_weight_decay: NonNegativeFloat,
    ) -> None:
        super().__init__()
        self.keep_L = nn.Parameter(interpolate(keep_init, spec.n_block))
        self.blend_L = nn.Parameter(interpolate(blend_init, spec.n_block))
        self.lr, self.lr_scales, self.keep_weight_decay = lr, (keep_lr_scale, blend_lr_scale), keep_weight_decay

    def param_groups(self) -> Iterator[ParamGroup]:
        keep_scale, blend_scale = self.lr_scales
        yield ParamGroup((self.keep_L,), keep_scale, lr=self.lr, weight_decay=self.keep_weight_decay)
        yield ParamGroup((self.blend_L,), blend_scale, lr=self.lr)

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


def interpolate(value: ByDepth, n_block: int) -> Tensor:
    """Return one value per block: the same for all, or from the first to the last of a pair on a line."""
    first, last = (value, value) if isinstance(value, int | float) else value
    return torch.linspace(first, last, n_block)
