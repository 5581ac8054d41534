"""Serial-parallel hybrid: the Pre-LN stream with a scaled MLP output.

    x <- x + Attn(N1(x));   x <- x + MLP(N2(x)) / sqrt(2)

Source: a submission (gpt-5.4) to MLS-Bench llm-pretrain-normalization; Imbernoulli/mls-bench-website,
public/data/annotations/llm-pretrain-normalization.json.
At init: not vanilla (the MLP's outputs are scaled).
"""

import torch
from torch import Tensor

from src.residual.base import Site
from src.residual.families.single_stream import SingleStream
from src.source import Source


class SerialParallel(SingleStream):
    """Stream with constant weights; no parameters."""

    source = Source(
        "MLS-Bench llm-pretrain-normalization, submission",
        "Imbernoulli/mls-bench-website",
        "b574219acd19",
        deviations=("The submission also has the norm partial_rms, which is an option of the axis norm here.",),
    )

    def __init__(self, spec: object) -> None:
        super().__init__()

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        return torch.add(state, y_BTD, alpha=0.5**0.5 if site.kind == "mlp" else 1.0)
