"""Parallel attention and MLP, each with its own norm.

    x <- x + Attn(N1(x)) + MLP(N2(x))

Source: GPT-NeoX (Black et al., arXiv 2204.06745), section 2.1; Pythia.
At init: not vanilla (the MLP does not read its layer's attention).
"""

from src.residual.families.shared_norm import ParallelSublayers


class ParallelTwoNorms(ParallelSublayers):
    """Parallel sublayers; no parameters, the norms are the trunk's."""

    def __init__(self, spec: object) -> None:
        super().__init__()
