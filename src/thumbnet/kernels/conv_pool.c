/* The first layer of a network on AMX: a convolution of few channels, ReLU and the max pool behind it, one picture at a
 * time, so that what lies between them, as large as nothing else in the network, never leaves the cache.
 *
 * The convolution is a product of [positions][depth] with [depth][outputs]: of each line of its window the up to 16
 * values side by side (what is over is times 0), then a 1, which the bias is the weight of; then zeros up to whole
 * tiles. Arithmetic is bfloat16 with float32 sums. Compiled to nothing where the processor has no AMX. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "amx.h"

#ifdef THUMBNET_AMX
#include "max_pool_avx512.h"

#define LINE 16
/* Sums over a batch are made in this many slices, whatever the number of threads, so that they repeat exactly. */
#define SLICES 16

static long depth_of(long lines) { return rounded_up(lines * LINE + 1, 32); }

/* Packs weights [outputs][lines][lines][channels] and biases: panels of 32 outputs, in them blocks of 32 of the depth, in
 * them two tiles of [16 pairs][16 outputs][2]. */
void conv_pool_pack_fp32(const float* weights, const float* bias, bfloat16* packed, long lines, long channels,
                         long outputs) {
    long depth = depth_of(lines), used = lines * channels;
    for (long o = 0; o < outputs; o++) {
        for (long i = 0; i < depth; i++) {
            long line = i / LINE, value = i % LINE;
            float weight = line < lines && value < used ? weights[(o * lines + line) * used + value] : 0.0f;
            if (i == lines * LINE) weight = bias[o];
            packed[((o & ~31L) * depth + (i & ~31L) * 32) + o % 32 / 16 * 512 + i % 32 / 2 * 32 + o % 16 * 2 + i % 2] =
                bfloat16_of(weight);
        }
    }
}

/* What a thread works with. */
typedef struct {
    bfloat16 *padded; /* the picture with its border of zeros */
    bfloat16 *values; /* the left operand of the product; for its gradient, pairs of positions of each 16 of the depth */
    bfloat16 *maps;   /* what is pooled, or the gradient of it: [positions][outputs] */
    bfloat16 *turned; /* [outputs][positions] */
} Space;

/* The picture and the convolution. */
typedef struct {
    long channels, lines, outputs, width, padded_width, positions, depth;
} Shape;

static Shape shape_of(Pool pool, long channels, long lines) {
    return (Shape){channels,
                   lines,
                   pool.channels,
                   pool.width,
                   pool.width + lines - 1,
                   pool.height * pool.width,
                   depth_of(lines)};
}

/* Whole tiles of positions, in an odd number of cache lines: the rows of a tile are in different sets of the cache. */
static long turned_stride(Shape shape) {
    long stride = rounded_up(shape.positions, 32);
    return stride / 32 % 2 ? stride : stride + 32;
}

static Space make_space(Shape shape, long height) {
    long rows = rounded_up(shape.positions, 32), picture = (height + shape.lines - 1) * shape.padded_width;
    long bytes[4] = {(picture * shape.channels + 2 * LINE) * 2, rows * shape.depth * 2, rows * shape.outputs * 2,
                     shape.outputs * turned_stride(shape) * 2};
    void* made[4];
    for (int i = 0; i < 4; i++) made[i] = aligned(bytes[i]);
    /* Border, and what fills up tiles; of the others nothing is read that was not written. */
    for (int i = 0; i < 2; i++) memset(made[i], 0, (size_t)bytes[i]);
    return (Space){made[0], made[1], made[2], made[3]};
}

static void free_space(Space space) {
    free(space.padded);
    free(space.values);
    free(space.maps);
    free(space.turned);
}

/* Puts a picture, float32 [height][width][channels], into its border. */
static void pad(const float* picture, Space space, Shape shape) {
    long length = shape.width * shape.channels, border = shape.lines / 2;
    for (long y = 0; y < shape.positions / shape.width; y++) {
        const float* from = picture + y * length;
        bfloat16* to = space.padded + ((y + border) * shape.padded_width + border) * shape.channels;
        for (long i = 0; i < length; i += 16) {
            long rest = length - i;
            __mmask16 some = rest < 16 ? (__mmask16)((1u << rest) - 1) : (__mmask16)-1;
            __m256i rounded = (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(some, from + i));
            _mm256_mask_storeu_epi16(to + i, some, rounded);
        }
    }
}

/* A position, and where its window begins. */
typedef struct {
    const bfloat16* window;
    long x;
} Place;

static inline Place after(Place place, Shape shape) {
    place.window += shape.channels;
    if (++place.x == shape.width) {
        place.x = 0;
        place.window += (shape.lines - 1) * shape.channels;
    }
    return place;
}

static inline __m256i line_of(Place place, long line, Shape shape) {
    return _mm256_loadu_si256((const void*)(place.window + line * shape.padded_width * shape.channels));
}

/* maps <- the convolution of a padded picture. */
static void convolve(Space space, Shape shape, const bfloat16* packed) {
    Place place = {space.padded, 0};
    for (long p = 0; p < shape.positions; p++, place = after(place, shape)) {
        bfloat16* to = space.values + p * shape.depth;
        for (long line = 0; line < shape.lines; line++)
            _mm256_store_si256((void*)(to + line * LINE), line_of(place, line, shape));
        to[shape.lines * LINE] = 0x3f80; /* 1 */
    }
    WRITTEN();
    Ahead nothing = {NULL, NULL};
    for (long p = 0; p < shape.positions; p += 32) {
        for (long o = 0; o < shape.outputs; o += 32) {
            zero_sums();
            add_product(space.values + p * shape.depth, shape.depth, packed + o * shape.depth, shape.depth, &nothing);
            store_sums(space.maps + p * shape.outputs + o, shape.outputs, 32);
        }
    }
}

