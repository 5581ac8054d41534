// Thin products and sums of rows of D elements, a multiple of the lanes, and their backward.
#pragma once
#include <cstdlib>

#include "vector.h"

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int ROWS = 4;  // of a tile of 6 columns: 32 registers
#else
constexpr int ROWS = 2;
#endif

constexpr int STEP = 8;  // vectors of a row in one iteration

static inline long whole(long n) { return (n + W - 1) / W * W; }

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

// Gradient of a row along itself, less its mean: along * (h - mean).
struct Along {
    F along, mean;
};

// dh_r += sum_c dz_rc w_c, for K columns, plus the gradient along the rows (or null).
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

static inline F dot(const F* a, const F* b, long len) {
    V acc[4] = {};
    long d = 0;
    for (; d + 4 * W <= len; d += 4 * W)
        UNROLLED for (int i = 0; i < 4; i++) acc[i] += load(a + d + i * W) * load(b + d + i * W);
    for (; d < len; d += W) acc[0] += load(a + d) * load(b + d);
    return folded<VECTOR_BYTES>((acc[0] + acc[1]) + (acc[2] + acc[3]));
}

static inline F square(const F* h, long len) { return dot(h, h, len); }

static inline F total(const F* h, long len) {
    V acc = {};
    for (long d = 0; d < len; d += W) acc += load(h + d);
    return sum(acc);
}

// to += sum_j weight_j row_j, over K vectors from d on; weights are `step` apart.
template <int K>
static inline void add_rows(const F* const* rows, const F* weight, long step, long n, long offset, F* to) {
    V acc[K];
    UNROLLED for (int i = 0; i < K; i++) acc[i] = load(to + i * W);
    for (long j = 0; j < n; j++) {
        const F* row = rows[j] + offset;
        UNROLLED for (int i = 0; i < K; i++) acc[i] += weight[j * step] * load(row + i * W);
    }
    UNROLLED for (int i = 0; i < K; i++) store(to + i * W, acc[i]);
}

static inline void add_row_sums(
    const F* const* rows, const F* weight, long step, long n, long offset, F* to, long D
) {
    long d = 0;
    for (; d + STEP * W <= D; d += STEP * W) add_rows<STEP>(rows, weight, step, n, offset + d, to + d);
    for (; d < D; d += W) add_rows<1>(rows, weight, step, n, offset + d, to + d);
}
