"""The kernels of `depth_triton.py` as operators of torch, which a compiler calls and does not look into.

Equations, and what each is for: `block_sources.py`. Sources are bfloat16 or of the keys' type, in which everything
else is; all tensors are contiguous, on one device, and no operator has a gradient of its own. A query's number
counts from the last (-1).

Shape letters: Q queries of a source, J sources, L queries that met a source, K sources that are pulled together.
"""

from typing import Any

import torch
from torch import Tensor

from src.kernels.cpp_build import Kernels, built_for
from src.kernels.custom_op import directly, operator
from src.kernels.depth_attention import cpp as depth_native


def _blocks_scores(v_BTD: Tensor, key_QD: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The scores [B, T, Q] of a source for Q queries, and 1 / rms [B, T] of its rows."""
    out = _blocks_scores_fake(v_BTD, key_QD, eps)
    native = native_for(key_QD)
    if native is not None:
        depth_native.scores(native, v_BTD, key_QD, eps, *out)
    else:
        _launch().scores(v_BTD, key_QD, eps, *out)
    return out


def _blocks_scores_fake(v_BTD: Tensor, key_QD: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    B, T, _ = v_BTD.shape
    return key_QD.new_empty(B, T, len(key_QD)), key_QD.new_empty(B, T)


def _blocks_partials(
    values: list[Tensor], score_BTQ: list[Tensor], query: int, n_query: int
) -> tuple[list[Tensor], Tensor]:
    """The mixtures of consecutive queries from `query` on, and their log-sum-exp [n_query, B, T]."""
    out = _blocks_partials_fake(values, score_BTQ, query, n_query)
    _mixtures(values, score_BTQ, query, (None, None), *out)
    return out


def _blocks_partials_fake(
    values: list[Tensor], score_BTQ: list[Tensor], query: int, n_query: int
) -> tuple[list[Tensor], Tensor]:
    (B, T, D), like = values[0].shape, score_BTQ[0]
    return [like.new_empty(B, T, D) for _ in range(n_query)], like.new_empty(n_query, B, T)


def _blocks_mixture(
    values: list[Tensor],
    score_BTQ: list[Tensor],
    query: int,
    before_BTD: Tensor | None,
    lse_before_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One query's mixture and its log-sum-exp [B, T]; `before` is its mixture of other sources."""
    x_BTD, lse_BT = _blocks_mixture_fake(values, score_BTQ)
    _mixtures(values, score_BTQ, query, (before_BTD, lse_before_BT), [x_BTD], lse_BT)
    return x_BTD, lse_BT


def _mixtures(values: list[Tensor], *others: Any) -> None:
    native = native_for(values[0])
    if native is not None:
        depth_native.mixtures(native, values, *others)
    else:
        _launch().mixtures(values, *others)


def _blocks_mixture_fake(
    values: list[Tensor], score_BTQ: list[Tensor], *others: object
) -> tuple[Tensor, Tensor]:
    B, T, D = values[0].shape
    return score_BTQ[0].new_empty(B, T, D), score_BTQ[0].new_empty(B, T)


def _blocks_far(
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
    """What queries have left for K sources that all met them, for `blocks_pull`; the keys are the last source's.

    K partial gradients, K times g r, [K, B, T] of g . s; then delta of the first queries, which come with x, and
    their dx to be kept, where that is `narrow`: in bfloat16, as the partial gradients are then.
    """
    out = _blocks_far_fake(values, score_BTQ, rrms_BT, key_QD, narrow, queries, dx_BTD, x_BTD)
    partial_BTD, product_BTQ, along, fresh_BT, kept_BTD = out
    members = (values, score_BTQ, rrms_BT, product_BTQ, partial_BTD)
    native = native_for(key_QD)
    if native is not None:
        depth_native.far(native, members, (queries, dx_BTD, x_BTD, lse_BT, [*fresh_BT, *delta_BT]), along)
        return out
    left = (queries, dx_BTD, x_BTD, lse_BT, [*fresh_BT, *delta_BT], kept_BTD)
    _launch().pull(members, key_QD, left, (None, None, along), final=False, narrow=narrow)
    return out


def _blocks_far_fake(
    values: list[Tensor],
    score_BTQ: list[Tensor],
    rrms_BT: list[Tensor],
    key_QD: Tensor,
    narrow: bool,
    queries: list[int],
    dx_BTD: list[Tensor],
    x_BTD: list[Tensor],
    *others: object,
) -> tuple[list[Tensor], list[Tensor], Tensor, list[Tensor], list[Tensor]]:
    kind = torch.bfloat16 if narrow else key_QD.dtype
    partial_BTD = [torch.empty_like(v_BTD, dtype=kind) for v_BTD in values]
    product_BTQ = [torch.zeros_like(score) for score in score_BTQ]
    along = key_QD.new_empty(len(values), *rrms_BT[0].shape)
    return partial_BTD, product_BTQ, along, *_fresh(narrow, x_BTD)


def _blocks_pull(
    v_BTD: Tensor,
    key_QD: Tensor,
    score_BTQ: Tensor,
    rrms_BT: Tensor,
    direct_BTD: Tensor | None,
    far: list[Tensor],
    narrow: bool,
    queries: list[int],
    dx_BTD: list[Tensor],
    x_BTD: list[Tensor],
    lse_BT: list[Tensor],
    delta_BT: list[Tensor],
    bias_Q: Tensor | None = None,
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], Tensor]:
    """The gradients of a source and of its keys; then of the first queries, which come with x, as `blocks_far`.

    `far` is what other queries have left for it: its part of each of the first three that `blocks_far` gives, or none.
    Last the gradient of the bias that its scores have in them, on a CPU; of none it is empty.
    """
    given = (v_BTD, key_QD, score_BTQ, rrms_BT, direct_BTD, far, narrow, queries, dx_BTD, x_BTD)
    out = _blocks_pull_fake(*given, lse_BT, delta_BT, bias_Q)
    dv_BTD, dkey_QD, fresh_BT, kept_BTD, dbias_Q = out
    native = native_for(key_QD)
    if native is not None:
        member = ([v_BTD], [score_BTQ], [rrms_BT], [score_BTQ], [dv_BTD])  # its g r is made and used at once
        known = (queries, dx_BTD, x_BTD, lse_BT, [*fresh_BT, *delta_BT])
        came = (direct_BTD, *(far or (None, None, None)))
        partial, product, along = came[1:]
        others = (direct_BTD, partial, product, along)
        depth_native.pull(native, member, key_QD, known, others, bias_Q, dkey_QD, dbias_Q)
        return out
    assert bias_Q is None  # which those in Triton do not know
    near_BTQ = torch.zeros_like(score_BTQ)
    members = ([v_BTD], [score_BTQ], [rrms_BT], [near_BTQ], [dv_BTD])
    left = (queries, dx_BTD, x_BTD, lse_BT, [*fresh_BT, *delta_BT], kept_BTD)
    partial_BTD, far_BTQ, along_BT = far or (None, None, None)
    _launch().pull(members, key_QD, left, (direct_BTD, partial_BTD, along_BT), final=True, narrow=narrow)
    _launch().keys_gradient(v_BTD, near_BTQ, far_BTQ, dkey_QD)
    return out


def _blocks_pull_fake(
    v_BTD: Tensor,
    key_QD: Tensor,
    score_BTQ: Tensor,
    rrms_BT: Tensor,
    direct_BTD: Tensor | None,
    far: list[Tensor],
    narrow: bool,
    queries: list[int],
    dx_BTD: list[Tensor],
    x_BTD: list[Tensor],
    lse_BT: list[Tensor],
    delta_BT: list[Tensor],
    bias_Q: Tensor | None = None,
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], Tensor]:
    dbias_Q = key_QD.new_empty(0 if bias_Q is None else len(bias_Q))
    return torch.empty_like(v_BTD), torch.empty_like(key_QD), *_fresh(narrow, x_BTD), dbias_Q


def _fresh(narrow: bool, x_BTD: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    kept_BTD = [torch.empty_like(x, dtype=torch.bfloat16) for x in x_BTD] if narrow else []
    return [x.new_empty(x.shape[:-1]) for x in x_BTD], kept_BTD


def native_for(x: Tensor) -> Kernels | None:
    """The CPU's kernels, in C++, where they serve."""
    return built_for(x.dtype, x.shape[-1], "kernels/depth_attention/depth") if x.device.type == "cpu" else None


def _launch() -> Any:  # a module that needs Triton, which a machine without a GPU need not have
    from src.kernels.depth_attention import triton_launch as depth_launch

    return depth_launch


blocks_scores = directly(_blocks_scores, operator(_blocks_scores, _blocks_scores_fake))
blocks_partials = directly(_blocks_partials, operator(_blocks_partials, _blocks_partials_fake))
blocks_mixture = directly(_blocks_mixture, operator(_blocks_mixture, _blocks_mixture_fake))
blocks_far = directly(_blocks_far, operator(_blocks_far, _blocks_far_fake))
blocks_pull = directly(_blocks_pull, operator(_blocks_pull, _blocks_pull_fake))
