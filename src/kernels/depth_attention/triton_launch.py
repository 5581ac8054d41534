"""Launches of `triton_kernels.py`: tables of addresses, sizes and grids.

It needs Triton.

All tensors are contiguous and on one device; outputs are allocated by the caller. Sources are bfloat16 or of the keys'
dtype, in which everything else is. A query's number counts from the last (-1), where all sources' scores agree.

Shape letters: Q queries of a source, J sources, L queries that met a source, K sources of a chunk.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any  # Triton has no types

import torch
import triton
import triton.language as tl
from torch import Tensor

from src.kernels.depth_attention import triton_kernels

SOURCES_PER_PROGRAM = 4  # sources, or their gradients, that fit into the registers of one program
SPLITS = 64  # of the rows, where a sum runs over them
FUSED = {"enable_fp_fusion": True}  # multiply-adds, which an environment variable may switch off
TYPES = {torch.float32: tl.float32, torch.float64: tl.float64, torch.bfloat16: tl.bfloat16}


def scores(v_BTD: Tensor, key_QD: Tensor, eps: float, score_BTQ: Tensor, rrms_BT: Tensor) -> None:
    """Compute a source's scores and 1 / rms."""
    rows, sizes = rrms_BT.numel(), _tile_sizes(key_QD, 64, 64)
    with _on(v_BTD):
        kernel = triton_kernels.scores[(triton.cdiv(rows, 64), triton.cdiv(len(key_QD), sizes["QP"]))]
        kernel(v_BTD, key_QD, score_BTQ, rrms_BT, rows, len(key_QD), eps, **sizes)


def mixtures(
    values: list[Tensor],
    score_BTQ: list[Tensor],
    query: int,
    before: tuple[Tensor | None, Tensor | None],
    x_BTD: list[Tensor],
    lse: Tensor,
) -> None:
    """Compute the mixtures of consecutive queries from `query` on; `before` is a mixture and log-sum-exp to add to."""
    wide = [v_BTD.dtype == lse.dtype for v_BTD in values]
    entries: list[int] = []
    for j in sorted(range(len(values)), key=lambda j: not wide[j]):
        entries += (_address(values[j]), _address(score_BTQ[j], query), score_BTQ[j].shape[-1])
    table, rows = _table([*entries, *map(_address, x_BTD)], lse), x_BTD[0].shape[:-1].numel()
    args = (table, table[len(entries) :], lse, *before, rows, sum(wide), len(values), len(x_BTD))
    n = {"K": triton.next_power_of_2(len(x_BTD)), "JP": max(16, triton.next_power_of_2(len(values)))}
    with _on(lse):
        triton_kernels.mixtures[(rows,)](*args, MORE=before[0] is not None, **n, **_row_sizes(lse, x_BTD[0]))


