"""Variance-controlled parallel attention and MLP: both outputs together have the variance of one.

    h = N_l(x);   x <- x + (Attn(h) + MLP(h)) / sqrt(2)

Source: a submission to MLS-Bench llm-pretrain-normalization, known from its transcript; no repository has its code.
At init: not vanilla (the MLP does not read its layer's attention).
"""

import torch
from torch import Tensor

from src.residual.base import Site
from src.residual.families.shared_norm import LayerStart, SharedNorm
from src.source import Source


class VarianceParallel(SharedNorm):
    """Scaled parallel sublayers; no parameters except n_layer norms, instead of the trunk's two per layer."""

    source = Source(
        "MLS-Bench llm-pretrain-normalization, submission",
        deviations=("The submission also has the norm partial_rms, which is an option of the axis norm here.",),
    )

    def write(self, state: LayerStart, site: Site, y_BTD: Tensor) -> LayerStart:
        return state._replace(x_BTD=torch.add(state.x_BTD, y_BTD, alpha=0.5**0.5))
