/* Kernels of thumbnet: passes over memory that PyTorch makes several of, fused into one. Plain C with OpenMP, called
 * through ctypes; compiled on first use for the processor at hand. See pool_norm.h for what each function computes. */

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "bfloat16.h"

#define MAX_CHANNELS 1024
#define MAX_RADIUS 16

/* values <- values^-0.75 = r sqrt(r), r = 1/sqrt(values). */
static inline void power_minus_three_quarters(float* values, long channels) {
    long c = 0;
#ifdef __AVX512F__
    const __m512 half = _mm512_set1_ps(0.5f), three_halves = _mm512_set1_ps(1.5f);
    for (; c + 16 <= channels; c += 16) {
        __m512 s = _mm512_loadu_ps(values + c);
        __m512 r = _mm512_rsqrt14_ps(s);
        /* One Newton step takes the estimate's 14 bits to float's 24. */
        r = _mm512_mul_ps(r, _mm512_fnmadd_ps(_mm512_mul_ps(half, s), _mm512_mul_ps(r, r), three_halves));
        __m512 q = _mm512_rsqrt14_ps(r);
        q = _mm512_mul_ps(q, _mm512_fnmadd_ps(_mm512_mul_ps(half, r), _mm512_mul_ps(q, q), three_halves));
        /* sqrt(r) = r / sqrt(r) = r q, so r sqrt(r) = r r q. */
        _mm512_storeu_ps(values + c, _mm512_mul_ps(_mm512_mul_ps(r, r), q));
    }
#endif
    for (; c < channels; c++) {
        float r = 1.0f / sqrtf(values[c]);
        values[c] = r * sqrtf(r);
    }
}

/* sums[c] <- the sum of values[c .. c + 2 radius]: each channel's neighbourhood, `values` having `radius` zeros on both
 * sides of the channels. */
static inline void band_sum(const float* restrict values, float* restrict sums, long channels, long radius) {
    long c = 0;
#ifdef __AVX512F__
    for (; c + 16 <= channels; c += 16) {
        __m512 sum = _mm512_loadu_ps(values + c);
        for (long d = 1; d <= 2 * radius; d++) sum = _mm512_add_ps(sum, _mm512_loadu_ps(values + c + d));
        _mm512_storeu_ps(sums + c, sum);
    }
#endif
    for (; c < channels; c++) {
        sums[c] = values[c];
        for (long d = 1; d <= 2 * radius; d++) sums[c] += values[c + d];
    }
}

#define VALUE float
#define NAME(x) x##_fp32
#define LOAD(v) (v)
#define STORE(f) (f)
#include "pool_norm.h"
#undef VALUE
#undef NAME
#undef LOAD
#undef STORE

#define VALUE bfloat16
#define NAME(x) x##_bf16
#define LOAD(v) float_of(v)
#define STORE(f) bfloat16_of(f)
#include "pool_norm.h"
