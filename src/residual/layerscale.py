"""LayerScale: a learned vector on every branch, small at the start.

    x <- x + scale[k] * F_k(N_k(x))        scale[k] in R^D

Source: Touvron et al., "Going deeper with Image Transformers" (CaiT, arXiv 2103.17239), section 2; their
initial values: 0.1 up to 18 layers, 1e-5 up to 24, 1e-6 beyond.
At init (scale 0.1): a damped Pre-LN stream, not vanilla.
"""

import torch
from torch import Tensor, nn

from src.residual.base import ResidualStrategy, Site, StreamSpec


class LayerScale(ResidualStrategy[Tensor]):
    """D scalars a site, lr x 1, no weight decay.

    Args:
        spec: the trunk.
        scale_init: initial value of every scale.
    """

    def __init__(self, spec: StreamSpec, *, scale_init: float) -> None:
        super().__init__()
        self.scale_SD = nn.Parameter(torch.full((spec.n_site, spec.n_embd), scale_init))

    def begin(self, x0_BTD: Tensor) -> Tensor:
        return x0_BTD

    def read(self, state: Tensor, site: Site) -> tuple[Tensor, Tensor]:
        return state, state

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        return state + self.scale_SD[site.index] * y_BTD

    def end(self, state: Tensor) -> Tensor:
        return state
