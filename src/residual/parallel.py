"""Parallel attention and MLP with one shared norm.

    h = N_l(x);   x <- x + Attn(h) + MLP(h)

Source: GPT-J (Wang and Komatsuzaki 2021); PaLM (Chowdhery et al. 2022), section 2.
At init: not vanilla (the MLP does not read its layer's attention).
"""

from src.residual.families.shared_norm import SharedNorm


class Parallel(SharedNorm):
    """Parallel sublayers; no parameters except n_layer norms, instead of the trunk's two per layer."""
