// One query's mixture of sources and of a running sum, which no other query attends over (running_sum.py).
#include <cmath>
#include <omp.h>

#include "rows.h"

// p' = p + y (or p itself: y and p' are null); s = r <key, p'>; x = a p' + sum_j a_j v_j + a_before before, where the
// last two may be absent (J = 0, nulls); lse, and own = s, r [2, tokens].
extern "C" void running_sum_forward(
    const F* const* v, const F* const* score, const int64_t* stride, const F* before, const F* lse_before,
    const F* p, const F* y, const F* key, F* sum_out, F* x, F* lse, F* own, long tokens, long D, long J,
    long threads, double eps
) {
#pragma omp parallel num_threads(threads)
    {
        F* lane = (F*)malloc(whole(J + 2) * sizeof(F));
        for (long i = 0; i < whole(J + 2); i++) lane[i] = 0;
#pragma omp for schedule(static)
        for (long t = 0; t < tokens; t++) {
            const F* total = p + t * D;
            if (y) {
                F* to = sum_out + t * D;
                for (long d = 0; d < D; d += W) store(to + d, load(total + d) + load(y + t * D + d));
                total = to;
            }
            // Softmax over the running sum (lane 0), the mixture so far (lane 1) and the sources.
            const F r = 1 / std::sqrt(square(total, D) / D + F(eps)), s = dot(total, key, D) * r;
            const F earlier = before ? lse_before[t] : s;
            F top = earlier > s ? earlier : s;
            for (long j = 0; j < J; j++) {
                const F other = score[j][t * stride[j]];
                top = other > top ? other : top;
                lane[j + 2] = other;
            }
            lane[0] = s, lane[1] = earlier;
            for (long i = 0; i < J + 2; i++) lane[i] -= top;
            for (long i = 0; i < J + 2; i += W) store(lane + i, exp(load(lane + i)));
            if (!before) lane[1] = 0;
            F weight = 0;
            for (long i = 0; i < J + 2; i++) weight += lane[i];
            for (long i = 0; i < J + 2; i++) lane[i] /= weight;
            lse[t] = top + std::log(weight), own[t] = s, own[tokens + t] = r;
            // The mixture.
            F* to = x + t * D;
            for (long d = 0; d < D; d += W) {
                V row = lane[0] * load(total + d);
                if (before) row += lane[1] * load(before + t * D + d);
                store(to + d, row);
            }
            add_row_sums(v, lane + 2, 1, J, t * D, to, D);
        }
        free(lane);
    }
}

// dp = direct (or null) + a dx + g r key - (r^2 / D) g s p', with g = a (<dx, p'> - delta), delta = <dx, x>; and to
// dkey [threads, D] it adds g r p'.
extern "C" void running_sum_backward(
    const F* dx, const F* x, const F* total, const F* lse, const F* own, const F* key, const F* direct, F* delta,
    F* dp, F* dkey, long tokens, long D, long threads
) {
#pragma omp parallel num_threads(threads)
    {
        F* own_dkey = dkey + omp_get_thread_num() * D;
#pragma omp for schedule(static)
        for (long t = 0; t < tokens; t++) {
            const F *from = dx + t * D, *row = total + t * D;
            const F s = own[t], r = own[tokens + t], a = std::exp(s - lse[t]);
            delta[t] = dot(from, x + t * D, D);
            const F g = a * (dot(from, row, D) - delta[t]), gr = g * r, along = -g * s * r * r / D;
            for (long d = 0; d < D; d += W) {
                const V here = load(row + d);
                V to = a * load(from + d) + gr * load(key + d) + along * here;
                if (direct) to += load(direct + t * D + d);
                store(dp + t * D + d, to);
                store(own_dkey + d, load(own_dkey + d) + gr * here);
            }
        }
    }
}
