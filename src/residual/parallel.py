"""Parallel attention and MLP behind one norm.

    h = N_l(x);   x <- x + Attn(h) + MLP(h)

Source: GPT-J (Wang and Komatsuzaki 2021); PaLM (Chowdhery et al. 2022), section 2.
At init: not vanilla (the MLP does not see its layer's attention).
"""

from torch import Tensor

from src.residual.base import Site
from src.residual.families.shared_norm import NormedState, OneNormPerLayer


class Parallel(OneNormPerLayer):
    """No parameters besides n_layer norms, in place of the trunk's two a layer."""

    def write(self, state: NormedState, site: Site, y_BTD: Tensor) -> NormedState:
        return state._replace(x_BTD=state.x_BTD + y_BTD)
