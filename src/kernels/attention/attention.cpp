// Causal attention, a head at a time, and its gradients: see cpu_attention.py.
// Scores are products k q^T: neighbours in memory are queries, over vectors of which the softmax runs.
// Letters: B batch, H heads, T tokens, K head size, R queries of a block; F the type of sums, X of what is given.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "blocks.h"

constexpr long R = 64;
constexpr int VECTORS = R / W;

// One of q, k, v: where it begins, and how far apart batches, heads and tokens are.
template <class X>
struct Given {
    const X* at;
    const int64_t* apart;
    const X* head(long b, long h) const { return at + b * apart[0] + h * apart[1]; }
    long row() const { return apart[2]; }
};

template <class X>
static void copied(const X* x, long row, long T, long K, F* out) {
    for (long t = 0; t < T; t++)
        for (long c = 0; c < K; c += W) store(out + t * K + c, get(x + t * row + c));
}

// [K, wide], by a factor; columns from T on are 0.
template <class X>
static void turned(const X* x, long row, long T, long wide, long K, F factor, F* out) {
    for (long t = 0; t < wide; t += W)
        for (long c = 0; c < K; c += W) {
            V rows[W];
            UNROLLED for (int i = 0; i < W; i++) rows[i] = t + i < T ? get(x + (t + i) * row + c) * factor : V{};
            transpose(rows);
            UNROLLED for (int i = 0; i < W; i++) store(out + (c + i) * wide + t, rows[i]);
        }
}

// Rows of n queries from columns [K, R], each by its factor.
template <class X>
static void turned_back(const F* columns, const F* factor, long n, long K, X* out, long row) {
    for (long t = 0; t < n; t += W)
        for (long c = 0; c < K; c += W) {
            V rows[W];
            UNROLLED for (int i = 0; i < W; i++) rows[i] = load(columns + (c + i) * R + t) * load(factor + t);
            transpose(rows);
            for (int i = 0; i < W && t + i < n; i++) put(out + (t + i) * row + c, rows[i]);
        }
}

// Numbers of the queries of vector b of a block.
static inline V queries(int b) {
    V numbers;
    for (int i = 0; i < W; i++) numbers[i] = F(b * W + i);
    return numbers;
}

// e = exp(score - top) over the keys of each query, n of which see all queries and `last` more only later ones.
static void softmax(F* score, long n, long last, F* top, F* sum) {
    V high[VECTORS], total[VECTORS] = {}, number[VECTORS];
    const V lowest = all(std::numeric_limits<F>::lowest());
    UNROLLED for (int b = 0; b < VECTORS; b++) high[b] = lowest, number[b] = queries(b);
    for (long j = 0; j < n + last; j++)
        UNROLLED for (int b = 0; b < VECTORS; b++) {
            const V s = load(score + j * R + b * W), seen = number[b] >= F(j - n) ? s : lowest;
            high[b] = seen > high[b] ? seen : high[b];
        }
    for (long j = 0; j < n + last; j++)
        UNROLLED for (int b = 0; b < VECTORS; b++) {
            const V e = exp(load(score + j * R + b * W) - high[b]), seen = number[b] >= F(j - n) ? e : V{};
            store(score + j * R + b * W, seen);
            total[b] += seen;
        }
    UNROLLED for (int b = 0; b < VECTORS; b++) store(top + b * W, high[b]), store(sum + b * W, total[b]);
}

// Of scores their probabilities p, and of dp the scores' gradient p (dp - delta).
static void softmax_backward(F* score, F* dp, long n, long last, const F* lse, const F* delta) {
    V number[VECTORS];
    UNROLLED for (int b = 0; b < VECTORS; b++) number[b] = queries(b);
    for (long j = 0; j < n + last; j++)
        UNROLLED for (int b = 0; b < VECTORS; b++) {
            F *s = score + j * R + b * W, *d = dp + j * R + b * W;
            const V e = exp(load(s) - load(lse + b * W)), p = number[b] >= F(j - n) ? e : V{};
            const V ds = p * (load(d) - load(delta + b * W));
            store(s, p), store(d, ds);
        }
}

