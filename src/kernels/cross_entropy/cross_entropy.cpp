// Linear cross-entropy and its gradients, one chunk of rows at a time, by tiles of the vocabulary (equations: cpp.py).
// A tile's logits are stored transposed, W x^T [TILE, rows]: neighbors in memory are rows, so that the softmax runs over
// vectors of rows and needs no reduction across lanes.
// Letters: C rows of a chunk, at most R; D width, V vocabulary; F the accumulation type, X the type of factors.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <type_traits>

#include "blocks.h"

constexpr long TILE = 64;
constexpr long GROUP = 16;  // tiles whose part of dx is summed separately, because rounding grows with the terms of a sum
constexpr int BLOCK = 4;  // vectors of rows whose softmax stays in registers

// Interleaves pairs of rows, [rows / 2, len, 2], as products of bfloat16 take them; a missing row is 0.
static void interleave_pairs(const Half* x, long rows, long len, Half* out) {
    for (long r = 0; r < rows; r += 2) {
        const Half *a = x + r * len, *b = a + len;
        Half* pair = out + r * len;
        if (r + 1 < rows)
            for (long d = 0; d < len; d++) pair[2 * d] = a[d], pair[2 * d + 1] = b[d];
        else
            for (long d = 0; d < len; d++) pair[2 * d] = a[d], pair[2 * d + 1] = 0;
    }
}
static void interleave_pairs(const F*, long, long, F*) {}

// out[c, r] = x[r, c]
template <class T>
static void transpose_matrix(const T* x, long rows, long columns, long x_row, T* out, long out_row) {
    for (long r = 0; r < rows; r += 16)
        for (long c = 0; c < columns; c += 16)
            for (long j = c; j < std::min(c + 16, columns); j++)
                for (long i = r; i < std::min(r + 16, rows); i++) out[j * out_row + i] = x[i * x_row + j];
}

// x^T, [D, wide], as the right factor of W x^T; columns from C on are 0.
static void transpose_right_factor(const F* x, long C, long D, long wide, F* out) {
    transpose_matrix(x, C, D, D, out, wide);
    for (long d = 0; d < D; d++) std::fill(out + d * wide + C, out + (d + 1) * wide, F(0));
}
static void transpose_right_factor(const Half* x, long C, long D, long wide, Half* out) {  // pairs stay together
    uint32_t* pairs = (uint32_t*)out;
    transpose_matrix((const uint32_t*)x, C, D / 2, D / 2, pairs, wide);
    for (long d = 0; d < D / 2; d++) std::fill(pairs + d * wide + C, pairs + (d + 1) * wide, 0u);
}

// Computes exp(logit - top) of n tokens for B vectors of rows, where top is the largest logit so far, and their sum.
template <int B, bool SAVE, class X>
static void exponentials(const F* logit, long n, long row, F* top, F* sum, X* saved) {
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
            if (SAVE) put(saved + v * row + b * W, e);
            total[b] += e;
        }
    UNROLLED for (int b = 0; b < B; b++) store(top + b * W, high[b]), store(sum + b * W, total[b]);
}

template <class X>
struct Chunk {
    Product<X> product;
    Release release;
    const X* w;
    long D, vocabulary, wide;  // wide: rows of the chunk, rounded up to whole vectors
    const int64_t* target;
    long C;
    const X *x_t, *x;  // for the logits, and for dW
    bool half() const { return !std::is_same<X, F>::value; }
    long even(long n) const { return half() ? n + n % 2 : n; }  // products take pairs

    // Forward of tiles [begin, end): exponentials (saved if SAVE), their sums, the tops they are relative to, and the
    // logits of targets.
    template <bool SAVE>
    void forward(long begin, long end, F* logit, X* saved, F* tops, F* sums, F* target_logit) const {
        for (long k = begin; k < end; k++) {
            const long first = k * TILE, n = std::min(TILE, vocabulary - first);
            product(n, wide, D, D, wide, wide, false, w + first * D, x_t, logit, half());
            for (long r = 0; r < C; r++)
                if (target[r] >= first && target[r] < first + n) target_logit[r] = logit[(target[r] - first) * wide + r];
            X* e = saved + first * wide;
            F *top = tops + k * wide, *sum = sums + k * wide;
            if (k > begin) std::copy(top - wide, top, top);
            else std::fill(top, top + wide, std::numeric_limits<F>::lowest());
            long r = 0;
            for (; r + BLOCK * W <= wide; r += BLOCK * W)
                exponentials<BLOCK, SAVE>(logit + r, n, wide, top + r, sum + r, e + r);
            for (; r < wide; r += W) exponentials<1, SAVE>(logit + r, n, wide, top + r, sum + r, e + r);
        }
        release(half());
    }

