// Vectors of REAL (float; double in tests) by the vector extension of GCC and Clang, and functions of them.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#define UNROLLED _Pragma("GCC unroll 32")

typedef REAL F;
constexpr bool SINGLE = sizeof(F) == 4;
constexpr int W = VECTOR_BYTES / sizeof(F);  // lanes
typedef F V __attribute__((vector_size(VECTOR_BYTES)));
typedef F Unaligned __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(F)), may_alias));

template <bool> struct Integer { typedef int32_t type; };
template <> struct Integer<false> { typedef int64_t type; };
typedef Integer<SINGLE>::type I;
typedef I VI __attribute__((vector_size(VECTOR_BYTES)));

static inline V load(const F* p) { return *(const Unaligned*)p; }
static inline void store(F* p, V v) { *(Unaligned*)p = v; }
static inline V all(F x) { return x - V{}; }

static inline F sum(V v) {
    F lanes[W];
    store(lanes, v);
    UNROLLED for (int half = W / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}

// Sum of one vector in few instructions; `sum` is faster for many.
template <int BYTES> struct Part { typedef F type __attribute__((vector_size(BYTES))); };
template <int BYTES> static inline F folded(typename Part<BYTES>::type v) {
    if constexpr (BYTES == 2 * sizeof(F)) {
        return v[0] + v[1];
    } else {
        typename Part<BYTES / 2>::type low, high;
        memcpy(&low, &v, BYTES / 2);
        memcpy(&high, (const char*)&v + BYTES / 2, BYTES / 2);
        return folded<BYTES / 2>(low + high);
    }
}

// Column of the first n rows, `stride` apart; the other lanes repeat the last row.
static inline V column(const F* p, long stride, long n) {
    F lanes[W];
    if (n == W) UNROLLED for (int i = 0; i < W; i++) lanes[i] = p[i * stride];
    else for (int i = 0; i < W; i++) lanes[i] = p[(i < n ? i : n - 1) * stride];
    return load(lanes);
}

// x = k ln 2 + r; e^x = 2^k (1 + series): NaN stays NaN, and x is clamped to +-80.
struct Exponential {
    V power, series;

    explicit Exponential(V x) {
        const F limit = 80, shift = SINGLE ? F(12582912) : F(6755399441055744);  // 1.5 * 2^(bits of the mantissa)
        x = x > limit ? all(limit) : x;
        x = x < -limit ? all(-limit) : x;
        const V k = (x * F(1.4426950408889634) + shift) - shift;  // the nearest integer
        const V r = (x - k * F(0.693145751953125)) - k * F(1.42860682030941723212e-6);
        V sum = all(1);
        UNROLLED for (int i = SINGLE ? 7 : 13; i > 1; i--) sum = sum * r * (F(1) / F(i)) + F(1);
        series = sum * r;
        power = (V)((__builtin_convertvector(k, VI) + (SINGLE ? 127 : 1023)) << (SINGLE ? 23 : 52));
    }
};

static inline V exp(V x) {
    const Exponential e(x);
    return e.power + e.power * e.series;
}

static inline V tanh(V x) {
    const Exponential e(x + x);
    const V less_1 = e.power * e.series + (e.power - F(1));  // without cancellation near 0
    return less_1 / (less_1 + F(2));
}

static inline V sigmoid(V x) { return F(1) / (exp(-x) + F(1)); }
