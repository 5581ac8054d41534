"""The backward of mHC's projection and mixing on a GPU: by chunks of D, over tiles of tokens.

    dH_i = sum_m A_im given_m + phi_i^T dz + along H_i;   dphi_i = sum over tokens of dz H_i^T
    dy = sum_i b_i dH_i;   db_i = <y, dH_i>

A program has a chunk of D, all streams of it, and passes over tokens, so that what it adds to dphi stays with it. It
replays that chunk of the streams; a token's numbers are columns.

Shape letters: M tokens of a tile, E columns of a chunk, N streams, C = N * N + 2 * N columns of phi.
"""

import triton
import triton.language as tl

from src.kernels.hyper_streams.triton_common import output


@triton.jit
def _chunks(h, t, d, there, D: tl.constexpr, N: tl.constexpr, COPIES: tl.constexpr, F: tl.constexpr):
    out = ()
    for i in tl.static_range(N):
        row = t * D if COPIES else (t * N + i) * D
        out = out + (tl.load(h + row[:, None] + d[None, :], mask=there, other=0.0).to(F),)
    return out


@triton.jit
def _column(numbers, row, columns: tl.constexpr, column, inside):
    """A number of every token, beside its chunk; each has a row of `columns`."""
    return tl.load(numbers + row * columns + column, mask=inside, other=0.0)[:, None]


@triton.jit
def _replayed(
    start,
    shares,
    table,
    J,
    b,
    t,
    d,
    inside,
    there,
    D: tl.constexpr,
    N: tl.constexpr,
    COPIES: tl.constexpr,
    FRESH: tl.constexpr,
    WAITS: tl.constexpr,
    Y: tl.constexpr,
    F: tl.constexpr,
):
    """`stream_triton.replayed`, of chunks."""
    S: tl.constexpr = start.dtype.element_ty
    at = (t * D)[:, None] + d[None, :]
    chunks = _chunks(start, t, d, there, D, N, COPIES, F)
    if WAITS:
        y_ME = tl.load(output(table, J - 1, True, Y) + at, mask=there, other=0.0).to(F)
    if not FRESH:
        first: tl.constexpr = 1 if COPIES else N
        made, row = (), t * (first + J - 1)
        for i in tl.static_range(N):
            chunk = _column(shares, row, N, i, inside) * chunks[0]
            for r in tl.static_range(1, first):
                chunk += _column(shares, row + r, N, i, inside) * chunks[r]
            made = made + (chunk,)
        for j in range(0, J - 1):
            other_ME = tl.load(output(table, j, True, Y) + at, mask=there, other=0.0).to(F)
            grown = ()
            for i in tl.static_range(N):
                grown = grown + (made[i] + _column(shares, row + first + j, N, i, inside) * other_ME,)
            made = grown
        chunks = ()
        for i in tl.static_range(N):
            chunks = chunks + (made[i].to(S).to(F),)
    if WAITS:
        written = ()
        for i in tl.static_range(N):
            written = written + (chunks[i] + _column(b, t, N, i, inside) * y_ME,)
        return written, y_ME
    return chunks, chunks[0]


@triton.jit(do_not_specialize=["tokens", "J"])
def mhc_pull(
    start,
    shares,
    table,
    J,
    b,
    phi,
    weights,
    left,
    du,
    dout,
    dh,
    db,
    dy,
    dphi,
    tokens,
    D: tl.constexpr,
    DP: tl.constexpr,
    N: tl.constexpr,
    CP: tl.constexpr,
    M: tl.constexpr,
    E: tl.constexpr,
    COPIES: tl.constexpr,
    FRESH: tl.constexpr,
    WAITS: tl.constexpr,
    TOGETHER: tl.constexpr,
    F: tl.constexpr,
):
    """`db`: partial sums [chunks, tokens, N]; `dphi`: [programs of a chunk, C, N * D]."""
    C: tl.constexpr = N * N + 2 * N
    Y: tl.constexpr = du.dtype.element_ty
    chunk, c, d = tl.program_id(0), tl.arange(0, CP), tl.program_id(0) * E + tl.arange(0, E)
    dphi_rows = ()
    for _ in tl.static_range(N):
        dphi_rows = dphi_rows + (tl.zeros([CP, E], F),)
    for tile in range(tl.program_id(1), tl.cdiv(tokens, M), tl.num_programs(1)):
        t = tile * M + tl.arange(0, M).to(tl.int64)
        inside = t < tokens
        there = inside[:, None] & (d < D)[None, :]
        chunks, y_ME = _replayed(
            start, shares, table, J, b, t, d, inside, there, D, N, COPIES, FRESH, WAITS, Y, F
        )
        at = (t * D)[:, None] + d[None, :]
        given = (tl.load(du + at, mask=there, other=0.0).to(F),) + _chunks(dout, t, d, there, D, N, False, F)
        dz_at = left + (t * (C + 1))[:, None] + c[None, :]
        dz_MC = tl.load(dz_at, mask=inside[:, None] & (c < C)[None, :], other=0.0)
        along_M = tl.load(left + t * (C + 1) + C, mask=inside, other=0.0)
        own, new_dphi = weights + t * N * (N + 2), ()
        if WAITS:
            dy_ME = tl.zeros([M, E], F)
        if COPIES and not WAITS:
            dx_ME = tl.zeros([M, E], F)
        for i in tl.static_range(N):
            phi_at = phi + (c * (N * D))[:, None] + (i * D + d)[None, :]
            phi_CE = tl.load(phi_at, mask=(c < C)[:, None] & (d < D)[None, :], other=0.0)
            row = along_M[:, None] * chunks[i]
            row += tl.dot(dz_MC, phi_CE, input_precision="tf32x3", out_dtype=F)
            for m in tl.static_range(N + 1):
                row += tl.load(own + i * (N + 2) + m, mask=inside, other=0.0)[:, None] * given[m]
            dphi_row = tl.dot(tl.trans(dz_MC), chunks[i], input_precision="tf32x3", out_dtype=F)
            new_dphi = new_dphi + (dphi_rows[i] + dphi_row,)
            if WAITS:
                tl.store(db + (chunk * tokens + t) * N + i, tl.sum(row * y_ME, 1), mask=inside)
                dy_ME += tl.load(b + t * N + i, mask=inside, other=0.0)[:, None] * row
            if COPIES and not WAITS:
                dx_ME += row
            else:
                at_dh = dh + ((t * N + i) * D)[:, None] + d[None, :]
                tl.store(at_dh, row.to(dh.dtype.element_ty), mask=there)
        dphi_rows = new_dphi
        if WAITS:
            tl.store(dy + at, dy_ME.to(dy.dtype.element_ty), mask=there)
        if COPIES and not WAITS:
            tl.store(dh + at, dx_ME.to(dh.dtype.element_ty), mask=there)
    for i in tl.static_range(N):
        at_dphi = dphi + ((tl.program_id(1) * C + c) * (N * D))[:, None] + (i * D + d)[None, :]
        tl.store(at_dphi, dphi_rows[i], mask=(c < C)[:, None] & (d < D)[None, :])
