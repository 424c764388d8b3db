/* Kernels of the speed network on AMX matrix units: 3x3 convolutions with a fused 2x2 max pool, their gradients, the
 * whitening layer, and batch normalization + GELU. Everything is bfloat16 with float32 sums.
 *
 * Tensors lie on a "grid": [images, height + 1, width + 1, channels], where the last row and the last column of every
 * image are zeros ("pads"), and width + 2 positions of zeros precede the first image. So the left neighbour of a row's
 * first pixel is the pad that ends the row above it, and the row above an image is the pad row of the image before: a
 * 3x3 convolution is nine matrix products over one flat range of positions, with no border to treat. At least
 * width + 2 + 32 positions follow the last image; they are read for results that are thrown away.
 *
 * Work is shared out as threads come free (guided): the thread that makes the next batches takes time from one of them.
 * No result depends on who computed it.
 *
 * Channels are multiples of 32. Compiled to nothing where the processor has no AMX.
 */
#define _GNU_SOURCE
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "amx.h"

#ifdef THUMBNET_AMX
#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Sizes for an L2 cache of 2 MiB: positions that one thread convolves before it takes the next 32 outputs, positions of
 * a chunk of the weight gradient (all outputs and 32 inputs are held), and bytes of unpooled gradients at a time. */
#define UNIT_POSITIONS 1024
#define CHUNK_POSITIONS 2048
#define GRADIENT_UNIT_BYTES (256 << 10)
/* Sums over a batch are made in this many slices, whatever the number of threads, so that they repeat exactly. */
#define SLICES 64

/* Asks the kernel for the tile registers (ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA); returns 1 when they may be used. */
int amx_ready(void) { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

static void zero_pads(bfloat16* image, long height, long width, long channels) {
    long row = width + 1;
    for (long y = 0; y < height; y++) memset(image + (y * row + width) * channels, 0, (size_t)channels * 2);
    memset(image + height * row * channels, 0, (size_t)(row * channels) * 2);
}

static void zero_margin(bfloat16* grid, long width, long channels) {
    memset(grid - (width + 2) * channels, 0, (size_t)((width + 2) * channels) * 2);
}

/* ---- GELU and its derivative: each is 1/2 plus an odd function, tabled as 32 parabolas over 0 <= |x| < 5 ---- */

#define SEGMENTS_PER_UNIT 6.4f

typedef struct {
    float c0[32], c1[32], c2[32];
} Table;
static Table cdf_table, slope_table;

static double cdf_part(double x) { return 0.5 * erf(x * 0.70710678118654752); }
static double slope_part(double x) { return cdf_part(x) + x * 0.3989422804014327 * exp(-0.5 * x * x); }

static void fill(Table* table, double (*f)(double)) {
    for (int i = 0; i < 32; i++) {
        double left = f(i / SEGMENTS_PER_UNIT), middle = f((i + 0.5) / SEGMENTS_PER_UNIT);
        double right = f((i + 1.0) / SEGMENTS_PER_UNIT);
        table->c0[i] = (float)middle;
        table->c1[i] = (float)(right - left);
        table->c2[i] = (float)(2 * (right + left - 2 * middle));
    }
    /* The last segment stands for everything beyond. */
    table->c0[31] = 0.5f, table->c1[31] = 0, table->c2[31] = 0;
}

__attribute__((constructor)) static void fill_tables(void) {
    fill(&cdf_table, cdf_part);
    fill(&slope_table, slope_part);
}

static inline __m512 look_up(const float* table, __m512i index) {
    return _mm512_permutex2var_ps(_mm512_loadu_ps(table), index, _mm512_loadu_ps(table + 16));
}

static inline __m512 half_plus_odd(const Table* table, __m512 x) {
    const __m512i sign_bit = _mm512_set1_epi32((int)0x80000000u);
    __m512i bits = _mm512_castps_si512(x);
    __m512 magnitude = _mm512_castsi512_ps(_mm512_andnot_si512(sign_bit, bits));
    __m512 at = _mm512_min_ps(_mm512_mul_ps(magnitude, _mm512_set1_ps(SEGMENTS_PER_UNIT)), _mm512_set1_ps(31.5f));
    __m512i index = _mm512_cvttps_epi32(at);
    __m512 t = _mm512_sub_ps(_mm512_sub_ps(at, _mm512_cvtepi32_ps(index)), _mm512_set1_ps(0.5f));
    __m512 odd = _mm512_fmadd_ps(look_up(table->c2, index), t, look_up(table->c1, index));
    odd = _mm512_fmadd_ps(odd, t, look_up(table->c0, index));
    odd = _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(odd), _mm512_and_si512(bits, sign_bit)));
    return _mm512_add_ps(odd, _mm512_set1_ps(0.5f));
}