    // Backward of tiles [begin, end): dW (added to its present value if `add`) and their part of dx, of `scale` times the
    // sum of losses. `high` and `total` are the rows' top and sum of exponentials over the vocabulary.
    void backward(
        long begin, long end, const X* saved, const F* tops, const F* high, const F* total, F scale, F* dw, bool add,
        F* dx
    ) const {
        Buffer<F> factor(wide);
        Buffer<F> part(dx ? C * D : 0);
        Buffer<X> g(TILE * wide), g_t(wide * TILE), w_pairs(half() ? TILE * D : 0);
        for (long k = begin; k < end; k++) {
            const long first = k * TILE, n = std::min(TILE, vocabulary - first);
            const X* e = saved + first * wide;
            const F* top = tops + k * wide;
            // The gradient of the logits, and its transpose: e times a factor for each row, less scale at the target.
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
                    UNROLLED for (long i = 0; i < W; i++) put(g_t.at + (r + i) * TILE + v, row[i]);
                }
            for (long r = 0; r < C; r++)
                if (target[r] >= first && target[r] < first + n) {
                    const long v = target[r] - first;
                    const F at_target = get_one(e[v * wide + r]) * factor.at[r] - scale;
                    put_one(g.at + v * wide + r, at_target);
                    put_one(g_t.at + r * TILE + v, at_target);
                }
            // dW of the tile, and the tile's part of dx.
            if (dw) product(n, D, even(C), wide, D, D, add, g.at, x, dw + first * D, half());
            if (!dx) continue;
            interleave_pairs(w + first * D, n, D, w_pairs.at);
            const X* right = half() ? w_pairs.at : w + first * D;
            const long of_group = (k - begin) % GROUP;
            product(C, D, even(n), TILE, D, D, of_group > 0, g_t.at, right, part.at, half());
            if (of_group == GROUP - 1 || k + 1 == end)
                for (long i = 0; i < C * D; i += W)
                    store(dx + i, (k < begin + GROUP ? V{} : load(dx + i)) + load(part.at + i));
        }
        release(half());
    }
};

// Computes each row's top and sum of exponentials from those of the tiles: with the factors that the backward uses, so
// that probabilities sum to 1, and with Kahan's compensation, because the sum is long.
static void combine_tiles(const F* tops, const F* sums, long tiles, long wide, F* high, F* total) {
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
    X* saved, F* tops, long N, long D, long V, long R, long threads
) {
    constexpr bool HALF = !std::is_same<X, F>::value;
    const bool gradient = dx || dw;
    const long tiles = (V + TILE - 1) / TILE, max_wide = (std::min(R, N) + W - 1) / W * W;
    threads = std::min(threads, tiles);
    Buffer<X> x_t(D * max_wide), x_pairs(HALF ? (max_wide + 1) * D : 0);
    F* sums = tops + tiles * max_wide;
    Buffer<F> logits(threads * TILE * max_wide), target_logit(max_wide), high(max_wide), total(max_wide);
    Buffer<F> part(threads > 1 ? threads * max_wide * D : 0);
    for (long at = 0; at < N; at += R) {
        const long C = std::min(R, N - at), wide = (C + W - 1) / W * W;
        // x^T for the logits, x for dW.
        transpose_right_factor(x + at * D, C, D, wide, x_t.at);
        if (dw) interleave_pairs(x + at * D, C, D, x_pairs.at);
        const X* right = HALF ? x_pairs.at : x + at * D;
        const Chunk<X> chunk{product, release, w, D, V, wide, target + at, C, x_t.at, right};
        std::fill(target_logit.at, target_logit.at + max_wide, std::numeric_limits<F>::quiet_NaN());
        // Each thread has a range of tiles.
#pragma omp parallel for num_threads(threads) schedule(static, 1)
        for (long t = 0; t < threads; t++) {
            F* logit = logits.at + t * TILE * max_wide;
            const long begin = tiles * t / threads, end = tiles * (t + 1) / threads;
            if (gradient) chunk.template forward<true>(begin, end, logit, saved, tops, sums, target_logit.at);
            else chunk.template forward<false>(begin, end, logit, saved, tops, sums, target_logit.at);
        }
        combine_tiles(tops, sums, tiles, wide, high.at, total.at);
        for (long r = 0; r < C; r++)  // in this order large numbers cancel exactly
            loss[at + r] = std::log(total.at[r]) + (high.at[r] - target_logit.at[r]);
        if (!gradient) continue;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
        for (long t = 0; t < threads; t++) {
            F* mine = !dx ? nullptr : threads == 1 ? dx + at * D : part.at + t * max_wide * D;
            const long begin = tiles * t / threads, end = tiles * (t + 1) / threads;
            chunk.backward(begin, end, saved, tops, high.at, total.at, F(1) / N, dw, at > 0, mine);
        }
        // dx is the sum of the threads' parts.
        if (dx && threads > 1)
            for (long i = 0; i < C * D; i++) {
                F acc = 0;
                for (long t = 0; t < threads; t++) acc += part.at[t * max_wide * D + i];
                dx[at * D + i] = acc;
            }
    }
}

extern "C" {
void head_try_same(Product<F> product, Release release, F* out) { attempt<F>(product, release, 1, out); }
void head_try_half(Product<Half> product, Release release, F* out) { attempt<Half>(product, release, 0x3f80, out); }

// Computes losses [N] and, unless they are null, dx [N, D] and dw [V, D] of their mean. Scratch: tops
// [2, ceil(V / 64), R] and, for gradients, saved [V, R], where R is a multiple of 16.
void head_same(
    Product<F> product, Release release, const F* x, const F* w, const int64_t* target, F* loss, F* dx, F* dw,
    F* saved, F* tops, long N, long D, long V, long R, long threads
) {
    if (!product) product = plain_product, release = nothing;
    head<F>(product, release, x, w, target, loss, dx, dw, saved, tops, N, D, V, R, threads);
}

// The same with x, w and saved in bfloat16; the rest is float.
void head_half(
    Product<Half> product, Release release, const Half* x, const Half* w, const int64_t* target, F* loss, F* dx, F* dw,
    Half* saved, F* tops, long N, long D, long V, long R, long threads
) {
    head<Half>(product, release, x, w, target, loss, dx, dw, saved, tops, N, D, V, R, threads);
}
}
