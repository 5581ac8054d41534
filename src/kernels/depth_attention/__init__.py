"""Depth attention: static queries attend over a growing list of sources, such as all earlier sublayers' outputs.

    sources = open(x0, keys, eps)           x0 is the first source; one key for each query to come
    x = attend(sources, query)              x = sum_j softmax_j(key . v_j / rms(v_j)) v_j
    sources = append(sources, y)            y is one more source

    s = scores(v, keys, eps)                s_q = key_q . v / rms(v), for weights of another form
    x = sum_by_token(weight, values)        x = sum_j weight_j v_j, with weights of each token

`reference.py` defines it. `blocked.py` has the algorithm of the kernels and its autograd functions, `ops.py` its torch
operators; `cpp.py` and `depth.cpp` run them on the CPU, `triton_launch.py` and `triton_kernels.py` on a CUDA device.
`eager.py` is the reference with gradients written by hand, `running_sum.py` adds a running sum as a source, and
`static_sum.py` sums sources by static weights. Heads (a softmax per group of channels) and a window (the newest sources
alone) have no kernels; both keep one tensor per source, and none per pair of query and source but weights.

Shape letters: Q queries, J sources so far, H heads, E channels of a head.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from src.kernels.depth_attention import eager, ops, reference, running_sum
from src.kernels.depth_attention.blocked import CHUNK, Blocked, append_source, attend_blocked
from src.kernels.depth_attention.eager import scores, sum_by_token
from src.kernels.depth_attention.running_sum import attend_with_sum_blocked
from src.kernels.depth_attention.static_sum import StaticSources, append_static, open_static, sum_static
from src.kernels.dispatch import Operation, verify

__all__ = [
    "Sources",
    "StaticSources",
    "append",
    "append_static",
    "attend",
    "attend_with_sum",
    "average_weights",
    "open",
    "open_static",
    "scores",
    "sum_by_token",
    "sum_static",
]

MIN_QUERIES = 8  # fewer share no reading of a GPU's kernels, and are little for a compiler to fuse
TRITON_VECTOR = 4  # elements that a thread loads at once
#: Of the largest element. In Triton, bfloat16 sources are rounded by up to 0.004.
TOLERANCE = {"cpp": 1e-4, "triton": 0.02}
VERIFY_EPS = 1e-6


class Sources(NamedTuple):
    """All sources so far, the keys, and what is known of each source for the queries to come."""

    v_BTD: tuple[Tensor, ...]  # with several heads [B, T, H, E]
    key_QD: Tensor  # with several heads [Q, H, D]
    eps: float
    bias_QJ: Tensor | None
    queries_per_source: int
    backend: str
    n_head: int = 1
    window: int | None = None
    #: Of the reference: by source, by query (the last is the last query); [B, T], or [B, T, H] with several heads.
    score_BT: tuple[tuple[Tensor, ...], ...] = ()
    blocked: Blocked = Blocked()  # of the kernels


def open(
    x0_BTD: Tensor,
    key_QD: Tensor,
    eps: float,
    bias_QJ: Tensor | None = None,
    *,
    queries_per_source: int = 1,
    n_head: int = 1,
    window: int | None = None,
) -> Sources:
    """Return sources of which the embedding is the first.

    Args:
        x0_BTD: the embedding; its dtype is the keys'.
        key_QD: the key of every query, in the order in which they attend.
        eps: added to the mean square in rms.
        bias_QJ: added to the scores, for all sources to come; None adds nothing.
        queries_per_source: number of queries between two sources; more than one allows `attend_with_sum`.
        n_head: number of contiguous groups of channels, each with its own softmax; rms is always that of all channels.
        window: number of the newest sources that are kept beside the first; None keeps all.

    Heads and a window exclude a bias and `attend_with_sum`; a window needs `first_query` in `append`.
    """
    if n_head > 1 or window is not None:
        key = _keys_of_heads(key_QD, n_head) if n_head > 1 else key_QD
        return append(Sources((), key, eps, None, 1, "reference", n_head, window), x0_BTD, 0)
    plain = bias_QJ is None and queries_per_source == 1 and len(key_QD) >= MIN_QUERIES
    operation = DEPTH_ATTENTION if plain else FEW_QUERIES
    backend = operation.backend_for(x0_BTD, width=x0_BTD.shape[-1])
    return append(Sources((), key_QD, eps, bias_QJ, queries_per_source, backend), x0_BTD, 0)


def append(sources: Sources, v_BTD: Tensor, first_query: int | None = None) -> Sources:
    """Append a source [B, T, D] for the queries from `first_query` on; by default every new source has one more query.

    Other uses of the source should take it from the result, as its last, which adds up their gradients.
    """
    index = len(sources.v_BTD)
    first = max(index - 1, 0) if first_query is None else first_query
    key_QD = sources.key_QD[first:]
    if sources.backend != "triton" or v_BTD.dtype != torch.bfloat16:  # the Triton kernels read bfloat16
        v_BTD = v_BTD.to(key_QD.dtype)
    if sources.backend == "reference":
        score_BT = _scores_by_query(v_BTD, key_QD, sources.eps)
        v_BTD = _split_heads(v_BTD, sources.n_head)
        values, scores = (*sources.v_BTD, v_BTD), (*sources.score_BT, score_BT)
        window = sources.window
        if window is not None and index > window:  # a window loses its oldest source, never the first of all
            values, scores = (values[0], *values[-window:]), (scores[0], *scores[-window:])
        return sources._replace(v_BTD=values, score_BT=scores)
    bias_Q = None if sources.bias_QJ is None else sources.bias_QJ[first:, index]
    args = v_BTD, key_QD, sources.eps, sources.queries_per_source, bias_Q
    blocked, v_BTD = append_source(sources.blocked, sources.v_BTD, *args)
    return sources._replace(v_BTD=(*sources.v_BTD, v_BTD), blocked=blocked)


def attend(sources: Sources, query: int | None = None) -> Tensor:
    """Return one query's mixture of all sources so far, [B, T, D]; by default that of the newest source's first query.

    A single source is its own mixture and needs no query.
    """
    if len(sources.v_BTD) == 1:
        return _join_heads(sources.v_BTD[0])
    query = len(sources.v_BTD) - 2 if query is None else query
    if sources.backend == "reference":
        return _join_heads(sum_by_token(_scores(sources, query).softmax(-1), sources.v_BTD))
    return attend_blocked(sources.blocked, sources.v_BTD, query - len(sources.key_QD))


def attend_with_sum(sources: Sources, query: int, p_BTD: Tensor, y_BTD: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return one query's mixture of all sources so far and of p + y, which no other query attends over; and p + y."""
    key_QD = sources.key_QD[query : query + 1]
    if sources.backend == "reference":
        total_BTD = p_BTD if y_BTD is None else p_BTD + y_BTD
        own_BT1 = eager.scores(total_BTD, key_QD, sources.eps)
        score_BTJ = torch.cat((_scores(sources, query), own_BT1), dim=-1)
        return sum_by_token(score_BTJ.softmax(-1), (*sources.v_BTD, total_BTD)), total_BTD
    args = sources.blocked, sources.v_BTD, query - len(sources.key_QD)
    return attend_with_sum_blocked(*args, key_QD[0], sources.eps, p_BTD, y_BTD)


