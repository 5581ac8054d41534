// Read of dynamic hyper-connections (dhc.py), in tiles of tokens that stay in the cache.
//     p = H w^T;  r = (mean H^2 - mean^2 + eps)^-1/2;  z = tanh(r p + bias);  [A | B] = [a | b] + scale * z
// Saved for the backward: H, and p, the mean and r of every row.
#include <cmath>
#include <omp.h>

#include "streams.h"

constexpr int C = N + 2, SAVED = C + 2, TILE = 16;  // tokens

struct Weights {
    const F *w, *bias, *scale, *a, *b;  // [C, D], [C], [2], [N, M], [N]
};

// Computes z [N][C] of one token from the saved values of its rows.
static inline void compute_activations(const F* saved, const F* bias, F* z) {
    F x[(N * C + W - 1) / W * W] = {};
    for (int i = 0; i < N; i++)
        for (int c = 0; c < C; c++) x[i * C + c] = saved[i * SAVED + c] * saved[i * SAVED + C + 1] + bias[c];
    for (int i = 0; i < N * C; i += W) store(x + i, tanh(load(x + i)));
    memcpy(z, x, sizeof(F) * N * C);
}

// Computes A and B of one token from its z.
static inline void compute_weights(const Weights& p, const F* z, F (*a)[M], F* b) {
    for (int i = 0; i < N; i++) {
        for (int m = 0; m < M; m++) a[i][m] = p.a[i * M + m] + p.scale[0] * z[i * C + m];
        b[i] = p.b[i] + p.scale[1] * z[i * C + M];
    }
}

// Computes u, the mixed streams and B from the streams H + B y; y may be null.
extern "C" void dhc_forward(
    const F* h, const F* b, const F* y, const F* w, const F* bias, const F* scale, const F* static_a,
    const F* static_b, F* u, F* out, F* b_out, F* saved, long tokens, long D, long threads, double eps
) {
    const Weights p = {w, bias, scale, static_a, static_b};
#pragma omp parallel num_threads(threads)
    {
        Tile tile(TILE, D);
#pragma omp for schedule(static)
        for (long t0 = 0; t0 < tokens; t0 += TILE) {
            const long n = tokens - t0 < TILE ? tokens - t0 : TILE;
            const F* rows = tile.of({h, b, y}, t0, n, D);
            F* k = saved + t0 * N * SAVED;
            // Projections, mean and 1 / deviation of every row.
            products<C>(rows, n * N, w, D, k, SAVED);
            for (long row = 0; row < n * N; row++) {
                const F mean = total(rows + row * D, D) / D;
                const F variance = square(rows + row * D, D) / D - mean * mean;
                k[row * SAVED + C] = mean;
                k[row * SAVED + C + 1] = 1 / std::sqrt((variance < 0 ? 0 : variance) + F(eps));
            }
            // Weights of every token, and the mixing by them.
            for (long t = 0; t < n; t++) {
                F z[N * C], mixing[N][M];
                compute_activations(k + t * N * SAVED, bias, z);
                compute_weights(p, z, mixing, b_out + (t0 + t) * N);
                mix(mixing, rows + t * N * D, u + (t0 + t) * D, out + (t0 + t) * N * D, D);
            }
        }
    }
}

// Also adds to the threads' sums over tokens: dw [threads, C, D] and dsmall [threads, N * C + 2 * C], which holds
// d[A | B], and by column <d[A | B], z> and dz.
extern "C" void dhc_backward(
    const F* h, const F* b, const F* y, const F* w, const F* bias, const F* scale, const F* static_a,
    const F* static_b, const F* saved, const F* du, const F* dout, const F* db_out, F* dh, F* db, F* dy, F* dw,
    F* dsmall, long tokens, long D, long threads
) {
    const Weights p = {w, bias, scale, static_a, static_b};
#pragma omp parallel num_threads(threads)
    {
        Tile tile(TILE, D);
        F* own_dw = dw + omp_get_thread_num() * C * D;
        F* own = dsmall + omp_get_thread_num() * (N * C + 2 * C);
#pragma omp for schedule(static)
        for (long t0 = 0; t0 < tokens; t0 += TILE) {
            const long n = tokens - t0 < TILE ? tokens - t0 : TILE;
            const F* rows = tile.of({h, b, y}, t0, n, D);
            // Through the mixing, tanh and the deviation: dH so far, dp, and factors of H along itself.
            F dp[TILE * N * C];
            Along along[TILE * N];
            for (long t = 0; t < n; t++) {
                const F* k = saved + (t0 + t) * N * SAVED;
                const long at = (t0 + t) * N;
                F z[N * C], mixing[N][M], weight[N], da[N][M];
                compute_activations(k, bias, z);
                compute_weights(p, z, mixing, weight);
                mix_backward(mixing, rows + t * N * D, du + (t0 + t) * D, dout + at * D, da, dh + at * D, D);
                for (int i = 0; i < N; i++, k += SAVED) {
                    const F mean = k[C], r = k[C + 1];
                    F dr = 0;
                    for (int c = 0; c < C; c++) {
                        const F g = c < M ? da[i][c] : db_out[at + i], tanh = z[i * C + c];
                        const F dz = g * scale[c == M] * (1 - tanh * tanh);
                        own[i * C + c] += g;
                        own[N * C + c] += g * tanh;
                        own[N * C + C + c] += dz;
                        dp[(t * N + i) * C + c] = dz * r;
                        dr += dz * k[c];
                    }
                    along[t * N + i] = {-dr * r * r * r / D, mean};
                }
            }
            // Through the projection, then through the write of y.
            products_backward<C>(rows, dh + t0 * N * D, n * N, w, own_dw, D, dp, C, along);
            for (long t = t0; y && t < t0 + n; t++)
                write_backward(b + t * N, y + t * D, dh + t * N * D, db + t * N, dy + t * D, D);
        }
    }
}
