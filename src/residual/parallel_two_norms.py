"""Parallel attention and MLP, each with its own norm.

    x <- x + Attn(N1(x)) + MLP(N2(x))

Source: GPT-NeoX-20B (Black et al., arXiv 2204.06745), section 2.1; EleutherAI/gpt-neox, megatron/model/transformer.py
with `gpt_j_residual` and without `gpt_j_tied`; also Pythia.
At init: not vanilla (the MLP does not read its layer's attention).
"""

from src.residual.families.shared_norm import ParallelSublayers
from src.source import Source


class ParallelTwoNorms(ParallelSublayers):
    """Parallel sublayers; no parameters, the norms are the trunk's."""

    source = Source("GPT-NeoX-20B (arXiv 2204.06745), section 2.1", "EleutherAI/gpt-neox", "ea7aefd8f8e1")

    def __init__(self, spec: object) -> None:
        super().__init__()
