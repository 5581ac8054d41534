// Causal attention and its gradients, one head at a time (equations: cpp.py), in tiles of R queries.
// Scores are stored transposed, S^T = K Q^T [keys, R]: neighbors in memory are queries, so that the softmax runs over
// vectors of queries and needs no reduction across lanes. A tile's scores over all its keys stay in the cache.
// Letters: B batch, H heads, T tokens, K head size, R queries of a tile; F the accumulation type, X the type of q, k, v.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "blocks.h"

constexpr long R = 64;
constexpr int VECTORS = R / W;

// q, k, v or dy: address, and strides of batch, head and token.
template <class X>
struct Strided {
    const X* at;
    const int64_t* strides;
    const X* head(long b, long h) const { return at + b * strides[0] + h * strides[1]; }
    long row() const { return strides[2]; }
};

// A head as contiguous rows of F, [T, K].
template <class X>
static void copy_rows(const X* x, long row, long T, long K, F* out) {
    for (long t = 0; t < T; t++)
        for (long c = 0; c < K; c += W) store(out + t * K + c, get(x + t * row + c));
}

// A head transposed and scaled, [K, wide]; columns from T on are 0.
template <class X>
static void transpose_rows(const X* x, long row, long T, long wide, long K, F factor, F* out) {
    for (long t = 0; t < wide; t += W)
        for (long c = 0; c < K; c += W) {
            V rows[W];
            UNROLLED for (int i = 0; i < W; i++) rows[i] = t + i < T ? get(x + (t + i) * row + c) * factor : V{};
            transpose(rows);
            UNROLLED for (int i = 0; i < W; i++) store(out + (c + i) * wide + t, rows[i]);
        }
}

// The inverse for n queries of a tile, [K, R], each scaled by its own factor.
template <class X>
static void transpose_back(const F* columns, const F* factor, long n, long K, X* out, long row) {
    for (long t = 0; t < n; t += W)
        for (long c = 0; c < K; c += W) {
            V rows[W];
            UNROLLED for (int i = 0; i < W; i++) rows[i] = load(columns + (c + i) * R + t) * load(factor + t);
            transpose(rows);
            for (int i = 0; i < W && t + i < n; i++) put(out + (t + i) * row + c, rows[i]);
        }
}

// The positions in the tile of the queries in vector b.
static inline V query_positions(int b) {
    V positions;
    for (int i = 0; i < W; i++) positions[i] = F(b * W + i);
    return positions;
}

// Turns scores into exp(score - top) per query, and computes tops and sums. The first n keys are visible to all queries
// of the tile; of the `last` keys after them, the tile's own tokens, a query sees those up to itself.
static void softmax(F* score, long n, long last, F* top, F* sum) {
    V high[VECTORS], total[VECTORS] = {}, position[VECTORS];
    const V lowest = all(std::numeric_limits<F>::lowest());
    UNROLLED for (int b = 0; b < VECTORS; b++) high[b] = lowest, position[b] = query_positions(b);
    for (long j = 0; j < n + last; j++)
        UNROLLED for (int b = 0; b < VECTORS; b++) {
            const V s = load(score + j * R + b * W), visible = position[b] >= F(j - n) ? s : lowest;
            high[b] = visible > high[b] ? visible : high[b];
        }
    for (long j = 0; j < n + last; j++)
        UNROLLED for (int b = 0; b < VECTORS; b++) {
            const V e = exp(load(score + j * R + b * W) - high[b]), visible = position[b] >= F(j - n) ? e : V{};
            store(score + j * R + b * W, visible);
            total[b] += visible;
        }
    UNROLLED for (int b = 0; b < VECTORS; b++) store(top + b * W, high[b]), store(sum + b * W, total[b]);
}

// Turns scores into probabilities p = exp(score - lse), and dp into the scores' gradient p (dp - delta).
static void softmax_backward(F* score, F* dp, long n, long last, const F* lse, const F* delta) {
    V position[VECTORS];
    UNROLLED for (int b = 0; b < VECTORS; b++) position[b] = query_positions(b);
    for (long j = 0; j < n + last; j++)
        UNROLLED for (int b = 0; b < VECTORS; b++) {
            F *s = score + j * R + b * W, *d = dp + j * R + b * W;
            const V e = exp(load(s) - load(lse + b * W)), p = position[b] >= F(j - n) ? e : V{};
            const V ds = p * (load(d) - load(delta + b * W));
            store(s, p), store(d, ds);
        }
}