static inline __m512 gelu(__m512 x) { return _mm512_mul_ps(x, half_plus_odd(&cdf_table, x)); }
static inline __m512 gelu_slope(__m512 x) { return half_plus_odd(&slope_table, x); }

/* ---- convolution ---- */

/* Packs float32 weights for `convolve`: panels of 32 outputs, in them nine taps, in them blocks of 32 inputs, in them two
 * tiles of [16 pairs of inputs][16 outputs][2]. With `transposed`, for the gradient of the input: outputs and inputs
 * change places and the taps are mirrored. Weights are [co][3][3][ci] in memory; ci_stored of the ci inputs are there,
 * the others are zeros. */
void conv3x3_pack_fp32(const float* weights, bfloat16* packed, long ci, long ci_stored, long co, long transposed) {
    long inputs = transposed ? co : ci, outputs = transposed ? ci : co;
#pragma omp parallel for collapse(2) schedule(static)
    for (long panel = 0; panel < outputs / 32; panel++) {
        for (long tap = 0; tap < 9; tap++) {
            for (long i = 0; i < inputs; i++) {
                bfloat16* to = packed + ((panel * 9 + tap) * inputs + (i & ~31L)) * 32 + (i % 32 / 2) * 32 + i % 2;
                for (long o = 0; o < 32; o++) {
                    long output = panel * 32 + o;
                    long out = transposed ? i : output, in = transposed ? output : i, at = transposed ? 8 - tap : tap;
                    float weight = in < ci_stored ? weights[(out * 9 + at) * ci_stored + in] : 0.0f;
                    to[o / 16 * 512 + o % 16 * 2] = bfloat16_of(weight);
                }
            }
        }
    }
}

/* 32 output channels of the convolution at `positions` consecutive positions of a grid with `row` positions a row. */
static void convolve(const bfloat16* x, const bfloat16* panel, bfloat16* out, long out_stride, long positions, long row,
                     long ci, Ahead* ahead) {
    WRITTEN();
    for (long p = 0; p < positions; p += 32) {
        const bfloat16* b = panel;
        zero_sums();
        for (long dy = -1; dy <= 1; dy++)
            for (long dx = -1; dx <= 1; dx++, b += 32 * ci)
                add_product(x + (p + dy * row + dx) * ci, ci, b, ci, ahead);
        store_sums(out + p * out_stride, out_stride, smaller(32, positions - p));
    }
}

/* Exchanges the order of bfloat16 bits with that of signed integers, both ways. */
static inline __m512i sortable(__m512i bits) {
    const __m512i magnitude = _mm512_set1_epi16(0x7fff);
    return _mm512_xor_si512(bits, _mm512_and_si512(_mm512_srai_epi16(bits, 15), magnitude));
}

/* 2x2 max pool of 32 channels of one image; winner <- which of the four (row by row) won. NaN wins, as in torch. */
static void pool_panel(const bfloat16* image, bfloat16* out, uint8_t* winner, long height, long width, long co) {
    const __m512i magnitude = _mm512_set1_epi16(0x7fff), infinity = _mm512_set1_epi16(0x7f80);
    long row = width + 1, out_row = width / 2 + 1;
    for (long oy = 0; oy < height / 2; oy++) {
        for (long ox = 0; ox < width / 2; ox++) {
            const bfloat16* from = image + (2 * oy * row + 2 * ox) * 32;
            __m512i value = _mm512_loadu_si512(from), best = sortable(value);
            __m512i largest = _mm512_and_si512(value, magnitude), which = _mm512_setzero_si512();
            for (int k = 1; k < 4; k++) {
                value = _mm512_loadu_si512(from + ((k >> 1) * row + (k & 1)) * 32);
                largest = _mm512_max_epu16(largest, _mm512_and_si512(value, magnitude));
                value = sortable(value);
                __mmask32 wins = _mm512_cmpgt_epi16_mask(value, best);
                best = _mm512_max_epi16(best, value);
                which = _mm512_mask_mov_epi16(which, wins, _mm512_set1_epi16((short)k));
            }
            best = sortable(best);
            best = _mm512_mask_mov_epi16(best, _mm512_cmpgt_epu16_mask(largest, infinity), _mm512_set1_epi16(0x7fc0));
            _mm512_storeu_si512(out + (oy * out_row + ox) * co, best);
            _mm256_storeu_si256((void*)(winner + (oy * out_row + ox) * co), _mm512_cvtepi16_epi8(which));
        }
    }
}

