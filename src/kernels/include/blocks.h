// Tiles for matrix products: bfloat16 beside F, transposition, and torch's products of small blocks.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <type_traits>

#include "vector.h"

typedef uint16_t Half;  // bfloat16
typedef Half Halves __attribute__((vector_size(2 * W), aligned(2), may_alias));

// torch's c (+)= a b of small blocks, by oneDNN; for bfloat16, two rows of b are interleaved. A thread that has called
// it must call Release afterwards.
template <class X>
using Product = void (*)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, bool, const X*, const X*, F*, bool);
typedef void (*Release)(bool);

template <class T>
struct Buffer {
    T* at;
    explicit Buffer(long n) : at((T*)std::aligned_alloc(64, (std::max(n, 1L) * sizeof(T) + 63) / 64 * 64)) {}
    Buffer(const Buffer&) = delete;
    ~Buffer() { std::free(at); }
};

static inline Halves to_half(V v) {  // to the nearest, ties to even
    const VI bits = (VI)v;
    return __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, Halves);
}

static inline V get(const F* p) { return load(p); }
static inline V get(const Half* p) { return (V)(__builtin_convertvector(*(const Halves*)p, VI) << 16); }
static inline void put(F* p, V v) { store(p, v); }
static inline void put(Half* p, V v) { *(Halves*)p = to_half(v); }
static inline F get_one(F x) { return x; }
static inline F get_one(Half x) {
    const uint32_t bits = (uint32_t)x << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}
static inline void put_one(F* p, F x) { *p = x; }
static inline void put_one(Half* p, F x) { *p = to_half(all(x))[0]; }

// Transpose W x W in registers: interleave the two halves of the rows log2(W) times.
static inline void transpose(V (&row)[W]) {
#if defined(__clang__)
    F square[W][W];
    for (int i = 0; i < W; i++)
        for (int j = 0; j < W; j++) square[j][i] = row[i][j];
    for (int i = 0; i < W; i++) row[i] = load(square[i]);
#else
    VI low, high;
    UNROLLED for (int i = 0; i < W; i++) low[i] = i / 2 + i % 2 * W, high[i] = low[i] + W / 2;
    UNROLLED for (int step = 1; step < W; step *= 2) {
        V next[W];
        UNROLLED for (int i = 0; i < W / 2; i++) {
            next[2 * i] = __builtin_shuffle(row[i], row[i + W / 2], low);
            next[2 * i + 1] = __builtin_shuffle(row[i], row[i + W / 2], high);
        }
        UNROLLED for (int i = 0; i < W; i++) row[i] = next[i];
    }
#endif
}

// Product in place of torch's, which has none for float64: slow, for tests.
static void plain_product(
    int64_t m, int64_t n, int64_t k, int64_t a_row, int64_t b_row, int64_t c_row, bool add, const F* a, const F* b,
    F* c, bool
) {
    for (long i = 0; i < m; i++) {
        if (!add) std::fill(c + i * c_row, c + i * c_row + n, F(0));
        for (long l = 0; l < k; l++)
            for (long j = 0; j < n; j++) c[i * c_row + j] += a[i * a_row + l] * b[l * b_row + j];
    }
}
static void nothing(bool) {}

// Test that a product runs on this processor: it writes 1 + 1 to out, or nothing if it throws.
template <class X>
static void attempt(Product<X> product, Release release, X one, F* out) {
    const bool half = !std::is_same<X, F>::value;
    X a[2] = {one, one}, b[2 * W];
    F c[W] = {};
    std::fill(b, b + 2 * W, one);
    try {
        product(1, W, 2, 2, W, W, false, a, b, c, half);
        release(half);
        *out = c[W - 1];
    } catch (...) {
    }
}
