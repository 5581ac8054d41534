"""What the kernels of hyper-connections for a GPU share: a token's streams in registers, mixed, written, replayed.

A program holds the N streams of a token as a tuple of rows of D, in the type F, and passes over tokens. A token's
weights are rows [A | B] of C = N + 2 columns in memory. Equations of replaying, and what shares are: `replay.py`.

`COPIES`: the streams a segment starts with are one row. `FRESH`: no site has been visited since. `WAITS`: the last
output, which its site's B writes. A kernel finds outputs by a table of addresses, so there is one for any number.

Shape letters: N streams, C columns of [A | B], R rows of shares, K the most outputs of a segment.
"""

import triton
import triton.language as tl


@triton.jit
def rows_of(h, t, d, D: tl.constexpr, N: tl.constexpr, COPIES: tl.constexpr, F: tl.constexpr):
    """The streams of token `t`; `COPIES`: of which memory holds one, [tokens, D]."""
    rows = ()
    if COPIES:
        row = tl.load(h + t * D + d, mask=d < D, other=0.0).to(F)
        for _ in tl.static_range(N):
            rows = rows + (row,)
    else:
        for i in tl.static_range(N):
            rows = rows + (tl.load(h + (t * N + i) * D + d, mask=d < D, other=0.0).to(F),)
    return rows


@triton.jit
def mixed(rows, weights, column: tl.constexpr, N: tl.constexpr):
    """A column of A^T H."""
    row = tl.load(weights + column) * rows[0]
    for i in tl.static_range(1, N):
        row += tl.load(weights + i * (N + 2) + column) * rows[i]
    return row


@triton.jit
def written(rows, b, stride: tl.constexpr, y_row, N: tl.constexpr):
    """H + B y."""
    out = ()
    for i in tl.static_range(N):
        out = out + (rows[i] + tl.load(b + i * stride) * y_row,)
    return out


@triton.jit
def shared(
    shares,
    b,
    weights,
    out,
    R,
    t,
    N: tl.constexpr,
    NP: tl.constexpr,
    RP: tl.constexpr,
    COPIES: tl.constexpr,
    FRESH: tl.constexpr,
    WAITS: tl.constexpr,
):
    """Leave the shares of the mixed streams, [R or R + 1, N], from R of the streams and B by the weights at `weights`."""
    r_R1, j_1N = tl.arange(0, RP)[:, None], tl.arange(0, NP)[None, :]
    rows = R + 1 if WAITS else R
    out_RN = tl.zeros([RP, NP], weights.dtype.element_ty)
    for i in tl.static_range(N):
        if FRESH:
            first = 0 if COPIES else i
            share_R1 = tl.where(r_R1 == first, 1.0, 0.0).to(weights.dtype.element_ty)
        else:
            share_R1 = tl.load(shares + (t * R + r_R1) * N + i, mask=r_R1 < R, other=0.0)
        if WAITS:
            share_R1 = tl.where(r_R1 == R, tl.load(b + t * N + i), share_R1)
        a_1N = tl.load(weights + i * (N + 2) + 1 + j_1N, mask=j_1N < N, other=0.0)
        out_RN += share_R1 * a_1N
    tl.store(out + (t * rows + r_R1) * N + j_1N, out_RN, mask=(r_R1 < rows) & (j_1N < N))


@triton.jit
def listed(outputs, table, K: tl.constexpr):
    """The addresses of K outputs, as a table."""
    for k in tl.static_range(K):
        tl.store(table + k, outputs[k].to(tl.int64))


@triton.jit
def output(table, j, there, Y: tl.constexpr):
    """The j-th of the outputs in a table, if it is there."""
    address = tl.load(table + j, mask=there, other=0)
    return tl.multiple_of(address.to(tl.pointer_type(Y)), 16)


