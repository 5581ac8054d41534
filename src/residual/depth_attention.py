"""What the strategies that attend over depth share: static queries over a list of sources.

    score_q(v) = key_q . v / rms(v);   x = sum_j softmax_j(score_q(v_j)) v_j

Queries do not depend on activations, so a source's scores for all queries to come are one thin product when
the source appears. The mixture is a running sum over the list: nothing of shape [sources, B, T, D] exists,
and the backward keeps each source once.

Source: Kimi team, "Attention Residuals" (arXiv 2603.15031), section 4 (the two phases of inference).
Shape letters: Q queries, J sources so far.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Sources(NamedTuple):
    """All sources so far, their scores for the queries to come (the last column is the last query), the keys.

    Where every new source is met by one new query, J sources are attended by query J - 2: one source alone
    needs none.
    """

    v_BTD: tuple[Tensor, ...]
    score_BTQ: tuple[Tensor, ...]
    key_QD: Tensor


class StreamAndSources(NamedTuple):
    """A stream between two mixtures, and what it was before them."""

    x_BTD: Tensor
    sources: Sources


def scores(v_BTD: Tensor, key_QD: Tensor, eps: float) -> Tensor:
    """The scores [B, T, Q] of one source; its normalised form never exists."""
    rrms_BT1 = (v_BTD.square().mean(-1, keepdim=True) + eps).rsqrt()
    return F.linear(v_BTD, key_QD) * rrms_BT1


def mixture(values: Sequence[Tensor], logit_BTJ: Tensor) -> Tensor:
    """sum_j softmax_j(logit_BTJ) values[j], [B, T, D]."""
    weights = logit_BTJ.softmax(-1).unsqueeze(-1).unbind(-2)
    x_BTD = weights[0] * values[0]
    for weight_BT1, v_BTD in zip(weights[1:], values[1:], strict=True):
        x_BTD = torch.addcmul(x_BTD, weight_BT1, v_BTD)
    return x_BTD


def open_sources(x0_BTD: Tensor, key_QD: Tensor, eps: float) -> Sources:
    """The embedding as the first source."""
    return Sources((x0_BTD,), (scores(x0_BTD, key_QD, eps),), key_QD)


def emit(state: Sources, v_BTD: Tensor, eps: float) -> Sources:
    """One more source, for the next query and those after it."""
    v_BTD = v_BTD.to(state.key_QD.dtype)
    score_BTQ = scores(v_BTD, state.key_QD[len(state.v_BTD) - 1 :], eps)
    return Sources((*state.v_BTD, v_BTD), (*state.score_BTQ, score_BTQ), state.key_QD)


def logits(state: Sources, query: int) -> Tensor:
    """The scores [B, T, J] of all sources so far for one query."""
    column = query - len(state.key_QD)  # from the end, where all sources' columns agree
    return torch.stack([score_BTQ[..., column] for score_BTQ in state.score_BTQ], dim=-1)


def attend(state: Sources) -> Tensor:
    """The next query's mixture of all sources so far, [B, T, D]."""
    if len(state.v_BTD) == 1:
        return state.v_BTD[0]
    return mixture(state.v_BTD, logits(state, len(state.v_BTD) - 2))