/* Convolution, padded by 1, of a grid [images, height, width, ci]. With `winner`, the result is pooled 2x2. */
void conv3x3_forward_bf16(const bfloat16* x, const bfloat16* packed, bfloat16* out, uint8_t* winner, long images,
                          long height, long width, long ci, long co) {
    long row = width + 1, area = (height + 1) * row, images_per_unit = larger(1, UNIT_POSITIONS / area);
    long out_height = winner ? height / 2 : height, out_width = winner ? width / 2 : width;
    long out_area = (out_height + 1) * (out_width + 1);
    zero_margin(out, out_width, co);
#pragma omp parallel
    {
        bfloat16* panel_out = winner ? aligned(images_per_unit * area * 64) : NULL;
        begin_tiles();
#pragma omp for schedule(guided)
        for (long first = 0; first < images; first += images_per_unit) {
            long count = smaller(images_per_unit, images - first);
            const char* next = (const char*)(x + (first + count) * area * ci);
            Ahead ahead = {next, next + smaller(images_per_unit, images - first - count) * area * ci * 2};
            for (long c = 0; c < co; c += 32) {
                const bfloat16* panel = packed + c * 9 * ci;
                if (!winner) {
                    convolve(x + first * area * ci, panel, out + first * area * co + c, co, count * area, row, ci,
                             &ahead);
                    continue;
                }
                convolve(x + first * area * ci, panel, panel_out, 32, count * area, row, ci, &ahead);
                for (long n = 0; n < count; n++) {
                    long to = (first + n) * out_area * co + c;
                    pool_panel(panel_out + n * area * 32, out + to, winner + to, height, width, co);
                }
            }
            for (long n = 0; n < count; n++) zero_pads(out + (first + n) * out_area * co, out_height, out_width, co);
        }
        _tile_release();
        free(panel_out);
    }
}

/* ---- gradients of the convolution ---- */

/* Gives each pooled gradient back to the pixel that won; every other position of the image's grid becomes 0. */
static void unpool(const bfloat16* gradient, const uint8_t* winner, bfloat16* image, long height, long width, long co) {
    long row = width + 1, out_row = width / 2 + 1;
    for (long oy = 0; oy < height / 2; oy++) {
        for (long ox = 0; ox < width / 2; ox++) {
            long from = (oy * out_row + ox) * co;
            bfloat16* to = image + (2 * oy * row + 2 * ox) * co;
            for (long c = 0; c < co; c += 32) {
                __m512i value = _mm512_loadu_si512(gradient + from + c);
                __m256i which = _mm256_loadu_si256((const void*)(winner + from + c));
                for (int k = 0; k < 4; k++) {
                    __mmask32 won = _mm256_cmpeq_epi8_mask(which, _mm256_set1_epi8((char)k));
                    _mm512_storeu_si512(to + ((k >> 1) * row + (k & 1)) * co + c, _mm512_maskz_mov_epi16(won, value));
                }
            }
        }
        for (long dy = 0; dy < 2; dy++) {
            long covered = width / 2 * 2;
            memset(image + ((2 * oy + dy) * row + covered) * co, 0, (size_t)((row - covered) * co) * 2);
        }
    }
    long covered = height / 2 * 2;
    memset(image + covered * row * co, 0, (size_t)((height + 1 - covered) * row * co) * 2);
}

/* As `turn`, of one image whose gradient is given where it was pooled: each value goes to the pixel that won. Writes
 * only pixels under pooling windows: `to` holds zeros elsewhere. */
