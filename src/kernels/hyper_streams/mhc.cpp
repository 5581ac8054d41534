// Read of mHC (mhc.py), in tiles of tokens; the weights of W tokens are computed together, one token a lane.
// Saved for the backward: the products phi vec(H), and r, of every token.
#include <cmath>
#include <omp.h>

#include "streams.h"

constexpr int C = N * N + 2 * N, SAVED = C + 1, TILE = 16;  // tokens
constexpr F FLOOR = 40;  // logits this far below their matrix's largest do not matter (sinkhorn.py)
typedef V Matrix[N][N];

// Which of the three scales column c of phi has.
static inline constexpr int part(int c) { return c < N ? 0 : c < 2 * N ? 1 : 2; }

// Computes the sums along dimension `dim` of W matrices.
static inline void sums(const Matrix m, int dim, V* out) {
    UNROLLED for (int i = 0; i < N; i++) {
        out[i] = V{};
        UNROLLED for (int j = 0; j < N; j++) out[i] += dim ? m[i][j] : m[j][i];
    }
}

// Runs `halves` half rounds of Sinkhorn-Knopp, columns first: rounds[0] is the start, rounds[i] after i half rounds.
static void sinkhorn(Matrix* rounds, long halves) {
    for (long at = 0; at < halves; at++) {
        const int dim = at % 2;
        V s[N];
        sums(rounds[at], dim, s);
        UNROLLED for (int i = 0; i < N; i++) s[i] = F(1) / s[i];
        UNROLLED for (int i = 0; i < N; i++)
            UNROLLED for (int j = 0; j < N; j++) rounds[at + 1][i][j] = rounds[at][i][j] * s[dim ? i : j];
    }
}

// Turns the gradient of the last round into that of the first.
static void sinkhorn_backward(const Matrix* rounds, long halves, Matrix dm) {
    for (long at = halves - 1; at >= 0; at--) {
        const int dim = at % 2;
        Matrix product;
        V s[N], inner[N];
        UNROLLED for (int i = 0; i < N; i++)
            UNROLLED for (int j = 0; j < N; j++) product[i][j] = dm[i][j] * rounds[at + 1][i][j];
        sums(product, dim, inner);
        sums(rounds[at], dim, s);
        UNROLLED for (int i = 0; i < N; i++) s[i] = F(1) / s[i];
        UNROLLED for (int i = 0; i < N; i++)
            UNROLLED for (int j = 0; j < N; j++) {
                const int k = dim ? i : j;
                dm[i][j] = (dm[i][j] - inner[k]) * s[k];
            }
    }
}

// Weights of up to W tokens, one in each lane, and the values that their backward needs.
struct Lanes {
    V z[C], gate[2 * N], over_floor[N][N];
    Matrix* rounds;
    long halves;

    explicit Lanes(long n_iteration) : halves(2 * n_iteration) {
        rounds = (Matrix*)aligned_alloc(VECTOR_BYTES, sizeof(Matrix) * (halves + 1));
    }
    ~Lanes() { free(rounds); }

    void compute(const F* saved, long n, const F* scale, const F* bias) {
        V logit[N][N], top;
        for (int c = 0; c < C; c++) {
            F lane[W] = {};
            for (long l = 0; l < n; l++) lane[l] = saved[l * SAVED + c] * saved[l * SAVED + C];
            z[c] = load(lane);
            const V x = scale[part(c)] * z[c] + bias[c];
            if (c < 2 * N) gate[c] = sigmoid(x);
            else logit[(c - 2 * N) / N][c % N] = x;  // 2 N is a multiple of N
        }
        top = logit[0][0];
        UNROLLED for (int i = 0; i < N * N; i++) top = logit[i / N][i % N] > top ? logit[i / N][i % N] : top;
        for (int i = 0; i < N; i++)
            for (int j = 0; j < N; j++) {
                const V under = logit[i][j] - top;
                over_floor[i][j] = under > -FLOOR ? all(1) : V{};
                rounds[0][i][j] = exp(under < -FLOOR ? all(-FLOOR) : under);
            }
        sinkhorn(rounds, halves);
    }

    // Stores A [n][N][M] and B [n][N], by token.
    void weights(F (*a)[N][M], F* b, long n) const {
        for (int i = 0; i < N; i++) {
            for (long l = 0; l < n; l++) a[l][i][0] = gate[i][l];
            for (long l = 0; b && l < n; l++) b[l * N + i] = 2 * gate[N + i][l];
            for (int j = 0; j < N; j++)
                for (long l = 0; l < n; l++) a[l][i][1 + j] = rounds[halves][j][i][l];
        }
    }

