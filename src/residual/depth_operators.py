"""`kernels/depth.cpp` as operators of torch, which a compiler calls and does not look into.

Equations: `pulled_sources.py`. They take and give contiguous tensors on the CPU, and none has a gradient of its own.

Shape letters: Q queries, J sources of a query.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any  # what an operator takes and gives is its function's business

import torch
from torch import Tensor
from torch.library import Library

from src.residual.native import Kernels, built_for, kernels_for


def kernels_serve(x: Tensor) -> bool:
    """Whether there are kernels for rows like those of `x`; a compiler asks once, while it traces."""
    if torch.compiler.is_compiling():
        return x.device.type == "cpu" and _serve(x.dtype, x.shape[-1])
    return kernels_for(x, "depth") is not None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch's
def _serve(dtype: torch.dtype, width: int) -> bool:
    return built_for(dtype, width, "depth") is not None


def _depth_scores(v_BTD: Tensor, key_QD: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The scores [B, T, Q] of a source for Q queries, and 1 / rms [B, T] of its rows."""
    (B, T, D), Q = v_BTD.shape, len(key_QD)
    score_BTQ, rrms_BT = v_BTD.new_empty(B, T, Q), v_BTD.new_empty(B, T)
    sizes = (B * T, D, Q, torch.get_num_threads())
    _kernels(v_BTD)("depth_scores", v_BTD, key_QD, score_BTQ, rrms_BT, *sizes, eps)
    return score_BTQ, rrms_BT


def _depth_scores_fake(v_BTD: Tensor, key_QD: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    B, T, _ = v_BTD.shape
    return v_BTD.new_empty(B, T, len(key_QD)), v_BTD.new_empty(B, T)


def _depth_attend(values: list[Tensor], score_BTQ: list[Tensor], query: int) -> tuple[Tensor, Tensor]:
    """The mixture of one query, which counts from the last (-1), and its weights [B, T, J]."""
    (B, T, D), J = values[0].shape, len(values)
    x_BTD, weight_BTJ = values[0].new_empty(B, T, D), values[0].new_empty(B, T, J)
    tables = (
        _addresses(values),
        _addresses(score_BTQ, query),
        _table(score.shape[-1] for score in score_BTQ),
    )
    _kernels(x_BTD)("depth_attend", *tables, weight_BTJ, x_BTD, B * T, D, J, torch.get_num_threads())
    return x_BTD, weight_BTJ


def _depth_attend_fake(values: list[Tensor], score_BTQ: list[Tensor], query: int) -> tuple[Tensor, Tensor]:
    B, T, D = values[0].shape
    return values[0].new_empty(B, T, D), values[0].new_empty(B, T, len(values))


def _depth_attend_backward(values: list[Tensor], weight_BTJ: Tensor, dx_BTD: Tensor) -> Tensor:
    """The gradient [B, T, J] of the logits of one query."""
    (B, T, D), J = values[0].shape, len(values)
    dlogit_BTJ = torch.empty_like(weight_BTJ)
    given, sizes = (_addresses(values), weight_BTJ, dx_BTD), (B * T, D, J, torch.get_num_threads())
    _kernels(dx_BTD)("depth_attend_backward", *given, dlogit_BTJ, *sizes)
    return dlogit_BTJ


def _depth_attend_backward_fake(values: list[Tensor], weight_BTJ: Tensor, dx_BTD: Tensor) -> Tensor:
    return torch.empty_like(weight_BTJ)


def _depth_pull(
    index: int,
    v_BTD: Tensor,
    key_QD: Tensor,
    score_BTQ: Tensor,
    rrms_BT: Tensor,
    direct_BTD: Tensor | None,
    queries: list[int],
    weight_BTJ: list[Tensor],
    dlogit_BTJ: list[Tensor],
    dx_BTD: list[Tensor],
) -> tuple[Tensor, Tensor]:
    """The gradients of the `index`-th source and of its keys, by what the queries (of 0..Q-1) have left for it."""
    (B, T, D), Q, threads = v_BTD.shape, len(key_QD), torch.get_num_threads()
    tables = (
        _addresses(dx_BTD),
        _addresses(weight_BTJ, index),
        _addresses(dlogit_BTJ, index),
        _table(weight.shape[-1] for weight in weight_BTJ),
        _table(queries),
    )
    dv_BTD, dkey_QD = torch.empty_like(v_BTD), v_BTD.new_zeros(threads, Q, D)
    given, sizes = (v_BTD, key_QD, score_BTQ, rrms_BT, direct_BTD), (B * T, D, Q, len(queries), threads)
    _kernels(v_BTD)("depth_pull", *given, *tables, dv_BTD, dkey_QD, *sizes)
    return dv_BTD, dkey_QD.sum(0)


def _depth_pull_fake(index: int, v_BTD: Tensor, key_QD: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(v_BTD), torch.empty_like(key_QD)


def _kernels(x: Tensor) -> Kernels:
    kernels = built_for(x.dtype, x.shape[-1], "depth")
    assert kernels is not None  # or `kernels_serve` had said so
    return kernels


def _table(numbers: Iterable[int]) -> Tensor:
    return torch.tensor(list(numbers), dtype=torch.int64)


def _addresses(tensors: Sequence[Tensor], column: int = 0) -> Tensor:
    """Of the first row's element in a column, which may count from the last."""
    assert all(tensor.is_contiguous() for tensor in tensors)  # the kernels know sizes, not strides
    return _table(x.data_ptr() + column % x.shape[-1] * x.element_size() for x in tensors)


_LIBRARY = Library("reslab", "DEF")  # type: ignore[no-untyped-call]  # torch's


def operator(function: Callable[..., Any], fake: Callable[..., Any], device: str) -> Callable[..., Any]:
    """The operator of a function; what `custom_op` puts around one costs as much as the smallest kernel.

    `device` is torch's dispatch key of those that it serves.
    """
    name = function.__name__.removeprefix("_")
    schema = torch.library.infer_schema(function, mutates_args=())
    tags = torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides
    _LIBRARY.define(f"{name}{schema}", tags=tags)  # type: ignore[no-untyped-call]  # torch's
    _LIBRARY.impl(name, function, device)  # type: ignore[no-untyped-call]  # torch's
    torch.library.register_fake(f"reslab::{name}", fake, lib=_LIBRARY)
    found: Callable[..., Any] = getattr(torch.ops.reslab, name).default
    return found


depth_scores = operator(_depth_scores, _depth_scores_fake, "CPU")
depth_attend = operator(_depth_attend, _depth_attend_fake, "CPU")
depth_attend_backward = operator(_depth_attend_backward, _depth_attend_backward_fake, "CPU")
depth_pull = operator(_depth_pull, _depth_pull_fake, "CPU")