def average_weights(sources: Sources, query: int, p_BTD: Tensor | None = None) -> Tensor:
    """Return one query's softmax weights, their mean over tokens and heads: [J]; with a running sum p, [J + 1]."""
    if len(sources.v_BTD) == 1 and p_BTD is None:
        return sources.key_QD.new_ones(1)
    score_BTJ = _scores(sources, query)
    if p_BTD is not None:
        own_BT1 = eager.scores(p_BTD, sources.key_QD[query : query + 1], sources.eps)
        score_BTJ = torch.cat((score_BTJ, own_BT1), dim=-1)
    return score_BTJ.softmax(-1).mean(tuple(range(score_BTJ.dim() - 1)))


def _split_heads(v_BTD: Tensor, n_head: int) -> Tensor:
    """Return a source as its queries read it: with several heads as a view [B, T, H, E]."""
    return v_BTD if n_head == 1 else v_BTD.view(*v_BTD.shape[:2], n_head, -1)


def _join_heads(x: Tensor) -> Tensor:
    """Return rows [B, T, D] of rows [B, T, D] or [B, T, H, E]."""
    return x if x.dim() == 3 else x.flatten(2)


def _keys_of_heads(key_QD: Tensor, n_head: int) -> Tensor:
    """Return the keys of heads, [Q, H, D]: a query's key with zeros in the channels of the other heads."""
    key_Q1HE = key_QD.view(len(key_QD), 1, n_head, -1)
    own_HH1 = torch.eye(n_head, dtype=key_QD.dtype, device=key_QD.device).unsqueeze(-1)
    return (key_Q1HE * own_HH1).flatten(2)


def _scores_by_query(v_BTD: Tensor, key: Tensor, eps: float) -> tuple[Tensor, ...]:
    """Return the scores of one source for keys [Q, D] or [Q, H, D], by query: [B, T] or [B, T, H] each."""
    if key.dim() == 2:
        return eager.scores(v_BTD, key, eps).unbind(-1)
    score_BTP = eager.scores(v_BTD, key.flatten(0, 1), eps)  # P pairs of query and head
    return score_BTP.view(*score_BTP.shape[:2], *key.shape[:2]).unbind(2)