static void turn_pooled(const bfloat16* gradient, const uint8_t* winner, long channels, bfloat16* to, long to_stride,
                        long height, long width) {
    const __m512i low = _mm512_set1_epi32(0xffff);
    long row = width + 1, out_width = width / 2, out_row = out_width + 1;
    __m512i r[16], s[16];
    for (long oy = 0; oy < height / 2; oy++) {
        for (long ox = 0; ox < out_width; ox += 16) {
            long count = smaller(16, out_width - ox);
            for (long i = 0; i < 16; i++) {
                long at = (oy * out_row + ox + smaller(i, count - 1)) * channels;
                __m512i value = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void*)(gradient + at)));
                __m512i which = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void*)(winner + at)));
                r[i] = _mm512_or_si512(value, _mm512_slli_epi32(which, 16));
            }
            transpose_16(r, s);
            __mmask16 inside = (__mmask16)((1u << count) - 1);
            for (int i = 0; i < 16; i++) {
                /* A pooled value becomes two pixels, side by side, in each of two rows. */
                __m512i which = _mm512_srli_epi32(r[i], 16), left = _mm512_and_si512(r[i], low);
                __m512i right = _mm512_slli_epi32(r[i], 16);
                for (int y = 0; y < 2; y++) {
                    __mmask16 left_won = _mm512_cmpeq_epi32_mask(which, _mm512_set1_epi32(2 * y));
                    __mmask16 right_won = _mm512_cmpeq_epi32_mask(which, _mm512_set1_epi32(2 * y + 1));
                    __m512i both = _mm512_mask_mov_epi32(_mm512_maskz_mov_epi32(left_won, left), right_won, right);
                    _mm512_mask_storeu_epi32(to + i * to_stride + (2 * oy + y) * row + 2 * ox, inside, both);
                }
            }
        }
    }
}

/* 32 channels of `positions` positions, as the right operand of a product over positions: for two groups of 16 channels,
 * pairs [position / 2][16][2] that begin at even positions, then pairs that begin at odd ones. So any shift of the
 * positions is a load from a whole cache line, which takes a tile a sixth of the time of any other.
 * Pair 0 begins at position -margin (or 1 - margin); what is outside of 0 .. positions counts as zeros. */
static void pair_up(const bfloat16* from, long channels, bfloat16* to, long positions, long margin, long group) {
    memset(to, 0, (size_t)(4 * group) * 2);
    for (long half = 0; half < 2; half++, from += 16, to += 2 * group) {
        bfloat16 *even = to + margin * 16, *odd = to + group + margin * 16;
        __m512i here = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void*)from));
        _mm512_storeu_si512(odd - 32, _mm512_slli_epi32(here, 16));
        for (long p = 0; p < positions; p += 2, even += 32, odd += 32) {
            const bfloat16* at = from + p * channels;
            __m512i next = _mm512_setzero_si512(), after = next;
            if (p + 1 < positions) next = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void*)(at + channels)));
            if (p + 2 < positions) after = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void*)(at + 2 * channels)));
            _mm512_storeu_si512(even, _mm512_or_si512(here, _mm512_slli_epi32(next, 16)));
            _mm512_storeu_si512(odd, _mm512_or_si512(next, _mm512_slli_epi32(after, 16)));
            here = after;
        }
    }
}

/* Adds to (or with `first`, sets) the gradients of the weights of three taps side by side, between 32 outputs and 16
 * inputs: turned [32][positions] times the pairs at left, middle and right. */
static void weight_tiles(const bfloat16* turned, long stride, const bfloat16* left, const bfloat16* middle,
                         const bfloat16* right, float* weights, long ci, long positions, int first) {
    long tile_stride = 9 * ci * 4;
    float* below = weights + 16 * 9 * ci;
    WRITTEN();
    if (first) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        _tile_zero(4);
        _tile_zero(5);
    } else {
        _tile_loadd(0, weights, tile_stride);
        _tile_loadd(1, weights + ci, tile_stride);
        _tile_loadd(2, weights + 2 * ci, tile_stride);
        _tile_loadd(3, below, tile_stride);
        _tile_loadd(4, below + ci, tile_stride);
        _tile_loadd(5, below + 2 * ci, tile_stride);
    }
    for (long p = 0; p < positions; p += 32) {
        _tile_loadd(6, turned + p, stride * 2);
        _tile_loadd(7, left + p * 16, 64);
        _tile_dpbf16ps(0, 6, 7);
        _tile_loadd(7, middle + p * 16, 64);
        _tile_dpbf16ps(1, 6, 7);
        _tile_loadd(7, right + p * 16, 64);
        _tile_dpbf16ps(2, 6, 7);
        _tile_loadd(6, turned + 16 * stride + p, stride * 2);
        _tile_dpbf16ps(5, 6, 7);
        _tile_loadd(7, middle + p * 16, 64);
        _tile_dpbf16ps(4, 6, 7);
        _tile_loadd(7, left + p * 16, 64);
        _tile_dpbf16ps(3, 6, 7);
    }
    _tile_stored(0, weights, tile_stride);
    _tile_stored(1, weights + ci, tile_stride);
    _tile_stored(2, weights + 2 * ci, tile_stride);
    _tile_stored(3, below, tile_stride);
    _tile_stored(4, below + ci, tile_stride);
    _tile_stored(5, below + 2 * ci, tile_stride);
}

