// Depth attention on the CPU (blocked.py): scores of a source, mixtures of sources, gradients of sources.
// Tables hold addresses and numbers: of the tensors of J sources, or a row for each source or query.
#include <cmath>
#include <cstdint>
#include <omp.h>

#include "rows.h"

constexpr int TILE = 16;     // tokens
constexpr int TOGETHER = 8;  // queries or sources of one pass
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int PAIR = 2;  // 16 sums in 32 registers
#else
constexpr int PAIR = 1;
#endif

// A source: itself, its scores, 1 / rms; the outputs g r and its gradient; its number of keys.
struct Source {
    const F *v, *score, *r;
    F *product, *dv;
    int64_t n_key;
};

// A query: its gradient, its mixture (or null: delta is known), log-sum-exp, delta, its number from the last.
struct Query {
    const F *dx, *x, *lse;
    F* delta;
    int64_t number;
};

// to_k = sum_j weight_jk row_j of one token for K sums, of which the first n are stored, over S vectors from `offset` on.
// `weight` interleaves the weights of W tokens: weight_jk of token i is at (j * TOGETHER + k) * W + i.
template <int K, int S>
static inline void sum_rows(
    const F* const* rows, const F* weight, long J, long offset, F* const* to, long n
) {
    V acc[K][S] = {};
    for (long j = 0; j < J; j++) {
        V row[S];
        UNROLLED for (int i = 0; i < S; i++) row[i] = load(rows[j] + offset + i * W);
        UNROLLED for (int k = 0; k < K; k++) {
            const F a = weight[(j * TOGETHER + k) * W];
            UNROLLED for (int i = 0; i < S; i++) acc[k][i] += a * row[i];
        }
    }
    for (long k = 0; k < n; k++)
        for (int i = 0; i < S; i++) store(to[k] + offset + i * W, acc[k][i]);
}

template <int K, int S>
static inline void row_sums_by(
    const F* const* rows, const F* weight, long J, long offset, F* const* to, long n, long D
) {
    long d = 0;
    for (; d + S * W <= D; d += S * W) sum_rows<K, S>(rows, weight, J, offset + d, to, n);
    for (; d < D; d += W) sum_rows<K, 1>(rows, weight, J, offset + d, to, n);
}

static inline void row_sums(
    const F* const* rows, const F* weight, long J, long offset, F* const* to, long n, long D
) {
    if (n <= TOGETHER / 2) row_sums_by<TOGETHER / 2, 2 * PAIR>(rows, weight, J, offset, to, n, D);
    else row_sums_by<TOGETHER, PAIR>(rows, weight, J, offset, to, n, D);
}

