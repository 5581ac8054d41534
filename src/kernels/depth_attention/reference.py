"""What the strategies that attend over depth share: static queries over a list of sources.

    score_q(v) = key_q . v / rms(v);   x = sum_j softmax_j(score_q(v_j)) v_j

Queries do not depend on activations, so a source's scores for all queries to come are one thin product when
the source appears. The mixture is a running sum over the list: nothing of shape [sources, B, T, D] exists.
Both are autograd functions that keep the sources, each once, and the softmax weights. A compiler is given the
plain form, which it differentiates and fuses itself. What `open_pulled` opens goes through kernels where these serve,
which a compiler does not look into (`block_sources.py`): on a CPU it would make kernels of its own for every number of
sources, for minutes.

Source: Kimi team, "Attention Residuals" (arXiv 2603.15031), section 4 (the two phases of inference).
Shape letters: Q queries, J sources so far.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from src.kernels.depth_attention.blocked import Blocks, attend_in_block, emitted
from src.kernels.depth_attention.check import blocks_serve, native_serves
from src.kernels.depth_attention.pull import new_forward
from src.kernels.depth_attention.running_sum import joined


class Sources(NamedTuple):
    """All sources so far, each one's scores [B, T] for the queries to come (the last is the last query), the keys."""

    v_BTD: tuple[Tensor, ...]
    score_BT: tuple[tuple[Tensor, ...], ...]
    key_QD: Tensor
    blocks: Blocks | None = None  # where kernels run: there each source's scores are one tensor
    score_BTQ: tuple[Tensor, ...] = ()
    bias_QJ: Tensor | None = None  # of the scores, for all sources to come


class StreamAndSources(NamedTuple):
    """A stream between two mixtures, and what it was before them."""

    x_BTD: Tensor
    sources: Sources


def open_pulled(x0_BTD: Tensor, key_QD: Tensor, eps: float) -> Sources:
    """The embedding as the first source, for those that only `append` and `attend`: by kernels where those serve."""
    blocks = Blocks(new_forward()) if blocks_serve(x0_BTD) else None
    return append(Sources((), (), key_QD, blocks), x0_BTD, 0, eps)


def open_native(x0_BTD: Tensor, key_QD: Tensor, eps: float, bias_QJ: Tensor | None = None) -> Sources:
    """`open_pulled` for few queries, for biases, and to `attend_and_add`: a compiler and a GPU have the plain form."""
    eager = not torch.compiler.is_compiling() and type(x0_BTD) is Tensor
    blocks = Blocks(new_forward()) if eager and native_serves(x0_BTD) else None
    return append(Sources((), (), key_QD, blocks, bias_QJ=bias_QJ), x0_BTD, 0, eps)


def emit(state: Sources, v_BTD: Tensor, eps: float) -> Sources:
    """One more source, where every new source is met by one new query: for that and those after it."""
    return append(state, v_BTD, len(state.v_BTD) - 1, eps)


def append(state: Sources, v_BTD: Tensor, first_query: int, eps: float, alone: int = 0) -> Sources:
    """One more source, for the queries from `first_query` on; before the next one, only `alone` meet it (0: unknown)."""
    key_QD = state.key_QD[first_query:]
    if (
        state.blocks is None or v_BTD.dtype != torch.bfloat16 or native_serves(state.key_QD)
    ):  # else read as it is
        v_BTD = v_BTD.to(state.key_QD.dtype)
    if state.blocks is None:
        score_BT = scores(v_BTD, key_QD, eps).unbind(-1)
        return state._replace(v_BTD=(*state.v_BTD, v_BTD), score_BT=(*state.score_BT, score_BT))
    bias_Q = None if state.bias_QJ is None else state.bias_QJ[first_query:, len(state.v_BTD)]
    given = v_BTD, key_QD, eps, alone, bias_Q
    blocks, v_BTD, score_BTQ = emitted(state.blocks, state.v_BTD, state.score_BTQ, *given)
    v, score = (*state.v_BTD, v_BTD), (*state.score_BTQ, score_BTQ)
    return state._replace(v_BTD=v, blocks=blocks, score_BTQ=score)


def attend(state: Sources, query: int) -> Tensor:
    """One query's mixture of all sources so far, [B, T, D]; one source needs no query."""
    if len(state.v_BTD) == 1:
        return state.v_BTD[0]
    if state.blocks is None:
        return mixture(state.v_BTD, logits(state, query))
    return attend_in_block(state.blocks, query - len(state.key_QD), state.score_BTQ, state.v_BTD)


