"""Base classes of parallel strategies: both sublayers of a layer read the same h, from the start of the layer.

    h = x or, with a shared norm, N_l(x) at the start of layer l;   x <- x + y

Source: GPT-J (Wang and Komatsuzaki 2021); PaLM (Chowdhery et al. 2022), section 2.
"""

from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from src.residual.base import ResidualStrategy, Site, StreamSpec


class LayerStart(NamedTuple):
    """Stream, and what the sublayers of the current layer read."""

    x_BTD: Tensor
    h_BTD: Tensor


class ParallelSublayers(ResidualStrategy[LayerStart]):
    """Strategy whose sublayers read the stream at the start of their layer; the norms are the trunk's."""

    may_skip: ClassVar[bool] = True

    def begin(self, x0_BTD: Tensor) -> LayerStart:
        return LayerStart(x0_BTD, x0_BTD)

    def inject(self, state: LayerStart, site: Site, e_BTD: Tensor) -> tuple[LayerStart, None]:
        return state._replace(x_BTD=state.x_BTD + e_BTD), None

    def read(self, state: LayerStart, site: Site) -> tuple[Tensor, LayerStart]:
        if site.opens_block:
            state = state._replace(h_BTD=self.start_layer(state.x_BTD, site.layer))
        return state.h_BTD, state

    def start_layer(self, x_BTD: Tensor, layer: int) -> Tensor:
        """Return h [B, T, D] for the stream at the start of `layer`."""
        return x_BTD

    def write(self, state: LayerStart, site: Site, y_BTD: Tensor) -> LayerStart:
        return state._replace(x_BTD=state.x_BTD + y_BTD)

    def end(self, state: LayerStart) -> Tensor:
        return state.x_BTD


class SharedNorm(ParallelSublayers):
    """Parallel sublayers with one norm per layer, which the strategy builds."""

    def __init__(self, spec: StreamSpec) -> None:
        super().__init__()
        self.norms = nn.ModuleList(spec.norm() for _ in range(spec.n_layer))

    def owns_norm(self, site: Site | None) -> bool:
        return site is not None

    def start_layer(self, x_BTD: Tensor, layer: int) -> Tensor:
        h_BTD: Tensor = self.norms[layer](x_BTD)
        return h_BTD
