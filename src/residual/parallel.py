"""Parallel attention and MLP with one shared norm.

    h = N_l(x);   x <- x + Attn(h) + MLP(h)

Source: GPT-J (Wang and Komatsuzaki 2021); PaLM (Chowdhery et al., arXiv 2204.02311), section 2; EleutherAI/gpt-neox,
megatron/model/transformer.py with `gpt_j_residual` and `gpt_j_tied`.
At init: not vanilla (the MLP does not read its layer's attention).
"""

from src.residual.families.shared_norm import SharedNorm
from src.source import Source


class Parallel(SharedNorm):
    """Parallel sublayers; no parameters except n_layer norms, instead of the trunk's two per layer."""

    source = Source(
        "GPT-J (Wang and Komatsuzaki 2021); PaLM (arXiv 2204.02311), section 2", "EleutherAI/gpt-neox", "ea7aefd8f8e1"
    )