/* dx <- gradient of the input of `conv3x3_forward`; packed are the transposed weights. */
static void input_gradient(const bfloat16* gradient, const uint8_t* winner, const bfloat16* packed, bfloat16* dx,
                           bfloat16* unpooled, long first, long count, long images, long height, long width, long ci, long co) {
    long row = width + 1, area = (height + 1) * row, pooled_area = (height / 2 + 1) * (width / 2 + 1);
    const bfloat16* g = gradient + first * area * co;
    if (winner) {
        g = unpooled + (row + 1) * co;
        for (long n = 0; n < count; n++) {
            long from = (first + n) * pooled_area * co;
            unpool(gradient + from, winner + from, unpooled + (row + 1 + n * area) * co, height, width, co);
        }
    }
    bfloat16* to = dx + first * area * ci;
    const char* next = (const char*)(gradient + (first + count) * (winner ? pooled_area : area) * co);
    Ahead ahead = {next, next + smaller(count, images - first - count) * (winner ? pooled_area : area) * co * 2};
    for (long c = 0; c < ci; c += 32) convolve(g, packed + c * 9 * co, to + c, ci, count * area, row, co, &ahead);
    for (long n = 0; n < count; n++) zero_pads(to + n * area * ci, height, width, ci);
}

/* Gradients of `conv3x3_forward`: of the input (with `packed` transposed weights, unless NULL) into the grid dx, and of
 * the weights into dw, float32 [co][3][3][ci]. With `winner`, gradient is that of the pooled result.
 *
 * The weight gradient of a tap is gradient^T x, x being shifted by the tap's offset. A chunk of images at a time, all
 * threads turn the gradient to [co][positions]; then each pairs up 32 inputs and multiplies all outputs (or a part of
 * them, where there are more threads than that makes tasks) with them. */
void conv3x3_backward_bf16(const bfloat16* gradient, const bfloat16* x, const uint8_t* winner, const bfloat16* packed,
                           bfloat16* dx, float* dw, long images, long height, long width, long ci, long co) {
    long row = width + 1, area = (height + 1) * row, pooled_area = (height / 2 + 1) * (width / 2 + 1);
    long images_per_unit = larger(1, GRADIENT_UNIT_BYTES / (area * co * 2));
    long chunk = larger(1, CHUNK_POSITIONS / area), positions = rounded_up(chunk * area, 32);
    long margin = rounded_up(row + 2, 2), group = (positions + 2 * margin) * 16;
    /* An odd number of cache lines a row keeps the sixteen rows of a tile in different sets of the L1 cache. */
    long stride = positions / 32 % 2 ? positions : positions + 32;
    bfloat16* turned = aligned(co * stride * 2);
    memset(turned, 0, (size_t)(co * stride) * 2);
    long parts = 1;
    while (parts * 2 <= co / 32 && co / 32 % (parts * 2) == 0 && ci / 32 * parts < omp_get_max_threads()) parts *= 2;
    if (dx) zero_margin(dx, width, ci);
#pragma omp parallel
    {
        begin_tiles();
        if (dx) {
            bfloat16* unpooled = winner ? aligned((2 * (row + 1) + images_per_unit * area + 32) * co * 2) : NULL;
            if (winner) memset(unpooled, 0, (size_t)((row + 1) * co) * 2);
#pragma omp for schedule(guided) nowait
            for (long first = 0; first < images; first += images_per_unit)
                input_gradient(gradient, winner, packed, dx, unpooled, first, smaller(images_per_unit, images - first),
                               images, height, width, ci, co);
            free(unpooled);
        }
        bfloat16* x_pairs = aligned(4 * group * 2);
        for (long first = 0; first < images; first += chunk) {
            long count = smaller(chunk, images - first), end = count * area;
#pragma omp for schedule(guided)
            for (long c = 0; c < co; c += 16) {
                bfloat16* to = turned + c * stride;
                if (!winner) turn(gradient + first * area * co + c, co, to, stride, end);
                for (long n = 0; winner && n < count; n++) {
                    long at = (first + n) * pooled_area * co + c;
                    turn_pooled(gradient + at, winner + at, co, to + n * area, stride, height, width);
                }
            }
#pragma omp for collapse(2) schedule(guided)
            for (long i = 0; i < ci; i += 32) {
                for (long part = 0; part < parts; part++) {
                    pair_up(x + first * area * ci + i, ci, x_pairs, end, margin, group);
                    for (long o = co / parts * part; o < co / parts * (part + 1); o += 32) {
                        for (long task = 0; task < 6; task++) {
                            const bfloat16 *half = x_pairs + task / 3 * 2 * group, *at[3];
                            for (long tap = 0; tap < 3; tap++) {
                                long begin = margin + (task % 3 - 1) * row + tap - 1;
                                at[tap] = half + (begin & 1) * group + begin / 2 * 32;
                            }
                            weight_tiles(turned + o * stride, stride, at[0], at[1], at[2],
                                         dw + (o * 9 + task % 3 * 3) * ci + i + task / 3 * 16, ci, rounded_up(end, 32),
                                         first == 0);
                        }
                    }
                }
            }
        }
        _tile_release();
        free(x_pairs);
    }
    free(turned);
}

