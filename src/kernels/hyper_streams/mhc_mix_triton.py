"""The streams of mHC on a GPU, mixed by weights that are there, token by token.

Equations: `mhc_read.py`.

Shape letters: N streams, R rows of shares.
"""

import triton
import triton.language as tl

from src.kernels.hyper_streams.triton_common import mixed, replayed, rows_of, shared, sums, written


@triton.jit(do_not_specialize=["tokens", "R"])
def mhc_mix(
    h,
    b,
    y,
    weights,
    shares,
    R,
    u,
    out,
    shares_out,
    tokens,
    D: tl.constexpr,
    DP: tl.constexpr,
    N: tl.constexpr,
    NP: tl.constexpr,
    RP: tl.constexpr,
    COPIES: tl.constexpr,
    FRESH: tl.constexpr,
    WAITS: tl.constexpr,
    TOGETHER: tl.constexpr,
    F: tl.constexpr,
):
    """u, the mixed streams and their shares."""
    d = tl.arange(0, DP)
    for t in range(tl.program_id(0).to(tl.int64), tokens, tl.num_programs(0)):
        rows = rows_of(h, t, d, D, N, COPIES, F)
        if WAITS:
            y_row = tl.load(y + t * D + d, mask=d < D, other=0.0).to(F)
            rows = written(rows, b + t * N, 1, y_row, N)
        own = weights + t * N * (N + 2)
        tl.store(u + t * D + d, mixed(rows, own, 0, N).to(u.dtype.element_ty), mask=d < D)
        for j in tl.static_range(N):
            row = mixed(rows, own, j + 1, N)
            tl.store(out + (t * N + j) * D + d, row.to(out.dtype.element_ty), mask=d < D)
        shared(shares, b, own, shares_out, R, t, N, NP, RP, COPIES, FRESH, WAITS)


@triton.jit(do_not_specialize=["tokens", "J"])
def mhc_dots(
    start,
    shares,
    table,
    J,
    b,
    du,
    dout,
    da,
    tokens,
    D: tl.constexpr,
    DP: tl.constexpr,
    N: tl.constexpr,
    COPIES: tl.constexpr,
    FRESH: tl.constexpr,
    WAITS: tl.constexpr,
    TOGETHER: tl.constexpr,
    F: tl.constexpr,
):
    """The gradient [tokens, N, N + 1] of A."""
    Y: tl.constexpr = du.dtype.element_ty
    d = tl.arange(0, DP)
    for t in range(tl.program_id(0).to(tl.int64), tokens, tl.num_programs(0)):
        du_row = tl.load(du + t * D + d, mask=d < D, other=0.0).to(F)
        given = (du_row,) + rows_of(dout, t, d, D, N, False, F)
        rows, _ = replayed(start, shares, table, J, b, t, d, D, N, COPIES, FRESH, WAITS, Y, F)
        for m in tl.static_range(N + 1):
            products = ()
            for k in tl.static_range(N):
                products = products + (rows[k] * given[m],)
            total = sums(products, N, TOGETHER)
            for k in tl.static_range(N):
                tl.store(da + (t * N + k) * (N + 1) + m, total[k])
