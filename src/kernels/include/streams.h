// Functions of the reads of N streams: thin products of rows, mixing by weights, and the backward of both.
// Rows have D elements, a multiple of the vector length. Weights of a token: a[i][0] of the read, a[i][1 + j] of
// stream j.
#pragma once
#include "rows.h"

constexpr int M = N + 1;

// Products of R rows with C columns, up to 6 columns at a time.
template <int R, int C>
static inline void product_rows(const F* h, const F* w, long len, F* out, long to) {
    constexpr int K = C < 6 ? C : 6;
    product_block<R, K>(h, w, len, out, to);
    if constexpr (C > K) product_rows<R, C - K>(h, w + K * len, len, out + K, to);
}

// out[r * to + c] = <h_r, w_c> for all rows and C columns.
template <int C>
static void products(const F* h, long rows, const F* w, long len, F* out, long to) {
    long r = 0;
    for (; r + ROWS <= rows; r += ROWS) product_rows<ROWS, C>(h + r * len, w, len, out + r * to, to);
    for (; r < rows; r++) product_rows<1, C>(h + r * len, w, len, out + r * to, to);
}

// Backward of `products`, from the gradients dz and, if it is not null, a gradient along the rows themselves.
template <int C>
static void products_backward(
    const F* h, F* dh, long rows, const F* w, F* dw, long len, const F* dz, long from, const Along* along
) {
    constexpr int K = C < 12 ? C : 12;
    spread_block<K>(h, dh, rows, w, len, dz, from, along);
    gather_block<K>(h, rows, dw, len, dz, from);
    if constexpr (C > K)
        products_backward<C - K>(h, dh, rows, w + K * len, dw + K * len, len, dz + K, from, nullptr);
}

// One token: u = A_m^T H and H' = A_r^T H.
static inline void mix(const F (*a)[M], const F* h, F* u, F* out, long D) {
    for (long d = 0; d < D; d += W) {
        V mixed[M] = {};
        UNROLLED for (int i = 0; i < N; i++) {
            const V stream = load(h + i * D + d);
            UNROLLED for (int m = 0; m < M; m++) mixed[m] += a[i][m] * stream;
        }
        store(u + d, mixed[0]);
        UNROLLED for (int j = 0; j < N; j++) store(out + j * D + d, mixed[1 + j]);
    }
}

// One token: da_im = <H_i, dout_m> and dH = A dout, where dout is du and the dH'_j.
static inline void mix_backward(const F (*a)[M], const F* h, const F* du, const F* dout, F (*da)[M], F* dh, long D) {
    V dots[N][M] = {};
    for (long d = 0; d < D; d += W) {
        V grad[M];
        grad[0] = load(du + d);
        UNROLLED for (int j = 0; j < N; j++) grad[1 + j] = load(dout + j * D + d);
        UNROLLED for (int i = 0; i < N; i++) {
            const V stream = load(h + i * D + d);
            V through = {};
            UNROLLED for (int m = 0; m < M; m++) {
                dots[i][m] += stream * grad[m];
                through += a[i][m] * grad[m];
            }
            store(dh + i * D + d, through);
        }
    }
    for (int i = 0; i < N; i++)
        for (int m = 0; m < M; m++) da[i][m] = sum(dots[i][m]);
}

// Streams, and an output that is still to be written to them.
struct Streams {
    const F *h, *b, *y;  // y: null, or [tokens, D]
};

// Buffer for a tile of streams with the output written to them.
struct Tile {
    F* rows;

    Tile(long tokens, long D) { rows = (F*)malloc(tokens * N * D * sizeof(F)); }
    ~Tile() { free(rows); }

    // Returns the streams H + B y of `n` tokens from `t0` on.
    const F* of(const Streams& s, long t0, long n, long D) {
        if (!s.y) return s.h + t0 * N * D;
        for (long t = 0; t < n; t++)
            for (long d = 0; d < D; d += W) {
                const V y = load(s.y + (t0 + t) * D + d);
                UNROLLED for (int i = 0; i < N; i++)
                    store(rows + (t * N + i) * D + d, load(s.h + ((t0 + t) * N + i) * D + d) + s.b[(t0 + t) * N + i] * y);
            }
        return rows;
    }
};

// One token: db_i = <y, dH_i> and dy = sum_i b_i dH_i.
static inline void write_backward(const F* b, const F* y, const F* dh, F* db, F* dy, long D) {
    V dots[N] = {};
    for (long d = 0; d < D; d += W) {
        const V output = load(y + d);
        V through = {};
        UNROLLED for (int i = 0; i < N; i++) {
            const V grad = load(dh + i * D + d);
            dots[i] += output * grad;
            through += b[i] * grad;
        }
        store(dy + d, through);
    }
    for (int i = 0; i < N; i++) db[i] = sum(dots[i]);
}