/* ---- batch normalization + GELU over grids; scale and shift are per channel ---- */

static long slice_begin(long slice, long images) { return slice * images / SLICES; }

static void add_slices(const float* partial, double* sums, long values) {
    for (long v = 0; v < values; v++) {
        sums[v] = 0;
        for (long slice = 0; slice < SLICES; slice++) sums[v] += partial[slice * values + v];
    }
}

/* sums <- per channel the sum of z, then the sum of z^2: double [2][channels]. */
void norm_sums_bf16(const bfloat16* z, double* sums, long images, long height, long width, long channels) {
    long row = width + 1, area = (height + 1) * row;
    float* partial = aligned(SLICES * 2 * channels * 4);
#pragma omp parallel for schedule(guided)
    for (long slice = 0; slice < SLICES; slice++) {
        float* to = partial + slice * 2 * channels;
        memset(to, 0, (size_t)channels * 8);
        for (long n = slice_begin(slice, images); n < slice_begin(slice + 1, images); n++) {
            for (long c = 0; c < channels; c += 16) {
                __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
                for (long y = 0; y < height; y++) {
                    for (long x = 0; x < width; x++) {
                        __m512 value = load16(z + (n * area + y * row + x) * channels + c);
                        sum = _mm512_add_ps(sum, value);
                        squares = _mm512_fmadd_ps(value, value, squares);
                    }
                }
                _mm512_storeu_ps(to + c, _mm512_add_ps(_mm512_loadu_ps(to + c), sum));
                _mm512_storeu_ps(to + channels + c, _mm512_add_ps(_mm512_loadu_ps(to + channels + c), squares));
            }
        }
    }
    add_slices(partial, sums, 2 * channels);
    free(partial);
}

/* What the GELU is applied to: scale z + shift, plus a value of another grid unless that is NULL. */
static inline __m512 before_gelu(const bfloat16* z, const bfloat16* added, long at, __m512 scale, __m512 shift) {
    __m512 value = _mm512_fmadd_ps(load16(z + at), scale, shift);
    return added ? _mm512_add_ps(value, load16(added + at)) : value;
}

/* out <- GELU(scale z + shift + added); added may be NULL. */
void norm_gelu_forward_bf16(const bfloat16* z, const bfloat16* added, bfloat16* out, const float* scale,
                            const float* shift, long images, long height, long width, long channels) {
    long row = width + 1, area = (height + 1) * row;
    zero_margin(out, width, channels);
#pragma omp parallel for schedule(guided)
    for (long n = 0; n < images; n++) {
        for (long c = 0; c < channels; c += 32) {
            __m512 scale0 = _mm512_loadu_ps(scale + c), scale1 = _mm512_loadu_ps(scale + c + 16);
            __m512 shift0 = _mm512_loadu_ps(shift + c), shift1 = _mm512_loadu_ps(shift + c + 16);
            for (long y = 0; y < height; y++) {
                for (long x = 0; x < width; x++) {
                    long at = (n * area + y * row + x) * channels + c;
                    __m512 low = gelu(before_gelu(z, added, at, scale0, shift0));
                    __m512 high = gelu(before_gelu(z, added, at + 16, scale1, shift1));
                    store32(out + at, low, high);
                }
            }
        }
        zero_pads(out + n * area * channels, height, width, channels);
    }
}

/* First pass back: inner <- gradient of scale z + shift, which is also that of added; sums <- per channel the sum of
 * inner, then that of inner * z. */
