"""Device functions of the hyper-stream kernels: the streams of a token in registers, mixed, written, recomputed.

A program holds the N streams of a token as a tuple of rows of D elements in the accumulation dtype F, and loops over
tokens. A token's weights are rows [A | B] of C = N + 2 columns in memory. `recompute.py` has the equations of shares.

Constants that select a case: `COPIES`: the streams a segment starts with are copies of one row; `FIRST`: the site is the
first of its segment; `PENDING`: the last output is still to be written, by B of its site. Kernels find outputs through
a table of addresses, so that one kernel takes any number of them.

Shape letters: N streams, C columns of [A | B], R rows of shares, K the maximum number of outputs of a segment.
"""

import triton
import triton.language as tl


@triton.jit
def load_streams(h, t, d, D: tl.constexpr, N: tl.constexpr, COPIES: tl.constexpr, F: tl.constexpr):
    """Return the streams of token `t`; with `COPIES`, `h` is the row [tokens, D] that all are copies of."""
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
def mix_column(rows, weights, column: tl.constexpr, N: tl.constexpr):
    """Return one column of A^T H."""
    row = tl.load(weights + column) * rows[0]
    for i in tl.static_range(1, N):
        row += tl.load(weights + i * (N + 2) + column) * rows[i]
    return row


@triton.jit
def write_output(rows, b, y_row, N: tl.constexpr):
    """Return H + B y."""
    out = ()
    for i in tl.static_range(N):
        out = out + (rows[i] + tl.load(b + i) * y_row,)
    return out


@triton.jit
def load_written_streams(
    h,
    b,
    y,
    t,
    d,
    D: tl.constexpr,
    N: tl.constexpr,
    COPIES: tl.constexpr,
    PENDING: tl.constexpr,
    F: tl.constexpr,
):
    """Return the streams of token `t` with the pending output written to them."""
    rows = load_streams(h, t, d, D, N, COPIES, F)
    if PENDING:
        y_row = tl.load(y + t * D + d, mask=d < D, other=0.0).to(F)
        rows = write_output(rows, b + t * N, y_row, N)
    return rows


@triton.jit
def store_mixed_streams(rows, weights, u, out, t, d, D: tl.constexpr, N: tl.constexpr):
    """Store u and the mixed streams of token `t`."""
    tl.store(u + t * D + d, mix_column(rows, weights, 0, N).to(u.dtype.element_ty), mask=d < D)
    for j in tl.static_range(N):
        row = mix_column(rows, weights, j + 1, N)
        tl.store(out + (t * N + j) * D + d, row.to(out.dtype.element_ty), mask=d < D)


@triton.jit
def mix_shares(
    shares, b, weights, out, R, t,
    N: tl.constexpr, NP: tl.constexpr, RP: tl.constexpr,
    COPIES: tl.constexpr, FIRST: tl.constexpr, PENDING: tl.constexpr,
):  # fmt: skip
    """Store the shares of the mixed streams: [R, B] A_r, R rows of the streams' own shares and B of a pending output."""
    r_R1, j_1N = tl.arange(0, RP)[:, None], tl.arange(0, NP)[None, :]
    rows = R + 1 if PENDING else R
    out_RN = tl.zeros([RP, NP], weights.dtype.element_ty)
    for i in tl.static_range(N):
        # Column i of the shares: at the first site it is a unit vector.
        if FIRST:
            first = 0 if COPIES else i
            share_R1 = tl.where(r_R1 == first, 1.0, 0.0).to(weights.dtype.element_ty)
        else:
            share_R1 = tl.load(shares + (t * R + r_R1) * N + i, mask=r_R1 < R, other=0.0)
        if PENDING:
            share_R1 = tl.where(r_R1 == R, tl.load(b + t * N + i), share_R1)
        # Times row i of A_r.
        a_1N = tl.load(weights + i * (N + 2) + 1 + j_1N, mask=j_1N < N, other=0.0)
        out_RN += share_R1 * a_1N
    tl.store(out + (t * rows + r_R1) * N + j_1N, out_RN, mask=(r_R1 < rows) & (j_1N < N))


@triton.jit
def store_addresses(outputs, table, K: tl.constexpr):
    """Store the addresses of K outputs as a table."""
    for k in tl.static_range(K):
        tl.store(table + k, outputs[k].to(tl.int64))


@triton.jit
def output_pointer(table, j, mask, Y: tl.constexpr):
    """Return a pointer to output j of a table; null where `mask` is false."""
    address = tl.load(table + j, mask=mask, other=0)
    return tl.multiple_of(address.to(tl.pointer_type(Y)), 16)


