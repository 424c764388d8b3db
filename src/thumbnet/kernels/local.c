/* Locally connected layers on AMX matrix units: convolutions whose every position has weights of its own. Operands are
 * bfloat16, sums and weights float32; no result depends on the number of threads.
 *
 * Tensors are channels-last. The images at one position are the rows of a matrix, whose rows lie far apart; a patch is
 * the matrices at its neighbours, so nothing is copied, and taps outside of the picture are left out. Weights, [height,
 * width, taps, inputs, outputs], are rounded and packed for the position that is computed.
 *
 * Images and channels are multiples of 32. Compiled to nothing where the processor has no AMX.
 */
#include "amx.h"

#ifdef THUMBNET_AMX

/* Lists the taps of a kernel around a position that are inside of the picture, and the positions they are at. */
static long inside(long position, long height, long width, long reach, long* taps, long* at) {
    long kernel = 2 * reach + 1, count = 0;
    for (long tap = 0; tap < kernel * kernel; tap++) {
        long y = position / width + tap / kernel - reach, x = position % width + tap % kernel - reach;
        if (y < 0 || y >= height || x < 0 || x >= width) continue;
        taps[count] = tap;
        at[count++] = y * width + x;
    }
    return count;
}

/* One block of a panel: 32 rows of 32 weights. */
static void pack(const float* weights, long stride, bfloat16* to) {
    for (long i = 0; i < 32; i += 2, weights += 2 * stride) {
        for (long half = 0; half < 2; half++) {
            __m512 low = _mm512_loadu_ps(weights + 16 * half), high = _mm512_loadu_ps(weights + stride + 16 * half);
            __m512i even = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(low));
            __m512i odd = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(high));
            _mm512_storeu_si512(to + half * 512 + i * 16, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
        }
    }
}

/* One block of a panel: 32 rows of 32 weights, transposed. */
static void pack_transposed(const float* weights, long stride, bfloat16* to) {
    __m512i r[16], s[16];
    for (long half = 0; half < 2; half++, to += 512) {
        for (int i = 0; i < 16; i++, weights += stride)
            store32((bfloat16*)&r[i], _mm512_loadu_ps(weights), _mm512_loadu_ps(weights + 16));
        transpose_16(r, s);
        for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + i * 32, r[i]);
    }
}

/* out <- x times the weights, plus the biases [height, width, outputs]. With `back` x is the gradient of the result,
 * and out that of the input: `inputs` and `outputs` change places, and the biases are zeros. */
void local_product_bf16(const bfloat16* x, const float* weights, const float* biases, bfloat16* out, long images,
                        long height, long width, long inputs, long outputs, long reach, long back) {
    long positions = height * width, window = (2 * reach + 1) * (2 * reach + 1);
    long depth = back ? outputs : inputs, columns = back ? inputs : outputs, stride = positions * depth;
#pragma omp parallel
    {
        long taps[window], at[window];
        bfloat16* panel = aligned(window * depth * 64);
        Ahead nothing = {NULL, NULL};
        begin_tiles();
#pragma omp for schedule(guided)
        for (long p = 0; p < positions; p++) {
            long count = inside(p, height, width, reach, taps, at);
            for (long c = 0; c < columns; c += 32) {
                for (long t = 0; t < count; t++) {
                    /* The result at a neighbour weighs this position by the opposite tap. */
                    long tap = back ? at[t] * window + window - 1 - taps[t] : p * window + taps[t];
                    const float* from = weights + tap * inputs * outputs;
                    for (long d = 0; d < depth; d += 32) {
                        bfloat16* to = panel + (t * depth + d) * 32;
                        if (back)
                            pack_transposed(from + c * outputs + d, outputs, to);
                        else
                            pack(from + d * outputs + c, outputs, to);
                    }
                }
                WRITTEN();
                for (long n = 0; n < images; n += 32) {
                    const float* start = biases + p * columns + c;
                    _tile_loadd(0, start, 0);
                    _tile_loadd(1, start + 16, 0);
                    _tile_loadd(2, start, 0);
                    _tile_loadd(3, start + 16, 0);
                    for (long t = 0; t < count; t++)
                        add_product(x + (n * positions + at[t]) * depth, stride, panel + t * depth * 32, depth,
                                    &nothing);
                    store_sums(out + (n * positions + p) * columns + c, positions * columns, 32);
                }
            }
        }
        _tile_release();
        free(panel);
    }
}

/* dw <- gradient of the weights: at each position and tap, x turned to [inputs, images] times that of the result, whose
 * sums over the images are db, the gradient of the biases. */
void local_weight_gradient_bf16(const bfloat16* gradient, const bfloat16* x, float* dw, float* db, long images,
                                long height, long width, long inputs, long outputs, long reach) {
    long positions = height * width, window = (2 * reach + 1) * (2 * reach + 1);
    bfloat16* turned = aligned(positions * inputs * images * 2);
#pragma omp parallel
    {
        long taps[window], at[window];
        bfloat16* panel = aligned(images * 64);
        Ahead nothing = {NULL, NULL};
        begin_tiles();
#pragma omp for schedule(guided)
        for (long p = 0; p < positions; p++)
            for (long i = 0; i < inputs; i += 16)
                turn(x + p * inputs + i, positions * inputs, turned + (p * inputs + i) * images, images, images);
#pragma omp for schedule(guided)
        for (long p = 0; p < positions; p++) {
            long count = inside(p, height, width, reach, taps, at);
            float* to = dw + p * window * inputs * outputs;
            if (count < window) memset(to, 0, (size_t)(window * inputs * outputs) * 4);
            for (long o = 0; o < outputs; o += 32) {
                __m512 low = _mm512_setzero_ps(), high = low;
                for (long n = 0; n < images; n += 2) {
                    const bfloat16* from = gradient + (n * positions + p) * outputs + o;
                    const bfloat16* next = from + positions * outputs;
                    bfloat16* pair = panel + n / 32 * 1024 + n % 32 * 16;
                    _mm512_storeu_si512(pair, pairs(from, next));
                    _mm512_storeu_si512(pair + 512, pairs(from + 16, next + 16));
                    low = _mm512_add_ps(low, _mm512_add_ps(load16(from), load16(next)));
                    high = _mm512_add_ps(high, _mm512_add_ps(load16(from + 16), load16(next + 16)));
                }
                _mm512_storeu_ps(db + p * outputs + o, low);
                _mm512_storeu_ps(db + p * outputs + o + 16, high);
                WRITTEN();
                for (long t = 0; t < count; t++) {
                    for (long i = 0; i < inputs; i += 32) {
                        float* sums = to + (taps[t] * inputs + i) * outputs + o;
                        zero_sums();
                        add_product(turned + (at[t] * inputs + i) * images, images, panel, images, &nothing);
                        _tile_stored(0, sums, outputs * 4);
                        _tile_stored(1, sums + 16, outputs * 4);
                        _tile_stored(2, sums + 16 * outputs, outputs * 4);
                        _tile_stored(3, sums + 16 * outputs + 16, outputs * 4);
                    }
                }
            }
        }
        _tile_release();
        free(panel);
    }
    free(turned);
}
#endif
