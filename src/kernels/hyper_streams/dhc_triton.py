"""The read of dynamic hyper-connections on a GPU, one pass over the streams in each direction.

Equations: `hyperconn_read.py`, whose centred projection w [C, D] and `bias` [C] these are given. Kept for every
stream of every token: [p | sum H | sum H^2].

What is N x C numbers a token goes through memory (the cache, that is) between barriers: from the lane that has
a sum to a lane for every number, which does the arithmetic once, and from there to all lanes.

Shape letters: N streams, C = N + 2 columns of W, K the most sites of a segment.
"""

import triton
import triton.language as tl

from src.kernels.hyper_streams.triton_common import (
    left,
    mixed,
    replayed,
    rows_of,
    shared,
    sums,
    tanh,
    unwritten,
    written,
)

SMALL = ["scale", "bias", "a", "static_b"]  # a site's row of them is aligned as chance will have it


@triton.jit
def rrms(kept, at, D: tl.constexpr, C: tl.constexpr, inside, eps):
    """The mean and 1 / deviation of rows, from their sums."""
    mean = tl.load(kept + at + C, mask=inside, other=0.0) / D
    square = tl.load(kept + at + C + 1, mask=inside, other=0.0) / D
    return mean, 1 / tl.sqrt(tl.maximum(square - mean * mean, 0.0) + eps)


@triton.jit(do_not_specialize=["tokens", "R"], do_not_specialize_on_alignment=SMALL)
def hyperconn_forward(
    h,
    b,
    y,
    w,
    bias,
    scale,
    a,
    static_b,
    shares,
    R,
    u,
    out,
    b_out,
    shares_out,
    kept,
    room,
    tokens,
    eps,
    D: tl.constexpr,
    DP: tl.constexpr,
    N: tl.constexpr,
    NP: tl.constexpr,
    CP: tl.constexpr,
    RP: tl.constexpr,
    COPIES: tl.constexpr,
    FRESH: tl.constexpr,
    WAITS: tl.constexpr,
    TOGETHER: tl.constexpr,
    F: tl.constexpr,
):
    """u, the mixed streams, B, their shares, and what is kept; by program room [N, C] for [A | B]."""
    C: tl.constexpr = N + 2
    d, i, c = tl.arange(0, DP), tl.arange(0, NP)[:, None], tl.arange(0, CP)[None, :]
    bias_1C = tl.load(bias + c, mask=c < C, other=0.0)
    scale_1C = tl.load(scale + (c == N + 1).to(tl.int32))
    static_NC = tl.load(a + i * (N + 1) + c, mask=(i < N) & (c < N + 1), other=0.0)
    static_NC += tl.load(static_b + i + c * 0, mask=(i < N) & (c == N + 1), other=0.0)
    own = room + tl.program_id(0) * (N * C)
    for t in range(tl.program_id(0).to(tl.int64), tokens, tl.num_programs(0)):
        rows = rows_of(h, t, d, D, N, COPIES, F)
        if WAITS:
            y_row = tl.load(y + t * D + d, mask=d < D, other=0.0).to(F)
            rows = written(rows, b + t * N, 1, y_row, N)
        for column in tl.static_range(C + 2):
            products = ()
            if column < C:
                w_row = tl.load(w + column * D + d, mask=d < D, other=0.0)
            for k in tl.static_range(N):
                if column < C:
                    products = products + (w_row * rows[k],)
                elif column == C:
                    products = products + (rows[k],)
                else:
                    products = products + (rows[k] * rows[k],)
            total = sums(products, N, TOGETHER)
            for k in tl.static_range(N):
                tl.store(kept + (t * N + k) * (C + 2) + column, total[k])
        tl.debug_barrier()
        at = (t * N + i) * (C + 2)
        p_NC = tl.load(kept + at + c, mask=(i < N) & (c < C), other=0.0)
        _, r_N1 = rrms(kept, at, D, C, i < N, eps)
        weight_NC = static_NC + scale_1C * tanh(p_NC * r_N1 + bias_1C)
        tl.store(own + i * C + c, weight_NC, mask=(i < N) & (c < C))
        tl.store(b_out + t * N + i + c * 0, weight_NC, mask=(i < N) & (c == N + 1))
        tl.debug_barrier()
        tl.store(u + t * D + d, mixed(rows, own, 0, N).to(u.dtype.element_ty), mask=d < D)
        for j in tl.static_range(N):
            row = mixed(rows, own, j + 1, N)
            tl.store(out + (t * N + j) * D + d, row.to(out.dtype.element_ty), mask=d < D)
        shared(shares, b, own, shares_out, R, t, N, NP, RP, COPIES, FRESH, WAITS)