def attend_and_add(
    state: Sources, query: int, eps: float, p_BTD: Tensor, y_BTD: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One query's mixture of all sources so far and of p + y, which no other query meets; and p + y."""
    if state.blocks is None:
        total_BTD = p_BTD if y_BTD is None else p_BTD + y_BTD
        own_BT1 = scores(total_BTD, state.key_QD[query : query + 1], eps)
        logit_BTJ = torch.cat((logits(state, query), own_BT1), dim=-1)
        return mixture((*state.v_BTD, total_BTD), logit_BTJ), total_BTD
    key_D, from_the_end = state.key_QD[query], query - len(state.key_QD)
    given = (p_BTD, y_BTD), state.score_BTQ, state.v_BTD
    return joined(state.blocks, from_the_end, key_D, eps, *given)


def logits(state: Sources, query: int) -> Tensor:
    """The scores [B, T, J] of all sources so far for one query."""
    from_the_end = query - len(state.key_QD)  # where all sources' scores agree
    if state.blocks is None:
        score_BTJ = torch.stack([score_BT[from_the_end] for score_BT in state.score_BT], dim=-1)
        return score_BTJ if state.bias_QJ is None else score_BTJ + state.bias_QJ[query, : len(state.v_BTD)]
    return torch.stack([score_BTQ[..., from_the_end] for score_BTQ in state.score_BTQ], dim=-1)


def scores(v_BTD: Tensor, key_QD: Tensor, eps: float) -> Tensor:
    """The scores [B, T, Q] of one source; its normalised form never exists."""
    if torch.compiler.is_compiling():
        return F.linear(v_BTD, key_QD) * _rrms(v_BTD, eps)
    return cast(Tensor, _Scores.apply(v_BTD, key_QD, eps))  # type: ignore[no-untyped-call]  # torch's


def mixture(values: Sequence[Tensor], logit_BTJ: Tensor) -> Tensor:
    """sum_j softmax_j(logit_BTJ) values[j], [B, T, D]."""
    return weighted_sum(logit_BTJ.softmax(-1), values)


def weighted_sum(weight_BTJ: Tensor, values: Sequence[Tensor]) -> Tensor:
    """sum_j weight_BTJ[..., j] values[j], [B, T, D]."""
    if torch.compiler.is_compiling():
        return _weighted_sum(weight_BTJ, values)
    return cast(Tensor, _Mixture.apply(weight_BTJ, *values))  # type: ignore[no-untyped-call]  # torch's


def shares(state: Sources, query: int) -> Tensor:
    """One query's softmax weights over all sources so far, the mean over tokens: [J]."""
    if len(state.v_BTD) == 1:
        return state.key_QD.new_ones(1)
    return logits(state, query).softmax(-1).mean((0, 1))


def _rrms(v_BTD: Tensor, eps: float) -> Tensor:
    norm_BT1: Tensor = torch.linalg.vector_norm(v_BTD, dim=-1, keepdim=True)
    return (norm_BT1.square() / v_BTD.shape[-1] + eps).rsqrt()


def _weighted_sum(weight_BTJ: Tensor, values: Sequence[Tensor]) -> Tensor:
    first, *others = weight_BTJ.unsqueeze(-1).unbind(2)
    x_BTD = first * values[0]
    for weight_BT1, v_BTD in zip(others, values[1:], strict=True):
        x_BTD.addcmul_(weight_BT1, v_BTD)
    return x_BTD


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # autograd's context has no public type
        v_BTD: Tensor,
        key_QD: Tensor,
        eps: float,
    ) -> Tensor:
        rrms_BT1 = _rrms(v_BTD, eps)
        ctx.save_for_backward(v_BTD, key_QD, rrms_BT1)
        return F.linear(v_BTD, key_QD).mul_(rrms_BT1)

    @staticmethod
    def backward(ctx: Any, ds_BTQ: Tensor) -> tuple[Tensor, Tensor, None]:
        v_BTD, key_QD, rrms_BT1 = ctx.saved_tensors
        dproduct_BTQ = ds_BTQ * rrms_BT1
        dv_BTD = dproduct_BTQ @ key_QD
        along_BT1 = (dv_BTD * v_BTD).sum(-1, keepdim=True)
        dv_BTD.addcmul_(along_BT1 * rrms_BT1.square(), v_BTD, value=-1 / v_BTD.shape[-1])
        return dv_BTD, dproduct_BTQ.flatten(0, 1).t() @ v_BTD.flatten(0, 1), None


class _Mixture(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # autograd's context has no public type
        weight_BTJ: Tensor,
        *values: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(weight_BTJ, *values)
        return _weighted_sum(weight_BTJ, values)

    @staticmethod
    def backward(ctx: Any, dx_BTD: Tensor) -> tuple[Tensor, ...]:
        weight_BTJ, *values = ctx.saved_tensors
        product_BTD = torch.empty_like(dx_BTD)
        dots = [torch.mul(dx_BTD, v_BTD, out=product_BTD).sum(-1) for v_BTD in values]
        weights = weight_BTJ.unsqueeze(-1).unbind(2)
        return torch.stack(dots, dim=-1), *(weight_BT1 * dx_BTD for weight_BT1 in weights)