/* out, winner <- the pooled convolution of pictures float32 [images][height][width][channels]; padded so that its sides
 * stay, then pooled as `max_pool_forward` does. */
void conv_pool_forward_fp32(const float* pictures, const bfloat16* packed, bfloat16* out, uint8_t* winner, long images,
                            long height, long width, long channels, long lines, long outputs, long out_height,
                            long out_width, long kernel, long stride, long top, long left, long relu) {
    const Pool pool = {height, width, outputs, out_height, out_width, kernel, stride, top, left};
    const Shape shape = shape_of(pool, channels, lines);
    long out_area = out_height * out_width * outputs;
#pragma omp parallel
    {
        Space space = make_space(shape, height);
        begin_tiles();
#pragma omp for schedule(guided)
        for (long n = 0; n < images; n++) {
            pad(pictures + n * shape.positions * channels, space, shape);
            convolve(space, shape, packed);
            for (long oy = 0; oy < out_height; oy++)
                pool_row(pool, space.maps, out + n * out_area, winner + n * out_area, oy, relu);
        }
        _tile_release();
        free_space(space);
    }
}

/* values <- of each 16 of the depth the pairs of positions [positions / 2][16][2] of a padded picture. */
static void pair_positions(Space space, Shape shape) {
    long pairs_of_all = rounded_up(shape.positions, 32) / 2;
    Place first = {space.padded, 0};
    for (long p = 0; p < shape.positions; p += 2) {
        Place second = after(first, shape);
        for (long line = 0; line < shape.lines; line++) {
            __m512i low = _mm512_cvtepu16_epi32(line_of(first, line, shape));
            __m512i high = _mm512_setzero_si512();
            if (p + 1 < shape.positions) high = _mm512_cvtepu16_epi32(line_of(second, line, shape));
            _mm512_store_si512(space.values + (line * pairs_of_all + p / 2) * 32,
                               _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
        /* Ones, for the gradient of the biases. */
        _mm512_store_si512(space.values + (shape.lines * pairs_of_all + p / 2) * 32,
                           _mm512_maskz_set1_epi32(1, p + 1 < shape.positions ? 0x3f803f80 : 0x3f80));
        first = after(second, shape);
    }
}

/* Adds turned [outputs][positions] times values [positions][depth] to sums, float32 [outputs][depth]. */
static void add_weight_gradient(Space space, Shape shape, float* sums) {
    long positions = rounded_up(shape.positions, 32), stride = turned_stride(shape), row = shape.depth * 4;
    WRITTEN();
    for (long o = 0; o < shape.outputs; o += 32) {
        for (long d = 0; d < shape.depth; d += 32) {
            float *upper = sums + o * shape.depth + d, *lower = upper + 16 * shape.depth;
            const bfloat16 *a = space.turned + o * stride, *b = space.values + d / 16 * positions * 16;
            _tile_loadd(0, upper, row);
            _tile_loadd(1, upper + 16, row);
            _tile_loadd(2, lower, row);
            _tile_loadd(3, lower + 16, row);
            for (long p = 0; p < positions; p += 32) {
                _tile_loadd(4, a + p, stride * 2);
                _tile_loadd(6, b + p * 16, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, b + (positions + p) * 16, 64);
                _tile_dpbf16ps(1, 4, 7);
                _tile_loadd(5, a + 16 * stride + p, stride * 2);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(0, upper, row);
            _tile_stored(1, upper + 16, row);
            _tile_stored(2, lower, row);
            _tile_stored(3, lower + 16, row);
        }
    }
}

/* sums <- the gradients of weights and biases, float32 [outputs][depth], from the gradient of the pooled result. */
void conv_pool_backward_bf16(const bfloat16* gradient, const uint8_t* winner, const float* pictures, float* sums,
                             long images, long height, long width, long channels, long lines, long outputs,
                             long out_height, long out_width, long kernel, long stride, long top, long left) {
    const Pool pool = {height, width, outputs, out_height, out_width, kernel, stride, top, left};
    const Shape shape = shape_of(pool, channels, lines);
    long out_area = out_height * out_width * outputs, weights = outputs * shape.depth;
    float* partial = aligned(SLICES * weights * 4);
    memset(partial, 0, (size_t)(SLICES * weights) * 4);
    Windows columns[width];
    for (long x = 0; x < width; x++) columns[x] = windows_of_column(pool, x);
#pragma omp parallel
    {
        Space space = make_space(shape, height);
        begin_tiles();
#pragma omp for schedule(guided)
        for (long slice = 0; slice < SLICES; slice++) {
            for (long n = slice * images / SLICES; n < (slice + 1) * images / SLICES; n++) {
                pad(pictures + n * shape.positions * channels, space, shape);
                pair_positions(space, shape);
                for (long y = 0; y < height; y++)
                    unpool_row(pool, columns, gradient + n * out_area, winner + n * out_area,
                               space.maps + y * width * outputs, y);
                for (long o = 0; o < outputs; o += 16)
                    turn(space.maps + o, outputs, space.turned + o * turned_stride(shape), turned_stride(shape),
                         shape.positions);
                add_weight_gradient(space, shape, partial + slice * weights);
            }
        }
        _tile_release();
        free_space(space);
    }
    for (long i = 0; i < weights; i++) {
        sums[i] = 0;
        for (long slice = 0; slice < SLICES; slice++) sums[i] += partial[slice * weights + i];
    }
    free(partial);
}
#endif