@triton.jit(do_not_specialize=["tokens", "J"], do_not_specialize_on_alignment=SMALL)
def hyperconn_backward(
    start,
    shares,
    table,
    J,
    b,
    w,
    bias,
    scale,
    a,
    static_b,
    kept,
    du,
    dout,
    db_out,
    dh,
    db,
    dy,
    dw,
    small,
    room,
    tokens,
    eps,
    D: tl.constexpr,
    DP: tl.constexpr,
    N: tl.constexpr,
    NP: tl.constexpr,
    CP: tl.constexpr,
    COPIES: tl.constexpr,
    FRESH: tl.constexpr,
    WAITS: tl.constexpr,
    TOGETHER: tl.constexpr,
    F: tl.constexpr,
):
    """By program: dw [C, D]; small [3, N, C] of d[A | B], d[A | B] z and dz; room [3, N, C + 2]."""
    C: tl.constexpr = N + 2
    Y: tl.constexpr = du.dtype.element_ty
    d, i, c = tl.arange(0, DP), tl.arange(0, NP)[:, None], tl.arange(0, CP)[None, :]
    inside, used = d < D, (i < N) & (c < C)
    bias_1C = tl.load(bias + c, mask=c < C, other=0.0)
    scale_1C = tl.load(scale + (c == N + 1).to(tl.int32))
    static_NC = tl.load(a + i * (N + 1) + c, mask=(i < N) & (c < N + 1), other=0.0)
    static_NC += tl.load(static_b + i + c * 0, mask=(i < N) & (c == N + 1), other=0.0)
    da_room = room + tl.program_id(0) * (3 * N * (C + 2))
    dp_room, a_room = da_room + N * (C + 2), da_room + 2 * N * (C + 2)
    dab_NC, scale_NC, bias_NC = tl.zeros([NP, CP], F), tl.zeros([NP, CP], F), tl.zeros([NP, CP], F)
    dw_rows = ()
    for _ in tl.static_range(C):
        dw_rows = dw_rows + (tl.zeros([DP], F),)
    for t in range(tl.program_id(0).to(tl.int64), tokens, tl.num_programs(0)):
        given = (tl.load(du + t * D + d, mask=inside, other=0.0).to(F),) + rows_of(dout, t, d, D, N, False, F)
        rows, y_row = replayed(start, shares, table, J, b, t, d, D, N, COPIES, FRESH, WAITS, Y, F)
        for m in tl.static_range(N + 1):
            products = ()
            for k in tl.static_range(N):
                products = products + (rows[k] * given[m],)
            total = sums(products, N, TOGETHER)
            for k in tl.static_range(N):
                tl.store(da_room + k * (C + 2) + m, total[k])
        tl.debug_barrier()
        at = (t * N + i) * (C + 2)
        p_NC = tl.load(kept + at + c, mask=used, other=0.0)
        mean_N1, r_N1 = rrms(kept, at, D, C, i < N, eps)
        z_NC = tanh(p_NC * r_N1 + bias_1C)
        g_NC = tl.load(da_room + i * (C + 2) + c, mask=used & (c < N + 1), other=0.0)
        g_NC += tl.load(db_out + t * N + i + c * 0, mask=used & (c == N + 1), other=0.0)
        dz_NC = g_NC * scale_1C * (1 - z_NC * z_NC)
        dab_NC += g_NC
        scale_NC += g_NC * z_NC
        bias_NC += dz_NC
        along_N1 = tl.sum(dz_NC * p_NC, 1)[:, None] * (-1.0 / D) * r_N1 * r_N1 * r_N1
        left_NC = tl.where(c < C, dz_NC * r_N1, tl.where(c == C, along_N1, -along_N1 * mean_N1))
        tl.store(a_room + i * (C + 2) + c, static_NC + scale_1C * z_NC, mask=used)
        tl.store(dp_room + i * (C + 2) + c, left_NC, mask=(i < N) & (c < C + 2))
        tl.debug_barrier()
        dh_rows = ()
        for k in tl.static_range(N):
            row = tl.load(dp_room + k * (C + 2) + C) * rows[k] + tl.load(dp_room + k * (C + 2) + C + 1)
            for m in tl.static_range(N + 1):
                row += tl.load(a_room + k * (C + 2) + m) * given[m]
            dh_rows = dh_rows + (row,)
        new_dw = ()
        for column in tl.static_range(C):
            w_row, dw_row, new_dh = tl.load(w + column * D + d, mask=inside, other=0.0), dw_rows[column], ()
            for k in tl.static_range(N):
                dp = tl.load(dp_room + k * (C + 2) + column)
                new_dh = new_dh + (dh_rows[k] + dp * w_row,)
                dw_row += dp * rows[k]
            dh_rows, new_dw = new_dh, new_dw + (dw_row,)
        dw_rows = new_dw
        left(dh_rows, dh, t, d, D, N, COPIES and not WAITS)
        if WAITS:
            unwritten(dh_rows, y_row, b, db, dy, t, d, D, N, TOGETHER)
    for column in tl.static_range(C):
        tl.store(dw + (tl.program_id(0) * C + column) * D + d, dw_rows[column], mask=inside)
    own = small + tl.program_id(0) * (3 * N * C) + i * C + c
    tl.store(own, dab_NC, mask=used)
    tl.store(own + N * C, scale_NC, mask=used)
    tl.store(own + 2 * N * C, bias_NC, mask=used)