void norm_gelu_backward_bf16(const bfloat16* gradient, const bfloat16* z, const bfloat16* added, bfloat16* inner,
                             const float* scale, const float* shift, double* sums, long images, long height, long width,
                             long channels) {
    long row = width + 1, area = (height + 1) * row;
    zero_margin(inner, width, channels);
    float* partial = aligned(SLICES * 2 * channels * 4);
#pragma omp parallel for schedule(guided)
    for (long slice = 0; slice < SLICES; slice++) {
        float* to = partial + slice * 2 * channels;
        memset(to, 0, (size_t)channels * 8);
        for (long n = slice_begin(slice, images); n < slice_begin(slice + 1, images); n++) {
            for (long c = 0; c < channels; c += 32) {
                __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
                __m512 product[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
                __m512 scales[2] = {_mm512_loadu_ps(scale + c), _mm512_loadu_ps(scale + c + 16)};
                __m512 shifts[2] = {_mm512_loadu_ps(shift + c), _mm512_loadu_ps(shift + c + 16)};
                for (long y = 0; y < height; y++) {
                    for (long x = 0; x < width; x++) {
                        long at = (n * area + y * row + x) * channels + c;
                        __m512 back[2];
                        for (int half = 0; half < 2; half++) {
                            __m512 value = load16(z + at + 16 * half);
                            __m512 slope = gelu_slope(before_gelu(z, added, at + 16 * half, scales[half], shifts[half]));
                            back[half] = _mm512_mul_ps(load16(gradient + at + 16 * half), slope);
                            sum[half] = _mm512_add_ps(sum[half], back[half]);
                            product[half] = _mm512_fmadd_ps(back[half], value, product[half]);
                        }
                        store32(inner + at, back[0], back[1]);
                    }
                }
                for (int half = 0; half < 2; half++) {
                    float *at = to + c + 16 * half, *after = at + channels;
                    _mm512_storeu_ps(at, _mm512_add_ps(_mm512_loadu_ps(at), sum[half]));
                    _mm512_storeu_ps(after, _mm512_add_ps(_mm512_loadu_ps(after), product[half]));
                }
            }
            zero_pads(inner + n * area * channels, height, width, channels);
        }
    }
    add_slices(partial, sums, 2 * channels);
    free(partial);
}

/* Second pass back: out <- a inner + b z + c; a, b, c are float [3][channels]. out may be inner. */
void norm_backward_bf16(const bfloat16* inner, const bfloat16* z, bfloat16* out, const float* factors, long images,
                        long height, long width, long channels) {
    long row = width + 1, area = (height + 1) * row;
    const float *a = factors, *b = factors + channels, *constant = factors + 2 * channels;
    zero_margin(out, width, channels);
#pragma omp parallel for schedule(guided)
    for (long n = 0; n < images; n++) {
        for (long y = 0; y < height; y++) {
            for (long x = 0; x < width; x++) {
                long at = (n * area + y * row + x) * channels;
                for (long c = 0; c < channels; c += 32) {
                    __m512 back[2];
                    for (int half = 0; half < 2; half++) {
                        long k = c + 16 * half;
                        __m512 rest = _mm512_fmadd_ps(_mm512_loadu_ps(b + k), load16(z + at + k),
                                                      _mm512_loadu_ps(constant + k));
                        back[half] = _mm512_fmadd_ps(_mm512_loadu_ps(a + k), load16(inner + at + k), rest);
                    }
                    store32(out + at + c, back[0], back[1]);
                }
            }
        }
        zero_pads(out + n * area * channels, height, width, channels);
    }
}

/* ---- whitening: 2x2 convolution of 3 channels to 32, bias, GELU ---- */

/* Before the GELU, for the grid positions of one image: float [area][32]; pads hold garbage. The input is split into two
 * bfloat16 that add up to its float32, and so are the weights: 12 + 12 of a tile's 32 inputs are used.
 * tiles: four of [16 pairs of inputs][16 outputs][2]: upper parts for outputs 0-15, 16-31, then lower parts. */
static void whiten(const float* image, const bfloat16* tiles, const float* bias, float* out, bfloat16* rows, long height,
                   long width) {
    long row = width + 1, area = (height + 1) * row;
    memset(rows, 0, (size_t)rounded_up(area, 16) * 64);
    for (long y = 0; y < height; y++) {
        for (long x = 0; x < width; x++) {
            const float* corner = image + (y * (width + 1) + x) * 3;
            /* Six floats of this row of pixels and six of the next; masked loads read no further. */
            __m512 top = _mm512_maskz_loadu_ps(0x3f, corner);
            __m512 patch = _mm512_mask_expandloadu_ps(top, 0xfc0, corner + row * 3);
            __m256bh upper = _mm512_cvtneps_pbh(patch);
            __m512 upper_ps = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)upper), 16));
            __m256bh lower = _mm512_cvtneps_pbh(_mm512_sub_ps(patch, upper_ps));
            bfloat16* to = rows + (y * row + x) * 32;
            _mm256_storeu_si256((void*)to, (__m256i)upper);
            _mm256_mask_storeu_epi16(to + 12, 0xfff, (__m256i)lower);
        }
    }
    WRITTEN();
    _tile_loadd(4, tiles, 64);
    _tile_loadd(5, tiles + 512, 64);
    _tile_loadd(6, tiles + 1024, 64);
    _tile_loadd(7, tiles + 1536, 64);
    for (long p = 0; p < area; p += 16) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_loadd(2, rows + p * 32, 64);
        _tile_dpbf16ps(0, 2, 4);
        _tile_dpbf16ps(1, 2, 5);
        _tile_dpbf16ps(0, 2, 6);
        _tile_dpbf16ps(1, 2, 7);
        _tile_stored(0, out + p * 32, 128);
        _tile_stored(1, out + p * 32 + 16, 128);
    }
    __m512 bias0 = _mm512_loadu_ps(bias), bias1 = _mm512_loadu_ps(bias + 16);
    for (long p = 0; p < area; p++) {
        _mm512_store_ps(out + p * 32, _mm512_add_ps(_mm512_load_ps(out + p * 32), bias0));
        _mm512_store_ps(out + p * 32 + 16, _mm512_add_ps(_mm512_load_ps(out + p * 32 + 16), bias1));
    }
}

