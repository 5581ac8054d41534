"""Triton kernels of the DHC read: one pass over the streams in each direction.

`dhc.py` has the equations, and computes the centered projection w [C, D] and `bias` [C] that these kernels
take. Saved for every stream of every token: [p | sum H | sum H^2].

The N x C numbers of a token go through memory (that is, the cache) between barriers: from the lane that holds a sum to
one lane for each number, which does the arithmetic once, and from there to all lanes.

Shape letters: N streams, C = N + 2 columns of W.
"""

import triton
import triton.language as tl

from src.kernels.hyper_streams.triton_common import (
    load_streams,
    load_written_streams,
    mix_shares,
    recompute_streams,
    store_mixed_streams,
    store_stream_gradients,
    store_weight_gradients,
    sum_rows,
    tanh,
    write_output_backward,
)

#: Parameters that are a site's row of a packed tensor, whose alignment differs from site to site.
SMALL = ["scale", "bias", "a", "static_b"]


@triton.jit
def load_statistics(saved, at, D: tl.constexpr, C: tl.constexpr, inside, eps):
    """Return the mean and 1 / deviation of rows from their saved sums."""
    mean = tl.load(saved + at + C, mask=inside, other=0.0) / D
    square = tl.load(saved + at + C + 1, mask=inside, other=0.0) / D
    return mean, 1 / tl.sqrt(tl.maximum(square - mean * mean, 0.0) + eps)


@triton.jit
def load_parameters(bias, scale, a, static_b, i, c, N: tl.constexpr):
    """Return the bias in z, the scale and the static weights of a site, as matrices [N, C] or rows of them."""
    bias_1C = tl.load(bias + c, mask=c < N + 2, other=0.0)
    scale_1C = tl.load(scale + (c == N + 1).to(tl.int32))
    static_NC = tl.load(a + i * (N + 1) + c, mask=(i < N) & (c < N + 1), other=0.0)
    static_NC += tl.load(static_b + i + c * 0, mask=(i < N) & (c == N + 1), other=0.0)
    return bias_1C, scale_1C, static_NC


