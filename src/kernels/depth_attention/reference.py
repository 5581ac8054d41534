"""Reference of depth attention: its definition in PyTorch, which is also the fallback.

    score_q(v) = key_q . v / rms(v) + bias_qv;   x_q = sum_j softmax_j(score_q(v_j)) v_j

Queries do not depend on activations: a key is a parameter. Sources v_j are the embedding and what sublayers return.

Source: Kimi team, "Attention Residuals" (arXiv 2603.15031), section 3.1.
Shape letters: Q queries, J sources.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def attend(values: Sequence[Tensor], key_D: Tensor, eps: float, bias_J: Tensor | None = None) -> Tensor:
    """Return one query's mixture [B, T, D] of J sources [B, T, D]."""
    score_BTJ = torch.cat([scores(v_BTD, key_D[None], eps) for v_BTD in values], dim=-1)
    if bias_J is not None:
        score_BTJ = score_BTJ + bias_J
    return sum_by_token(score_BTJ.softmax(-1), values)


def scores(v_BTD: Tensor, key_QD: Tensor, eps: float) -> Tensor:
    """Return the scores [B, T, Q] of one source; its normalized form is never stored."""
    return F.linear(v_BTD, key_QD) * inverse_rms(v_BTD, eps)


def inverse_rms(v_BTD: Tensor, eps: float) -> Tensor:
    """Return 1 / rms of each row, [B, T, 1]."""
    norm_BT1: Tensor = torch.linalg.vector_norm(v_BTD, dim=-1, keepdim=True)
    return (norm_BT1.square() / v_BTD.shape[-1] + eps).rsqrt()


def sum_by_token(weight_BTJ: Tensor, values: Sequence[Tensor]) -> Tensor:
    """Return sum_j weight_BTJ[..., j] v_j, [B, T, D]; there may be more dimensions before the last, as for heads."""
    return weighted_sum(weight_BTJ.unsqueeze(-1).unbind(-2), values)


def weighted_sum(weights: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """Return sum_j w_j v_j, [B, T, D], added up in one buffer: [J, B, T, D] does not exist.

    Args:
        weights: J scalars, or J tensors [B, T, 1].
        values: J sources [B, T, D].
    """
    x_BTD = weights[0] * values[0]
    for weight, v_BTD in zip(weights[1:], values[1:], strict=True):
        x_BTD.addcmul_(weight, v_BTD)
    return x_BTD
