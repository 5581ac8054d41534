"""Triton kernels of depth attention; `blocked.py` has the equations and where each kernel is used.

There is one program a token, which holds rows [1, W] of hidden states: each of them is read once, in one piece. Only the
two thin products with the keys, `scores` and `keys_gradient`, process tiles of tokens. Hidden states come as tables of
addresses, first those of the accumulation dtype (WIDE), then those of bfloat16.

Shape letters: J sources, L queries, K queries (forward) or sources (backward) of one program, W the width rounded up to
a power of two, as are sizes that end in P, M tokens of a tile, C elements of a chunk of the width.
"""

import triton
import triton.language as tl


@triton.jit
def _rows(address, t, D: tl.constexpr, TYPE: tl.constexpr):
    """Return the address of token t's row, or rows; a thread loads four elements at once in every dtype."""
    return tl.multiple_of(address.to(tl.pointer_type(TYPE)), 4 * TYPE.primitive_bitwidth // 8) + t * D


@triton.jit
def _row(table, i, stride: tl.constexpr, last, t, at_W, inside_W, D: tl.constexpr, TYPE: tl.constexpr):
    """Load token t's row of the tensor whose address is entry i of a table; entries from `last` on give 0."""
    address = tl.load(table + stride * i, mask=i < last, other=0)
    there_W = inside_W & (tl.zeros_like(at_W) + i < last)
    # Bypass the L1 cache, which is left to data that programs share.
    return tl.load(_rows(address, t, D, TYPE) + at_W, mask=there_W, other=0, cache_modifier=".cg")


@triton.jit
def _number(table, i, offset, TYPE: tl.constexpr):
    """Load one element of the tensor whose address is entry i of a table."""
    return tl.load(tl.load(table + i).to(tl.pointer_type(TYPE)) + offset)


@triton.jit(do_not_specialize=["rows", "Q"])
def scores(
    v, key, score, rrms, rows, Q, eps, D: tl.constexpr, QP: tl.constexpr, WIDE: tl.constexpr,
    M: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute s = (v key^T) r [rows, Q] and r = (mean v^2 + eps)^-1/2 [rows], for M rows and QP queries."""
    # Accumulate the product and the squares over chunks of the width.
    t_M = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    q_Q, at_C = tl.program_id(1) * QP + tl.arange(0, QP), tl.arange(0, CHUNK)
    s_MQ = tl.zeros([M, QP], WIDE)
    square_M = tl.zeros([M], WIDE)
    for first in range(0, D, CHUNK):
        inside_C = first + at_C < D
        v_at = v + t_M[:, None] * D + (first + at_C)[None, :]
        v_MC = tl.load(v_at, mask=(t_M < rows)[:, None] & inside_C[None, :], other=0).to(WIDE)
        key_at = key + q_Q[None, :] * D + (first + at_C)[:, None]
        key_CQ = tl.load(key_at, mask=(q_Q < Q)[None, :] & inside_C[:, None], other=0)
        s_MQ += tl.dot(v_MC, key_CQ, input_precision=PRECISION, out_dtype=WIDE)
        square_M += tl.sum(v_MC * v_MC, 1)
    # Normalize the product, not the source.
    r_M = 1 / tl.sqrt(square_M / D + eps)
    tl.store(rrms + t_M, r_M, mask=t_M < rows)
    there_MQ = (t_M < rows)[:, None] & (q_Q < Q)[None, :]
    tl.store(score + t_M[:, None] * Q + q_Q[None, :], s_MQ * r_M[:, None], mask=there_MQ)


@triton.jit
def _add_sources(
    x_KW, table, first, last, lse_K, n_query, t, at_W, inside_W, D: tl.constexpr, K: tl.constexpr,
    TYPE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Add sum_j exp(s_jk - lse_k) v_j to x_k, over entries of a table (v, its score, the score's stride)."""
    k_K = tl.arange(0, K)
    v_W = _row(table, first, 3, last, t, at_W, inside_W, D, TYPE)
    for j in range(first, last):
        ahead_W = _row(table, j + 1, 3, last, t, at_W, inside_W, D, TYPE)  # prefetch the next source
        s_at = tl.load(table + 3 * j + 1).to(tl.pointer_type(WIDE)) + t * tl.load(table + 3 * j + 2)
        s_K = tl.load(s_at + k_K, mask=k_K < n_query, other=0)
        x_KW += tl.exp(s_K - lse_K)[:, None] * v_W.to(WIDE)
        v_W = ahead_W
    return x_KW


@triton.jit(
    do_not_specialize=["rows", "n_wide", "n_source", "n_query"],
    do_not_specialize_on_alignment=["out", "lse_before"],
)
def mixtures(
    table, out, lse, before, lse_before, rows, n_wide, n_source, n_query, D: tl.constexpr, W: tl.constexpr,
    JP: tl.constexpr, K: tl.constexpr, MORE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Compute the mixtures of consecutive queries, and their lse = log sum_j exp s_j.

    MORE: there is a mixture `before` of other sources, of one query, with its log-sum-exp.
    """
    # Log-sum-exp of all scores: [JP, K] numbers.
    t = tl.program_id(0).to(tl.int64)
    j_J, k_K, at_W = tl.arange(0, JP), tl.arange(0, K), tl.arange(0, W)[None, :]
    inside_W = at_W < D
    base_J = tl.load(table + 3 * j_J + 1, mask=j_J < n_source, other=0).to(tl.pointer_type(WIDE))
    stride_J = tl.load(table + 3 * j_J + 2, mask=j_J < n_source, other=0)
    there_JK = (j_J < n_source)[:, None] & (k_K < n_query)[None, :]
    s_JK = tl.load((base_J + t * stride_J)[:, None] + k_K[None, :], mask=there_JK, other=float("-inf"))
    s_JK = tl.where((k_K < n_query)[None, :], s_JK, 0)
    top_K = tl.max(s_JK, 0)
    x_KW = tl.zeros([K, W], WIDE)
    if MORE:
        lse_before_K = tl.load(lse_before + t + k_K, mask=k_K < n_query, other=0)
        top_K = tl.maximum(top_K, lse_before_K)
        total_K = tl.exp(lse_before_K - top_K) + tl.sum(tl.exp(s_JK - top_K[None, :]), 0)
        lse_K = top_K + tl.log(total_K)
        before_W = tl.load(before + t * D + at_W, mask=inside_W, other=0)
        x_KW += tl.exp(lse_before_K - lse_K)[:, None] * before_W
    else:
        lse_K = top_K + tl.log(tl.sum(tl.exp(s_JK - top_K[None, :]), 0))
    tl.store(lse + k_K * rows + t, lse_K, mask=k_K < n_query)
    # One pass over the sources, those of the accumulation dtype first.
    x_KW = _add_sources(x_KW, table, 0, n_wide, lse_K, n_query, t, at_W, inside_W, D, K, WIDE, WIDE)
    x_KW = _add_sources(x_KW, table, n_wide, n_source, lse_K, n_query, t, at_W, inside_W, D, K, tl.bfloat16, WIDE)
    out_K = _rows(tl.load(out + k_K, mask=k_K < n_query, other=0), t, D, WIDE)
    tl.store(out_K[:, None] + at_W, x_KW, mask=(k_K < n_query)[:, None] & inside_W)


@triton.jit
def _add_queries(
    dv_KW, along_K, v_KW, r_K, k_K, members, queries, key, n_key, first, last, n_member, t, at_W, inside_W,
    D: tl.constexpr, FRESH: tl.constexpr, KEPT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Add to dv_k, and to sum_l g_kl s_kl, for queries of a table (dx, x, lse, delta, dx to keep, number).

    FRESH: this is the first reading of these queries; it computes delta and stores dx rounded to KEPT.
    """
    there_K = k_K < n_member
    score_K = tl.load(members + 6 * k_K + 1, mask=there_K, other=0).to(tl.pointer_type(WIDE))
    product_K = tl.load(members + 6 * k_K + 3, mask=there_K, other=0).to(tl.pointer_type(WIDE))
    end_K = (t + 1) * tl.load(members + 6 * k_K + 5, mask=there_K, other=0)
    score_K, product_K = score_K + end_K, product_K + end_K
    COMES: tl.constexpr = WIDE if FRESH else KEPT  # dtype of dx
    next_W = _row(queries, first, 6, last, t, at_W, inside_W, D, COMES)
    for i in range(first, last):
        ahead_W = _row(queries, i + 1, 6, last, t, at_W, inside_W, D, COMES)  # prefetch the next query
        number = tl.load(queries + 6 * i + 5)  # from the last
        w_W = tl.load(key + (n_key + number) * D + at_W, mask=inside_W, other=0)
        dx_W = next_W.to(KEPT).to(WIDE)
        if FRESH:
            if KEPT != WIDE:
                kept = _rows(tl.load(queries + 6 * i + 4), t, D, KEPT)
                tl.store(kept + at_W, next_W.to(KEPT), mask=inside_W & (tl.min(k_K) + tl.zeros_like(at_W) == 0))
            x_W = _row(queries + 1, i, 6, last, t, at_W, inside_W, D, WIDE)
            delta = tl.sum(dx_W * x_W)
            tl.store(tl.load(queries + 6 * i + 3).to(tl.pointer_type(WIDE)) + t, delta)
        else:
            delta = _number(queries, 6 * i + 3, t, WIDE)
        # g = a (<dx, v> - delta) of every source, with its weight a = exp(s - lse).
        lse = _number(queries, 6 * i + 2, t, WIDE)
        s_K = tl.load(score_K + number, mask=there_K, other=0)
        a_K = tl.exp(s_K - lse)
        g_K = a_K * (tl.sum(v_KW * dx_W, 1) - delta)
        along_K += g_K * s_K
        p_K = g_K * r_K
        tl.store(product_K + number, p_K, mask=there_K)
        dv_KW += a_K[:, None] * dx_W
        dv_KW += p_K[:, None] * w_W
        next_W = ahead_W
    return dv_KW, along_K


@triton.jit(
    do_not_specialize=["rows", "n_key", "n_fresh", "n_query", "n_member"],
    do_not_specialize_on_alignment=["queries", "along"],
)
def source_gradients(
    members, queries, key, direct, partial, along, rows, n_key, n_fresh, n_query, n_member, D: tl.constexpr,
    W: tl.constexpr, K: tl.constexpr, PARTS: tl.constexpr, FIRST: tl.constexpr, TYPE: tl.constexpr, KEPT: tl.constexpr,
    FINAL: tl.constexpr, DIRECT: tl.constexpr, MORE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Compute what queries contribute to the gradients of sources (v, score, r, g r, dv, number of keys).

    All sources have met all queries: dv_k = sum_l a_kl dx_l + g_kl r_k w_l, along_k = sum_l g_kl s_kl. FINAL: the
    whole gradient of one source, dv = direct + partial + ... - along r^2 / D v, where `direct` is that of its other
    uses (DIRECT) and `partial` what other queries contribute (MORE). The FIRST source may have a dtype of its own.
    PARTS programs, which share the cache, compute K sources each.
    """
    # Load the sources, K rows.
    t = (tl.program_id(0) // PARTS).to(tl.int64)
    k_K, at_W = tl.program_id(0) % PARTS * K + tl.arange(0, K), tl.arange(0, W)[None, :]
    inside_W, there_K = at_W < D, k_K < n_member
    there_KW = there_K[:, None] & inside_W
    v_K = tl.load(members + 6 * k_K, mask=there_K, other=0)
    if FIRST == TYPE:
        v_KW = tl.load(_rows(v_K, t, D, TYPE)[:, None] + at_W, mask=there_KW, other=0).to(WIDE)
    else:
        others_KW = there_KW & (k_K > 0)[:, None]
        v_KW = tl.load(_rows(v_K, t, D, TYPE)[:, None] + at_W, mask=others_KW, other=0).to(WIDE)
        first_W = tl.load(_rows(tl.load(members), t, D, FIRST) + at_W, mask=inside_W, other=0).to(WIDE)
        v_KW += tl.where((k_K == 0)[:, None], first_W, 0)
    r_at_K = tl.load(members + 6 * k_K + 2, mask=there_K, other=0).to(tl.pointer_type(WIDE))
    r_K = tl.load(r_at_K + t, mask=there_K, other=0)
    # Start from the gradients that exist already.
    dv_KW = tl.zeros([K, W], WIDE)
    along_K = tl.zeros([K], WIDE)
    if DIRECT:
        dv_KW += tl.load(_rows(direct.to(tl.int64), t, D, TYPE) + at_W, mask=inside_W, other=0).to(WIDE)
    if MORE:
        dv_KW += tl.load(_rows(partial.to(tl.int64), t, D, KEPT) + at_W, mask=inside_W, other=0).to(WIDE)
        along_K += tl.load(along + k_K * rows + t, mask=there_K, other=0)
    # Add the queries that are read for the first time, then the others.
    dv_KW, along_K = _add_queries(
        dv_KW, along_K, v_KW, r_K, k_K, members, queries, key, n_key, 0, n_fresh, n_member, t, at_W, inside_W,
        D, True, KEPT, WIDE,
    )  # fmt: skip
    dv_KW, along_K = _add_queries(
        dv_KW, along_K, v_KW, r_K, k_K, members, queries, key, n_key, n_fresh, n_query, n_member, t, at_W, inside_W,
        D, False, KEPT, WIDE,
    )  # fmt: skip
    out_K = tl.load(members + 6 * k_K + 4, mask=there_K, other=0)
    # Subtract what is along the source itself, or store the parts for the last call.
    if FINAL:
        dv_KW -= (along_K * r_K * r_K / D)[:, None] * v_KW
        tl.store(_rows(out_K, t, D, TYPE)[:, None] + at_W, dv_KW.to(TYPE), mask=there_KW)
    else:
        tl.store(_rows(out_K, t, D, KEPT)[:, None] + at_W, dv_KW.to(KEPT), mask=there_KW)
        tl.store(along + k_K * rows + t, along_K, mask=there_K)


@triton.jit(do_not_specialize=["rows", "per_split", "Q"])
def keys_gradient(
    v, near, far, out, rows, per_split, Q, D: tl.constexpr, QP: tl.constexpr, M: tl.constexpr,
    CHUNK: tl.constexpr, MORE: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Compute dkey = dproduct^T v [Q, D], where dproduct = near (+ far) is g r [rows, Q].

    A program computes a chunk of the width for QP queries, over one split of the rows.
    """
    at_C, q_Q = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK), tl.program_id(2) * QP + tl.arange(0, QP)
    t_M = tl.arange(0, M)
    split = tl.program_id(1).to(tl.int64)
    dkey_QC = tl.zeros([QP, CHUNK], WIDE)
    for first in range(0, per_split, M):
        row_M = split * per_split + first + t_M
        there_M = (row_M < rows) & (first + t_M < per_split)
        at_QM, there_QM = row_M[None, :] * Q + q_Q[:, None], there_M[None, :] & (q_Q < Q)[:, None]
        g_QM = tl.load(near + at_QM, mask=there_QM, other=0)
        if MORE:
            g_QM += tl.load(far + at_QM, mask=there_QM, other=0)
        there_MC = there_M[:, None] & (at_C < D)[None, :]
        v_MC = tl.load(v + row_M[:, None] * D + at_C[None, :], mask=there_MC, other=0).to(WIDE)
        dkey_QC += tl.dot(g_QM, v_MC, input_precision=PRECISION, out_dtype=WIDE)
    out_QC = out + (split * Q + q_Q[:, None]) * D + at_C[None, :]
    tl.store(out_QC, dkey_QC, mask=(q_Q < Q)[:, None] & (at_C < D)[None, :])
