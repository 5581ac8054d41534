"""Attention over depth by kernels, where sources and gradients are read once a block, not once a query.

    forward   s_i = r_i (v_i W^T) once;  x_l = sum_i a_li v_i,  a_li = exp(s_li - lse_l)
    backward  g_li = a_li (<dx_l, v_i> - delta_l),  delta_l = <dx_l, x_l>
              dv_i = sum_l a_li dx_l + r_i u_i - (r_i^2 / D) (sum_l g_li s_li) v_i,  u_i = sum_l g_li w_l
              dW_l = sum_i sum_tokens g_li r_i v_i

A query does not depend on activations, so a block of queries reads all sources before it at once: each one's mixture
of them and its log-sum-exp, to which it later adds the sources since. The backward mirrors that. A query does nothing
there but leave dx_l, and autograd runs a source's backward after those of all its queries: the first of a group of
sources that meets as many queries as a block has pulls for the rest of the group what all queries have left, and these
what was left since. Where sources are bfloat16, so are what a group is left, and dx after its first reading. Kept are
the sources, once, scores, and what a query returns, which the sublayer that is given it keeps as well.
`depth_attention.py` has the plain form.

Hidden states that move for a token, in bfloat16 (float32 counts double), at 48 sublayers with bfloat16 outputs:
    forward   615: scores 52; blocks read 135, write 80; queries read 192 and 70 of a block, write 86
    backward  791: fresh dx, x 240; groups read 175, write 42; sources read 176 and 42 of a group, write 50; keys 66

Source: Kimi team, "Attention Residuals" (arXiv 2603.15031), section 4 (the two phases of inference); the backward is
this repository's.
Shape letters: Q queries, J sources, L queries that met a source.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from src.kernels.depth_attention.ops import (
    blocks_far,
    blocks_mixture,
    blocks_partials,
    blocks_pull,
    blocks_scores,
)
from src.kernels.depth_attention.pull import Met, left, made, pull_of

BLOCK = 8  # queries forward, and sources backward, that share one reading


class Block(NamedTuple):
    """Consecutive queries from `first` on, and each one's mixture of the first `n_source` sources."""

    first: int  # from the last, which is -1
    n_source: int = 0
    x_BTD: Sequence[Tensor] = ()
    lse_BT: Sequence[Tensor] = ()


class Blocks(NamedTuple):
    """What is known of a forward's sources beyond themselves: 1 / rms of each, and the block of queries under way."""

    forward: int  # its number
    rrms_BT: tuple[Tensor, ...] = ()
    block: Block | None = None


def emitted(
    blocks: Blocks,
    values: Sequence[Tensor],
    score_BTQ: Sequence[Tensor],
    v_BTD: Tensor,
    key_QD: Tensor,
    eps: float,
    alone: int = 0,
    bias_Q: Tensor | None = None,
) -> tuple[Blocks, Tensor, Tensor]:
    """One more source as its queries are to meet it and its scores [B, T, Q], after those there are.

    `alone`: how many queries meet it before the next source comes, if more than one does. `bias_Q`: in its scores.
    """
    first = own = len(values)
    while first % BLOCK and (first == 1 or values[first - 1].dtype == v_BTD.dtype):
        first -= 1  # the very first source may have a type of its own
    group = zip(values[first:], score_BTQ[first:], blocks.rrms_BT[first:], strict=True)
    earlier = [tensor.detach() for parts in group for tensor in parts]
    v_BTD, score, rrms_BT = _source(blocks.forward, own, v_BTD, key_QD, eps, bias_Q, earlier)
    query, block = -len(key_QD), blocks.block
    if block is None:
        block = Block(query)
    elif alone > 1:
        block = _opened([*values, v_BTD], [*score_BTQ, score], query, min(alone, BLOCK))
    elif block.first + BLOCK <= query < -1:  # the last one alone has nobody to share with
        block = _opened([*values, v_BTD], [*score_BTQ, score], query, BLOCK)
    return Blocks(blocks.forward, (*blocks.rrms_BT, rrms_BT), block), v_BTD, score


def attend_in_block(
    blocks: Blocks, query: int, score_BTQ: Sequence[Tensor], values: Sequence[Tensor]
) -> Tensor:
    """The mixture of one query, which counts from the last (-1), by the scores of each source."""
    since, before = before_block(blocks, query)
    return cast(Tensor, _mixture(blocks.forward, query, since, score_BTQ, before, values))