template <class X>
struct Attention {
    Product<F> product;
    Release release;
    Strided<X> q, k, v;
    long H, T, K, wide;  // wide: T, rounded up to whole tiles
    F scale;

    long of(long b, long h) const { return (b * T * H + h) * K; }  // offset of a head in [B, T, H, K]

    void forward(long b, long h, X* y, F* lse, F* scratch) const {
        F *key = scratch, *q_t = key + T * K, *v_t = q_t + wide * K, *score = v_t + wide * K;
        F *y_t = score + wide * R, *top = y_t + K * R, *sum = top + R;
        copy_rows(k.head(b, h), k.row(), T, K, key);
        transpose_rows(q.head(b, h), q.row(), T, wide, K, scale, q_t);
        transpose_rows(v.head(b, h), v.row(), T, wide, K, F(1), v_t);
        for (long at = 0; at < T; at += R) {  // a tile of queries: S^T, softmax, y^T = V^T P^T
            const long c = std::min(R, T - at), n = at + c;
            product(n, R, K, K, wide, R, false, key, q_t + at, score, false);
            softmax(score, at, c, top, sum);
            product(K, R, n, wide, R, R, false, v_t, score, y_t, false);
            for (long i = 0; i < c; i++) lse[(b * H + h) * T + at + i] = top[i] + std::log(sum[i]);
            for (long i = 0; i < R; i += W) store(sum + i, F(1) / load(sum + i));
            transpose_back(y_t, sum, c, K, y + of(b, h) + at * H * K, H * K);
        }
    }

    void backward(
        long b, long h, const X* y, const F* lse, Strided<X> dy, X* dq, X* dk, X* dv, F* scratch
    ) const {
        const long TK = T * K, wideK = wide * K;
        F *query = scratch, *key = query + TK, *value = key + TK, *dout = value + TK;
        F *dkey = dout + TK, *dvalue = dkey + TK;
        F *q_t = dvalue + TK, *k_t = q_t + wideK, *dout_t = k_t + wideK;
        F *score = dout_t + wideK, *dscore = score + wide * R, *dq_t = dscore + wide * R;
        F *delta = dq_t + K * R, *padded_lse = delta + wide, *scales = padded_lse + wide;
        copy_rows(q.head(b, h), q.row(), T, K, query);
        copy_rows(k.head(b, h), k.row(), T, K, key);
        copy_rows(v.head(b, h), v.row(), T, K, value);
        copy_rows(dy.head(b, h), dy.row(), T, K, dout);
        transpose_rows(query, K, T, wide, K, scale, q_t);
        transpose_rows(key, K, T, wide, K, F(1), k_t);
        transpose_rows(dout, K, T, wide, K, F(1), dout_t);
        std::fill(dkey, dkey + 2 * TK, F(0));
        std::fill(delta, delta + 2 * wide, F(0));
        std::fill(scales, scales + R, scale);
        for (long t = 0; t < T; t++) {  // delta = <dy, y> of every query
            V products = {};
            for (long c = 0; c < K; c += W) products += get(y + of(b, h) + t * H * K + c) * load(dout + t * K + c);
            delta[t] = sum(products);
        }
        std::copy(lse + (b * H + h) * T, lse + (b * H + h + 1) * T, padded_lse);
        for (long at = 0; at < T; at += R) {  // a tile of queries: P^T and dS^T, then its part of dV, dK, and its dQ
            const long c = std::min(R, T - at), n = at + c;
            product(n, R, K, K, wide, R, false, key, q_t + at, score, false);
            product(n, R, K, K, wide, R, false, value, dout_t + at, dscore, false);
            softmax_backward(score, dscore, at, c, padded_lse + at, delta + at);
            product(n, K, c, R, K, K, true, score, dout + at * K, dvalue, false);
            product(n, K, c, R, K, K, true, dscore, query + at * K, dkey, false);
            product(K, R, n, wide, R, R, false, k_t, dscore, dq_t, false);
            transpose_back(dq_t, scales, c, K, dq + of(b, h) + at * H * K, H * K);
        }
        for (long t = 0; t < T; t++)  // q was scaled for the scores, but not where dK was summed
            for (long c = 0; c < K; c += W) {
                put(dk + of(b, h) + t * H * K + c, load(dkey + t * K + c) * scale);
                put(dv + of(b, h) + t * H * K + c, load(dvalue + t * K + c));
            }
    }
};

