"""Calls `kernels/depth.cpp`: tables of addresses and sizes; the CPU's counterpart of `depth_launch`.

All tensors are contiguous, on the CPU and of one type; outputs are given. A query's number counts from the last (-1).

Shape letters: Q queries of a source, J sources, L queries that met a source, K sources that are pulled together.
"""

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from src.kernels.cpp_build import Kernels, addresses, table

#: Number, dx, x (of the first queries, whose delta is to be made), lse, delta.
Left = tuple[Sequence[int], Sequence[Tensor], Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]


def scores(
    kernels: Kernels, v_BTD: Tensor, key_QD: Tensor, eps: float, score_BTQ: Tensor, rrms_BT: Tensor
) -> None:
    """A source's scores and 1 / rms."""
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
    """Consecutive queries' mixtures, the first's from `query` on, which `before` and its log-sum-exp may open."""
    assert {v_BTD.dtype for v_BTD in values} == {lse.dtype}  # the kernels know one type
    tables = (
        addresses(values),
        table(_address(score, query) for score in score_BTQ),
        table(score.shape[-1] for score in score_BTQ),
    )
    tokens, D = x_BTD[0].shape[:-1].numel(), x_BTD[0].shape[-1]
    sizes = (tokens, D, len(values), len(x_BTD), torch.get_num_threads())
    kernels("depth_mixtures", *tables, *before, addresses(x_BTD), lse, *sizes)


def joined(
    kernels: Kernels,
    sources: tuple[Sequence[Tensor], Sequence[Tensor]],
    query: int,
    before: Sequence[Tensor | None],
    running: tuple[Tensor | None, ...],
    out: tuple[Tensor | None, ...],
    eps: float,
) -> None:
    """A query's mixture of sources (v, score) and of a running sum (p, y, key): to p + y, x, lse, [s, r]."""
    values, score_BTQ = sources
    tables = (
        addresses(values),
        table(_address(score, query) for score in score_BTQ),
        table(score.shape[-1] for score in score_BTQ),
    )
    x_BTD = out[1]
    assert x_BTD is not None  # the one that is always made
    sizes = (x_BTD.shape[:-1].numel(), x_BTD.shape[-1], len(values), torch.get_num_threads())
    kernels("joined_forward", *tables, *before, *running, *out, *sizes, eps)


def joined_backward(
    kernels: Kernels, given: tuple[Tensor, ...], direct: Tensor | None, delta_BT: Tensor, dp_BTD: Tensor
) -> Tensor:
    """From dx, x, p + y, lse, [s, r], key: to delta and the running sum's gradient; the key's."""
    D, threads = dp_BTD.shape[-1], torch.get_num_threads()
    part_D = dp_BTD.new_zeros(threads, D)
    kernels("joined_backward", *given, direct, delta_BT, dp_BTD, part_D, delta_BT.numel(), D, threads)
    return part_D.sum(0)


def far(kernels: Kernels, members: tuple[Sequence[Tensor], ...], left: Left, along: Tensor) -> None:
    """What queries have left for sources (v, score, 1 / rms, g r, partial dv), and [K, B, T] of g . s."""
    D, tokens = members[0][0].shape[-1], along[0].numel()
    sizes = (tokens, D, len(along), len(left[0]), torch.get_num_threads())
    kernels("depth_far", _sources(members), _queries(left), along, *sizes)


def pull(
    kernels: Kernels,
    member: tuple[Sequence[Tensor], ...],
    key_QD: Tensor,
    left: Left,
    others: tuple[Tensor | None, ...],
    bias_Q: Tensor | None,
    dkey_QD: Tensor,
    dbias_Q: Tensor,
) -> None:
    """The gradient of a source, of its keys and of a bias in its scores.

    `others` came direct, and from other queries: partial dv, g r, g . s.
    """
    (Q, D), threads = key_QD.shape, torch.get_num_threads()
    part_QD, part_Q = key_QD.new_zeros(threads, Q, D), key_QD.new_zeros(threads, len(dbias_Q))
    sizes = (member[0][0].shape[:-1].numel(), D, Q, len(left[0]), threads)
    out = part_QD, part_Q
    kernels("depth_pull", _sources(member), _queries(left), key_QD, *others, bias_Q, *out, *sizes)
    torch.sum(part_QD, 0, out=dkey_QD)
    torch.sum(part_Q, 0, out=dbias_Q)


def _sources(members: tuple[Sequence[Tensor], ...]) -> "array[int]":
    rows = zip(*members, strict=True)
    return table(n for row in rows for n in (*map(_address, row), row[1].shape[-1]))


def _queries(left: Left) -> "array[int]":
    numbers, dx_BTD, x_BTD, lse_BT, delta_BT = left
    known = [0] * (len(numbers) - len(x_BTD))
    parts = (
        map(_address, dx_BTD),
        [*map(_address, x_BTD), *known],
        map(_address, lse_BT),
        map(_address, delta_BT),
        numbers,
    )
    return table(n for row in zip(*parts, strict=True) for n in row)


def _address(x: Tensor, column: int = 0) -> int:
    """Of the first row's element in a column, which may count from the last."""
    assert x.is_contiguous()  # the kernels know sizes, not strides
    begin = x.data_ptr()
    return begin + column % x.shape[-1] * x.element_size() if column else begin
