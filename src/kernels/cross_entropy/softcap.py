"""Soft cap of logits: bounds them smoothly.

    l = c tanh(z / c),   dl/dz = 1 - (l / c)^2

Source: Gemma 2 (arXiv 2408.00118), section 2 (c = 30); karpathy/nanochat @ 92d63d4, nanochat/gpt.py (c = 15).
Shape letters: C rows, V vocabulary.
"""

from torch import Tensor


def cap_logits(logits_V: Tensor, softcap: float | None) -> Tensor:
    """Return the capped logits, computed in float32 or wider; None: the logits themselves."""
    if softcap is None:
        return logits_V
    wide_V = logits_V if logits_V.dtype.itemsize >= 4 else logits_V.float()
    return softcap * (wide_V / softcap).tanh()


def cap_logits_(logits_CV: Tensor, softcap: float | None) -> Tensor:
    """Cap logits in place, and return them."""
    return logits_CV if softcap is None else logits_CV.div_(softcap).tanh_().mul_(softcap)


def compute_slope(capped_CV: Tensor, softcap: float) -> Tensor:
    """Return the derivative of capped logits by those before the cap, in new memory."""
    return (capped_CV / softcap).square_().neg_().add_(1)