@triton.jit(do_not_specialize=["tokens", "R"], do_not_specialize_on_alignment=SMALL)
def dhc_forward(
    h, b, y, w, bias, scale, a, static_b, shares, R,
    u, out, b_out, shares_out, saved, scratch, tokens, eps,
    D: tl.constexpr, DP: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, CP: tl.constexpr, RP: tl.constexpr,
    COPIES: tl.constexpr, FIRST: tl.constexpr, PENDING: tl.constexpr, BATCHED: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """Store u, the mixed streams, B, their shares and the saved sums.

    `scratch` [programs, N, C] holds a token's [A | B].
    """
    C: tl.constexpr = N + 2
    d, i, c = tl.arange(0, DP), tl.arange(0, NP)[:, None], tl.arange(0, CP)[None, :]
    bias_1C, scale_1C, static_NC = load_parameters(bias, scale, a, static_b, i, c, N)
    own = scratch + tl.program_id(0) * (N * C)
    for t in range(tl.program_id(0).to(tl.int64), tokens, tl.num_programs(0)):
        rows = load_written_streams(h, b, y, t, d, D, N, COPIES, PENDING, F)
        # Sums over D of every stream: C projections, the sum and the sum of squares.
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
            total = sum_rows(products, N, BATCHED)
            for k in tl.static_range(N):
                tl.store(saved + (t * N + k) * (C + 2) + column, total[k])
        # [A | B] of the token, a lane for each number.
        tl.debug_barrier()
        at = (t * N + i) * (C + 2)
        p_NC = tl.load(saved + at + c, mask=(i < N) & (c < C), other=0.0)
        _, r_N1 = load_statistics(saved, at, D, C, i < N, eps)
        weight_NC = static_NC + scale_1C * tanh(p_NC * r_N1 + bias_1C)
        tl.store(own + i * C + c, weight_NC, mask=(i < N) & (c < C))
        tl.store(b_out + t * N + i + c * 0, weight_NC, mask=(i < N) & (c == N + 1))
        # The mixing: u, H' and the shares.
        tl.debug_barrier()
        store_mixed_streams(rows, own, u, out, t, d, D, N)
        mix_shares(shares, b, own, shares_out, R, t, N, NP, RP, COPIES, FIRST, PENDING)


@triton.jit(do_not_specialize=["tokens", "J"], do_not_specialize_on_alignment=SMALL)
def dhc_backward(
    start, shares, table, J, b, w, bias, scale, a, static_b, saved, du, dout, db_out,
    dh, db, dy, dw, small, scratch, tokens, eps,
    D: tl.constexpr, DP: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, CP: tl.constexpr,
    COPIES: tl.constexpr, FIRST: tl.constexpr, PENDING: tl.constexpr, BATCHED: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """Store the gradients of the streams, of B and y, and sums over a program's tokens.

    By program: `dw` [C, D]; `small` [3, N, C] of d[A | B], d[A | B] z and dz; `scratch` [3, N, C + 2].
    """
    C: tl.constexpr = N + 2
    Y: tl.constexpr = du.dtype.element_ty
    d, i, c = tl.arange(0, DP), tl.arange(0, NP)[:, None], tl.arange(0, CP)[None, :]
    inside, used = d < D, (i < N) & (c < C)
    bias_1C, scale_1C, static_NC = load_parameters(bias, scale, a, static_b, i, c, N)
    da_scratch = scratch + tl.program_id(0) * (3 * N * (C + 2))
    dp_scratch, a_scratch = da_scratch + N * (C + 2), da_scratch + 2 * N * (C + 2)
    dab_NC, scale_NC, bias_NC = tl.zeros([NP, CP], F), tl.zeros([NP, CP], F), tl.zeros([NP, CP], F)
    dw_rows = ()
    for _ in tl.static_range(C):
        dw_rows = dw_rows + (tl.zeros([DP], F),)
    for t in range(tl.program_id(0).to(tl.int64), tokens, tl.num_programs(0)):
        du_row = tl.load(du + t * D + d, mask=inside, other=0.0).to(F)
        grads = (du_row,) + load_streams(dout, t, d, D, N, False, F)
        rows, y_row = recompute_streams(start, shares, table, J, b, t, d, D, N, COPIES, FIRST, PENDING, Y, F)
        # d[A | B] = <H_i, gradient m>, sums over D.
        store_weight_gradients(rows, grads, da_scratch, C + 2, N, BATCHED)
        # Through tanh and 1 / deviation, a lane for each number: d of p, and of H along itself and along 1.
        tl.debug_barrier()
        at = (t * N + i) * (C + 2)
        p_NC = tl.load(saved + at + c, mask=used, other=0.0)
        mean_N1, r_N1 = load_statistics(saved, at, D, C, i < N, eps)
        z_NC = tanh(p_NC * r_N1 + bias_1C)
        g_NC = tl.load(da_scratch + i * (C + 2) + c, mask=used & (c < N + 1), other=0.0)
        g_NC += tl.load(db_out + t * N + i + c * 0, mask=used & (c == N + 1), other=0.0)
        dz_NC = g_NC * scale_1C * (1 - z_NC * z_NC)
        dab_NC += g_NC
        scale_NC += g_NC * z_NC
        bias_NC += dz_NC
        along_N1 = tl.sum(dz_NC * p_NC, 1)[:, None] * (-1.0 / D) * r_N1 * r_N1 * r_N1
        dp_NC = tl.where(c < C, dz_NC * r_N1, tl.where(c == C, along_N1, -along_N1 * mean_N1))
        tl.store(a_scratch + i * (C + 2) + c, static_NC + scale_1C * z_NC, mask=used)
        tl.store(dp_scratch + i * (C + 2) + c, dp_NC, mask=(i < N) & (c < C + 2))
        # dH through the mixing and the deviation, then through the projection, beside dw.
        tl.debug_barrier()
        dh_rows = ()
        for k in tl.static_range(N):
            row = tl.load(dp_scratch + k * (C + 2) + C) * rows[k] + tl.load(dp_scratch + k * (C + 2) + C + 1)
            for m in tl.static_range(N + 1):
                row += tl.load(a_scratch + k * (C + 2) + m) * grads[m]
            dh_rows = dh_rows + (row,)
        new_dw = ()
        for column in tl.static_range(C):
            w_row, dw_row, new_dh = tl.load(w + column * D + d, mask=inside, other=0.0), dw_rows[column], ()
            for k in tl.static_range(N):
                dp = tl.load(dp_scratch + k * (C + 2) + column)
                new_dh = new_dh + (dh_rows[k] + dp * w_row,)
                dw_row += dp * rows[k]
            dh_rows, new_dw = new_dh, new_dw + (dw_row,)
        dw_rows = new_dw
        store_stream_gradients(dh_rows, dh, t, d, D, N, COPIES and not PENDING)
        if PENDING:
            write_output_backward(dh_rows, y_row, b, db, dy, t, d, D, N, BATCHED)
    # Sums over the program's tokens.
    for column in tl.static_range(C):
        tl.store(dw + (tl.program_id(0) * C + column) * D + d, dw_rows[column], mask=inside)
    own = small + tl.program_id(0) * (3 * N * C) + i * C + c
    tl.store(own, dab_NC, mask=used)
    tl.store(own + N * C, scale_NC, mask=used)
    tl.store(own + 2 * N * C, bias_NC, mask=used)
