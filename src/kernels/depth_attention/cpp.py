"""Calls of `depth.cpp` and `running_sum.cpp`: tables of addresses and sizes.

All tensors are contiguous, on the CPU and of one dtype; outputs are allocated by the caller. A query's number counts
from the last (-1).

Shape letters: Q queries of a source, J sources, L queries that met a source, K sources of a chunk.
"""

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from src.kernels.cpp_build import Kernels, addresses, table

#: Of L queries: number, dx, x (of the first ones, whose delta is to be computed), log-sum-exp, delta.
Gradients = tuple[Sequence[int], Sequence[Tensor], Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]


def scores(kernels: Kernels, v_BTD: Tensor, key_QD: Tensor, eps: float, score_BTQ: Tensor, rrms_BT: Tensor) -> None:
    """Compute a source's scores and 1 / rms."""
    sizes = (rrms_BT.numel(), key_QD.shape[1], len(key_QD), torch.get_num_threads())
    kernels("depth_scores", v_BTD, key_QD, score_BTQ, rrms_BT, *sizes, eps)


def mixtures(
    kernels: Kernels,
    values: Sequence[Tensor],
    score_BTQ: Sequence[Tensor],
    query: int,
    before: tuple[Tensor | None, Tensor | None],
    x_BTD: Sequence[Tensor],
    lse: Tensor,
) -> None:
    """Compute the mixtures of consecutive queries from `query` on; `before` is a mixture and log-sum-exp to add to."""
    assert {v_BTD.dtype for v_BTD in values} == {lse.dtype}  # the kernels know one type
    tokens, D = x_BTD[0].shape[:-1].numel(), x_BTD[0].shape[-1]
    sizes = (tokens, D, len(values), len(x_BTD), torch.get_num_threads())
    tables = _source_tables(values, score_BTQ, query)
    kernels("depth_mixtures", *tables, *before, addresses(x_BTD), lse, *sizes)


def mixture_with_sum(
    kernels: Kernels,
    sources: tuple[Sequence[Tensor], Sequence[Tensor]],
    query: int,
    before: Sequence[Tensor | None],
    running: tuple[Tensor, Tensor | None, Tensor],
    out: tuple[Tensor | None, Tensor, Tensor, Tensor],
    eps: float,
) -> None:
    """Compute a query's mixture of sources (v, score) and a running sum (p, y, key) into p + y, x, lse, [s, r]."""
    values, score_BTQ = sources
    x_BTD = out[1]
    sizes = (x_BTD.shape[:-1].numel(), x_BTD.shape[-1], len(values), torch.get_num_threads())
    tables = _source_tables(values, score_BTQ, query)
    kernels("running_sum_forward", *tables, *before, *running, *out, *sizes, eps)


def mixture_with_sum_backward(
    kernels: Kernels, saved: tuple[Tensor, ...], direct: Tensor | None, delta_BT: Tensor, dp_BTD: Tensor
) -> Tensor:
    """Compute delta and the running sum's gradient from dx, x, p + y, lse, [s, r], key; return the key's gradient."""
    D, threads = dp_BTD.shape[-1], torch.get_num_threads()
    part_D = dp_BTD.new_zeros(threads, D)
    kernels("running_sum_backward", *saved, direct, delta_BT, dp_BTD, part_D, delta_BT.numel(), D, threads)
    return part_D.sum(0)


def chunk_gradients(
    kernels: Kernels, members: tuple[Sequence[Tensor], ...], gradients: Gradients, along: Tensor
) -> None:
    """Compute what queries contribute to sources (v, score, 1 / rms, g r, partial dv), and the sum of g s [K, B, T]."""
    D, tokens = members[0][0].shape[-1], along[0].numel()
    sizes = (tokens, D, len(along), len(gradients[0]), torch.get_num_threads())
    kernels("depth_chunk_gradients", _source_rows(members), _query_rows(gradients), along, *sizes)


def source_gradient(
    kernels: Kernels,
    member: tuple[Sequence[Tensor], ...],
    key_QD: Tensor,
    gradients: Gradients,
    others: tuple[Tensor | None, ...],
    bias_Q: Tensor | None,
    dkey_QD: Tensor,
    dbias_Q: Tensor,
) -> None:
    """Compute the gradients of a source, of its keys and of the bias in its scores.

    `others` are the direct gradient, and of other queries the partial dv, g r and the sum of g s.
    """
    (Q, D), threads = key_QD.shape, torch.get_num_threads()
    part_QD, part_Q = key_QD.new_zeros(threads, Q, D), key_QD.new_zeros(threads, len(dbias_Q))
    sizes = (member[0][0].shape[:-1].numel(), D, Q, len(gradients[0]), threads)
    tables, out = (_source_rows(member), _query_rows(gradients)), (part_QD, part_Q)
    kernels("depth_source_gradient", *tables, key_QD, *others, bias_Q, *out, *sizes)
    torch.sum(part_QD, 0, out=dkey_QD)
    torch.sum(part_Q, 0, out=dbias_Q)


def _source_tables(values: Sequence[Tensor], score_BTQ: Sequence[Tensor], query: int) -> "tuple[array[int], ...]":
    """Return the addresses of sources, of their scores for a query, and the strides of these."""
    scores = table(_address(score, query) for score in score_BTQ)
    return addresses(values), scores, table(score.shape[-1] for score in score_BTQ)


def _source_rows(members: tuple[Sequence[Tensor], ...]) -> "array[int]":
    rows = zip(*members, strict=True)
    return table(n for row in rows for n in (*map(_address, row), row[1].shape[-1]))


def _query_rows(gradients: Gradients) -> "array[int]":
    numbers, dx_BTD, x_BTD, lse_BT, delta_BT = gradients
    x = [*map(_address, x_BTD), *[0] * (len(numbers) - len(x_BTD))]
    parts = (map(_address, dx_BTD), x, map(_address, lse_BT), map(_address, delta_BT), numbers)
    return table(n for row in zip(*parts, strict=True) for n in row)


def _address(x: Tensor, column: int = 0) -> int:
    """Return the address of a column in the first row; the column may count from the last."""
    assert x.is_contiguous()  # the kernels know sizes, not strides
    begin = x.data_ptr()
    return begin + column % x.shape[-1] * x.element_size() if column else begin
