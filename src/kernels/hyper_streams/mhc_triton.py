"""The weights of mHC on a GPU, and their gradients, by tiles of tokens, which share the wide projection.

Equations: `mhc_read.py`. A token's weights are columns of numbers, one token a lane. Kept of every token:
[phi vec(H) | sum vec(H)^2].

Shape letters: M tokens of a tile, E columns of a chunk of D, N streams, C = N * N + 2 * N columns of phi.
"""

import triton
import triton.language as tl

SMALL = ["scale", "bias"]  # a site's row of them is aligned as chance will have it


@triton.jit
def _gate(kept, at, c: tl.constexpr, part: tl.constexpr, r, scale, bias, inside):
    """The logit of column `c` and z r, of which it is made."""
    zr = tl.load(kept + at + c, mask=inside, other=0.0) * r
    return tl.load(scale + part) * zr + tl.load(bias + c), zr


@triton.jit
def _start(kept, at, r, scale, bias, inside, N: tl.constexpr):
    """exp of the logits of the mixing under their largest, and their z r."""
    logits, zrs = (), ()
    for c in tl.static_range(2 * N, N * N + 2 * N):
        logit, zr = _gate(kept, at, c, 2, r, scale, bias, inside)
        logits, zrs = logits + (logit,), zrs + (zr,)
    largest = logits[0]
    for k in tl.static_range(1, N * N):
        largest = tl.maximum(largest, logits[k])
    m = ()
    for k in tl.static_range(N * N):
        m = m + (tl.exp(tl.maximum(logits[k] - largest, -40.0)),)  # FLOOR of `sinkhorn.py`
    return m, zrs


@triton.jit
def _totals(m, dim: tl.constexpr, N: tl.constexpr):
    """The sums of N x N numbers over rows (0) or columns (1)."""
    out = ()
    for i in tl.static_range(N):
        total = m[i * N if dim else i]
        for j in tl.static_range(1, N):
            total += m[i * N + j if dim else j * N + i]
        out = out + (total,)
    return out


