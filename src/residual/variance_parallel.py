"""Variance-controlled parallel attention and MLP: both outputs together have the variance of one.

    h = N_l(x);   x <- x + (Attn(h) + MLP(h)) / sqrt(2)

Source: a submission to MLS-Bench llm-pretrain-normalization.
At init: not vanilla (the MLP does not read its layer's attention).
"""

import torch
from torch import Tensor

from src.residual.base import Site
from src.residual.families.shared_norm import LayerStart, SharedNorm


class VarianceParallel(SharedNorm):
    """Scaled parallel sublayers; no parameters except n_layer norms, instead of the trunk's two per layer."""

    def write(self, state: LayerStart, site: Site, y_BTD: Tensor) -> LayerStart:
        return state._replace(x_BTD=torch.add(state.x_BTD, y_BTD, alpha=0.5**0.5))
