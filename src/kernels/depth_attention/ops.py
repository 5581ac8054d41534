"""Kernels of depth attention as torch operators, which a compiler calls without looking into them.

`blocked.py` has the equations and what each operator is for. On the CPU they run `depth.cpp`, on a CUDA device
`triton_kernels.py`. Sources are bfloat16 (Triton alone) or of the keys' dtype, in which everything else is; all tensors
are contiguous and on one device; no operator has a gradient of its own. A query's number counts from the last (-1).

Shape letters: Q queries of a source, J sources, L queries that met a source, K sources of a chunk.
"""

from typing import Any

import torch
from torch import Tensor

from src.kernels.cpp_build import Kernels, Source
from src.kernels.custom_op import bypass_dispatcher, operator
from src.kernels.depth_attention import cpp
from src.kernels.dispatch import REGISTRY

SOURCE = Source("kernels/depth_attention/depth")


def _depth_scores(v_BTD: Tensor, key_QD: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the scores [B, T, Q] of a source for Q queries, and 1 / rms [B, T] of its rows."""
    out = _depth_scores_fake(v_BTD, key_QD, eps)
    kernels = _cpp_kernels(key_QD)
    if kernels is not None:
        cpp.scores(kernels, v_BTD, key_QD, eps, *out)
    else:
        _triton().scores(v_BTD, key_QD, eps, *out)
    return out


def _depth_scores_fake(v_BTD: Tensor, key_QD: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    B, T, _ = v_BTD.shape
    return key_QD.new_empty(B, T, len(key_QD)), key_QD.new_empty(B, T)


def _depth_partials(
    values: list[Tensor], score_BTQ: list[Tensor], query: int, n_query: int
) -> tuple[list[Tensor], Tensor]:
    """Return the mixtures of consecutive queries from `query` on, and their log-sum-exp [n_query, B, T]."""
    out = _depth_partials_fake(values, score_BTQ, query, n_query)
    _mixtures(values, score_BTQ, query, (None, None), *out)
    return out


def _depth_partials_fake(
    values: list[Tensor], score_BTQ: list[Tensor], query: int, n_query: int
) -> tuple[list[Tensor], Tensor]:
    (B, T, D), like = values[0].shape, score_BTQ[0]
    return [like.new_empty(B, T, D) for _ in range(n_query)], like.new_empty(n_query, B, T)


def _depth_mixture(
    values: list[Tensor],
    score_BTQ: list[Tensor],
    query: int,
    before_BTD: Tensor | None,
    lse_before_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return one query's mixture and its log-sum-exp [B, T]; `before` is its mixture of other sources."""
    x_BTD, lse_BT = _depth_mixture_fake(values, score_BTQ)
    _mixtures(values, score_BTQ, query, (before_BTD, lse_before_BT), [x_BTD], lse_BT)
    return x_BTD, lse_BT


def _mixtures(values: list[Tensor], *others: Any) -> None:
    kernels = _cpp_kernels(values[0])
    if kernels is not None:
        cpp.mixtures(kernels, values, *others)
    else:
        _triton().mixtures(values, *others)


def _depth_mixture_fake(values: list[Tensor], score_BTQ: list[Tensor], *others: object) -> tuple[Tensor, Tensor]:
    B, T, D = values[0].shape
    return score_BTQ[0].new_empty(B, T, D), score_BTQ[0].new_empty(B, T)


def _depth_chunk_gradients(
    values: list[Tensor],
    score_BTQ: list[Tensor],
    rrms_BT: list[Tensor],
    key_QD: Tensor,
    narrow: bool,
    queries: list[int],
    dx_BTD: list[Tensor],
    x_BTD: list[Tensor],
    lse_BT: list[Tensor],
    delta_BT: list[Tensor],
) -> tuple[list[Tensor], list[Tensor], Tensor, list[Tensor], list[Tensor]]:
    """Return what queries contribute to the gradients of K sources that all met them; the keys are the last source's.

    These are K partial gradients, K times g r, and the sum of g s [K, B, T], for `depth_source_gradient`. Then delta of
    the first queries, those that come with x, and their dx in bfloat16 if `narrow`, as the partial gradients are then.
    """
    out = _empty_chunk_gradients(values, score_BTQ, key_QD, narrow, x_BTD)
    partial_BTD, product_BTQ, along, new_delta_BT, kept_BTD = out
    members = (values, score_BTQ, rrms_BT, product_BTQ, partial_BTD)
    gradients = (queries, dx_BTD, x_BTD, lse_BT, [*new_delta_BT, *delta_BT])
    kernels = _cpp_kernels(key_QD)
    if kernels is not None:
        cpp.chunk_gradients(kernels, members, gradients, along)
    else:
        others = (None, None, along)
        _triton().source_gradients(members, key_QD, (*gradients, kept_BTD), others, final=False, narrow=narrow)
    return out


def _empty_chunk_gradients(
    values: list[Tensor], score_BTQ: list[Tensor], key_QD: Tensor, narrow: bool, x_BTD: list[Tensor]
) -> tuple[list[Tensor], list[Tensor], Tensor, list[Tensor], list[Tensor]]:
    kind = torch.bfloat16 if narrow else key_QD.dtype
    partial_BTD = [torch.empty_like(v_BTD, dtype=kind) for v_BTD in values]
    product_BTQ = [torch.zeros_like(score) for score in score_BTQ]
    along = key_QD.new_empty(len(values), *values[0].shape[:-1])
    return partial_BTD, product_BTQ, along, *_empty_deltas(narrow, x_BTD)


def _depth_source_gradient(
    v_BTD: Tensor,
    key_QD: Tensor,
    bias_Q: Tensor | None,
    score_BTQ: Tensor,
    rrms_BT: Tensor,
    direct_BTD: Tensor | None,
    partial: list[Tensor],
    narrow: bool,
    queries: list[int],
    dx_BTD: list[Tensor],
    x_BTD: list[Tensor],
    lse_BT: list[Tensor],
    delta_BT: list[Tensor],
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], Tensor]:
    """Return the gradients of a source and of its keys; delta and dx as `depth_chunk_gradients`; that of its bias.

    `direct_BTD` is the gradient from other uses of the source. `partial` is what other queries contribute: this source's
    part of the first three results of `depth_chunk_gradients`, or nothing. The bias, which is in the scores, exists
    on the CPU alone; without it, its gradient is empty.
    """
    out = _empty_source_gradient(v_BTD, key_QD, bias_Q, narrow, x_BTD)
    dv_BTD, dkey_QD, new_delta_BT, kept_BTD, dbias_Q = out
    gradients = (queries, dx_BTD, x_BTD, lse_BT, [*new_delta_BT, *delta_BT])
    partial_BTD, partial_BTQ, along_BT = partial or (None, None, None)
    kernels = _cpp_kernels(key_QD)
    if kernels is not None:
        member = ([v_BTD], [score_BTQ], [rrms_BT], [score_BTQ], [dv_BTD])  # its g r is not stored
        contributions = (direct_BTD, partial_BTD, partial_BTQ, along_BT)
        cpp.source_gradient(kernels, member, key_QD, gradients, contributions, bias_Q, dkey_QD, dbias_Q)
        return out
    assert bias_Q is None  # the Triton kernels have no bias
    product_BTQ = torch.zeros_like(score_BTQ)
    members = ([v_BTD], [score_BTQ], [rrms_BT], [product_BTQ], [dv_BTD])
    others = (direct_BTD, partial_BTD, along_BT)
    _triton().source_gradients(members, key_QD, (*gradients, kept_BTD), others, final=True, narrow=narrow)
    _triton().keys_gradient(v_BTD, product_BTQ, partial_BTQ, dkey_QD)
    return out