    // Computes dz [C] from the gradients of A and B; adds the biases' gradients and their products with z to `own`.
    void backward(const F (*da)[N][M], const F* db, long n, const F* scale, V* dz, F* own) const {
        V dx[C];
        Matrix dm;
        for (int i = 0; i < N; i++) {
            F of_pre[W] = {}, of_post[W] = {}, of_res[N][W] = {};
            for (long l = 0; l < n; l++) {
                of_pre[l] = da[l][i][0];
                of_post[l] = 2 * db[l * N + i];
                for (int j = 0; j < N; j++) of_res[j][l] = da[l][i][1 + j];
            }
            dx[i] = load(of_pre) * gate[i] * (F(1) - gate[i]);
            dx[N + i] = load(of_post) * gate[N + i] * (F(1) - gate[N + i]);
            for (int j = 0; j < N; j++) dm[j][i] = load(of_res[j]);
        }
        sinkhorn_backward(rounds, halves, dm);
        for (int i = 0; i < N * N; i++)
            dx[2 * N + i] = dm[i / N][i % N] * rounds[0][i / N][i % N] * over_floor[i / N][i % N];
        for (int c = 0; c < C; c++) {
            own[c] += sum(dx[c]);
            own[C + c] += sum(dx[c] * z[c]);
            dz[c] = scale[part(c)] * dx[c];
        }
    }
};

// Computes u, the mixed streams and B from the streams H + B y; y may be null.
extern "C" void mhc_forward(
    const F* h, const F* b, const F* y, const F* phi, const F* scale, const F* bias, F* u, F* out, F* b_out, F* saved,
    long tokens, long D, long threads, long n_iteration, double eps
) {
#pragma omp parallel num_threads(threads)
    {
        Tile tile(TILE, D);
        Lanes lanes(n_iteration);
#pragma omp for schedule(static)
        for (long t0 = 0; t0 < tokens; t0 += TILE) {
            const long n = tokens - t0 < TILE ? tokens - t0 : TILE;
            const F* rows = tile.of({h, b, y}, t0, n, D);
            F* k = saved + t0 * SAVED;
            // The projection and r of every token.
            products<C>(rows, n, phi, N * D, k, SAVED);
            for (long t = 0; t < n; t++)
                k[t * SAVED + C] = 1 / std::sqrt(square(rows + t * N * D, N * D) / (N * D) + F(eps));
            // Weights of W tokens at a time, and the mixing by them.
            for (long t = 0; t < n; t += W) {
                const long m = n - t < W ? n - t : W;
                F a[W][N][M];
                lanes.compute(k + t * SAVED, m, scale, bias);
                lanes.weights(a, b_out + (t0 + t) * N, m);
                for (long l = 0; l < m; l++)
                    mix(a[l], rows + (t + l) * N * D, u + (t0 + t + l) * D, out + (t0 + t + l) * N * D, D);
            }
        }
    }
}

// Also adds to the threads' sums over tokens: dphi [threads, C, N * D] and dsmall [threads, 2, C], which holds the
// biases' gradients and their products with z.
extern "C" void mhc_backward(
    const F* h, const F* b, const F* y, const F* phi, const F* scale, const F* bias, const F* saved, const F* du,
    const F* dout, const F* db_out, F* dh, F* db, F* dy, F* dphi, F* dsmall, long tokens, long D, long threads,
    long n_iteration
) {
#pragma omp parallel num_threads(threads)
    {
        Tile tile(TILE, D);
        Lanes lanes(n_iteration);
        F* own_dphi = dphi + omp_get_thread_num() * C * N * D;
        F* own = dsmall + omp_get_thread_num() * 2 * C;
#pragma omp for schedule(static)
        for (long t0 = 0; t0 < tokens; t0 += TILE) {
            const long n = tokens - t0 < TILE ? tokens - t0 : TILE;
            const F* rows = tile.of({h, b, y}, t0, n, D);
            // Through the mixing, the weights and r: dH so far, dp, and factors of vec(H) along itself.
            F dp[TILE * C];
            Along along[TILE];
            for (long t = 0; t < n; t += W) {
                const long m = n - t < W ? n - t : W, at = t0 + t;
                const F* k = saved + at * SAVED;
                F a[W][N][M], da[W][N][M];
                V dz[C];
                lanes.compute(k, m, scale, bias);
                lanes.weights(a, nullptr, m);
                for (long l = 0; l < m; l++) {
                    const long from = (at + l) * N * D;
                    mix_backward(a[l], rows + (t + l) * N * D, du + (at + l) * D, dout + from, da[l], dh + from, D);
                }
                lanes.backward(da, db_out + at * N, m, scale, dz, own);
                for (long l = 0; l < m; l++, k += SAVED) {
                    const F r = k[C];
                    F dr = 0;
                    for (int c = 0; c < C; c++) {
                        dp[(t + l) * C + c] = dz[c][l] * r;
                        dr += dz[c][l] * k[c];
                    }
                    along[t + l] = {-dr * r * r * r / (N * D), 0};
                }
            }
            // Through the projection, then through the write of y.
            products_backward<C>(rows, dh + t0 * N * D, n, phi, own_dphi, N * D, dp, C, along);
            for (long t = t0; y && t < t0 + n; t++)
                write_backward(b + t * N, y + t * D, dh + t * N * D, db + t * N, dy + t * D, D);
        }
    }
}
