"""`kernels/depth.cpp` as operators of torch, which a compiler calls and does not look into.

Equations: `pulled_sources.py`. They take and give contiguous tensors on the CPU, and none has a gradient of its own.

Shape letters: Q queries, J sources of a query.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from src.residual.native import Kernels, built_for, kernels_for


def kernels_serve(x: Tensor) -> bool:
    """Whether there are kernels for rows like those of `x`; a compiler asks once, while it traces."""
    if torch.compiler.is_compiling():
        return x.device.type == "cpu" and _serve(x.dtype, x.shape[-1])
    return kernels_for(x, "depth") is not None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch's
def _serve(dtype: torch.dtype, width: int) -> bool:
    return built_for(dtype, width, "depth") is not None


@torch.library.custom_op("reslab::depth_scores", mutates_args=())
def depth_scores(v_BTD: Tensor, key_QD: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The scores [B, T, Q] of a source for Q queries, and 1 / rms [B, T] of its rows."""
    (B, T, D), Q = v_BTD.shape, len(key_QD)
    score_BTQ, rrms_BT = v_BTD.new_empty(B, T, Q), v_BTD.new_empty(B, T)
    sizes = (B * T, D, Q, torch.get_num_threads())
    _kernels(v_BTD)("depth_scores", v_BTD, key_QD, score_BTQ, rrms_BT, *sizes, eps)
    return score_BTQ, rrms_BT


@depth_scores.register_fake
def _(v_BTD: Tensor, key_QD: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    B, T, _ = v_BTD.shape
    return v_BTD.new_empty(B, T, len(key_QD)), v_BTD.new_empty(B, T)


@torch.library.custom_op("reslab::depth_attend", mutates_args=())
def depth_attend(values: list[Tensor], score_BTQ: list[Tensor], query: int) -> tuple[Tensor, Tensor]:
    """The mixture of one query, which counts from the last (-1), and its weights [B, T, J]."""
    (B, T, D), J = values[0].shape, len(values)
    x_BTD, weight_BTJ = values[0].new_empty(B, T, D), values[0].new_empty(B, T, J)
    tables = (
        _addresses(values),
        _addresses([score[..., query] for score in score_BTQ]),
        _table(score.shape[-1] for score in score_BTQ),
    )
    _kernels(x_BTD)("depth_attend", *tables, weight_BTJ, x_BTD, B * T, D, J, torch.get_num_threads())
    return x_BTD, weight_BTJ


@depth_attend.register_fake
def _(values: list[Tensor], score_BTQ: list[Tensor], query: int) -> tuple[Tensor, Tensor]:
    B, T, D = values[0].shape
    return values[0].new_empty(B, T, D), values[0].new_empty(B, T, len(values))


@torch.library.custom_op("reslab::depth_attend_backward", mutates_args=())
def depth_attend_backward(values: list[Tensor], weight_BTJ: Tensor, dx_BTD: Tensor) -> Tensor:
    """The gradient [B, T, J] of the logits of one query."""
    (B, T, D), J = values[0].shape, len(values)
    dlogit_BTJ = torch.empty_like(weight_BTJ)
    given, sizes = (_addresses(values), weight_BTJ, dx_BTD), (B * T, D, J, torch.get_num_threads())
    _kernels(dx_BTD)("depth_attend_backward", *given, dlogit_BTJ, *sizes)
    return dlogit_BTJ


@depth_attend_backward.register_fake
def _(values: list[Tensor], weight_BTJ: Tensor, dx_BTD: Tensor) -> Tensor:
    return torch.empty_like(weight_BTJ)


@torch.library.custom_op("reslab::depth_pull", mutates_args=())
def depth_pull(
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
        _addresses([weight[..., index] for weight in weight_BTJ]),
        _addresses([dlogit[..., index] for dlogit in dlogit_BTJ]),
        _table(weight.shape[-1] for weight in weight_BTJ),
        _table(queries),
    )
    dv_BTD, dkey_QD = torch.empty_like(v_BTD), v_BTD.new_zeros(threads, Q, D)
    given, sizes = (v_BTD, key_QD, score_BTQ, rrms_BT, direct_BTD), (B * T, D, Q, len(queries), threads)
    _kernels(v_BTD)("depth_pull", *given, *tables, dv_BTD, dkey_QD, *sizes)
    return dv_BTD, dkey_QD.sum(0)


@depth_pull.register_fake
def _(index: int, v_BTD: Tensor, key_QD: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(v_BTD), torch.empty_like(key_QD)


def _kernels(x: Tensor) -> Kernels:
    kernels = built_for(x.dtype, x.shape[-1], "depth")
    assert kernels is not None  # or `kernels_serve` had said so
    return kernels


def _table(numbers: Iterable[int]) -> Tensor:
    return torch.tensor(list(numbers), dtype=torch.int64)


def _addresses(tensors: Sequence[Tensor]) -> Tensor:
    return _table(tensor.data_ptr() for tensor in tensors)