def before_block(blocks: Blocks, query: int) -> tuple[int, list[Tensor]]:
    """How many sources the block under way has read for a query, and its mixture of them and log-sum-exp."""
    block = blocks.block
    if block is None or not 0 <= query - block.first < len(block.x_BTD):
        return 0, []
    return block.n_source, [block.x_BTD[query - block.first], block.lse_BT[query - block.first]]


def _opened(values: Sequence[Tensor], score_BTQ: Sequence[Tensor], first: int, n_query: int) -> Block:
    scores = [score.detach() for score in score_BTQ]
    x_BTD, lse = blocks_partials([v_BTD.detach() for v_BTD in values], scores, first, min(n_query, -first))
    return Block(first, len(values), x_BTD, lse.unbind(0))


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]  # torch's
def _source(
    forward: int,
    index: int,
    v_BTD: Tensor,
    key_QD: Tensor,
    eps: float,
    bias_Q: Tensor | None,
    earlier: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    out = _Source.apply(forward, index, v_BTD.contiguous(), key_QD, eps, bias_Q, earlier)  # type: ignore[no-untyped-call]  # torch's
    return cast(tuple[Tensor, Tensor, Tensor], out)


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]  # torch's
def _mixture(
    forward: int,
    query: int,
    since: int,
    score_BTQ: Sequence[Tensor],
    before: Sequence[Tensor],
    values: Sequence[Tensor],
) -> Tensor:
    return cast(Tensor, _Mixture.apply(forward, query, since, score_BTQ, before, *values))  # type: ignore[no-untyped-call]  # torch's


class _Source(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # autograd's context has no public type
        forward: int,
        index: int,
        v_BTD: Tensor,
        key_QD: Tensor,
        eps: float,
        bias_Q: Tensor | None,
        earlier: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        score_BTQ, rrms_BT = blocks_scores(v_BTD, key_QD, eps)
        if bias_Q is not None:
            bias_Q = bias_Q.contiguous()
            score_BTQ += bias_Q
        ctx.save_for_backward(key_QD, bias_Q, *earlier, v_BTD, score_BTQ, rrms_BT)
        ctx.pull, ctx.index = pull_of(forward), index
        ctx.mark_non_differentiable(score_BTQ, rrms_BT)
        ctx.set_materialize_grads(False)
        return v_BTD.view_as(v_BTD), score_BTQ, rrms_BT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, direct_BTD: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        pull, index = ctx.pull.now(), ctx.index
        key_QD, bias_Q, *tensors = ctx.saved_tensors
        group = [list(tensors[part::3]) for part in range(3)]  # v, score, 1 / rms
        v_BTD, score_BTQ, rrms_BT = (part[-1] for part in group)
        if pull.narrow is None:
            pull.narrow = v_BTD.dtype == torch.bfloat16
        if index not in pull.far and len(group[0]) > 1 and len(pull.met) >= BLOCK:
            *parts, fresh_BT, kept_BTD = blocks_far(*group, key_QD, pull.narrow, *left(pull.met))
            made(pull.met, fresh_BT, kept_BTD)
            numbered = enumerate(zip(*parts, strict=True), index + 1 - len(group[0]))
            pull.far = {number: list(parts) for number, parts in numbered}
            pull.since = []
        far = pull.far.pop(index, [])
        since = pull.since if far else pull.met
        direct = None if direct_BTD is None else direct_BTD.contiguous()
        source = v_BTD, key_QD, score_BTQ, rrms_BT, direct, far
        dv_BTD, dkey_QD, fresh_BT, kept_BTD, dbias_Q = blocks_pull(*source, pull.narrow, *left(since), bias_Q)
        made(since, fresh_BT, kept_BTD)
        if index == 0:
            pull.clear()
        return None, None, dv_BTD, dkey_QD, None, None if bias_Q is None else dbias_Q, None


class _Mixture(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # autograd's context has no public type
        forward: int,
        query: int,
        since: int,
        score_BTQ: Sequence[Tensor],
        before: Sequence[Tensor],
        *values: Tensor,
    ) -> Tensor:
        if since == len(values):
            x_BTD, lse_BT = before[0].view_as(before[0]), before[1]
        else:
            given = list(values[since:]), list(score_BTQ[since:])
            x_BTD, lse_BT = blocks_mixture(*given, query, *(before or (None, None)))
        ctx.save_for_backward(x_BTD, lse_BT)
        ctx.pull, ctx.query, ctx.n_source = pull_of(forward), query, len(values)
        return x_BTD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx_BTD: Tensor) -> tuple[None, ...]:
        ctx.pull.now().leave(Met(ctx.query, dx_BTD.contiguous(), *ctx.saved_tensors))
        return cast(tuple[None, ...], (None,) * (5 + ctx.n_source))