// Runs `work` for each head, on one thread with a scratch buffer of `floats`.
template <class Work>
static void for_each_head(long B, long H, long threads, long floats, Release release, Work work) {
    threads = std::min(threads, B * H);
#pragma omp parallel num_threads(threads)
    {
        Buffer<F> scratch(floats);
#pragma omp for schedule(dynamic, 1)
        for (long i = 0; i < B * H; i++) work(i / H, i % H, scratch.at);
        release(false);
    }
}

template <class X>
static Attention<X> attention(
    Product<F> product, Release release, const X* q, const X* k, const X* v, const int64_t* strides, long H, long T,
    long K
) {
    if (!product) product = plain_product, release = nothing;
    const F scale = 1 / std::sqrt(F(K));
    return {product, release, {q, strides}, {k, strides + 3}, {v, strides + 6}, H, T, K, (T + R - 1) / R * R, scale};
}

template <class X>
static void forward(
    Product<F> product, Release release, const X* q, const X* k, const X* v, const int64_t* strides, X* y, F* lse, long B,
    long H, long T, long K, long threads
) {
    const Attention<X> a = attention(product, release, q, k, v, strides, H, T, K);
    const long floats = T * K + 2 * a.wide * K + a.wide * R + K * R + 2 * R;
    for_each_head(B, H, threads, floats, a.release, [&](long b, long h, F* scratch) {
        a.forward(b, h, y, lse, scratch);
    });
}

template <class X>
static void backward(
    Product<F> product, Release release, const X* q, const X* k, const X* v, const X* dy, const int64_t* strides,
    const X* y, const F* lse, X* dq, X* dk, X* dv, long B, long H, long T, long K, long threads
) {
    const Attention<X> a = attention(product, release, q, k, v, strides, H, T, K);
    const long floats = 6 * T * K + 3 * a.wide * K + 2 * a.wide * R + K * R + 2 * a.wide + R;
    for_each_head(B, H, threads, floats, a.release, [&](long b, long h, F* scratch) {
        a.backward(b, h, y, lse, {dy, strides + 9}, dq, dk, dv, scratch);
    });
}

extern "C" {
void attention_try(Product<F> product, Release release, F* out) { attempt<F>(product, release, 1, out); }

// Computes y [B, T, H, K] and each query's logarithm of its sum of exponentials [B, H, T]. `strides` [3, 3] are those of
// batch, head and token of q, k and v; K is a multiple of the vector length. `half`: bfloat16.
void attention_same(
    Product<F> product, Release release, const F* q, const F* k, const F* v, const int64_t* strides, F* y, F* lse, long B,
    long H, long T, long K, long threads
) {
    forward(product, release, q, k, v, strides, y, lse, B, H, T, K, threads);
}
void attention_half(
    Product<F> product, Release release, const Half* q, const Half* k, const Half* v, const int64_t* strides, Half* y,
    F* lse, long B, long H, long T, long K, long threads
) {
    forward(product, release, q, k, v, strides, y, lse, B, H, T, K, threads);
}

// Computes dq, dk, dv [B, T, H, K]; `strides` [4, 3] include those of dy.
void attention_backward_same(
    Product<F> product, Release release, const F* q, const F* k, const F* v, const F* dy, const int64_t* strides,
    const F* y, const F* lse, F* dq, F* dk, F* dv, long B, long H, long T, long K, long threads
) {
    backward(product, release, q, k, v, dy, strides, y, lse, dq, dk, dv, B, H, T, K, threads);
}
void attention_backward_half(
    Product<F> product, Release release, const Half* q, const Half* k, const Half* v, const Half* dy,
    const int64_t* strides, const Half* y, const F* lse, Half* dq, Half* dk, Half* dv, long B, long H, long T, long K,
    long threads
) {
    backward(product, release, q, k, v, dy, strides, y, lse, dq, dk, dv, B, H, T, K, threads);
}
}
