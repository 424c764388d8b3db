/* What kernels on AVX-512 share. THUMBNET_AVX512_BF16 tells whether the processor has bfloat16 instructions, too. */
#pragma once
#ifdef __AVX512F__
#include <immintrin.h>

/* root <- values^-1/2, to float's precision; returns values^-3/4 = root sqrt(root). */
static inline __m512 power_minus_three_quarters16(__m512 values, __m512* root) {
    const __m512 half = _mm512_set1_ps(0.5f), three_halves = _mm512_set1_ps(1.5f);
    __m512 r = _mm512_rsqrt14_ps(values);
    /* One Newton step takes the estimate's 14 bits to float's 24. */
    r = _mm512_mul_ps(r, _mm512_fnmadd_ps(_mm512_mul_ps(half, values), _mm512_mul_ps(r, r), three_halves));
    __m512 q = _mm512_rsqrt14_ps(r);
    q = _mm512_mul_ps(q, _mm512_fnmadd_ps(_mm512_mul_ps(half, r), _mm512_mul_ps(q, q), three_halves));
    *root = r;
    /* sqrt(r) = r / sqrt(r) = r q, so r sqrt(r) = r r q. */
    return _mm512_mul_ps(_mm512_mul_ps(r, r), q);
}
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#define THUMBNET_AVX512_BF16
#include "bfloat16.h"

static inline __m512 load16(const bfloat16* from) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void*)from)), 16));
}

static inline void store32(bfloat16* to, __m512 low, __m512 high) {
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}
#endif
#endif
