"""Depth attention by kernels, which read sources and gradients once a chunk of queries, not once a query.

    forward   s_i = r_i (v_i W^T) once;  x_l = sum_i a_li v_i,  a_li = exp(s_li - lse_l)
    backward  g_li = a_li (<dx_l, v_i> - delta_l),  delta_l = <dx_l, x_l>
              dv_i = sum_l a_li dx_l + r_i u_i - (r_i^2 / D) (sum_l g_li s_li) v_i,  u_i = sum_l g_li w_l
              dW_l = sum_i sum_tokens g_li r_i v_i

Forward: a query does not depend on activations, so CHUNK consecutive queries read all sources before them at once and
keep each query's mixture of those and its log-sum-exp. A query later adds the sources since.

    sources   0 1 2 3 4 5 6 7 | 8 9 10 ...
    queries 8..15  <----------  one reading of sources 0..7 for all of them
    query   10                  its mixture of 0..7, and sources 8, 9, 10

Backward: it mirrors that. A query's backward computes nothing; it leaves dx_l in a `BackwardState`, and autograd runs
a source's backward after those of all its queries. The first source of a chunk to run reads the dx_l of all queries
for the whole chunk; each source of the chunk adds those of the queries since. Sources that are bfloat16 keep the
partial gradients of a chunk, and dx_l after its first reading, in bfloat16 too. Saved are each source once, scores,
and what a query returns, which the sublayer that reads it keeps as well.

Hidden states that move for a token, in bfloat16 (float32 counts double), at 48 sublayers with bfloat16 outputs:
    forward   615: scores 52; chunks of queries read 135, write 80; queries read 192 and 70 of a chunk, write 86
    backward  791: new dx, x 240; chunks of sources read 175, write 42; sources read 176 and 42 of a chunk, write 50;
              keys 66

Source: Kimi team, "Attention Residuals" (arXiv 2603.15031), section 4 (the two phases of inference); the backward is
this repository's.
Shape letters: Q queries, J sources, L queries that met a source.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from src.kernels.custom_op import Context
from src.kernels.depth_attention.backward_state import BackwardState
from src.kernels.depth_attention.ops import (
    depth_chunk_gradients,
    depth_mixture,
    depth_partials,
    depth_scores,
    depth_source_gradient,
)

CHUNK = 8  # queries forward, and sources backward, that share one reading


class QueryChunk(NamedTuple):
    """Consecutive queries from `first` on, and each one's mixture of the first `n_source` sources."""

    first: int  # counted from the last query, which is -1
    n_source: int = 0
    x_BTD: Sequence[Tensor] = ()
    lse_BT: Sequence[Tensor] = ()


class Blocked(NamedTuple):
    """Scores and 1 / rms of each source so far, and the current chunk of queries."""

    score_BTQ: tuple[Tensor, ...] = ()
    rrms_BT: tuple[Tensor, ...] = ()
    chunk: QueryChunk | None = None


@dataclass
class QueryGradient:
    """Gradient of a query's mixture, from which its sources compute theirs.

    The first source that reads it computes delta, after which x is released, and may round dx.
    """

    query: int
    dx_BTD: Tensor
    x_BTD: Tensor | None
    lse_BT: Tensor
    delta_BT: Tensor | None = None


@dataclass
class Pending:
    """Gradients of the backward under way that sources have still to read."""

    queries: list[QueryGradient] = field(default_factory=list)
    #: After the last reading for a chunk of sources.
    since_chunk: list[QueryGradient] = field(default_factory=list)
    partial: dict[int, list[Tensor]] = field(default_factory=dict)  # by source: dv, g r, sum of g s
    narrow: bool | None = None  # whether dx is kept in bfloat16: the first source to run decides

    def add(self, gradient: QueryGradient) -> None:
        """Add the gradient of one more query."""
        self.queries.append(gradient)
        self.since_chunk.append(gradient)


