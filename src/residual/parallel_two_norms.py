"""Parallel attention and MLP, each with its own norm.

    x <- x + Attn(N1(x)) + MLP(N2(x))

Source: GPT-NeoX (Black et al., arXiv 2204.06745), section 2.1; Pythia.
At init: not vanilla (the MLP does not read its layer's attention).
"""

from typing import ClassVar, NamedTuple

from torch import Tensor

from src.residual.base import ResidualStrategy, Site


class LayerStartState(NamedTuple):
    """Stream, now and at the start of the current layer."""

    x_BTD: Tensor
    start_BTD: Tensor


class ParallelTwoNorms(ResidualStrategy[LayerStartState]):
    """Parallel sublayers; no parameters, the norms are the trunk's."""

    may_skip: ClassVar[bool] = True

    def __init__(self, spec: object) -> None:
        super().__init__()

    def begin(self, x0_BTD: Tensor) -> LayerStartState:
        return LayerStartState(x0_BTD, x0_BTD)

    def inject(self, state: LayerStartState, site: Site, e_BTD: Tensor) -> tuple[LayerStartState, None]:
        return state._replace(x_BTD=state.x_BTD + e_BTD), None

    def read(self, state: LayerStartState, site: Site) -> tuple[Tensor, LayerStartState]:
        if site.opens_block:
            state = state._replace(start_BTD=state.x_BTD)
        return state.start_BTD, state

    def write(self, state: LayerStartState, site: Site, y_BTD: Tensor) -> LayerStartState:
        return state._replace(x_BTD=state.x_BTD + y_BTD)

    def end(self, state: LayerStartState) -> Tensor:
        return state.x_BTD
