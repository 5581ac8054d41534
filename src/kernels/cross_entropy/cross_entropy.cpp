// The linear cross-entropy of C rows at a time, and its gradients, by tiles of the vocabulary: see head_native.py.
// A tile's logits are the product W x^T: neighbours in memory are rows, over vectors of which the softmax runs.
// Letters: C rows of a chunk, of at most R; D width, V vocabulary, TILE of it at a time; F the type of sums, X of
// factors.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <type_traits>

#include "blocks.h"

constexpr long TILE = 64;
constexpr long GROUP = 16;  // tiles whose part of dx is summed by itself, since rounding follows the terms of a sum
constexpr int BLOCK = 4;  // vectors of rows whose softmax is in registers

// Pairs of rows, element by element: [rows / 2, len, 2]; a row that is missing is 0.
static void paired(const Half* x, long rows, long len, Half* out) {
    for (long r = 0; r < rows; r += 2) {
        const Half *a = x + r * len, *b = a + len;
        Half* pair = out + r * len;
        if (r + 1 < rows)
            for (long d = 0; d < len; d++) pair[2 * d] = a[d], pair[2 * d + 1] = b[d];
        else
            for (long d = 0; d < len; d++) pair[2 * d] = a[d], pair[2 * d + 1] = 0;
    }
}
static void paired(const F*, long, long, F*) {}

// out[c, r] = x[r, c]
template <class T>
static void turned(const T* x, long rows, long columns, long x_row, T* out, long out_row) {
    for (long r = 0; r < rows; r += 16)
        for (long c = 0; c < columns; c += 16)
            for (long j = c; j < std::min(c + 16, columns); j++)
                for (long i = r; i < std::min(r + 16, rows); i++) out[j * out_row + i] = x[i * x_row + j];
}

// x^T, [D, wide], as the right factor of W x^T; columns from C on are 0.
static void transposed(const F* x, long C, long D, long wide, F* out) {
    turned(x, C, D, D, out, wide);
    for (long d = 0; d < D; d++) std::fill(out + d * wide + C, out + (d + 1) * wide, F(0));
}
static void transposed(const Half* x, long C, long D, long wide, Half* out) {  // pairs stay together
    uint32_t* pairs = (uint32_t*)out;
    turned((const uint32_t*)x, C, D / 2, D / 2, pairs, wide);
    for (long d = 0; d < D / 2; d++) std::fill(pairs + d * wide + C, pairs + (d + 1) * wide, 0u);
}

// exp(logit - top) of n tokens for B vectors of rows, where top is the largest logit so far, and their sum.
template <int B, bool KEEP, class X>
static void exponentials(const F* logit, long n, long row, F* top, F* sum, X* kept) {
    V high[B], total[B] = {};
    UNROLLED for (int b = 0; b < B; b++) high[b] = load(top + b * W);
    for (long v = 0; v < n; v++)
        UNROLLED for (int b = 0; b < B; b++) {
            const V l = load(logit + v * row + b * W);
            high[b] = l > high[b] ? l : high[b];
        }
    for (long v = 0; v < n; v++)
        UNROLLED for (int b = 0; b < B; b++) {
            const V e = exp(load(logit + v * row + b * W) - high[b]);
            if (KEEP) put(kept + v * row + b * W, e);
            total[b] += e;
        }
    UNROLLED for (int b = 0; b < B; b++) store(top + b * W, high[b]), store(sum + b * W, total[b]);
}

template <class X>
struct Chunk {
    Product<X> product;
    Release release;
    const X* w;
    long D, vocabulary, wide;  // rows of the chunk, up to whole vectors
    const int64_t* target;
    long C;
    const X *x_turned, *x;  // for the logits, and for dW
    bool half() const { return !std::is_same<X, F>::value; }
    long even(long n) const { return half() ? n + n % 2 : n; }  // products of pairs