@triton.jit
def recompute_streams(
    start, shares, table, J, b, t, d, D: tl.constexpr, N: tl.constexpr,
    COPIES: tl.constexpr, FIRST: tl.constexpr, PENDING: tl.constexpr, Y: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """Return the streams that a site reads, and the last of the J outputs in them.

    The loop loads each output one iteration ahead, so that loads overlap with arithmetic.
    """
    S: tl.constexpr = start.dtype.element_ty
    if PENDING:
        y_row = tl.load(output_pointer(table, J - 1, True, Y) + t * D + d, mask=d < D, other=0.0).to(F)
    rows = load_streams(start, t, d, D, N, COPIES, F)
    if not FIRST:
        # The start's part of every stream, and the shares of the first output.
        n_start: tl.constexpr = 1 if COPIES else N
        token_shares = shares + t * (n_start + J - 1) * N
        streams, share = (), ()
        for i in tl.static_range(N):
            row = tl.load(token_shares + i) * rows[0]
            for r in tl.static_range(1, n_start):
                row += tl.load(token_shares + r * N + i) * rows[r]
            streams = streams + (row,)
            share = share + (tl.load(token_shares + n_start * N + i, mask=J > 1, other=0.0),)
        # The outputs' part, all but the last one's.
        next_row = tl.load(output_pointer(table, 0, J > 1, Y) + t * D + d, mask=d < tl.where(J > 1, D, 0), other=0.0)
        for j in range(0, J - 1):
            row, now, more = next_row.to(F), share, j + 2 < J
            next_row = tl.load(
                output_pointer(table, j + 1, more, Y) + t * D + d, mask=d < tl.where(more, D, 0), other=0.0
            )
            sums, share = (), ()
            for i in tl.static_range(N):
                sums = sums + (streams[i] + now[i] * row,)
                share = share + (tl.load(token_shares + (n_start + j + 1) * N + i, mask=more, other=0.0),)
            streams = sums
        # Rounded to the dtype in which the forward stored them.
        rows = ()
        for i in tl.static_range(N):
            rows = rows + (streams[i].to(S).to(F),)
    if PENDING:
        return write_output(rows, b + t * N, y_row, N), y_row
    return rows, rows[0]


@triton.jit
def _add4(a0, a1, a2, a3, b0, b1, b2, b3):
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3


@triton.jit
def sum_rows(rows, n: tl.constexpr, BATCHED: tl.constexpr):
    """Return the sum of each of n rows; `BATCHED`: four in one reduction, whose steps overlap."""
    out = ()
    whole: tl.constexpr = n // 4 * 4 if BATCHED else 0
    for k in tl.static_range(0, whole, 4):
        out = out + tl.reduce((rows[k], rows[k + 1], rows[k + 2], rows[k + 3]), 0, _add4)
    for k in tl.static_range(whole, n):
        out = out + (tl.sum(rows[k], 0),)
    return out


@triton.jit
def store_weight_gradients(rows, grads, out, stride: tl.constexpr, N: tl.constexpr, BATCHED: tl.constexpr):
    """Store the gradient of A, <H_i, gradient m>, in rows of `stride` numbers."""
    for m in tl.static_range(N + 1):
        products = ()
        for k in tl.static_range(N):
            products = products + (rows[k] * grads[m],)
        total = sum_rows(products, N, BATCHED)
        for k in tl.static_range(N):
            tl.store(out + k * stride + m, total[k])


@triton.jit
def tanh(x):
    """Return tanh by one exponential, to a rounding of 1."""
    e = tl.exp(-2 * tl.abs(x))
    t = (1 - e) / (1 + e)
    return tl.where(x < 0, -t, t)


@triton.jit
def store_stream_gradients(dh_rows, dh, t, d, D: tl.constexpr, N: tl.constexpr, COPIES: tl.constexpr):
    """Store the streams' gradients; with `COPIES`, that of the row all are copies of."""
    if COPIES:
        row = dh_rows[0]
        for k in tl.static_range(1, N):
            row += dh_rows[k]
        tl.store(dh + t * D + d, row.to(dh.dtype.element_ty), mask=d < D)
    else:
        for k in tl.static_range(N):
            tl.store(dh + (t * N + k) * D + d, dh_rows[k].to(dh.dtype.element_ty), mask=d < D)


@triton.jit
def write_output_backward(dh_rows, y_row, b, db, dy, t, d, D: tl.constexpr, N: tl.constexpr, BATCHED: tl.constexpr):
    """Store the gradients of `write_output` by B and y."""
    products, dy_row = (), tl.load(b + t * N) * dh_rows[0]
    for k in tl.static_range(N):
        products = products + (dh_rows[k] * y_row,)
        if k:
            dy_row += tl.load(b + t * N + k) * dh_rows[k]
    total = sum_rows(products, N, BATCHED)
    for k in tl.static_range(N):
        tl.store(db + t * N + k, total[k])
    tl.store(dy + t * D + d, dy_row.to(dy.dtype.element_ty), mask=d < D)
