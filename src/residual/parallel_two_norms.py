"""Parallel attention and MLP, each behind its own norm.

    x <- x + Attn(N1(x)) + MLP(N2(x))

Source: GPT-NeoX (Black et al., arXiv 2204.06745), section 2.1; Pythia.
At init: not vanilla (the MLP does not see its layer's attention).
"""

from typing import ClassVar, NamedTuple

from torch import Tensor

from src.residual.base import ResidualStrategy, Site


class OpenedState(NamedTuple):
    """The stream, and what it was as the layer under way opened."""

    x_BTD: Tensor
    opened_BTD: Tensor


class ParallelTwoNorms(ResidualStrategy[OpenedState]):
    """No parameters; the norms are the trunk's."""

    may_skip: ClassVar[bool] = True

    def __init__(self, spec: object) -> None:
        super().__init__()

    def begin(self, x0_BTD: Tensor) -> OpenedState:
        return OpenedState(x0_BTD, x0_BTD)

    def inject(self, state: OpenedState, site: Site, e_BTD: Tensor) -> tuple[OpenedState, None]:
        return state._replace(x_BTD=state.x_BTD + e_BTD), None

    def read(self, state: OpenedState, site: Site) -> tuple[Tensor, OpenedState]:
        if site.opens_block:
            state = state._replace(opened_BTD=state.x_BTD)
        return state.opened_BTD, state

    def write(self, state: OpenedState, site: Site, y_BTD: Tensor) -> OpenedState:
        return state._replace(x_BTD=state.x_BTD + y_BTD)

    def end(self, state: OpenedState) -> Tensor:
        return state.x_BTD