    // Tiles [begin, end): exponentials, to be kept or not, their sums and the tops they were measured from; the logits of
    // targets.
    template <bool KEEP>
    void forward(long begin, long end, F* logit, X* kept, F* tops, F* sums, F* of_target) const {
        for (long k = begin; k < end; k++) {
            const long first = k * TILE, n = std::min(TILE, vocabulary - first);
            product(n, wide, D, D, wide, wide, false, w + first * D, x_turned, logit, half());
            for (long r = 0; r < C; r++)
                if (target[r] >= first && target[r] < first + n) of_target[r] = logit[(target[r] - first) * wide + r];
            X* e = kept + first * wide;
            F *top = tops + k * wide, *sum = sums + k * wide;
            if (k > begin) std::copy(top - wide, top, top);
            else std::fill(top, top + wide, std::numeric_limits<F>::lowest());
            long r = 0;
            for (; r + BLOCK * W <= wide; r += BLOCK * W)
                exponentials<BLOCK, KEEP>(logit + r, n, wide, top + r, sum + r, e + r);
            for (; r < wide; r += W) exponentials<1, KEEP>(logit + r, n, wide, top + r, sum + r, e + r);
        }
        release(half());
    }

    // dW of tiles [begin, end), added to what is there, and their part of dx, of scale times the sum of the rows' losses,
    // whose top and sum over the vocabulary are high and total.
    void backward(
        long begin, long end, const X* kept, const F* tops, const F* high, const F* total, F scale, F* dw, bool add,
        F* dx
    ) const {
        Buffer<F> factor(wide);
        Buffer<F> part(dx ? C * D : 0);
        Buffer<X> g(TILE * wide), g_turned(wide * TILE), w_pairs(half() ? TILE * D : 0);
        for (long k = begin; k < end; k++) {
            const long first = k * TILE, n = std::min(TILE, vocabulary - first);
            const X* e = kept + first * wide;
            const F* top = tops + k * wide;
            for (long r = 0; r < wide; r += W)
                store(factor.at + r, exp(load(top + r) - load(high + r)) / load(total + r) * scale);
            for (long r = C; r < wide; r++) factor.at[r] = 0;
            for (long v = 0; v < n; v += W)
                for (long r = 0; r < wide; r += W) {
                    V row[W];
                    UNROLLED for (long i = 0; i < W; i++)
                        row[i] = v + i < n ? get(e + (v + i) * wide + r) * load(factor.at + r) : V{};
                    UNROLLED for (long i = 0; i < W; i++) put(g.at + (v + i) * wide + r, row[i]);
                    transpose(row);
                    UNROLLED for (long i = 0; i < W; i++) put(g_turned.at + (r + i) * TILE + v, row[i]);
                }
            for (long r = 0; r < C; r++)
                if (target[r] >= first && target[r] < first + n) {
                    const long v = target[r] - first;
                    const F at_target = get_one(e[v * wide + r]) * factor.at[r] - scale;
                    put_one(g.at + v * wide + r, at_target);
                    put_one(g_turned.at + r * TILE + v, at_target);
                }
            if (dw) product(n, D, even(C), wide, D, D, add, g.at, x, dw + first * D, half());
            if (!dx) continue;
            paired(w + first * D, n, D, w_pairs.at);
            const X* right = half() ? w_pairs.at : w + first * D;
            const long of_group = (k - begin) % GROUP;
            product(C, D, even(n), TILE, D, D, of_group > 0, g_turned.at, right, part.at, half());
            if (of_group == GROUP - 1 || k + 1 == end)
                for (long i = 0; i < C * D; i += W)
                    store(dx + i, (k < begin + GROUP ? V{} : load(dx + i)) + load(part.at + i));
        }
        release(half());
    }
};

// Each row's top and its sum of exponentials, from those of tiles: by the factors that the backward has, or
// probabilities do not sum to 1, and with what rounding takes from so long a sum (Kahan).
static void in_all(const F* tops, const F* sums, long tiles, long wide, F* high, F* total) {
    for (long r = 0; r < wide; r += W) {
        V top = load(tops + r), sum = {}, lost = {};
        for (long k = 1; k < tiles; k++) {
            const V other = load(tops + k * wide + r);
            top = other > top ? other : top;
        }
        for (long k = 0; k < tiles; k++) {
            const V more = exp(load(tops + k * wide + r) - top) * load(sums + k * wide + r) - lost, after = sum + more;
            lost = (after - sum) - more;
            sum = after;
        }
        store(high + r, top), store(total + r, sum);
    }
}

