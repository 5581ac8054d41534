"""Backout: a share of the middle of the stream is subtracted from its end.

    x <- x + y;   out = x - lambda c,   c = x after layer `layer`

Features that only middle layers use need not reach the head.

Source: karpathy/nanochat, gpt.py (lambda 0.2, layer L // 2, lr 0.2); before it
KellerJordan/modded-nanogpt, record 2025-10-04 (0.5, layer 8 of 12).
At init (lambda 0.2): not vanilla; with `backout_init` 0 it is.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from src.bounds import PositiveFloat
from src.residual.base import ParamGroup, ResidualStrategy, Site, StreamSpec
from src.source import EMBEDDING_NORM, QK_NORM, Source


class BackoutState(NamedTuple):
    """Stream, and its value after layer `layer` (x0 before that layer)."""

    x_BTD: Tensor
    mid_BTD: Tensor


class Backout(ResidualStrategy[BackoutState]):
    """One parameter, no weight decay.

    Args:
        backout_init: initial lambda (0.2 and 0.5 in the sources).
        layer: index in [0, n_layer) of the layer after which the stream is kept; None selects n_layer // 2 (the source).
        lr: peak learning rate (0.2 in the source); None: `optimizer.lr`.
    """

    source = Source(
        "nanochat (Karpathy 2025)",
        "karpathy/nanochat",
        "92d63d4e8bb4",
        deviations=(
            "The betas are those of the run; nanochat has (0.8, 0.95) for lambda, which optimizer.groups can set.",
            "Only lambda is nanochat's; its x0 blending and smeared embedding are other strategies or not part of it.",
            EMBEDDING_NORM,
            QK_NORM,
        ),
    )
    may_skip: ClassVar[bool] = True

    added_keys: ClassVar[Mapping[str, object]] = {"lr": None}

    def __init__(self, spec: StreamSpec, *, backout_init: float, layer: int | None, lr: PositiveFloat | None) -> None:
        super().__init__()
        last = spec.n_block - 1
        if layer is not None and not 0 <= layer <= last:
            raise ValueError(f"residual.layer must be between 0 and {last}, got {layer}; null selects the middle")
        self.block = min(spec.n_block // 2, last) if layer is None else layer
        self.backout = nn.Parameter(torch.full((1,), backout_init))
        self.lr = lr

    def param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup((self.backout,), lr=self.lr)

    def begin(self, x0_BTD: Tensor) -> BackoutState:
        return BackoutState(x0_BTD, x0_BTD)

    def read(self, state: BackoutState, site: Site) -> tuple[Tensor, BackoutState]:
        return state.x_BTD, state

    def write(self, state: BackoutState, site: Site, y_BTD: Tensor) -> BackoutState:
        x_BTD = state.x_BTD + y_BTD
        kept = site.closes_block and site.block == self.block
        return BackoutState(x_BTD, x_BTD if kept else state.mid_BTD)

    def end(self, state: BackoutState) -> Tensor:
        return torch.addcmul(state.x_BTD, self.backout, state.mid_BTD, value=-1)
