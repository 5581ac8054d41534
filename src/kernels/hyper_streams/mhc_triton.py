"""Triton kernels of the mHC read.

    forward     mhc_weights            [A | B] of tiles of tokens, which share the wide projection
                mhc_mix                u and the mixed streams, token by token
    backward    mhc_mix_backward       dA, token by token
                mhc_weights_backward   through the gates and Sinkhorn-Knopp, one token a lane
                mhc_stream_gradients   dH, dy, dB, dphi: by tiles of D, over tiles of tokens

`mhc.py` has the equations. Saved for every token: [phi vec(H) | sum vec(H)^2].

Shape letters: M tokens and E columns of a tile, N streams, C = N * N + 2 * N columns of phi, R rows of shares.
"""

import triton
import triton.language as tl

from src.kernels.hyper_streams.triton_common import (
    load_streams,
    load_written_streams,
    mix_shares,
    output_pointer,
    recompute_streams,
    store_mixed_streams,
    store_weight_gradients,
)

#: Parameters that are a site's row of a packed tensor, whose alignment differs from site to site.
SMALL = ["scale", "bias"]


@triton.jit
def _logit(saved, at, c: tl.constexpr, part: tl.constexpr, r, scale, bias, inside):
    """Return the logit of column `c`, and z r, which it is an affine function of."""
    zr = tl.load(saved + at + c, mask=inside, other=0.0) * r
    return tl.load(scale + part) * zr + tl.load(bias + c), zr


@triton.jit
def _exponentials(saved, at, r, scale, bias, inside, N: tl.constexpr):
    """Return exp(logit - largest logit) of the mixing, and z r."""
    logits, zrs = (), ()
    for c in tl.static_range(2 * N, N * N + 2 * N):
        logit, zr = _logit(saved, at, c, 2, r, scale, bias, inside)
        logits, zrs = logits + (logit,), zrs + (zr,)
    largest = logits[0]
    for k in tl.static_range(1, N * N):
        largest = tl.maximum(largest, logits[k])
    m = ()
    for k in tl.static_range(N * N):
        m = m + (tl.exp(tl.maximum(logits[k] - largest, -40.0)),)  # FLOOR of `sinkhorn.py`
    return m, zrs


@triton.jit
def _sums(m, dim: tl.constexpr, N: tl.constexpr):
    """Return the sums of N x N numbers along dimension 0 or 1."""
    out = ()
    for i in tl.static_range(N):
        total = m[i * N if dim else i]
        for j in tl.static_range(1, N):
            total += m[i * N + j if dim else j * N + i]
        out = out + (total,)
    return out