template <class X>
struct Attention {
    Product<F> product;
    Release release;
    Given<X> q, k, v;
    long H, T, K, wide;  // tokens, up to whole blocks
    F scale;

    long of(long b, long h) const { return (b * T * H + h) * K; }  // where a head of [B, T, H, K] begins

    void forward(long b, long h, X* y, F* lse, F* room) const {
        F *key = room, *q_turned = key + T * K, *v_turned = q_turned + wide * K, *score = v_turned + wide * K;
        F *y_turned = score + wide * R, *top = y_turned + K * R, *sum = top + R;
        copied(k.head(b, h), k.row(), T, K, key);
        turned(q.head(b, h), q.row(), T, wide, K, scale, q_turned);
        turned(v.head(b, h), v.row(), T, wide, K, F(1), v_turned);
        for (long at = 0; at < T; at += R) {
            const long c = std::min(R, T - at), n = at + c;
            product(n, R, K, K, wide, R, false, key, q_turned + at, score, false);
            softmax(score, at, c, top, sum);
            product(K, R, n, wide, R, R, false, v_turned, score, y_turned, false);
            for (long i = 0; i < c; i++) lse[(b * H + h) * T + at + i] = top[i] + std::log(sum[i]);
            for (long i = 0; i < R; i += W) store(sum + i, F(1) / load(sum + i));
            turned_back(y_turned, sum, c, K, y + of(b, h) + at * H * K, H * K);
        }
    }

    void backward(
        long b, long h, const X* y, const F* lse, Given<X> dy, X* dq, X* dk, X* dv, F* room
    ) const {
        const long TK = T * K, wideK = wide * K;
        F *query = room, *key = query + TK, *value = key + TK, *dout = value + TK, *dkey = dout + TK, *dvalue = dkey + TK;
        F *q_turned = dvalue + TK, *k_turned = q_turned + wideK, *dout_turned = k_turned + wideK;
        F *score = dout_turned + wideK, *dscore = score + wide * R, *dq_turned = dscore + wide * R;
        F *delta = dq_turned + K * R, *own_lse = delta + wide, *scales = own_lse + wide;
        copied(q.head(b, h), q.row(), T, K, query);
        copied(k.head(b, h), k.row(), T, K, key);
        copied(v.head(b, h), v.row(), T, K, value);
        copied(dy.head(b, h), dy.row(), T, K, dout);
        turned(query, K, T, wide, K, scale, q_turned);
        turned(key, K, T, wide, K, F(1), k_turned);
        turned(dout, K, T, wide, K, F(1), dout_turned);
        std::fill(dkey, dkey + 2 * TK, F(0));
        std::fill(delta, delta + 2 * wide, F(0));
        std::fill(scales, scales + R, scale);
        for (long t = 0; t < T; t++) {
            V products = {};
            for (long c = 0; c < K; c += W) products += get(y + of(b, h) + t * H * K + c) * load(dout + t * K + c);
            delta[t] = sum(products);
        }
        std::copy(lse + (b * H + h) * T, lse + (b * H + h + 1) * T, own_lse);
        for (long at = 0; at < T; at += R) {
            const long c = std::min(R, T - at), n = at + c;
            product(n, R, K, K, wide, R, false, key, q_turned + at, score, false);
            product(n, R, K, K, wide, R, false, value, dout_turned + at, dscore, false);
            softmax_backward(score, dscore, at, c, own_lse + at, delta + at);
            product(n, K, c, R, K, K, true, score, dout + at * K, dvalue, false);
            product(n, K, c, R, K, K, true, dscore, query + at * K, dkey, false);
            product(K, R, n, wide, R, R, false, k_turned, dscore, dq_turned, false);
            turned_back(dq_turned, scales, c, K, dq + of(b, h) + at * H * K, H * K);
        }
        for (long t = 0; t < T; t++)
            for (long c = 0; c < K; c += W) {
                put(dk + of(b, h) + t * H * K + c, load(dkey + t * K + c) * scale);
                put(dv + of(b, h) + t * H * K + c, load(dvalue + t * K + c));
            }
    }
};