@triton.jit
def _divided(m, total, dim: tl.constexpr, N: tl.constexpr):
    """Those, divided by what they sum to."""
    out = ()
    for k in tl.static_range(N * N):
        out = out + (m[k] / total[k // N if dim else k % N],)
    return out


@triton.jit(do_not_specialize=["tokens"], do_not_specialize_on_alignment=SMALL)
def mhc_weights(
    h,
    b,
    y,
    phi,
    scale,
    bias,
    b_out,
    weights,
    kept,
    tokens,
    n_iteration,
    eps,
    D: tl.constexpr,
    DP: tl.constexpr,
    N: tl.constexpr,
    CP: tl.constexpr,
    M: tl.constexpr,
    E: tl.constexpr,
    COPIES: tl.constexpr,
    WAITS: tl.constexpr,
    TOGETHER: tl.constexpr,
    F: tl.constexpr,
):
    """[A | B] of M tokens and what is kept."""
    C: tl.constexpr = N * N + 2 * N
    t, c = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M), tl.arange(0, CP)
    inside = t < tokens
    z_MC, square_M = tl.zeros([M, CP], F), tl.zeros([M], F)
    for i in tl.static_range(N):
        for first in range(0, D, E):
            d = first + tl.arange(0, E)
            there = inside[:, None] & (d < D)[None, :]
            row = t * D if COPIES else (t * N + i) * D
            h_ME = tl.load(h + row[:, None] + d[None, :], mask=there, other=0.0).to(F)
            if WAITS:
                y_ME = tl.load(y + (t * D)[:, None] + d[None, :], mask=there, other=0.0).to(F)
                h_ME += tl.load(b + t * N + i, mask=inside, other=0.0)[:, None] * y_ME
            phi_at = phi + (c * (N * D))[None, :] + (i * D + d)[:, None]
            phi_EC = tl.load(phi_at, mask=(c < C)[None, :] & (d < D)[:, None], other=0.0)
            z_MC += tl.dot(h_ME, phi_EC, input_precision="tf32x3", out_dtype=F)
            square_M += tl.sum(h_ME * h_ME, 1)
    at = t * (C + 1)
    tl.store(kept + at[:, None] + c[None, :], z_MC, mask=inside[:, None] & (c < C)[None, :])
    tl.store(kept + at + C, square_M, mask=inside)
    tl.debug_barrier()
    r = 1 / tl.sqrt(tl.load(kept + at + C, mask=inside, other=0.0) / (N * D) + eps)
    for i in tl.static_range(N):
        own = weights + (t * N + i) * (N + 2)
        pre, _ = _gate(kept, at, i, 0, r, scale, bias, inside)
        post, _ = _gate(kept, at, N + i, 1, r, scale, bias, inside)
        tl.store(own, 1 / (1 + tl.exp(-pre)), mask=inside)
        tl.store(own + N + 1, 2 / (1 + tl.exp(-post)), mask=inside)
        tl.store(b_out + t * N + i, 2 / (1 + tl.exp(-post)), mask=inside)
    m, _ = _start(kept, at, r, scale, bias, inside, N)
    for _ in range(n_iteration):
        m = _divided(m, _totals(m, 0, N), 0, N)
        m = _divided(m, _totals(m, 1, N), 1, N)
    for k in tl.static_range(N * N):
        tl.store(weights + (t * N + k % N) * (N + 2) + 1 + k // N, m[k], mask=inside)


@triton.jit(do_not_specialize=["tokens"], do_not_specialize_on_alignment=SMALL)
def mhc_weights_backward(
    scale,
    bias,
    kept,
    da,
    db_out,
    left,
    small,
    room,
    tokens,
    n_iteration,
    eps,
    D: tl.constexpr,
    DP: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    TOGETHER: tl.constexpr,
    F: tl.constexpr,
):
    """Of M tokens `left`: [d(phi vec(H)) | along vec(H)]. By tile: small [2, C], dlogit and dlogit z r; room."""
    C: tl.constexpr = N * N + 2 * N
    lane = tl.arange(0, M)
    t = tl.program_id(0).to(tl.int64) * M + lane
    inside, at, own = t < tokens, t * (C + 1), small + tl.program_id(0) * (2 * C)
    r = 1 / tl.sqrt(tl.load(kept + at + C, mask=inside, other=0.0) / (N * D) + eps)
    dr = tl.zeros([M], F)
    for c in tl.static_range(2 * N):
        logit, zr = _gate(kept, at, c, c // N, r, scale, bias, inside)
        gate = 1 / (1 + tl.exp(-logit))
        if c >= N:
            g = 2 * tl.load(db_out + t * N + c % N, mask=inside, other=0.0)
        else:
            g = tl.load(da + (t * N + c) * (N + 1), mask=inside, other=0.0)
        dlogit = g * gate * (1 - gate)
        dr += _leave(dlogit, zr, tl.load(scale + c // N), r, own, left + at, c, C, inside)
    first, zrs = _start(kept, at, r, scale, bias, inside, N)
    m, scales = first, room + tl.program_id(0).to(tl.int64) * n_iteration * (2 * N * M) + lane
    for k in range(n_iteration):
        for dim in tl.static_range(2):
            total = _totals(m, dim, N)
            m = _divided(m, total, dim, N)
            for i in tl.static_range(N):
                tl.store(scales + (k * 2 * N + dim * N + i) * M, total[i])
    tl.debug_barrier()
    dm = ()
    for k in tl.static_range(N * N):
        dm = dm + (tl.load(da + (t * N + k % N) * (N + 1) + 1 + k // N, mask=inside, other=0.0),)
    for k in range(n_iteration):
        for dim in tl.static_range(1, -1, -1):  # rows were last
            products, before, dbefore = (), (), ()
            for e in tl.static_range(N * N):
                products = products + (dm[e] * m[e],)
            inner = _totals(products, dim, N)
            for e in tl.static_range(N * N):
                at_line = (n_iteration - 1 - k) * 2 * N + dim * N + (e // N if dim else e % N)
                total = tl.load(scales + at_line * M)
                dbefore = dbefore + ((dm[e] - inner[e // N if dim else e % N]) / total,)
                before = before + (m[e] * total,)
            dm, m = dbefore, before
    for e in tl.static_range(N * N):
        dlogit = tl.where(first[e] > 4.248354255291589e-18, dm[e] * first[e], 0.0)  # exp(-FLOOR)
        dr += _leave(dlogit, zrs[e], tl.load(scale + 2), r, own, left + at, 2 * N + e, C, inside)
    tl.store(left + at + C, dr * r * r * (-1.0 / (N * D)), mask=inside)


@triton.jit
def _leave(dlogit, zr, scale, r, small, left, c: tl.constexpr, C: tl.constexpr, inside):
    """Leave what column `c` has; returns d(z r) z r."""
    tl.store(small + c, tl.sum(tl.where(inside, dlogit, 0.0), 0))
    tl.store(small + C + c, tl.sum(tl.where(inside, dlogit * zr, 0.0), 0))
    tl.store(left + c, dlogit * scale * r, mask=inside)
    return dlogit * scale * zr