@triton.jit
def replayed(
    start,
    shares,
    table,
    J,
    b,
    t,
    d,
    D: tl.constexpr,
    N: tl.constexpr,
    COPIES: tl.constexpr,
    FRESH: tl.constexpr,
    WAITS: tl.constexpr,
    Y: tl.constexpr,
    F: tl.constexpr,
):
    """The streams that a site reads, and the last of the J outputs in them; memory is read an output ahead."""
    S: tl.constexpr = start.dtype.element_ty
    if WAITS:
        y_row = tl.load(output(table, J - 1, True, Y) + t * D + d, mask=d < D, other=0.0).to(F)
    rows = rows_of(start, t, d, D, N, COPIES, F)
    if not FRESH:
        first: tl.constexpr = 1 if COPIES else N
        own = shares + t * (first + J - 1) * N
        made, share = (), ()
        for i in tl.static_range(N):
            row = tl.load(own + i) * rows[0]
            for r in tl.static_range(1, first):
                row += tl.load(own + r * N + i) * rows[r]
            made = made + (row,)
            share = share + (tl.load(own + first * N + i, mask=J > 1, other=0.0),)
        next_row = tl.load(output(table, 0, J > 1, Y) + t * D + d, mask=d < tl.where(J > 1, D, 0), other=0.0)
        for j in range(0, J - 1):
            row, now, more = next_row.to(F), share, j + 2 < J
            next_row = tl.load(
                output(table, j + 1, more, Y) + t * D + d, mask=d < tl.where(more, D, 0), other=0.0
            )
            grown, share = (), ()
            for i in tl.static_range(N):
                grown = grown + (made[i] + now[i] * row,)
                share = share + (tl.load(own + (first + j + 1) * N + i, mask=more, other=0.0),)
            made = grown
        rows = ()
        for i in tl.static_range(N):
            rows = rows + (made[i].to(S).to(F),)
    if WAITS:
        return written(rows, b + t * N, 1, y_row, N), y_row
    return rows, rows[0]


@triton.jit
def _add4(a0, a1, a2, a3, b0, b1, b2, b3):
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3


@triton.jit
def sums(rows, n: tl.constexpr, TOGETHER: tl.constexpr):
    """The sum of each of n rows; `TOGETHER`: several in one reduction, whose steps overlap."""
    out = ()
    whole: tl.constexpr = n // 4 * 4 if TOGETHER else 0
    for k in tl.static_range(0, whole, 4):
        out = out + tl.reduce((rows[k], rows[k + 1], rows[k + 2], rows[k + 3]), 0, _add4)
    for k in tl.static_range(whole, n):
        out = out + (tl.sum(rows[k], 0),)
    return out


@triton.jit
def tanh(x):
    """By one exponential; off by a rounding of 1."""
    e = tl.exp(-2 * tl.abs(x))
    t = (1 - e) / (1 + e)
    return tl.where(x < 0, -t, t)


@triton.jit
def left(dh_rows, dh, t, d, D: tl.constexpr, N: tl.constexpr, COPIES: tl.constexpr):
    """Leave the streams' gradient; `COPIES`: of the one row that all are."""
    if COPIES:
        row = dh_rows[0]
        for k in tl.static_range(1, N):
            row += dh_rows[k]
        tl.store(dh + t * D + d, row.to(dh.dtype.element_ty), mask=d < D)
    else:
        for k in tl.static_range(N):
            tl.store(dh + (t * N + k) * D + d, dh_rows[k].to(dh.dtype.element_ty), mask=d < D)


@triton.jit
def unwritten(dh_rows, y_row, b, db, dy, t, d, D: tl.constexpr, N: tl.constexpr, TOGETHER: tl.constexpr):
    """The gradients of `written`, of B and y."""
    products, dy_row = (), tl.load(b + t * N) * dh_rows[0]
    for k in tl.static_range(N):
        products = products + (dh_rows[k] * y_row,)
        if k:
            dy_row += tl.load(b + t * N + k) * dh_rows[k]
    total = sums(products, N, TOGETHER)
    for k in tl.static_range(N):
        tl.store(db + t * N + k, total[k])
    tl.store(dy + t * D + d, dy_row.to(dy.dtype.element_ty), mask=d < D)
