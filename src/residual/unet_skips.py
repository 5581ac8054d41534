"""U-Net skips: layers of the second half add the streams of the first half, in reverse order.

    S_i = x after layer i                       in the first half
    x <- x + w_j S_{L/2-1-j} before layer L/2 + j,  j = 0..    in the second half;  x <- x + y at every site

With an odd number of layers the last one has no skip.

Source: KellerJordan/modded-nanogpt, record 2024-11-10 ("U-net pattern skip connections").
At init (w = 1): not vanilla (vanilla with `skip_init` 0).
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from src.bounds import PositiveFloat
from src.residual.base import ParamGroup, ResidualStrategy, Site, StreamSpec
from src.source import EMBEDDING_NORM, QK_NORM, Source


class UNetState(NamedTuple):
    """Stream, and the streams of the first half that have not been added yet."""

    x_BTD: Tensor
    skip_BTD: tuple[Tensor, ...]


class UNetSkips(ResidualStrategy[UNetState]):
    """Weighted skips; n_layer // 2 parameters, no weight decay.

    Args:
        spec: the trunk, with at least two layers.
        skip_init: initial weight (1 in the source).
        lr: peak learning rate (0.04 in the source); None: `optimizer.lr`.
    """

    source = Source(
        "modded-nanogpt record 2024-11-10",
        "KellerJordan/modded-nanogpt",
        "f411b3d346aa",
        deviations=(
            "Only the skips of the record, without its embedding shortcut and value residual, so as to compare one rule.",
            EMBEDDING_NORM,
            QK_NORM,
        ),
    )

    added_keys: ClassVar[Mapping[str, object]] = {"lr": None}

    def __init__(self, spec: StreamSpec, *, skip_init: float, lr: PositiveFloat | None) -> None:
        super().__init__()
        self.n_pair = spec.n_block // 2
        if self.n_pair < 1:
            raise ValueError("residual=unet_skips needs model.n_layer >= 2, got 1")
        self.w_L = nn.Parameter(torch.full((self.n_pair,), skip_init))
        self.lr = lr

    def param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup((self.w_L,), lr=self.lr)

    def begin(self, x0_BTD: Tensor) -> UNetState:
        return UNetState(x0_BTD, ())

    def read(self, state: UNetState, site: Site) -> tuple[Tensor, UNetState]:
        if site.opens_block and site.block >= self.n_pair and state.skip_BTD:
            *remaining, skip_BTD = state.skip_BTD
            x_BTD = torch.addcmul(state.x_BTD, self.w_L[site.block - self.n_pair], skip_BTD)
            state = UNetState(x_BTD, tuple(remaining))
        return state.x_BTD, state

    def write(self, state: UNetState, site: Site, y_BTD: Tensor) -> UNetState:
        x_BTD = state.x_BTD + y_BTD
        if site.closes_block and site.block < self.n_pair:
            return UNetState(x_BTD, (*state.skip_BTD, x_BTD))
        return state._replace(x_BTD=x_BTD)

    def end(self, state: UNetState) -> Tensor:
        return state.x_BTD