def source_gradients(
    members: tuple[list[Tensor], ...],
    key_QD: Tensor,
    gradients: tuple[list[int], list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor]],
    others: tuple[Tensor | None, Tensor | None, Tensor | None],
    *,
    final: bool,
    narrow: bool,
) -> None:
    """Compute what queries contribute to the gradients of sources (v, score, 1 / rms, g r, dv).

    Args:
        members: v, score, 1 / rms, and the outputs g r and dv, each of K sources.
        key_QD: the keys of the last source.
        gradients: number, dx, x, log-sum-exp, delta and dx to keep. The first queries, those with x, are read for the
            first time: their delta is computed, and dx to keep if `narrow`.
        others: direct gradient, partial gradient of other queries, and their sum of g s, an output unless `final`.
        final: compute the whole gradient of one source, not its part from these queries.
        narrow: partial gradients and dx to keep are bfloat16.
    """
    numbers, dx_BTD, x_BTD, lse_BT, delta_BT, kept_BTD = gradients
    sources: list[int] = []
    for v_BTD, score_BTQ, *three in zip(*members, strict=True):
        sources += (*map(_address, (v_BTD, score_BTQ, *three)), score_BTQ.shape[-1])
    entries: list[int] = []
    for i, number in enumerate(numbers):
        x = _address(x_BTD[i]) if i < len(x_BTD) else 0
        kept = _address(kept_BTD[i]) if i < len(kept_BTD) else 0
        entries += (_address(dx_BTD[i]), x, _address(lse_BT[i]), _address(delta_BT[i]), kept, number)
    table, types = _table([*sources, *entries], key_QD), [TYPES[v_BTD.dtype] for v_BTD in members[0]]
    counts = (len(key_QD), len(x_BTD), len(numbers), len(types))
    flags = {"FINAL": final, "DIRECT": others[0] is not None, "MORE": others[1] is not None}
    kinds = {"FIRST": types[0], "TYPE": types[-1], "KEPT": tl.bfloat16 if narrow else TYPES[key_QD.dtype]}
    rows = members[2][0].numel()
    args = (table, table[len(sources) :], key_QD, *others, rows, *counts)
    parts = triton.cdiv(len(types), SOURCES_PER_PROGRAM)
    n = {
        "K": triton.next_power_of_2(min(len(types), SOURCES_PER_PROGRAM)),
        "PARTS": parts,
        **_row_sizes(key_QD, members[0][0]),
    }
    if not final:
        n["num_warps"] = max(1, n["num_warps"] // 2)  # sums over a row cost less in fewer threads
    with _on(key_QD):
        triton_kernels.source_gradients[(rows * parts,)](*args, **flags, **kinds, **n)


def keys_gradient(v_BTD: Tensor, near_BTQ: Tensor, far_BTQ: Tensor | None, dkey_QD: Tensor) -> None:
    """Compute dkey = (near + far)^T v."""
    (Q, D), rows = dkey_QD.shape, v_BTD.shape[:-1].numel()
    per_split = triton.cdiv(rows, SPLITS * 32) * 32
    splits = triton.cdiv(rows, per_split)
    part_QD = dkey_QD.new_empty(splits, Q, D)
    sizes = _tile_sizes(dkey_QD, 32, 256)
    with _on(v_BTD):
        kernel = triton_kernels.keys_gradient[(triton.cdiv(D, sizes["CHUNK"]), splits, triton.cdiv(Q, sizes["QP"]))]
        args = (v_BTD, near_BTQ, far_BTQ, part_QD, rows, per_split, Q)
        kernel(*args, MORE=far_BTQ is not None, num_warps=8, **sizes)
    torch.sum(part_QD, 0, out=dkey_QD)


def _row_sizes(wide: Tensor, x_BTD: Tensor) -> dict[str, Any]:
    D = x_BTD.shape[-1]
    W = max(16, triton.next_power_of_2(D))
    sizes = {"D": D, "W": W, "WIDE": TYPES[wide.dtype]}
    return {**sizes, **FUSED, "num_warps": min(16, max(1, W // 256))}


def _tile_sizes(key_QD: Tensor, tokens: int, chunk: int) -> dict[str, Any]:
    """Return the sizes of a thin product, which is as precise as torch's products are."""
    exact = torch.get_float32_matmul_precision() == "highest"
    Q, D = key_QD.shape
    chunk = min(chunk, max(16, triton.next_power_of_2(D)))
    sizes = {"D": D, "QP": min(64, max(16, triton.next_power_of_2(Q))), "M": tokens, "CHUNK": chunk}
    return {**sizes, **FUSED, "WIDE": TYPES[key_QD.dtype], "PRECISION": "ieee" if exact else "tf32"}


def _on(x: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _table(numbers: Sequence[int], like: Tensor) -> Tensor:
    """Return numbers on the device; the copy is so small that nothing waits for it."""
    return torch.tensor(numbers, dtype=torch.int64).to(like.device, non_blocking=True)


def _address(x: Tensor, column: int = 0) -> int:
    """Return the address of a column in the first row; the column may count from the last."""
    assert x.is_contiguous()  # the kernels know sizes, not strides
    return x.data_ptr() + column % x.shape[-1] * x.element_size()
