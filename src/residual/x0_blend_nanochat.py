"""x0 blending with the values of nanochat: initial weights fall with depth, keep learns 100 times slower than blend.

    x <- keep[l] * x + blend[l] * x0    before block l, as in `x0_blend`

Source: karpathy/nanochat, nanochat/gpt.py.
At init (keep 1.15 ... 1.05, blend 0.20 ... 0.05): not vanilla.
"""

from src.residual.x0_blend import X0Blend
from src.source import EMBEDDING_NORM, QK_NORM, Source


class X0BlendNanochat(X0Blend):
    """`X0Blend` as nanochat trains it; 2 * n_layer parameters."""

    source = Source(
        "nanochat (Karpathy 2025)",
        "karpathy/nanochat",
        "92d63d4e8bb4",
        deviations=(
            "The scalars have the betas of the run; nanochat gives keep (0.8, 0.95) and blend (0.96, 0.95), which"
            " optimizer.groups can set.",
            "Only the blend with x0, without the smeared embedding, value embeddings and backout, so as to compare one "
            "rule.",
            "The rates are nanochat's for its reference batch; it scales them by the root of the batch size.",
            EMBEDDING_NORM,
            QK_NORM,
        ),
    )
    init_equivalent = "other"