template <class X>
static void head(
    Product<X> product, Release release, const X* x, const X* w, const int64_t* target, F* loss, F* dx, F* dw,
    X* kept, F* tops, long N, long D, long V, long R, long threads
) {
    constexpr bool HALF = !std::is_same<X, F>::value;
    const bool gradient = dx || dw;
    const long tiles = (V + TILE - 1) / TILE, most = (std::min(R, N) + W - 1) / W * W;
    threads = std::min(threads, tiles);
    Buffer<X> x_turned(D * most), x_pairs(HALF ? (most + 1) * D : 0);
    F* sums = tops + tiles * most;
    Buffer<F> logits(threads * TILE * most), of_target(most), high(most), total(most), part(threads > 1 ? threads * most * D : 0);
    for (long at = 0; at < N; at += R) {
        const long C = std::min(R, N - at), wide = (C + W - 1) / W * W;
        transposed(x + at * D, C, D, wide, x_turned.at);
        if (dw) paired(x + at * D, C, D, x_pairs.at);
        const X* right = HALF ? x_pairs.at : x + at * D;
        const Chunk<X> chunk{product, release, w, D, V, wide, target + at, C, x_turned.at, right};
        std::fill(of_target.at, of_target.at + most, std::numeric_limits<F>::quiet_NaN());
#pragma omp parallel for num_threads(threads) schedule(static, 1)
        for (long t = 0; t < threads; t++) {
            F* logit = logits.at + t * TILE * most;
            const long begin = tiles * t / threads, end = tiles * (t + 1) / threads;
            if (gradient) chunk.template forward<true>(begin, end, logit, kept, tops, sums, of_target.at);
            else chunk.template forward<false>(begin, end, logit, kept, tops, sums, of_target.at);
        }
        in_all(tops, sums, tiles, wide, high.at, total.at);
        for (long r = 0; r < C; r++)  // exact where they cancel
            loss[at + r] = std::log(total.at[r]) + (high.at[r] - of_target.at[r]);
        if (!gradient) continue;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
        for (long t = 0; t < threads; t++) {
            F* mine = !dx ? nullptr : threads == 1 ? dx + at * D : part.at + t * most * D;
            const long begin = tiles * t / threads, end = tiles * (t + 1) / threads;
            chunk.backward(begin, end, kept, tops, high.at, total.at, F(1) / N, dw, at > 0, mine);
        }
        if (dx && threads > 1)
            for (long i = 0; i < C * D; i++) {
                F total = 0;
                for (long t = 0; t < threads; t++) total += part.at[t * most * D + i];
                dx[at * D + i] = total;
            }
    }
}

extern "C" {
void head_try_same(Product<F> product, Release release, F* out) { attempt<F>(product, release, 1, out); }
void head_try_half(Product<Half> product, Release release, F* out) { attempt<Half>(product, release, 0x3f80, out); }

// Losses [N]; unless they are null, dx [N, D] and dw [V, D] of their mean. Room: tops [2, ceil(V / 64), R] and, for
// gradients, kept [V, R], where R is a multiple of 16.
void head_same(
    Product<F> product, Release release, const F* x, const F* w, const int64_t* target, F* loss, F* dx, F* dw,
    F* kept, F* tops, long N, long D, long V, long R, long threads
) {
    if (!product) product = plain_product, release = nothing;
    head<F>(product, release, x, w, target, loss, dx, dw, kept, tops, N, D, V, R, threads);
}

// x, w and what is kept in bfloat16; the rest is float.
void head_half(
    Product<Half> product, Release release, const Half* x, const Half* w, const int64_t* target, F* loss, F* dx, F* dw,
    Half* kept, F* tops, long N, long D, long V, long R, long threads
) {
    head<Half>(product, release, x, w, target, loss, dx, dw, kept, tops, N, D, V, R, threads);
}
}
