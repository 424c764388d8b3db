/* Max pooling of bfloat16 on AVX-512, a row at a time; channels come in vectors of 32. */
#pragma once
#include <stdint.h>

#include "avx512.h"

/* What is pooled and how; `top` and `left` are the border that counts as lower than any value. */
typedef struct {
    long height, width, channels, out_height, out_width, kernel, stride, top, left;
} Pool;

enum { MOST_WINDOWS = 15 };

/* bfloat16 as whole numbers of the same order: 0 and -0 alike, a NaN above all. With `relu`, whoever is below 0 may be
 * anything there. */
static inline __m512i ordered(__m512i bits, long relu) {
    __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi16(0x7fff));
    __mmask32 nan = _mm512_cmpgt_epi16_mask(magnitude, _mm512_set1_epi16(0x7f80));
    if (!relu) bits = _mm512_mask_sub_epi16(bits, _mm512_movepi16_mask(bits), _mm512_setzero_si512(), magnitude);
    return _mm512_mask_mov_epi16(bits, nan, _mm512_set1_epi16(0x7fff));
}

/* Row oy of the pooled image and of its winners; with `relu`, of max(x, 0), where 255 tells that nobody won. */
static inline void pool_row(Pool pool, const bfloat16* image, bfloat16* out, uint8_t* winner, long oy, long relu) {
    const __m512i lowest = _mm512_set1_epi16(relu ? 0 : -0x7f80), none = _mm512_set1_epi16(relu ? 255 : 0);
    const long channels = pool.channels, kernel = pool.kernel, y0 = oy * pool.stride - pool.top;
    for (long ox = 0; ox < pool.out_width; ox++) {
        long x0 = ox * pool.stride - pool.left;
        long first_x = x0 < 0 ? -x0 : 0, last_x = pool.width - x0 < kernel ? pool.width - x0 : kernel;
        for (long c = 0; c < channels; c += 32) {
            __m512i best = lowest, which = none;
            for (long ky = y0 < 0 ? -y0 : 0; ky < kernel && y0 + ky < pool.height; ky++) {
                const bfloat16* row = image + ((y0 + ky) * pool.width + x0) * channels + c;
                for (long kx = first_x; kx < last_x; kx++) {
                    __m512i key = ordered(_mm512_loadu_si512(row + kx * channels), relu);
                    __mmask32 more = _mm512_cmpgt_epi16_mask(key, best);
                    best = _mm512_mask_mov_epi16(best, more, key);
                    which = _mm512_mask_mov_epi16(which, more, _mm512_set1_epi16((short)(ky * kernel + kx)));
                }
            }
            __m512i negative = _mm512_or_si512(_mm512_sub_epi16(_mm512_setzero_si512(), best),
                                               _mm512_set1_epi16((short)0x8000));
            best = _mm512_mask_mov_epi16(best, _mm512_movepi16_mask(best), negative);
            long at = (oy * pool.out_width + ox) * channels + c;
            _mm512_storeu_si512(out + at, best);
            _mm256_storeu_si256((void*)(winner + at), _mm512_cvtepi16_epi8(which));
        }
    }
}

/* A window that a row or column of the input lies in: which one, and where in it. */
typedef struct {
    long out, tap;
} Window;

/* The windows of one row or column. */
typedef struct {
    long count;
    Window list[MOST_WINDOWS];
} Windows;

static inline Windows windows_of(long position, long before, long kernel, long stride, long outputs) {
    Windows windows = {0};
    for (long tap = (position + before) % stride; tap < kernel && tap <= position + before; tap += stride) {
        long out = (position + before - tap) / stride;
        if (out < outputs) windows.list[windows.count++] = (Window){out, tap};
    }
    return windows;
}

static inline Windows windows_of_column(Pool pool, long x) {
    return windows_of(x, pool.left, pool.kernel, pool.stride, pool.out_width);
}

/* Row y of the gradient of the input: each position sums the gradients of the windows it won. */
static inline void unpool_row(Pool pool, const Windows* columns, const bfloat16* gradient, const uint8_t* winner,
                              bfloat16* restrict to, long y) {
    const Windows rows = windows_of(y, pool.top, pool.kernel, pool.stride, pool.out_height);
    for (long x = 0; x < pool.width; x++) {
        for (long c = 0; c < pool.channels; c += 32, to += 32) {
            __m512 low = _mm512_setzero_ps(), high = low;
            for (long i = 0; i < rows.count; i++) {
                long line = rows.list[i].out * pool.out_width, above = rows.list[i].tap * pool.kernel;
                for (long j = 0; j < columns[x].count; j++) {
                    long at = (line + columns[x].list[j].out) * pool.channels + c;
                    __m256i tap = _mm256_set1_epi8((char)(above + columns[x].list[j].tap));
                    __mmask32 won = _mm256_cmpeq_epi8_mask(_mm256_loadu_si256((const void*)(winner + at)), tap);
                    low = _mm512_mask_add_ps(low, (__mmask16)won, low, load16(gradient + at));
                    high = _mm512_mask_add_ps(high, (__mmask16)(won >> 16), high, load16(gradient + at + 16));
                }
            }
            store32(to, low, high);
        }
    }
}