def _empty_source_gradient(
    v_BTD: Tensor, key_QD: Tensor, bias_Q: Tensor | None, narrow: bool, x_BTD: list[Tensor]
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], Tensor]:
    dbias_Q = key_QD.new_empty(0 if bias_Q is None else len(bias_Q))
    return torch.empty_like(v_BTD), torch.empty_like(key_QD), *_empty_deltas(narrow, x_BTD), dbias_Q


def _empty_deltas(narrow: bool, x_BTD: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    kept_BTD = [torch.empty_like(x, dtype=torch.bfloat16) for x in x_BTD] if narrow else []
    return [x.new_empty(x.shape[:-1]) for x in x_BTD], kept_BTD


def _cpp_kernels(x: Tensor) -> Kernels | None:
    """Return the C++ kernels on a device that runs those, else None."""
    if REGISTRY.backend_of_device[x.device.type] != "cpp":
        return None
    return SOURCE.load(x.dtype, x.shape[-1])


def _triton() -> Any:  # a module that imports Triton, which a machine without a GPU need not have
    from src.kernels.depth_attention import triton_launch

    return triton_launch


depth_scores = bypass_dispatcher(_depth_scores, operator(_depth_scores, _depth_scores_fake))
depth_partials = bypass_dispatcher(_depth_partials, operator(_depth_partials, _depth_partials_fake))
depth_mixture = bypass_dispatcher(_depth_mixture, operator(_depth_mixture, _depth_mixture_fake))
depth_chunk_gradients = bypass_dispatcher(
    _depth_chunk_gradients,
    operator(
        _depth_chunk_gradients,
        lambda v, score, r, key, narrow, queries, dx, x, *_: _empty_chunk_gradients(v, score, key, narrow, x),
    ),
)
depth_source_gradient = bypass_dispatcher(
    _depth_source_gradient,
    operator(
        _depth_source_gradient,
        lambda v, key, bias, score, r, direct, partial, narrow, queries, dx, x, *_: _empty_source_gradient(
            v, key, bias, narrow, x
        ),
    ),
)
