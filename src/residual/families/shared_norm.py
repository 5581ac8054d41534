"""What the parallel strategies with one norm a layer share: both sublayers read the layer's normed input.

    h = N_l(x) as the layer opens; attention and MLP are both given h

Source: GPT-J (Wang and Komatsuzaki 2021); PaLM (Chowdhery et al. 2022), section 2.
"""

from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from src.residual.base import ResidualStrategy, Site, StreamSpec


class NormedState(NamedTuple):
    """The stream, and its normed form as the layer under way opened."""

    x_BTD: Tensor
    h_BTD: Tensor


class OneNormPerLayer(ResidualStrategy[NormedState]):
    """Places the norms of all branches, n_layer of them; subclasses say how an output is added."""

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
