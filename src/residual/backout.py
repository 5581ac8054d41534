"""Backout: the head is given the stream less what it was halfway up.

    x <- x + y;   out = x - lambda c,   c = x after layer `layer`

What serves the middle of the model need not reach the head.

Source: karpathy/nanochat, gpt.py (lambda 0.2, layer L // 2); KellerJordan/modded-nanogpt (0.5, layer 7 of 11).
At init (lambda 0.2): not vanilla; with `backout_init` 0 it is.
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from src.residual.base import ResidualStrategy, Site, StreamSpec


class BackoutState(NamedTuple):
    """The stream, and what it was after the layer that is backed out (the embedding before that)."""

    x_BTD: Tensor
    mid_BTD: Tensor


class Backout(ResidualStrategy[BackoutState]):
    """One parameter, lr x 1, no weight decay.

    Args:
        spec: the trunk.
        backout_init: initial lambda (0.2 and 0.5 in the sources).
        layer: the layer after which the stream is kept, from 0; None takes n_layer // 2.

    Raises:
        ValueError: a layer that the model does not have.
    """

    may_skip: ClassVar[bool] = True

    def __init__(self, spec: StreamSpec, *, backout_init: float, layer: int | None) -> None:
        super().__init__()
        last = spec.n_block - 1
        if layer is not None and not 0 <= layer <= last:
            raise ValueError(f"residual.layer must be between 0 and {last}, got {layer}; null takes the middle")
        self.block = min(spec.n_block // 2, last) if layer is None else layer
        self.backout = nn.Parameter(torch.full((1,), backout_init))

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
