// What the reads of N streams share: thin products of rows, mixing by weights, and the backward of both.
// Rows are D long, a multiple of the lanes. Weights of a token: a[i][0] of the read, a[i][1 + j] of stream j.
#pragma once
#include <cstdlib>

#include "vector.h"

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int ROWS = 4;  // of a block in registers, by 6 columns: 32 registers
#else
constexpr int ROWS = 2;
#endif
constexpr int M = N + 1;

// R rows times K columns: out[r * to + c] = <h_r, w_c>.
template <int R, int K>
static inline void product_block(const F* h, const F* w, long len, F* out, long to) {
    V acc[R][K] = {};
    for (long d = 0; d < len; d += W) {
        V row[R];
        UNROLLED for (int r = 0; r < R; r++) row[r] = load(h + r * len + d);
        UNROLLED for (int c = 0; c < K; c++) {
            const V column = load(w + c * len + d);
            UNROLLED for (int r = 0; r < R; r++) acc[r][c] += row[r] * column;
        }
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < K; c++) out[r * to + c] = sum(acc[r][c]);
}

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

// The gradient of a row along itself, less its mean: along * (h - mean).
struct Along {
    F along, mean;
};

// dh_r += sum_c dz_rc w_c, for K columns, and what is along the rows where that is given.
template <int K>
static void spread_block(
    const F* h, F* dh, long rows, const F* w, long len, const F* dz, long from, const Along* along
) {
    for (long d = 0; d < len; d += W) {
        V column[K];
        UNROLLED for (int c = 0; c < K; c++) column[c] = load(w + c * len + d);
        for (long r = 0; r < rows; r++) {
            V to = load(dh + r * len + d);
            if (along) to += along[r].along * (load(h + r * len + d) - along[r].mean);
            UNROLLED for (int c = 0; c < K; c++) to += dz[r * from + c] * column[c];
            store(dh + r * len + d, to);
        }
    }
}

// dw_c += sum_r dz_rc h_r, for K columns.
template <int K>
static void gather_block(const F* h, long rows, F* dw, long len, const F* dz, long from) {
    for (long d = 0; d < len; d += W) {
        V acc[K];
        UNROLLED for (int c = 0; c < K; c++) acc[c] = load(dw + c * len + d);
        for (long r = 0; r < rows; r++) {
            const V row = load(h + r * len + d);
            UNROLLED for (int c = 0; c < K; c++) acc[c] += dz[r * from + c] * row;
        }
        UNROLLED for (int c = 0; c < K; c++) store(dw + c * len + d, acc[c]);
    }
}

// The backward of `products`, given the gradients dz and those along the rows themselves.
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

static inline F square(const F* h, long len) {
    V acc[4] = {};
    long d = 0;
    for (; d + 4 * W <= len; d += 4 * W)
        UNROLLED for (int i = 0; i < 4; i++) acc[i] += load(h + d + i * W) * load(h + d + i * W);
    for (; d < len; d += W) acc[0] += load(h + d) * load(h + d);
    return sum((acc[0] + acc[1]) + (acc[2] + acc[3]));
}

static inline F total(const F* h, long len) {
    V acc = {};
    for (long d = 0; d < len; d += W) acc += load(h + d);
    return sum(acc);
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

// Streams to which an output may still have to be written, and a tile of them in which it is.
struct Streams {
    const F *h, *b, *y;  // y: null, or [tokens, D]
};

struct Tile {
    F* rows;

    Tile(long tokens, long D) { rows = (F*)malloc(tokens * N * D * sizeof(F)); }
    ~Tile() { free(rows); }

    // The streams H + B y of `n` tokens from `t0` on.
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