def append_source(
    blocked: Blocked,
    values: Sequence[Tensor],
    v_BTD: Tensor,
    key_QD: Tensor,
    eps: float,
    queries_per_source: int = 1,
    bias_Q: Tensor | None = None,
) -> tuple[Blocked, Tensor]:
    """Append a source to `values`; return the state after it and the source as its queries must read it.

    Args:
        blocked: the state after `values`.
        values: the sources so far, as returned by earlier calls.
        v_BTD: the new source.
        key_QD: keys of the queries from the first on that attends over it.
        eps: of the rms.
        queries_per_source: queries that attend before the next source is appended.
        bias_Q: added to its scores.
    """
    # The sources of its chunk so far: its backward may be the one that computes their partial gradients.
    first = len(values)
    while first % CHUNK and (first == 1 or values[first - 1].dtype == v_BTD.dtype):
        first -= 1  # the very first source may have a dtype of its own
    chunk_sources = zip(values[first:], blocked.score_BTQ[first:], blocked.rrms_BT[first:], strict=True)
    earlier = [tensor.detach() for parts in chunk_sources for tensor in parts]
    v_BTD, score, rrms_BT = _source(v_BTD, key_QD, eps, bias_Q, values, earlier)
    # Start a new chunk of queries where the current one is used up.
    query, chunk = -len(key_QD), blocked.chunk
    score_BTQ = (*blocked.score_BTQ, score)
    if chunk is None:
        chunk = QueryChunk(query)
    elif queries_per_source > 1:
        chunk = _read_sources([*values, v_BTD], score_BTQ, query, min(queries_per_source, CHUNK))
    elif chunk.first + CHUNK <= query < -1:  # the last query alone has no other to share a reading with
        chunk = _read_sources([*values, v_BTD], score_BTQ, query, CHUNK)
    return Blocked(score_BTQ, (*blocked.rrms_BT, rrms_BT), chunk), v_BTD


def attend_blocked(blocked: Blocked, values: Sequence[Tensor], query: int) -> Tensor:
    """Return the mixture of one query, which is counted from the last (-1)."""
    n_read, before = mixture_so_far(blocked, query)
    return cast(Tensor, _mixture(query, n_read, blocked.score_BTQ, before, values))


def mixture_so_far(blocked: Blocked, query: int) -> tuple[int, list[Tensor]]:
    """Return how many sources the current chunk has read for a query; and its mixture of them, log-sum-exp."""
    chunk = blocked.chunk
    if chunk is None or not 0 <= query - chunk.first < len(chunk.x_BTD):
        return 0, []
    return chunk.n_source, [chunk.x_BTD[query - chunk.first], chunk.lse_BT[query - chunk.first]]


def pending_of(values: Sequence[Tensor]) -> BackwardState[Pending] | None:
    """Return the state that the sources and queries of a forward share: that of its first source with a gradient."""
    for v_BTD in values:
        node: Any = v_BTD.grad_fn  # that of _Source, if there is one
        if node is not None:
            return cast(BackwardState[Pending], node.state)
    return None