// Each head by one thread, which has room for `floats`.
template <class Work>
static void each(long B, long H, long threads, long floats, Release release, Work work) {
    threads = std::min(threads, B * H);
#pragma omp parallel num_threads(threads)
    {
        Buffer<F> room(floats);
#pragma omp for schedule(dynamic, 1)
        for (long i = 0; i < B * H; i++) work(i / H, i % H, room.at);
        release(false);
    }
}

template <class X>
static Attention<X> attention(
    Product<F> product, Release release, const X* q, const X* k, const X* v, const int64_t* apart, long H, long T, long K
) {
    if (!product) product = plain_product, release = nothing;
    const F scale = 1 / std::sqrt(F(K));
    return {product, release, {q, apart}, {k, apart + 3}, {v, apart + 6}, H, T, K, (T + R - 1) / R * R, scale};
}

template <class X>
static void forward(
    Product<F> product, Release release, const X* q, const X* k, const X* v, const int64_t* apart, X* y, F* lse, long B,
    long H, long T, long K, long threads
) {
    const Attention<X> a = attention(product, release, q, k, v, apart, H, T, K);
    const long floats = T * K + 2 * a.wide * K + a.wide * R + K * R + 2 * R;
    each(B, H, threads, floats, a.release, [&](long b, long h, F* room) { a.forward(b, h, y, lse, room); });
}

template <class X>
static void backward(
    Product<F> product, Release release, const X* q, const X* k, const X* v, const X* dy, const int64_t* apart, const X* y,
    const F* lse, X* dq, X* dk, X* dv, long B, long H, long T, long K, long threads
) {
    const Attention<X> a = attention(product, release, q, k, v, apart, H, T, K);
    const long floats = 6 * T * K + 3 * a.wide * K + 2 * a.wide * R + K * R + 2 * a.wide + R;
    each(B, H, threads, floats, a.release, [&](long b, long h, F* room) {
        a.backward(b, h, y, lse, {dy, apart + 9}, dq, dk, dv, room);
    });
}

extern "C" {
void attention_try(Product<F> product, Release release, F* out) { attempt<F>(product, release, 1, out); }

// y [B, T, H, K] and, by query, the logarithm of its sum of exponentials [B, H, T], of q, k, v, whose batches, heads
// and tokens are apart [3, 3]; K is whole vectors. `half`: of bfloat16.
void attention_same(
    Product<F> product, Release release, const F* q, const F* k, const F* v, const int64_t* apart, F* y, F* lse, long B,
    long H, long T, long K, long threads
) {
    forward(product, release, q, k, v, apart, y, lse, B, H, T, K, threads);
}
void attention_half(
    Product<F> product, Release release, const Half* q, const Half* k, const Half* v, const int64_t* apart, Half* y,
    F* lse, long B, long H, long T, long K, long threads
) {
    forward(product, release, q, k, v, apart, y, lse, B, H, T, K, threads);
}

// dq, dk, dv [B, T, H, K]; apart [4, 3], of dy too.
void attention_backward_same(
    Product<F> product, Release release, const F* q, const F* k, const F* v, const F* dy, const int64_t* apart, const F* y,
    const F* lse, F* dq, F* dk, F* dv, long B, long H, long T, long K, long threads
) {
    backward(product, release, q, k, v, dy, apart, y, lse, dq, dk, dv, B, H, T, K, threads);
}
void attention_backward_half(
    Product<F> product, Release release, const Half* q, const Half* k, const Half* v, const Half* dy, const int64_t* apart,
    const Half* y, const F* lse, Half* dq, Half* dk, Half* dv, long B, long H, long T, long K, long threads
) {
    backward(product, release, q, k, v, dy, apart, y, lse, dq, dk, dv, B, H, T, K, threads);
}
}
