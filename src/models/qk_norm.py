"""QK-norm: normalizes queries and keys per head, so that attention scores are bounded whatever the projections do.

    rms      q <- q / rms(q), k <- k / rms(k)                 over the K channels of a head, no parameters
    layer    q <- LN(q) * g_q, k <- LN(k) * g_k               gains of K channels, shared by the heads; no bias

It follows the projection and a strategy's `tap_qkv`, and precedes the rotation, which changes no root mean square.

Source: KellerJordan/modded-nanogpt @ f411b3d, train_gpt.py, and karpathy/nanochat @ 92d63d4, nanochat/gpt.py, which
multiplies both by a further 1.2, `model.qk_gain` (rms); Dehghani et al., "Scaling Vision Transformers to 22 Billion
Parameters" (arXiv 2302.05442), section 2 (layer).
Shape letters: B batch, H heads, T tokens, K head size.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.kernels.autocast import suspend_autocast

#: Epsilon of the LayerNorm, flax's default, with which arXiv 2302.05442 was computed.
LAYER_EPS = 1e-6


class QKNorm(nn.Module):
    """RMS norm of queries and keys without parameters."""

    def forward(self, q_BHTK: Tensor, k_BHTK: Tensor) -> tuple[Tensor, Tensor]:
        """Normalize in float32 or wider, outside autocast; the dtypes are kept."""
        with suspend_autocast(q_BHTK):
            q, k = (self.normalize(i, _widen(x)).to(x.dtype) for i, x in enumerate((q_BHTK, k_BHTK)))
        return q, k

    def normalize(self, index: int, x_BHTK: Tensor) -> Tensor:
        """Return the normed queries (index 0) or keys (index 1); eps is the smallest of the dtype, as in the source."""
        return F.rms_norm(x_BHTK, x_BHTK.shape[-1:])


class LayerQKNorm(QKNorm):
    """LayerNorm of queries and keys with a gain for each; 2 * K parameters."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.q_gain_K = nn.Parameter(torch.ones(size))
        self.k_gain_K = nn.Parameter(torch.ones(size))

    def normalize(self, index: int, x_BHTK: Tensor) -> Tensor:
        gain_K = (self.q_gain_K, self.k_gain_K)[index].to(x_BHTK.dtype)  # sharded weights are gathered in bf16
        return F.layer_norm(x_BHTK, gain_K.shape, gain_K, eps=LAYER_EPS)


def build_qk_norm(kind: str, size: int) -> QKNorm | None:
    """Build the QK-norm of one attention sublayer with heads of `size` channels; None for `none`."""
    if kind == "none":
        return None
    return LayerQKNorm(size) if kind == "layer" else QKNorm()


def _widen(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