/* images float32 [images, height + 1, width + 1, 3] -> grid [images, height, width, 32]. */
void whiten_forward_fp32(const float* pixels, const bfloat16* tiles, const float* bias, bfloat16* out, long images,
                         long height, long width) {
    long area = (height + 1) * (width + 1);
    zero_margin(out, width, 32);
#pragma omp parallel
    {
        bfloat16* rows = aligned(rounded_up(area, 16) * 64);
        float* before = aligned(rounded_up(area, 16) * 128);
        begin_tiles();
#pragma omp for schedule(guided)
        for (long n = 0; n < images; n++) {
            whiten(pixels + n * area * 3, tiles, bias, before, rows, height, width);
            for (long p = 0; p < area; p++)
                store32(out + (n * area + p) * 32, gelu(_mm512_load_ps(before + p * 32)),
                        gelu(_mm512_load_ps(before + p * 32 + 16)));
            zero_pads(out + n * area * 32, height, width, 32);
        }
        _tile_release();
        free(rows), free(before);
    }
}

/* sums <- gradient of the bias, double [32]; the values before the GELU are computed again. */
void whiten_backward_fp32(const float* pixels, const bfloat16* tiles, const float* bias, const bfloat16* gradient,
                          double* sums, long images, long height, long width) {
    long row = width + 1, area = (height + 1) * row;
    float* partial = aligned(SLICES * 32 * 4);
#pragma omp parallel
    {
        bfloat16* rows = aligned(rounded_up(area, 16) * 64);
        float* before = aligned(rounded_up(area, 16) * 128);
        begin_tiles();
#pragma omp for schedule(guided)
        for (long slice = 0; slice < SLICES; slice++) {
            __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
            for (long n = slice_begin(slice, images); n < slice_begin(slice + 1, images); n++) {
                whiten(pixels + n * area * 3, tiles, bias, before, rows, height, width);
                for (long p = 0; p < height * row; p++) {
                    /* The gradient of a pad is 0. */
                    for (int half = 0; half < 2; half++) {
                        __m512 slope = gelu_slope(_mm512_load_ps(before + p * 32 + 16 * half));
                        sum[half] = _mm512_fmadd_ps(load16(gradient + (n * area + p) * 32 + 16 * half), slope, sum[half]);
                    }
                }
            }
            _mm512_storeu_ps(partial + slice * 32, sum[0]), _mm512_storeu_ps(partial + slice * 32 + 16, sum[1]);
        }
        _tile_release();
        free(rows), free(before);
    }
    add_slices(partial, sums, 32);
    free(partial);
}

#else
int amx_ready(void) { return 0; }
#endif
