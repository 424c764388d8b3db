/* What kernels on AMX matrix units share: tiles, products of 32 x 32 results, and layouts of their operands.
 *
 * The right operand of a product is a panel of 32 columns: blocks of 32 rows (the depth of the product), in them two
 * tiles of [16 pairs of rows][16 columns][2].
 *
 * Compiled to nothing where the processor has no AMX; THUMBNET_AMX tells.
 */
#pragma once
#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#define THUMBNET_AMX
#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "avx512.h"
#include "sizes.h"

/* The compiler does not know that tile loads read memory: what they read must be written before them. */
#define WRITTEN() __asm__ volatile("" ::: "memory")

static void begin_tiles(void) {
    /* Palette 1, eight tiles of 16 rows of 64 bytes. */
    uint8_t config[64] __attribute__((aligned(64))) = {1};
    for (int tile = 0; tile < 8; tile++) config[16 + 2 * tile] = 64, config[48 + tile] = 16;
    WRITTEN();
    _tile_loadconfig(config);
}

/* Memory that is soon needed: what works in the cache meanwhile fetches it, a line at a time. */
typedef struct {
    const char *next, *end;
} Ahead;

static inline void fetch(Ahead* ahead) {
    if (ahead->next < ahead->end) {
        _mm_prefetch(ahead->next, _MM_HINT_T1);
        _mm_prefetch(ahead->next + 64, _MM_HINT_T1);
        ahead->next += 128;
    }
}

/* Tiles 0 to 3 hold 32 x 32 sums. */
static inline void zero_sums(void) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

/* sums += 32 rows of a, `stride` values apart, times a panel of `depth` rows. */
static inline void add_product(const bfloat16* a, long stride, const bfloat16* panel, long depth, Ahead* ahead) {
    for (long k = 0; k < depth; k += 32, a += 32, panel += 1024) {
        _tile_loadd(4, a, stride * 2);
        _tile_loadd(6, panel, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, panel + 512, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + 16 * stride, stride * 2);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        fetch(ahead);
    }
}

/* The first `rows` rows of the sums become bfloat16 rows of 32, `stride` values apart. */
static inline void store_sums(bfloat16* out, long stride, long rows) {
    float sums[32 * 32] __attribute__((aligned(64)));
    _tile_stored(0, sums, 128);
    _tile_stored(1, sums + 16, 128);
    _tile_stored(2, sums + 512, 128);
    _tile_stored(3, sums + 528, 128);
    for (long r = 0; r < rows; r++)
        store32(out + r * stride, _mm512_load_ps(sums + r * 32), _mm512_load_ps(sums + r * 32 + 16));
}

/* Two positions of 16 channels -> 16 pairs. */
static inline __m512i pairs(const bfloat16* first, const bfloat16* second) {
    __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void*)first));
    __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void*)second));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

/* Transposes a 16 x 16 matrix of 32-bit values; s is overwritten. */
static inline void transpose_16(__m512i* r, __m512i* s) {
    for (int i = 0; i < 16; i += 2) {
        s[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        s[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(s[i], s[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(s[i], s[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(s[i + 1], s[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(s[i + 1], s[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        s[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        s[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        s[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        s[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_i32x4(s[i], s[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(s[i], s[i + 8], 0xdd);
    }
}

/* 16 channels of `positions` positions, [positions][channels] -> [16][to_stride]; what follows the last position, up to
 * a multiple of 32, becomes 0. */
static void turn(const bfloat16* from, long channels, bfloat16* to, long to_stride, long positions) {
    __m512i r[16], s[16];
    for (long p = 0; p < positions; p += 32) {
        for (long i = 0; i < 16; i++) {
            const bfloat16* pair = from + (p + 2 * i) * channels;
            long rest = positions - p - 2 * i;
            if (rest >= 2)
                r[i] = pairs(pair, pair + channels);
            else
                r[i] =
                    rest == 1 ? _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void*)pair)) : _mm512_setzero_si512();
        }
        transpose_16(r, s);
        for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + i * to_stride + p, r[i]);
    }
}

#endif