def _scores(sources: Sources, query: int) -> Tensor:
    """Return the scores [B, T, J] of all sources so far for one query; with several heads [B, T, H, J]."""
    from_the_end = query - len(sources.key_QD)  # where all sources' scores agree
    if sources.backend != "reference":
        return torch.stack([score_BTQ[..., from_the_end] for score_BTQ in sources.blocked.score_BTQ], dim=-1)
    score_BTJ = torch.stack([score_BT[from_the_end] for score_BT in sources.score_BT], dim=-1)
    return score_BTJ if sources.bias_QJ is None else score_BTJ + sources.bias_QJ[query, : len(sources.v_BTD)]


# ---- the choice of a backend


def _why_not_cpp(device: torch.device, dtype: torch.dtype, *, width: int) -> str | None:
    for source in (ops.SOURCE, running_sum.SOURCE):
        reason = source.why_not(device, dtype, width=width)
        if reason is not None:
            return reason
    return _verify("cpp", device, dtype, width, (dtype,))


def _why_not_cpp_sums(device: torch.device, dtype: torch.dtype, *, width: int) -> str | None:
    reason = _why_not_cpp(device, dtype, width=width)
    if reason is not None:
        return reason
    key_QD, *values = random_case(device, dtype, width, dtype)
    case = [key_QD, key_QD[:, :CHUNK].clone(), *values]
    kernel, definition = (functools.partial(mix_with_sums, backend) for backend in ("cpp", "reference"))
    return verify(kernel, definition, [case], TOLERANCE["cpp"])


def _why_not_triton(device: torch.device, dtype: torch.dtype, *, width: int) -> str | None:
    if dtype != torch.float32 or width % TRITON_VECTOR:
        return f"Triton kernels need rows of float32 in a multiple of {TRITON_VECTOR}, not of {dtype} in {width}"
    return _verify("triton", device, dtype, width, (dtype, torch.bfloat16))


def _verify(
    backend: str, device: torch.device, dtype: torch.dtype, width: int, dtypes: Sequence[torch.dtype]
) -> str | None:
    """Return how the kernels differ from the reference, on two chunks of queries and sources of each dtype."""

    def kernel(key_QD: Tensor, *values: Tensor) -> list[Tensor]:
        return list(mix_all(backend, key_QD, values))

    def definition(key_QD: Tensor, *values: Tensor) -> list[Tensor]:
        return [reference.attend(values[: q + 2], key_D, VERIFY_EPS) for q, key_D in enumerate(key_QD.unbind(0))]

    cases = [random_case(device, dtype, width, kept) for kept in dtypes]
    return verify(kernel, definition, cases, TOLERANCE[backend])


def random_case(device: torch.device, dtype: torch.dtype, width: int, kept: torch.dtype) -> list[Tensor]:
    """Return the keys of two chunks of queries, and sources [1, 2, width] that are `kept` but for the first."""
    generator = torch.Generator().manual_seed(0)
    n_query = 2 * CHUNK
    key_QD = torch.randn(n_query, width, generator=generator) / width**0.5
    first, *others = torch.randn(n_query + 1, 1, 2, width, generator=generator)
    return [key_QD.to(device, dtype), first.to(device, dtype), *(v.to(device, kept) for v in others)]


def mix_all(backend: str, key_QD: Tensor, values: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield the mixture of each query by a backend: every source but the first has one."""
    sources = append(Sources((), key_QD, VERIFY_EPS, None, 1, backend), values[0], 0)
    for v_BTD in values[1:]:
        sources = append(sources, v_BTD)
        yield attend(sources)


def mix_with_sums(backend: str, key_QD: Tensor, bias_QJ: Tensor, *values: Tensor) -> list[Tensor]:
    """Return the mixtures of all queries by a backend, two to a source: with the newest value alone, and with both."""
    sources = append(Sources((), key_QD, VERIFY_EPS, bias_QJ, 2, backend), values[0], 0)
    mixtures = []
    for query in range(0, len(key_QD), 2):
        x_BTD, p_BTD = attend_with_sum(sources, query, values[query + 1])
        total_x_BTD, total_BTD = attend_with_sum(sources, query + 1, p_BTD, values[query + 2])
        mixtures += [x_BTD, total_x_BTD]
        if query + 2 < len(key_QD):
            sources = append(sources, total_BTD, query + 2)
    return mixtures


#: One query a source, and many of them: kernels everywhere, which a compiler calls as operators.
DEPTH_ATTENTION = Operation(
    "depth attention",
    cpp=_why_not_cpp,
    triton=_why_not_triton,
    compiled=("cpp", "triton"),
    residual=True,
)
#: Few queries, a bias, or running sums: kernels on the CPU in eager mode.
FEW_QUERIES = Operation(
    "depth attention (few queries, bias, running sum)", cpp=_why_not_cpp_sums, compiled=(), residual=True
)
