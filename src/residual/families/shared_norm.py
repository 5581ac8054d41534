"""Base class of parallel strategies with one norm per layer: both sublayers read the layer's normed input.

    h = N_l(x) at the start of layer l; attention and MLP both read h

Source: GPT-J (Wang and Komatsuzaki 2021); PaLM (Chowdhery et al. 2022), section 2.
"""

from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from src.residual.base import ResidualStrategy, Site, StreamSpec


class NormedState(NamedTuple):
    """Stream, and the normed stream at the start of the current layer."""

    x_BTD: Tensor
    h_BTD: Tensor


class SharedNorm(ResidualStrategy[NormedState]):
    """Strategy that builds n_layer norms itself; subclasses define `write`."""

    may_skip: ClassVar[bool] = True

    def __init__(self, spec: StreamSpec) -> None:
        super().__init__()
        self.norms = nn.ModuleList(spec.norm() for _ in range(spec.n_layer))

    def owns_norm(self, site: Site | None) -> bool:
        return site is not None

    def begin(self, x0_BTD: Tensor) -> NormedState:
        return NormedState(x0_BTD, x0_BTD)

    def inject(self, state: NormedState, site: Site, e_BTD: Tensor) -> tuple[NormedState, None]:
        return state._replace(x_BTD=state.x_BTD + e_BTD), None

    def read(self, state: NormedState, site: Site) -> tuple[Tensor, NormedState]:
        if site.opens_block:
            state = state._replace(h_BTD=self.norms[site.layer](state.x_BTD))
        return state.h_BTD, state

    def end(self, state: NormedState) -> Tensor:
        return state.x_BTD
