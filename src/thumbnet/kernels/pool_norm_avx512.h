/* What pool_norm.h computes, of bfloat16 on AVX-512: a pixel's channels stay in registers. Every function returns whether
 * it has done the work; if not, the channels do not come in whole vectors, and the general form does it. */

#include "max_pool_avx512.h"

static int max_pool_forward_avx512(const bfloat16* restrict input, bfloat16* restrict output, uint8_t* restrict winner,
                                   long images, long height, long width, long channels, long out_height, long out_width,
                                   long kernel, long stride, long top, long left, long relu) {
    if (channels % 32) return 0;
    const Pool pool = {height, width, channels, out_height, out_width, kernel, stride, top, left};
    long area = height * width * channels, out_area = out_height * out_width * channels;
#pragma omp parallel for collapse(2) schedule(static)
    for (long n = 0; n < images; n++)
        for (long oy = 0; oy < out_height; oy++)
            pool_row(pool, input + n * area, output + n * out_area, winner + n * out_area, oy, relu);
    return 1;
}

static int max_pool_backward_avx512(const bfloat16* restrict gradient, const uint8_t* restrict winner,
                                    bfloat16* restrict input_gradient, long images, long height, long width,
                                    long channels, long out_height, long out_width, long kernel, long stride, long top,
                                    long left) {
    if (channels % 32 || kernel > MOST_WINDOWS) return 0;
    const Pool pool = {height, width, channels, out_height, out_width, kernel, stride, top, left};
    long line = width * channels, out_area = out_height * out_width * channels;
    Windows columns[width];
    for (long x = 0; x < width; x++) columns[x] = windows_of_column(pool, x);
#pragma omp parallel for collapse(2) schedule(static)
    for (long n = 0; n < images; n++)
        for (long y = 0; y < height; y++)
            unpool_row(pool, columns, gradient + n * out_area, winner + n * out_area,
                       input_gradient + (n * height + y) * line, y);
    return 1;
}

#define RADIUS 4
/* Channels `shift` further on, of those from `a` and those after them in `b`. */
#define FURTHER(a, b, shift) _mm512_castsi512_ps(_mm512_alignr_epi32(_mm512_castps_si512(b), _mm512_castps_si512(a), shift))

/* sums[v] <- the sum of values over each channel and 4 neighbours to both sides: 1 + 1, 2 + 2, 4 + 4 and 1 more. */
static inline __attribute__((always_inline)) void band_sum9(const __m512* values, __m512* sums, const int vectors) {
    const __m512 zero = _mm512_setzero_ps();
    __m512 from[6], two[6], four[6]; /* beginning 4 channels earlier; one vector more, and zeros behind it */
    for (int v = 0; v <= vectors; v++)
        from[v] = FURTHER(v ? values[v - 1] : zero, v < vectors ? values[v] : zero, 16 - RADIUS);
    from[vectors + 1] = two[vectors + 1] = four[vectors + 1] = zero;
    for (int v = 0; v <= vectors; v++) two[v] = _mm512_add_ps(from[v], FURTHER(from[v], from[v + 1], 1));
    for (int v = 0; v <= vectors; v++) four[v] = _mm512_add_ps(two[v], FURTHER(two[v], two[v + 1], 2));
    for (int v = 0; v < vectors; v++) {
        __m512 eight = _mm512_add_ps(four[v], FURTHER(four[v], four[v + 1], 4));
        sums[v] = _mm512_add_ps(eight, FURTHER(from[v], from[v + 1], 8));
    }
}

static inline __attribute__((always_inline)) void lrn_forward_row(const bfloat16* input, bfloat16* output, float bias,
                                                                  float alpha, long relu, const int vectors) {
    __m512 x[4], s[4], root;
    for (int v = 0; v < vectors; v++) {
        x[v] = load16(input + 16 * v);
        if (relu) x[v] = _mm512_max_ps(_mm512_setzero_ps(), x[v]); /* which keeps a NaN */
        s[v] = _mm512_mul_ps(x[v], x[v]);
    }
    band_sum9(s, s, vectors);
    for (int v = 0; v < vectors; v++) {
        __m512 sum = _mm512_fmadd_ps(_mm512_set1_ps(alpha), s[v], _mm512_set1_ps(bias));
        x[v] = _mm512_mul_ps(x[v], power_minus_three_quarters16(sum, &root));
    }
    for (int v = 0; v < vectors; v += 2) store32(output + 16 * v, x[v], x[v + 1]);
}

static inline __attribute__((always_inline)) void lrn_backward_row(const bfloat16* gradient, const bfloat16* input,
                                                                   bfloat16* input_gradient, float bias, float alpha,
                                                                   long relu, const int vectors) {
    __m512 x[4], g[4], inner[4], root;
    for (int v = 0; v < vectors; v++) {
        x[v] = load16(input + 16 * v);
        if (relu) x[v] = _mm512_max_ps(_mm512_setzero_ps(), x[v]);
        inner[v] = _mm512_mul_ps(x[v], x[v]);
    }
    band_sum9(inner, inner, vectors);
    for (int v = 0; v < vectors; v++) {
        __m512 sum = _mm512_fmadd_ps(_mm512_set1_ps(alpha), inner[v], _mm512_set1_ps(bias));
        __m512 scale = power_minus_three_quarters16(sum, &root);
        g[v] = _mm512_mul_ps(load16(gradient + 16 * v), scale);
        /* 1 / s = root^2 */
        inner[v] = _mm512_mul_ps(_mm512_mul_ps(g[v], x[v]), _mm512_mul_ps(root, root));
    }
    band_sum9(inner, inner, vectors);
    for (int v = 0; v < vectors; v++) {
        const __m512 factor = _mm512_set1_ps(2 * 0.75f * alpha);
        g[v] = _mm512_fnmadd_ps(_mm512_mul_ps(factor, x[v]), inner[v], g[v]);
        if (relu) g[v] = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x[v], _mm512_setzero_ps(), _CMP_NEQ_UQ), g[v]);
    }
    for (int v = 0; v < vectors; v += 2) store32(input_gradient + 16 * v, g[v], g[v + 1]);
}

static int lrn_forward_avx512(const bfloat16* restrict input, bfloat16* restrict output, long rows, long channels,
                              long radius, float bias, float alpha, long relu) {
    if (radius != RADIUS || (channels != 32 && channels != 64)) return 0;
#pragma omp parallel for schedule(static)
    for (long r = 0; r < rows; r++) {
        if (channels == 64)
            lrn_forward_row(input + r * 64, output + r * 64, bias, alpha, relu, 4);
        else
            lrn_forward_row(input + r * 32, output + r * 32, bias, alpha, relu, 2);
    }
    return 1;
}

static int lrn_backward_avx512(const bfloat16* restrict gradient, const bfloat16* restrict input,
                               bfloat16* restrict input_gradient, long rows, long channels, long radius, float bias,
                               float alpha, long relu) {
    if (radius != RADIUS || (channels != 32 && channels != 64)) return 0;
#pragma omp parallel for schedule(static)
    for (long r = 0; r < rows; r++) {
        if (channels == 64)
            lrn_backward_row(gradient + r * 64, input + r * 64, input_gradient + r * 64, bias, alpha, relu, 4);
        else
            lrn_backward_row(gradient + r * 32, input + r * 32, input_gradient + r * 32, bias, alpha, relu, 2);
    }
    return 1;
}
