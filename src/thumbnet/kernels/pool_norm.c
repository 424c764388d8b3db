/* Max pooling and response normalization, in float32 and bfloat16: passes over memory that PyTorch makes several of,
 * fused into one. See pool_norm.h for what each function computes. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "avx512.h"
#include "bfloat16.h"
#include "lanes.h"

#define MAX_CHANNELS 1024
#define MAX_RADIUS 16

/* values <- values^-0.75 = r sqrt(r), r = 1/sqrt(values). */
static inline void power_minus_three_quarters(float* values, long channels) {
    long c = 0;
#ifdef __AVX512F__
    for (__m512 root; c + 16 <= channels; c += 16)
        _mm512_storeu_ps(values + c, power_minus_three_quarters16(_mm512_loadu_ps(values + c), &root));
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
    for (; c + 8 <= channels; c += 8) {
        vec sum = load(values + c);
        for (long d = 1; d <= 2 * radius; d++) sum += load(values + c + d);
        store(sums + c, sum);
    }
    for (; c < channels; c++) {
        sums[c] = values[c];
        for (long d = 1; d <= 2 * radius; d++) sums[c] += values[c + d];
    }
}

#ifdef THUMBNET_AVX512_BF16
#include "pool_norm_avx512.h"
#endif

#define VALUE float
#define FAST(call) 0
#define NAME(x) x##_fp32
#define LOAD(v) (v)
#define STORE(f) (f)
#include "pool_norm.h"
#undef VALUE
#undef FAST
#undef NAME
#undef LOAD
#undef STORE

#define VALUE bfloat16
#ifdef THUMBNET_AVX512_BF16
#define FAST(call) (call)
#else
#define FAST(call) 0
#endif
#define NAME(x) x##_bf16
#define LOAD(v) float_of(v)
#define STORE(f) bfloat16_of(f)
#include "pool_norm.h"
