// Attention over depth (pulled_sources.py): scores of a source, a query's mixture, and their backward.
// Tables hold the addresses of tensors, [J] of the sources of a query or [L] of the queries of a source.
#include <cmath>
#include <omp.h>

#include "rows.h"

constexpr int TILE = 16;  // tokens
constexpr int STEP = 8;   // vectors of a row at a time

// to += sum_j weight_j row_j, over K vectors from d on.
template <int K>
static inline void add_rows(const F* const* rows, const F* weight, long n, long offset, F* to) {
    V acc[K];
    UNROLLED for (int i = 0; i < K; i++) acc[i] = load(to + i * W);
    for (long j = 0; j < n; j++) {
        const F* row = rows[j] + offset;
        UNROLLED for (int i = 0; i < K; i++) acc[i] += weight[j] * load(row + i * W);
    }
    UNROLLED for (int i = 0; i < K; i++) store(to + i * W, acc[i]);
}

static inline void add_row_sums(const F* const* rows, const F* weight, long n, long offset, F* to, long D) {
    long d = 0;
    for (; d + STEP * W <= D; d += STEP * W) add_rows<STEP>(rows, weight, n, offset + d, to + d);
    for (; d < D; d += W) add_rows<1>(rows, weight, n, offset + d, to + d);
}

// s = (v key^T) r [tokens, Q] and r = (mean v^2 + eps)^-1/2 [tokens].
extern "C" void depth_scores(
    const F* v, const F* key, F* s, F* r, long tokens, long D, long Q, long threads, double eps
) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long t0 = 0; t0 < tokens; t0 += ROWS) {
        const long n = tokens - t0 < ROWS ? tokens - t0 : ROWS;
        long q = 0;
        for (; n == ROWS && q + 6 <= Q; q += 6)
            product_block<ROWS, 6>(v + t0 * D, key + q * D, D, s + t0 * Q + q, Q);
        for (; q < Q; q++)
            for (long t = t0; t < t0 + n; t++) s[t * Q + q] = dot(v + t * D, key + q * D, D);
        for (long t = t0; t < t0 + n; t++) {
            r[t] = 1 / std::sqrt(square(v + t * D, D) / D + F(eps));
            for (q = 0; q < Q; q++) s[t * Q + q] *= r[t];
        }
    }
}

// x = sum_j weight_j v_j, weight [tokens, J] the softmax of the scores: the one of source j of token t is at
// score[j][t * stride[j]].
extern "C" void depth_attend(
    const F* const* v, const F* const* score, const int64_t* stride, F* weight, F* x, long tokens, long D, long J,
    long threads
) {
#pragma omp parallel num_threads(threads)
    {
        const long padded = (J + W - 1) / W * W;
        F* lane = (F*)malloc(padded * sizeof(F));
#pragma omp for schedule(static)
        for (long t = 0; t < tokens; t++) {
            F top = score[0][t * stride[0]], total = 0;
            for (long j = 0; j < J; j++) {
                lane[j] = score[j][t * stride[j]];
                top = lane[j] > top ? lane[j] : top;
            }
            for (long j = J; j < padded; j++) lane[j] = top;
            for (long j = 0; j < padded; j += W) store(lane + j, exp(load(lane + j) - top));
            for (long j = 0; j < J; j++) total += lane[j];
            for (long j = 0; j < J; j++) weight[t * J + j] = lane[j] / total;
            memset(x + t * D, 0, D * sizeof(F));
            add_row_sums(v, weight + t * J, J, t * D, x + t * D, D);
        }
        free(lane);
    }
}

// dlogit [tokens, J] from dx; the sources' own gradients are pulled.
extern "C" void depth_attend_backward(
    const F* const* v, const F* weight, const F* dx, F* dlogit, long tokens, long D, long J, long threads
) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long t = 0; t < tokens; t++) {
        F mean = 0;
        for (long j = 0; j < J; j++) {
            dlogit[t * J + j] = dot(dx + t * D, v[j] + t * D, D);
            mean += weight[t * J + j] * dlogit[t * J + j];
        }
        for (long j = 0; j < J; j++) dlogit[t * J + j] = weight[t * J + j] * (dlogit[t * J + j] - mean);
    }
}

// The gradient of one source from all queries that met it: dv = direct + sum_l weight_l dx_l + that through the
// scores. Of query l, in column query[l] of the scores: dx[l] [tokens, D]; weight[l] and dlogit[l] at t * stride[l].
// Adds to dkey [threads, Q, D].
extern "C" void depth_pull(
    const F* v, const F* key, const F* s, const F* r, const F* direct, const F* const* dx, const F* const* weight,
    const F* const* dlogit, const int64_t* stride, const int64_t* query, F* dv, F* dkey, long tokens, long D, long Q,
    long L, long threads
) {
#pragma omp parallel num_threads(threads)
    {
        F* own_dkey = dkey + omp_get_thread_num() * Q * D;
        F* met = (F*)malloc(L * sizeof(F));
        F* dp = (F*)malloc(TILE * Q * sizeof(F));
#pragma omp for schedule(static)
        for (long t0 = 0; t0 < tokens; t0 += TILE) {
            const long n = tokens - t0 < TILE ? tokens - t0 : TILE;
            Along along[TILE];
            memset(dp, 0, TILE * Q * sizeof(F));
            for (long t = t0; t < t0 + n; t++) {
                F score = 0;
                for (long l = 0; l < L; l++) {
                    const F g = dlogit[l][t * stride[l]];
                    met[l] = weight[l][t * stride[l]];
                    dp[(t - t0) * Q + query[l]] = g * r[t];
                    score += g * s[t * Q + query[l]];
                }
                along[t - t0] = {-score * r[t] * r[t] / D, 0};
                if (direct) memcpy(dv + t * D, direct + t * D, D * sizeof(F));
                else memset(dv + t * D, 0, D * sizeof(F));
                add_row_sums(dx, met, L, t * D, dv + t * D, D);
            }
            const F *h = v + t0 * D;
            F* dh = dv + t0 * D;
            spread_block<0>(h, dh, n, key, D, dp, Q, along);
            long q = 0;
            for (; q + 8 <= Q; q += 8) {
                spread_block<8>(h, dh, n, key + q * D, D, dp + q, Q, nullptr);
                gather_block<8>(h, n, own_dkey + q * D, D, dp + q, Q);
            }
            for (; q < Q; q++) {
                spread_block<1>(h, dh, n, key + q * D, D, dp + q, Q, nullptr);
                gather_block<1>(h, n, own_dkey + q * D, D, dp + q, Q);
            }
        }
        free(met);
        free(dp);
    }
}
