// Sums of sources by static weights (static_sum.py), and the gradient of a source. Tables hold addresses of [tokens, D].
#include <omp.h>

#include "rows.h"

// x = sum_j weight_j v_j.
extern "C" void static_sum_forward(
    const F* const* v, const F* weight, F* x, long tokens, long D, long J, long threads
) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long t = 0; t < tokens; t++) {
        memset(x + t * D, 0, D * sizeof(F));
        add_row_sums(v, weight, 1, J, t * D, x + t * D, D);
    }
}

// dv = direct (or null) + sum_l weight_l dx_l; to part [threads, L] it adds the sum over tokens of <dx_l, v>.
extern "C" void static_sum_backward(
    const F* const* dx, const F* weight, const F* v, const F* direct, F* dv, double* part, long tokens, long D,
    long L, long threads
) {
#pragma omp parallel num_threads(threads)
    {
        double* own = part + omp_get_thread_num() * L;
#pragma omp for schedule(static)
        for (long t = 0; t < tokens; t++) {
            F* to = dv + t * D;
            if (direct) memcpy(to, direct + t * D, D * sizeof(F));
            else memset(to, 0, D * sizeof(F));
            for (long l = 0; l < L; l++) own[l] += dot(dx[l] + t * D, v + t * D, D);
            add_row_sums(dx, weight, 1, L, t * D, to, D);
        }
    }
}
