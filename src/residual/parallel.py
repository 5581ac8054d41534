"""Parallel attention and MLP with one shared norm.

    h = N_l(x);   x <- x + Attn(h) + MLP(h)

Source: GPT-J (Wang and Komatsuzaki 2021); PaLM (Chowdhery et al. 2022), section 2.
At init: not vanilla (the MLP does not read its layer's attention).
"""

from torch import Tensor

from src.residual.base import Site
from src.residual.families.shared_norm import NormedState, SharedNorm


class Parallel(SharedNorm):
    """Parallel sublayers; no parameters except n_layer norms, instead of the trunk's two per layer."""

    def write(self, state: NormedState, site: Site, y_BTD: Tensor) -> NormedState:
        return state._replace(x_BTD=state.x_BTD + y_BTD)
