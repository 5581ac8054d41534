"""RMSNorm of queries, keys and values per head.

Source: Zhuo et al., "HybridNorm" (arXiv 2503.04598), section 3; BryceZhuo/HybridNorm (`OLMoBlock.attention`).
Shape letters: 3 query, key and value.
"""

from torch import Tensor
from torch.nn import functional as F


def norm_heads(gain_3K: Tensor, eps: float, *heads_BHTK: Tensor) -> tuple[Tensor, ...]:
    """Return queries, keys and values [B, H, T, K], each with RMS 1 per head and its own gain, in their dtype."""
    return tuple(
        F.rms_norm(x_BHTK.to(gain_K.dtype), gain_K.shape, gain_K, eps).to(x_BHTK.dtype)
        for x_BHTK, gain_K in zip(heads_BHTK, gain_3K, strict=True)
    )