@triton.jit
def _divide(m, total, dim: tl.constexpr, N: tl.constexpr):
    """Return N x N numbers divided by their sums along a dimension."""
    out = ()
    for k in tl.static_range(N * N):
        out = out + (m[k] / total[k // N if dim else k % N],)
    return out


@triton.jit(do_not_specialize=["tokens"], do_not_specialize_on_alignment=SMALL)
def mhc_weights(
    h, b, y, phi, scale, bias, b_out, weights, saved, tokens, n_iteration, eps,
    D: tl.constexpr, DP: tl.constexpr, N: tl.constexpr, CP: tl.constexpr, M: tl.constexpr, E: tl.constexpr,
    COPIES: tl.constexpr, PENDING: tl.constexpr, BATCHED: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """Store [A | B] of M tokens, B by itself, and [phi vec(H) | sum vec(H)^2]."""
    C: tl.constexpr = N * N + 2 * N
    t, c = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M), tl.arange(0, CP)
    inside = t < tokens
    # The projection of all streams, tile by tile of D, and the sum of squares.
    z_MC, square_M = tl.zeros([M, CP], F), tl.zeros([M], F)
    for i in tl.static_range(N):
        for first in range(0, D, E):
            d = first + tl.arange(0, E)
            mask = inside[:, None] & (d < D)[None, :]
            row = t * D if COPIES else (t * N + i) * D
            h_ME = tl.load(h + row[:, None] + d[None, :], mask=mask, other=0.0).to(F)
            if PENDING:
                y_ME = tl.load(y + (t * D)[:, None] + d[None, :], mask=mask, other=0.0).to(F)
                h_ME += tl.load(b + t * N + i, mask=inside, other=0.0)[:, None] * y_ME
            phi_at = phi + (c * (N * D))[None, :] + (i * D + d)[:, None]
            phi_EC = tl.load(phi_at, mask=(c < C)[None, :] & (d < D)[:, None], other=0.0)
            z_MC += tl.dot(h_ME, phi_EC, input_precision="tf32x3", out_dtype=F)
            square_M += tl.sum(h_ME * h_ME, 1)
    at = t * (C + 1)
    tl.store(saved + at[:, None] + c[None, :], z_MC, mask=inside[:, None] & (c < C)[None, :])
    tl.store(saved + at + C, square_M, mask=inside)
    # From here on a token is one lane: the gates of read and write, then Sinkhorn-Knopp.
    tl.debug_barrier()
    r = 1 / tl.sqrt(tl.load(saved + at + C, mask=inside, other=0.0) / (N * D) + eps)
    for i in tl.static_range(N):
        own = weights + (t * N + i) * (N + 2)
        pre, _ = _logit(saved, at, i, 0, r, scale, bias, inside)
        post, _ = _logit(saved, at, N + i, 1, r, scale, bias, inside)
        tl.store(own, 1 / (1 + tl.exp(-pre)), mask=inside)
        tl.store(own + N + 1, 2 / (1 + tl.exp(-post)), mask=inside)
        tl.store(b_out + t * N + i, 2 / (1 + tl.exp(-post)), mask=inside)
    m, _ = _exponentials(saved, at, r, scale, bias, inside, N)
    for _ in range(n_iteration):
        m = _divide(m, _sums(m, 0, N), 0, N)
        m = _divide(m, _sums(m, 1, N), 1, N)
    for k in tl.static_range(N * N):
        tl.store(weights + (t * N + k % N) * (N + 2) + 1 + k // N, m[k], mask=inside)


@triton.jit(do_not_specialize=["tokens", "R"])
def mhc_mix(
    h, b, y, weights, shares, R, u, out, shares_out, tokens,
    D: tl.constexpr, DP: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, RP: tl.constexpr,
    COPIES: tl.constexpr, FIRST: tl.constexpr, PENDING: tl.constexpr, BATCHED: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """Store u, the mixed streams and their shares, token by token."""
    d = tl.arange(0, DP)
    for t in range(tl.program_id(0).to(tl.int64), tokens, tl.num_programs(0)):
        rows = load_written_streams(h, b, y, t, d, D, N, COPIES, PENDING, F)
        own = weights + t * N * (N + 2)
        store_mixed_streams(rows, own, u, out, t, d, D, N)
        mix_shares(shares, b, own, shares_out, R, t, N, NP, RP, COPIES, FIRST, PENDING)


@triton.jit(do_not_specialize=["tokens", "J"])
def mhc_mix_backward(
    start, shares, table, J, b, du, dout, da, tokens, D: tl.constexpr, DP: tl.constexpr, N: tl.constexpr,
    COPIES: tl.constexpr, FIRST: tl.constexpr, PENDING: tl.constexpr, BATCHED: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """Store the gradient [tokens, N, N + 1] of A: <H_i, gradient m>."""
    Y: tl.constexpr = du.dtype.element_ty
    d = tl.arange(0, DP)
    for t in range(tl.program_id(0).to(tl.int64), tokens, tl.num_programs(0)):
        du_row = tl.load(du + t * D + d, mask=d < D, other=0.0).to(F)
        grads = (du_row,) + load_streams(dout, t, d, D, N, False, F)
        rows, _ = recompute_streams(start, shares, table, J, b, t, d, D, N, COPIES, FIRST, PENDING, Y, F)
        store_weight_gradients(rows, grads, da + t * N * (N + 1), N + 1, N, BATCHED)


@triton.jit(do_not_specialize=["tokens"], do_not_specialize_on_alignment=SMALL)
def mhc_weights_backward(
    scale, bias, saved, da, db_out, dsaved, small, scratch, tokens, n_iteration, eps,
    D: tl.constexpr, DP: tl.constexpr, N: tl.constexpr, M: tl.constexpr, BATCHED: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """Store `dsaved` of M tokens, [d(phi vec(H)) | factor of vec(H) in its gradient].

    By tile of tokens: `small` [2, C] of dlogit and dlogit z r; `scratch` [n_iteration, 2 N, M].
    """
    C: tl.constexpr = N * N + 2 * N
    lane = tl.arange(0, M)
    t = tl.program_id(0).to(tl.int64) * M + lane
    inside, at, own = t < tokens, t * (C + 1), small + tl.program_id(0) * (2 * C)
    r = 1 / tl.sqrt(tl.load(saved + at + C, mask=inside, other=0.0) / (N * D) + eps)
    dr = tl.zeros([M], F)
    # Gates of read and write.
    for c in tl.static_range(2 * N):
        logit, zr = _logit(saved, at, c, c // N, r, scale, bias, inside)
        gate = 1 / (1 + tl.exp(-logit))
        if c >= N:
            g = 2 * tl.load(db_out + t * N + c % N, mask=inside, other=0.0)
        else:
            g = tl.load(da + (t * N + c) * (N + 1), mask=inside, other=0.0)
        dlogit = g * gate * (1 - gate)
        dr += _store_logit_gradient(dlogit, zr, tl.load(scale + c // N), r, own, dsaved + at, c, C, inside)
    # Sinkhorn-Knopp again, whose divisors go to scratch.
    first, zrs = _exponentials(saved, at, r, scale, bias, inside, N)
    m, scales = first, scratch + tl.program_id(0).to(tl.int64) * n_iteration * (2 * N * M) + lane
    for k in range(n_iteration):
        for dim in tl.static_range(2):
            total = _sums(m, dim, N)
            m = _divide(m, total, dim, N)
            for i in tl.static_range(N):
                tl.store(scales + (k * 2 * N + dim * N + i) * M, total[i])
    # Its backward, half round by half round, which also restores M before each.
    tl.debug_barrier()
    dm = ()
    for k in tl.static_range(N * N):
        dm = dm + (tl.load(da + (t * N + k % N) * (N + 1) + 1 + k // N, mask=inside, other=0.0),)
    for k in range(n_iteration):
        for dim in tl.static_range(1, -1, -1):  # rows were last
            products, before, dbefore = (), (), ()
            for e in tl.static_range(N * N):
                products = products + (dm[e] * m[e],)
            inner = _sums(products, dim, N)
            for e in tl.static_range(N * N):
                at_line = (n_iteration - 1 - k) * 2 * N + dim * N + (e // N if dim else e % N)
                total = tl.load(scales + at_line * M)
                dbefore = dbefore + ((dm[e] - inner[e // N if dim else e % N]) / total,)
                before = before + (m[e] * total,)
            dm, m = dbefore, before
    # The logits; those below the floor have no gradient.
    for e in tl.static_range(N * N):
        dlogit = tl.where(first[e] > 4.248354255291589e-18, dm[e] * first[e], 0.0)  # exp(-FLOOR)
        dr += _store_logit_gradient(dlogit, zrs[e], tl.load(scale + 2), r, own, dsaved + at, 2 * N + e, C, inside)
    tl.store(dsaved + at + C, dr * r * r * (-1.0 / (N * D)), mask=inside)


@triton.jit
def _store_logit_gradient(dlogit, zr, scale, r, small, dsaved, c: tl.constexpr, C: tl.constexpr, inside):
    """Store the gradients of column `c`; return d(z r) z r."""
    tl.store(small + c, tl.sum(tl.where(inside, dlogit, 0.0), 0))
    tl.store(small + C + c, tl.sum(tl.where(inside, dlogit * zr, 0.0), 0))
    tl.store(dsaved + c, dlogit * scale * r, mask=inside)
    return dlogit * scale * zr


@triton.jit
def _load_tiles(h, t, d, mask, D: tl.constexpr, N: tl.constexpr, COPIES: tl.constexpr, F: tl.constexpr):
    """Return the streams of M tokens in E columns."""
    out = ()
    for i in tl.static_range(N):
        row = t * D if COPIES else (t * N + i) * D
        out = out + (tl.load(h + row[:, None] + d[None, :], mask=mask, other=0.0).to(F),)
    return out


@triton.jit
def _load_column(numbers, row, columns: tl.constexpr, column, inside):
    """Return a number of every token, [M, 1], from rows of `columns` numbers."""
    return tl.load(numbers + row * columns + column, mask=inside, other=0.0)[:, None]


@triton.jit
def _recompute_tiles(
    start, shares, table, J, b, t, d, inside, mask, D: tl.constexpr, N: tl.constexpr,
    COPIES: tl.constexpr, FIRST: tl.constexpr, PENDING: tl.constexpr, Y: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """Return what `recompute_streams` does, for tiles of M tokens by E columns."""
    S: tl.constexpr = start.dtype.element_ty
    at = (t * D)[:, None] + d[None, :]
    tiles = _load_tiles(start, t, d, mask, D, N, COPIES, F)
    if PENDING:
        y_ME = tl.load(output_pointer(table, J - 1, True, Y) + at, mask=mask, other=0.0).to(F)
    if not FIRST:
        n_start: tl.constexpr = 1 if COPIES else N
        streams, row = (), t * (n_start + J - 1)
        for i in tl.static_range(N):
            tile = _load_column(shares, row, N, i, inside) * tiles[0]
            for r in tl.static_range(1, n_start):
                tile += _load_column(shares, row + r, N, i, inside) * tiles[r]
            streams = streams + (tile,)
        for j in range(0, J - 1):
            y_ME_j = tl.load(output_pointer(table, j, True, Y) + at, mask=mask, other=0.0).to(F)
            sums = ()
            for i in tl.static_range(N):
                sums = sums + (streams[i] + _load_column(shares, row + n_start + j, N, i, inside) * y_ME_j,)
            streams = sums
        tiles = ()
        for i in tl.static_range(N):
            tiles = tiles + (streams[i].to(S).to(F),)
    if PENDING:
        rows = ()
        for i in tl.static_range(N):
            rows = rows + (tiles[i] + _load_column(b, t, N, i, inside) * y_ME,)
        return rows, y_ME
    return tiles, tiles[0]


@triton.jit(do_not_specialize=["tokens", "J"])
def mhc_stream_gradients(
    start, shares, table, J, b, phi, weights, dsaved, du, dout, dh, db, dy, dphi, tokens,
    D: tl.constexpr, DP: tl.constexpr, N: tl.constexpr, CP: tl.constexpr, M: tl.constexpr, E: tl.constexpr,
    COPIES: tl.constexpr, FIRST: tl.constexpr, PENDING: tl.constexpr, BATCHED: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """Store the gradients of the streams and y, and partial sums of those of B and phi.

    A program has E columns of D, all streams of them, and loops over tokens, so that its sum for dphi stays in registers.

        dH_i = sum_m A_im gradient_m + phi_i^T dz + along H_i;   dphi_i = sum over tokens of dz H_i^T
        dy = sum_i b_i dH_i;   db_i = <y, dH_i>

    `db`: [tiles of D, tokens, N]; `dphi`: [programs of a tile, C, N * D].
    """
    C: tl.constexpr = N * N + 2 * N
    Y: tl.constexpr = du.dtype.element_ty
    column_tile, c, d = tl.program_id(0), tl.arange(0, CP), tl.program_id(0) * E + tl.arange(0, E)
    dphi_rows = ()
    for _ in tl.static_range(N):
        dphi_rows = dphi_rows + (tl.zeros([CP, E], F),)
    for tile in range(tl.program_id(1), tl.cdiv(tokens, M), tl.num_programs(1)):
        t = tile * M + tl.arange(0, M).to(tl.int64)
        inside = t < tokens
        mask = inside[:, None] & (d < D)[None, :]
        tiles, y_ME = _recompute_tiles(
            start, shares, table, J, b, t, d, inside, mask, D, N, COPIES, FIRST, PENDING, Y, F
        )
        at = (t * D)[:, None] + d[None, :]
        grads = (tl.load(du + at, mask=mask, other=0.0).to(F),) + _load_tiles(dout, t, d, mask, D, N, False, F)
        # Gradients of the projection and along the streams, by token.
        dz_at = dsaved + (t * (C + 1))[:, None] + c[None, :]
        dz_MC = tl.load(dz_at, mask=inside[:, None] & (c < C)[None, :], other=0.0)
        along_M = tl.load(dsaved + t * (C + 1) + C, mask=inside, other=0.0)
        own, new_dphi = weights + t * N * (N + 2), ()
        if PENDING:
            dy_ME = tl.zeros([M, E], F)
        if COPIES and not PENDING:
            dx_ME = tl.zeros([M, E], F)
        # dH_i, and what follows from it.
        for i in tl.static_range(N):
            phi_at = phi + (c * (N * D))[:, None] + (i * D + d)[None, :]
            phi_CE = tl.load(phi_at, mask=(c < C)[:, None] & (d < D)[None, :], other=0.0)
            row = along_M[:, None] * tiles[i]
            row += tl.dot(dz_MC, phi_CE, input_precision="tf32x3", out_dtype=F)
            for m in tl.static_range(N + 1):
                row += tl.load(own + i * (N + 2) + m, mask=inside, other=0.0)[:, None] * grads[m]
            dphi_row = tl.dot(tl.trans(dz_MC), tiles[i], input_precision="tf32x3", out_dtype=F)
            new_dphi = new_dphi + (dphi_rows[i] + dphi_row,)
            if PENDING:
                tl.store(db + (column_tile * tokens + t) * N + i, tl.sum(row * y_ME, 1), mask=inside)
                dy_ME += tl.load(b + t * N + i, mask=inside, other=0.0)[:, None] * row
            if COPIES and not PENDING:
                dx_ME += row
            else:
                at_dh = dh + ((t * N + i) * D)[:, None] + d[None, :]
                tl.store(at_dh, row.to(dh.dtype.element_ty), mask=mask)
        dphi_rows = new_dphi
        if PENDING:
            tl.store(dy + at, dy_ME.to(dy.dtype.element_ty), mask=mask)
        if COPIES and not PENDING:
            tl.store(dh + at, dx_ME.to(dh.dtype.element_ty), mask=mask)
    for i in tl.static_range(N):
        at_dphi = dphi + ((tl.program_id(1) * C + c) * (N * D))[:, None] + (i * D + d)[None, :]
        tl.store(at_dphi, dphi_rows[i], mask=(c < C)[:, None] & (d < D)[None, :])
