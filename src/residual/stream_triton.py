"""What the kernels of hyper-connections for a GPU share: a token's streams in registers, mixed, written, replayed.

A program holds the N streams of a token as a tuple of rows of D, in the type F, and passes over tokens. A token's
weights are rows [A | B] of C = N + 2 columns in memory.

    replay    H <- the segment's first streams;   for every site since, in order:   H <- A_r^T H + B y

`MIXED`: the first streams have been mixed already, and the first weights are B alone. Weights and outputs come as
a table of addresses, K and K of which J are used, so that there is one kernel for any J.

Shape letters: N streams, C columns of [A | B], K the most sites of a segment.
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
def numbers(weights, t, N: tl.constexpr, there):
    """[A | B] of token `t`, in registers."""
    out = ()
    for k in tl.static_range(N * (N + 2)):
        out = out + (tl.load(weights + t * (N * (N + 2)) + k, mask=there, other=0.0),)
    return out


@triton.jit
def stepped(rows, own, y_row, N: tl.constexpr, S: tl.constexpr, F: tl.constexpr):
    """What the next site reads; mixed streams have been in memory, of type S."""
    out = ()
    for j in tl.static_range(N):
        row = own[j + 1] * rows[0]
        for i in tl.static_range(1, N):
            row += own[i * (N + 2) + j + 1] * rows[i]
        out = out + (row.to(S).to(F) + own[j * (N + 2) + N + 1] * y_row,)
    return out


@triton.jit
def listed(weights, outputs, table, K: tl.constexpr):
    """The addresses of K sites' weights, then of their outputs, as a table."""
    for k in tl.static_range(K):
        tl.store(table + k, weights[k].to(tl.int64))
        tl.store(table + K + k, outputs[k].to(tl.int64))


@triton.jit
def pointer(table, k, TYPE: tl.constexpr, there):
    """What an entry of a table points to."""
    address = tl.load(table + k, mask=there, other=0)
    return tl.multiple_of(address.to(tl.pointer_type(TYPE)), 16)


@triton.jit
def replayed(
    rows,
    table,
    J,
    t,
    d,
    D: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    MIXED: tl.constexpr,
    S: tl.constexpr,
    Y: tl.constexpr,
    F: tl.constexpr,
):
    """The streams after J >= 1 sites, and the last of their outputs (of type Y); memory is read a site ahead."""
    y_row = tl.load(pointer(table, K, Y, True) + t * D + d, mask=d < D, other=0.0)
    if MIXED:
        rows = written(rows, pointer(table, 0, F, True) + t * N, 1, y_row.to(F), N)
    first: tl.constexpr = 1 if MIXED else 0
    own = numbers(pointer(table, first, F, first < J), t, N, first < J)
    next_row = tl.load(
        pointer(table, K + first, Y, first < J) + t * D + d, mask=d < tl.where(first < J, D, 0), other=0.0
    )
    for j in range(first, J):
        y_row, now, more = next_row, own, j + 1 < J
        own = numbers(pointer(table, j + 1, F, more), t, N, more)
        next_row = tl.load(
            pointer(table, K + j + 1, Y, more) + t * D + d, mask=d < tl.where(more, D, 0), other=0.0
        )
        rows = stepped(rows, now, y_row.to(F), N, S, F)
    return rows, y_row.to(F)


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