// out[(r * TOGETHER + k) * W] = <a_r, b_k>, for R rows a.
template <int R>
static inline void dots(const F* const* a, long at, const F* const* b, long offset, long D, F* out) {
    V acc[R][TOGETHER] = {};
    for (long d = offset; d < offset + D; d += W) {
        V row[R];
        UNROLLED for (int r = 0; r < R; r++) row[r] = load(a[at + r] + d);
        UNROLLED for (int k = 0; k < TOGETHER; k++) {
            const V other = load(b[k] + d);
            UNROLLED for (int r = 0; r < R; r++) acc[r][k] += row[r] * other;
        }
    }
    for (int r = 0; r < R; r++)
        for (int k = 0; k < TOGETHER; k++) out[(r * TOGETHER + k) * W] = sum(acc[r][k]);
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

// Mixtures x_k [tokens, D] of n queries (1 or up to TOGETHER) and their log-sum-exp, lse [n, tokens]. The score of
// source j for query k is at score[j][t * stride[j] + k]. `before` (or null) is one query's mixture of other sources.
extern "C" void depth_mixtures(
    const F* const* v, const F* const* score, const int64_t* stride, const F* before, const F* lse_before,
    F* const* x, F* lse, long tokens, long D, long J, long n, long threads
) {
#pragma omp parallel num_threads(threads)
    {
        F* weight = (F*)calloc(J * TOGETHER * W, sizeof(F));
#pragma omp for schedule(static)
        for (long t0 = 0; t0 < tokens; t0 += W) {
            const long rows = tokens - t0 < W ? tokens - t0 : W;
            F earlier[W];
            // Softmax of W tokens at a time: weights of every source and query, and the share of `before`.
            for (long k = 0; k < n; k++) {
                V weight_before = before ? column(lse_before + t0, 1, rows) : all(0), sum = {};
                V top = before ? weight_before : column(score[0] + t0 * stride[0] + k, stride[0], rows);
                for (long j = 0; j < J; j++) {
                    const V s = column(score[j] + t0 * stride[j] + k, stride[j], rows);
                    top = s > top ? s : top;
                    store(weight + (j * TOGETHER + k) * W, s);
                }
                if (before) sum = weight_before = exp(weight_before - top);
                for (long j = 0; j < J; j++) {
                    F* own = weight + (j * TOGETHER + k) * W;
                    const V a = exp(load(own) - top);
                    sum += a;
                    store(own, a);
                }
                const V share = F(1) / sum;
                for (long j = 0; j < J; j++) {
                    F* own = weight + (j * TOGETHER + k) * W;
                    store(own, load(own) * share);
                }
                store(earlier, weight_before * share);
                for (long i = 0; i < rows; i++) lse[k * tokens + t0 + i] = top[i] + std::log(sum[i]);
            }
            // One pass over the sources of each token.
            for (long i = 0; i < rows; i++) {
                const long at = (t0 + i) * D;
                if (n > 1) {
                    row_sums(v, weight + i, J, at, x, n, D);
                    continue;
                }
                F* to = x[0] + at;
                if (before)
                    for (long d = 0; d < D; d += W) store(to + d, earlier[i] * load(before + at + d));
                else
                    memset(to, 0, D * sizeof(F));
                add_row_sums(v, weight + i, TOGETHER * W, J, at, to, D);
            }
        }
        free(weight);
    }
}

// delta = <dx, x> where it is not known.
static inline F delta_of(const Query& query, long t, long D) {
    if (query.x) query.delta[t] = dot(query.dx + t * D, query.x + t * D, D);
    return query.delta[t];
}

// What L queries contribute to K sources that all met them: of each sum_l a dx_l, its g r by query, and sum_l g s in
// along [K, tokens].
extern "C" void depth_chunk_gradients(
    const Source* sources, const Query* queries, F* along, long tokens, long D, long K, long L, long threads
) {
#pragma omp parallel num_threads(threads)
    {
        const long size = (L + 1) * TOGETHER * W;
        F *a = (F*)calloc(size, sizeof(F)), *dot_LK = (F*)calloc(size, sizeof(F));
        const F** dx = (const F**)malloc(L * sizeof(F*));
        const F* v[TOGETHER];
        F* dv[TOGETHER];
        for (long l = 0; l < L; l++) dx[l] = queries[l].dx;
        for (long k = 0; k < TOGETHER; k++) v[k] = sources[k < K ? k : 0].v, dv[k] = sources[k < K ? k : 0].dv;
#pragma omp for schedule(static)
        for (long t0 = 0; t0 < tokens; t0 += W) {
            const long rows = tokens - t0 < W ? tokens - t0 : W;
            // <dx_l, v_k> of all queries and sources.
            V sum[TOGETHER] = {};
            for (long i = 0; i < rows; i++) {
                const long at = (t0 + i) * D;
                long l = 0;
                for (; l + PAIR <= L; l += PAIR) dots<PAIR>(dx, l, v, at, D, dot_LK + l * TOGETHER * W + i);
                for (; l < L; l++) dots<1>(dx, l, v, at, D, dot_LK + l * TOGETHER * W + i);
            }
            // Weights a and g = a (<dx, v> - delta), W tokens at a time.
            for (long l = 0; l < L; l++) {
                const Query& query = queries[l];
                for (long i = 0; i < rows; i++) delta_of(query, t0 + i, D);
                const V lse = column(query.lse + t0, 1, rows), delta = column(query.delta + t0, 1, rows);
                for (long k = 0; k < K; k++) {
                    const Source& source = sources[k];
                    const long n_key = source.n_key, at = (t0 + 1) * n_key + query.number, own = (l * TOGETHER + k) * W;
                    const V s = column(source.score + at, n_key, rows), weight = exp(s - lse);
                    const V g = weight * (load(dot_LK + own) - delta), gr = g * column(source.r + t0, 1, rows);
                    sum[k] += g * s;
                    store(a + own, weight);
                    for (long i = 0; i < rows; i++) source.product[at + i * n_key] = gr[i];
                }
            }
            for (long k = 0; k < K; k++)
                for (long i = 0; i < rows; i++) along[k * tokens + t0 + i] = sum[k][i];
            // sum_l a dx_l: one pass over the gradients.
            for (long i = 0; i < rows; i++) row_sums(dx, a + i, L, (t0 + i) * D, dv, K, D);
        }
        free(a);
        free(dot_LK);
        free(dx);
    }
}

// Gradients of one source and of its keys [threads, Q, D], to which it adds: the direct gradient (or null), what other
// queries contribute (`partial`, `far`, `far_along`, or nulls), and what these L queries do. If its scores contain a
// bias [Q] (or null), its gradient goes to dbias [threads, Q].
extern "C" void depth_source_gradient(
    const Source* source, const Query* queries, const F* key, const F* direct, const F* partial, const F* far,
    const F* far_along, const F* bias, F* dkey, F* dbias, long tokens, long D, long Q, long L, long threads
) {
    const F *v = source->v, *s = source->score, *r = source->r;
    F* dv = source->dv;
#pragma omp parallel num_threads(threads)
    {
        F *own_dkey = dkey + omp_get_thread_num() * Q * D, *own_dbias = dbias + omp_get_thread_num() * Q;
        F* a = (F*)malloc(whole(L + 1) * sizeof(F));
        F* dp = (F*)malloc(TILE * Q * sizeof(F));
        const F** dx = (const F**)malloc((L + 1) * sizeof(F*));
        for (long l = 0; l < L; l++) dx[l] = queries[l].dx;
        for (long l = 0; l < whole(L + 1); l++) a[l] = 0;
#pragma omp for schedule(static)
        for (long t0 = 0; t0 < tokens; t0 += TILE) {
            const long n = tokens - t0 < TILE ? tokens - t0 : TILE;
            Along along[TILE];
            if (far) memcpy(dp, far + t0 * Q, n * Q * sizeof(F));
            else memset(dp, 0, n * Q * sizeof(F));
            for (long t = t0; t < t0 + n; t++) {
                F score = far ? far_along[t] : 0;  // sum of g s
                // Weights of these queries, and g r by query.
                for (long l = 0; l < L; l++) a[l] = s[(t + 1) * Q + queries[l].number] - queries[l].lse[t];
                for (long l = 0; l < L; l += W) store(a + l, exp(load(a + l)));
                for (long l = 0; l < L; l++) {
                    const long q = Q + queries[l].number;
                    const F g = a[l] * (dot(dx[l] + t * D, v + t * D, D) - delta_of(queries[l], t, D));
                    dp[(t - t0) * Q + q] = g * r[t];
                    score += g * s[t * Q + q];
                }
                // The bias is in the scores, but not along the source.
                for (long q = 0; bias && q < Q; q++) {
                    const F g = dp[(t - t0) * Q + q] / r[t];
                    score -= g * bias[q];
                    own_dbias[q] += g;
                }
                along[t - t0] = {-score * r[t] * r[t] / D, 0};
                // dv = direct + partial + sum_l a dx_l.
                F* to = dv + t * D;
                for (long d = 0; d < D; d += W) {
                    V row = {};
                    if (direct) row += load(direct + t * D + d);
                    if (partial) row += load(partial + t * D + d);
                    store(to + d, row);
                }
                add_row_sums(dx, a, 1, L, t * D, to, D);
            }
            // dv += g r key - (r^2 / D) (sum g s) v, and dkey += g r v, a few queries at a time.
            const F* h = v + t0 * D;
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
        free(a);
        free(dp);
        free(dx);
    }
}