def pack(
    gradients: Sequence[QueryGradient],
) -> tuple[list[int], list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Return query, dx, x, log-sum-exp and delta as lists, first of those whose delta is not known, which have x."""
    new = [gradient for gradient in gradients if gradient.delta_BT is None]
    known = [gradient for gradient in gradients if gradient.delta_BT is not None]
    both = [*new, *known]
    return (
        [gradient.query for gradient in both],
        [gradient.dx_BTD for gradient in both],
        [gradient.x_BTD for gradient in new if gradient.x_BTD is not None],
        [gradient.lse_BT for gradient in both],
        [gradient.delta_BT for gradient in known if gradient.delta_BT is not None],
    )


def store_deltas(gradients: Sequence[QueryGradient], delta_BT: Sequence[Tensor], kept_BTD: Sequence[Tensor]) -> None:
    """Store the deltas of those that had none, release their x, and replace dx by its rounded copy, if there is one."""
    new = [gradient for gradient in gradients if gradient.delta_BT is None]
    for i, (gradient, delta) in enumerate(zip(new, delta_BT, strict=True)):
        gradient.delta_BT, gradient.x_BTD = delta, None
        if kept_BTD:
            gradient.dx_BTD = kept_BTD[i]


def _read_sources(values: Sequence[Tensor], score_BTQ: Sequence[Tensor], first: int, n_query: int) -> QueryChunk:
    scores = [score.detach() for score in score_BTQ]
    x_BTD, lse = depth_partials([v_BTD.detach() for v_BTD in values], scores, first, min(n_query, -first))
    return QueryChunk(first, len(values), x_BTD, lse.unbind(0))


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]  # torch's
def _source(
    v_BTD: Tensor,
    key_QD: Tensor,
    eps: float,
    bias_Q: Tensor | None,
    values: Sequence[Tensor],
    earlier: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    out = _Source.apply(v_BTD.contiguous(), key_QD, eps, bias_Q, values, earlier)  # type: ignore[no-untyped-call]  # torch's
    return cast(tuple[Tensor, Tensor, Tensor], out)


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]  # torch's
def _mixture(
    query: int, n_read: int, score_BTQ: Sequence[Tensor], before: Sequence[Tensor], values: Sequence[Tensor]
) -> Tensor:
    return cast(Tensor, _Mixture.apply(query, n_read, score_BTQ, before, *values))  # type: ignore[no-untyped-call]  # torch's


class _Source(torch.autograd.Function):
    """Source as its queries read it, its scores and 1 / rms; the backward computes its whole gradient."""

    @staticmethod
    def forward(
        ctx: Context,
        v_BTD: Tensor,
        key_QD: Tensor,
        eps: float,
        bias_Q: Tensor | None,
        values: Sequence[Tensor],
        earlier: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        score_BTQ, rrms_BT = depth_scores(v_BTD, key_QD, eps)
        if bias_Q is not None:
            bias_Q = bias_Q.contiguous()
            score_BTQ += bias_Q
        ctx.save_for_backward(key_QD, bias_Q, *earlier, v_BTD, score_BTQ, rrms_BT)
        shared = pending_of(values)
        ctx.state, ctx.index, ctx.is_first = shared or BackwardState(Pending), len(values), shared is None
        ctx.mark_non_differentiable(score_BTQ, rrms_BT)
        ctx.set_materialize_grads(False)
        return v_BTD.view_as(v_BTD), score_BTQ, rrms_BT

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, direct_BTD: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        pending: Pending = ctx.state.current()
        index = ctx.index
        key_QD, bias_Q, *tensors = ctx.saved_tensors
        chunk = [list(tensors[part::3]) for part in range(3)]  # v, score, 1 / rms
        v_BTD, score_BTQ, rrms_BT = (part[-1] for part in chunk)
        if pending.narrow is None:
            pending.narrow = v_BTD.dtype == torch.bfloat16
        # The first source of a chunk to run reads all queries so far, for the whole chunk.
        if index not in pending.partial and len(chunk[0]) > 1 and len(pending.queries) >= CHUNK:
            packed = pack(pending.queries)
            *parts, delta_BT, kept_BTD = depth_chunk_gradients(*chunk, key_QD, pending.narrow, *packed)
            store_deltas(pending.queries, delta_BT, kept_BTD)
            numbered = enumerate(zip(*parts, strict=True), index + 1 - len(chunk[0]))
            pending.partial = {number: list(parts) for number, parts in numbered}
            pending.since_chunk = []
        # Each source adds its direct gradient, and the queries that have run since.
        partial = pending.partial.pop(index, [])
        queries = pending.since_chunk if partial else pending.queries
        direct = None if direct_BTD is None else direct_BTD.contiguous()
        source = v_BTD, key_QD, bias_Q, score_BTQ, rrms_BT, direct, partial
        out = depth_source_gradient(*source, pending.narrow, *pack(queries))
        dv_BTD, dkey_QD, delta_BT, kept_BTD, dbias_Q = out
        store_deltas(queries, delta_BT, kept_BTD)
        if ctx.is_first:  # the last to run
            ctx.state.clear()
        return dv_BTD, dkey_QD, None, None if bias_Q is None else dbias_Q, None, None


class _Mixture(torch.autograd.Function):
    """Mixture of one query; its backward leaves the gradient for the sources to read."""

    @staticmethod
    def forward(
        ctx: Context,
        query: int,
        n_read: int,
        score_BTQ: Sequence[Tensor],
        before: Sequence[Tensor],
        *values: Tensor,
    ) -> Tensor:
        if n_read == len(values):
            x_BTD, lse_BT = before[0].view_as(before[0]), before[1]
        else:
            since = list(values[n_read:]), list(score_BTQ[n_read:])
            x_BTD, lse_BT = depth_mixture(*since, query, *(before or (None, None)))
        ctx.save_for_backward(x_BTD, lse_BT)
        ctx.state, ctx.query, ctx.n_source = pending_of(values), query, len(values)
        return x_BTD

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, dx_BTD: Tensor) -> tuple[None, ...]:
        ctx.state.current().add(QueryGradient(ctx.query, dx_BTD.contiguous(), *ctx.saved_tensors))
        return cast(tuple[None, ...], (None,) * (4 + ctx.n_source))
