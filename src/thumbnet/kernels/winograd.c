/* 3x3 and 5x5 convolutions in float32 by Winograd's minimal filtering, and their gradients.
 *
 * A patch d of 6 x 6 inputs and a filter g of k x k give m x m results, m = 7 - k, as A' [(G g G') * (B' d B)] A: 36
 * products instead of m m k k, a quarter of them for 3x3 and not much more than a third for 5x5. The sum over channels is
 * made between the brackets, where it is 36 matrix products [tiles][ci] x [ci][co]. Interpolation points 0, 1, -1, 2, -2
 * and infinity. Source: Lavin and Gray, arXiv:1509.09308. The gradients are the same maps transposed, so they are those
 * of what is computed forward, to rounding.
 *
 * Tensors are channels-last without gaps. ci is a multiple of 8, co of 32. With a pool (3x3 alone) only the results under
 * its 2x2 windows are made.
 *
 * A value is computed the same way whoever computes it, and sums over a batch are made in the order of its pictures: no
 * result depends on the number of threads.
 */
#include <omp.h>

#include "lanes.h"

#define POINTS 36
/* A matrix product is made in blocks of ROWS x PANEL sums, which fit into the processor's registers. */
#define ROWS 6
#ifndef LANES
#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
#endif
#define PANEL (2 * LANES)
typedef float wide __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* What a thread works on forward: tiles of about so many bytes of transformed inputs, but no fewer than so many rows, and
 * outputs at a time; for a second cache of 512 KiB. */
#define UNIT_BYTES (256 << 10)
#define LEAST_UNIT (4 * ROWS)
#define MOST_UNIT (8 * ROWS)
#define GROUP 64
/* What a team works on back: images of about so many bytes of everything transformed, but no fewer than so many tiles. */
#define CHUNK_BYTES (2 << 20)
#define LEAST_CHUNK 96

typedef struct {
    long images, height, width, ci, co, side;
    /* results in a row of a tile, tiles in a column and in a row of an image, tiles of an image */
    long m, down, across, tiles;
    int pooled;
} Shape;

static Shape shape_of(long images, long height, long width, long ci, long co, long side, int pooled) {
    Shape s = {images, height, width, ci, co, side, 7 - side, 0, 0, 0, pooled};
    s.down = ((pooled ? height / 2 * 2 : height) + s.m - 1) / s.m;
    s.across = ((pooled ? width / 2 * 2 : width) + s.m - 1) / s.m;
    s.tiles = s.down * s.across;
    return s;
}

static long rounded_up(long value, long step) { return (value + step - 1) / step * step; }

/* Floats from a row of a matrix to the next: not a multiple of a page, so that columns spread over the cache. */
static long row_of(long columns) { return columns % 32 ? columns : columns + 16; }

/* ---- the one-dimensional maps; `by` is the distance from a result to the next ---- */

static inline void patch_to_points(const vec* d, vec* o, long by) {
    vec a = d[4] - 4 * d[2], b = d[3] - 4 * d[1], c = d[4] - d[2], e = 2 * (d[3] - d[1]);
    o[0] = 4 * d[0] - 5 * d[2] + d[4];
    o[by] = a + b;
    o[2 * by] = a - b;
    o[3 * by] = c + e;
    o[4 * by] = c - e;
    o[5 * by] = 4 * d[1] - 5 * d[3] + d[5];
}

static inline void points_to_patch(const vec* v, vec* o, long by) {
    vec one = v[1] + v[2], two = v[3] + v[4];
    o[0] = 4 * v[0];
    o[by] = 4 * (v[2] - v[1] + v[5]) + 2 * (v[4] - v[3]);
    o[2 * by] = -5 * v[0] - 4 * one - two;
    o[3 * by] = v[1] - v[2] + 2 * (v[3] - v[4]) - 5 * v[5];
    o[4 * by] = v[0] + one + two;
    o[5 * by] = v[5];
}

static inline void points_to_results(const vec* s, vec* o, long by, long m) {
    vec p = s[1] + s[2], q = s[1] - s[2], r = s[3] + s[4], t = s[3] - s[4];
    o[0] = s[0] + p + r;
    if (m == 2) {
        o[by] = q + 2 * t + s[5];
        return;
    }
    o[by] = q + 2 * t;
    o[2 * by] = p + 4 * r;
    o[3 * by] = q + 8 * t + s[5];
}

static inline void results_to_points(const vec* g, vec* o, long by, long m) {
    vec even = g[0], odd = g[1], even2 = g[0], odd2 = 2 * g[1];
    if (m == 4) even += g[2], odd += g[3], even2 += 4 * g[2], odd2 += 8 * g[3];
    o[0] = g[0];
    o[by] = even + odd;
    o[2 * by] = even - odd;
    o[3 * by] = even2 + odd2;
    o[4 * by] = even2 - odd2;
    o[5 * by] = g[m - 1];
}

static inline void filter_to_points(const vec* g, vec* o, long by, long side) {
    vec even = g[0] + g[2], odd = g[1], even2 = g[0] + 4 * g[2], odd2 = 2 * g[1];
    if (side == 5) even += g[4], odd += g[3], even2 += 16 * g[4], odd2 += 8 * g[3];
    o[0] = g[0] * (1 / 4.0f);
    o[by] = (even + odd) * (-1 / 6.0f);
    o[2 * by] = (even - odd) * (-1 / 6.0f);
    o[3 * by] = (even2 + odd2) * (1 / 24.0f);
    o[4 * by] = (even2 - odd2) * (1 / 24.0f);
    o[5 * by] = g[side - 1];
}

static inline void points_to_filter(const vec* u, vec* o, long by, long side) {
    vec one = (u[1] + u[2]) * (-1 / 6.0f), other = (u[1] - u[2]) * (-1 / 6.0f);
    vec two = (u[3] + u[4]) * (1 / 24.0f), other2 = (u[3] - u[4]) * (1 / 24.0f);
    o[0] = u[0] * (1 / 4.0f) + one + two;
    o[by] = other + 2 * other2;
    o[2 * by] = one + 4 * two;
    if (side == 5) {
        o[3 * by] = other + 8 * other2;
        o[4 * by] = one + 16 * two;
    }
    o[(side - 1) * by] += u[5];
}

/* ---- filters ---- */

/* Transforms float32 weights [co][side][side][ci] for the products: panels of columns, in them the points, in them the
 * depth, in them PANEL columns. Columns are outputs and the depth is inputs; with `transposed`, for the gradient of the
 * input, the other way round, and inputs are filled up with zeros to a multiple of 32. */
void winograd_pack_fp32(const float* weights, float* packed, long ci, long co, long side, long transposed) {
    long depth = transposed ? co : ci;
    if (transposed && ci % 32) memset(packed, 0, (size_t)(rounded_up(ci, 32) * co * POINTS) * 4);
#pragma omp parallel for schedule(static)
    for (long o = 0; o < co; o++) {
        for (long i = 0; i < ci; i += 8) {
            vec half[POINTS], points[POINTS];
            for (long x = 0; x < side; x++) {
                vec column[5];
                for (long y = 0; y < side; y++) column[y] = load(weights + ((o * side + y) * side + x) * ci + i);
                filter_to_points(column, half + x, 6, side);
            }
            for (long y = 0; y < 6; y++) filter_to_points(half + 6 * y, points + 6 * y, 1, side);
            if (transposed) {
                for (long p = 0; p < POINTS; p++)
                    store(packed + ((i / PANEL * POINTS + p) * depth + o) * PANEL + i % PANEL, points[p]);
                continue;
            }
            for (long p = 0; p < POINTS; p++)
                for (long k = 0; k < 8; k++)
                    packed[((o / PANEL * POINTS + p) * depth + i + k) * PANEL + o % PANEL] = points[p][k];
        }
    }
}

/* weights [side][side][ci][co] <- transformed gradient [points][ci][row_of(co)]. */
static void unpack_gradient(const float* points, float* weights, const Shape* s) {
    long row = row_of(s->co);
#pragma omp for schedule(static)
    for (long i = 0; i < s->ci; i++) {
        for (long o = 0; o < s->co; o += 8) {
            vec half[POINTS], filter[25];
            for (long x = 0; x < 6; x++) {
                vec column[6];
                for (long y = 0; y < 6; y++) column[y] = load(points + ((y * 6 + x) * s->ci + i) * row + o);
                points_to_filter(column, half + x, 6, s->side);
            }
            for (long y = 0; y < s->side; y++) {
                points_to_filter(half + 6 * y, filter, 1, s->side);
                for (long x = 0; x < s->side; x++)
                    store(weights + ((y * s->side + x) * s->ci + i) * s->co + o, filter[x]);
            }
        }
    }
}

/* ---- the matrix product ---- */

/* c [rows][PANEL] = or += a [rows][depth] x b [depth][PANEL], with the distances from row to row and along the depth. */
static inline __attribute__((always_inline)) void block(long rows, const float* a, long a_row, long a_depth,
                                                        const float* b, long b_depth, float* c, long c_row, long depth,
                                                        int add) {
    wide sums[ROWS][2];
#pragma GCC unroll 6
    for (long r = 0; r < rows; r++) {
        sums[r][0] = add ? *(const wide*)(c + r * c_row) : (wide){0};
        sums[r][1] = add ? *(const wide*)(c + r * c_row + LANES) : (wide){0};
    }
    for (long k = 0; k < depth; k++, a += a_depth, b += b_depth) {
        wide left = *(const wide*)b, right = *(const wide*)(b + LANES);
#pragma GCC unroll 6
        for (long r = 0; r < rows; r++) {
            sums[r][0] += a[r * a_row] * left;
            sums[r][1] += a[r * a_row] * right;
        }
    }
#pragma GCC unroll 6
    for (long r = 0; r < rows; r++) {
        *(wide*)(c + r * c_row) = sums[r][0];
        *(wide*)(c + r * c_row + LANES) = sums[r][1];
    }
}

static void product(long rows, const float* a, long a_row, long a_depth, const float* b, long b_depth, float* c,
                    long c_row, long depth, int add) {
    for (; rows >= ROWS; rows -= ROWS, a += ROWS * a_row, c += ROWS * c_row)
        block(ROWS, a, a_row, a_depth, b, b_depth, c, c_row, depth, add);
    switch (rows) {
        case 5: block(5, a, a_row, a_depth, b, b_depth, c, c_row, depth, add); break;
        case 4: block(4, a, a_row, a_depth, b, b_depth, c, c_row, depth, add); break;
        case 3: block(3, a, a_row, a_depth, b, b_depth, c, c_row, depth, add); break;
        case 2: block(2, a, a_row, a_depth, b, b_depth, c, c_row, depth, add); break;
        case 1: block(1, a, a_row, a_depth, b, b_depth, c, c_row, depth, add); break;
        default: break;
    }
}

/* ---- tiles ---- */

/* Transforms the patch of tile `tile` of an image to v + point * stride, ci values for each point. */
static void transform_patch(const float* image, const float* zeros, const Shape* s, long tile, float* v, long stride) {
    long pad = s->side / 2, top = tile / s->across * s->m - pad, first = tile % s->across * s->m - pad;
    const float* at[POINTS];
    for (long y = 0; y < 6; y++)
        for (long x = 0; x < 6; x++) {
            int inside = top + y >= 0 && top + y < s->height && first + x >= 0 && first + x < s->width;
            at[6 * y + x] = inside ? image + ((top + y) * s->width + first + x) * s->ci : zeros;
        }
    for (long c = 0; c < s->ci; c += 8) {
        vec half[POINTS], points[6];
        for (long x = 0; x < 6; x++) {
            vec column[6];
            for (long y = 0; y < 6; y++) column[y] = load(at[6 * y + x] + c);
            patch_to_points(column, half + x, 6);
        }
        for (long y = 0; y < 6; y++) {
            patch_to_points(half + 6 * y, points, 1);
            for (long x = 0; x < 6; x++) store(v + (6 * y + x) * stride + c, points[x]);
        }
    }
}

/* The largest of four; winner <- which one, the first of equals. NaN wins, as in torch. */
static inline vec pool(const vec* upper, const vec* lower, vec_int* winner) {
    const vec values[4] = {upper[0], upper[1], lower[0], lower[1]};
    vec best = values[0];
    *winner = (vec_int){0};
    for (int k = 1; k < 4; k++) {
        vec_int wins = (values[k] > best) | (values[k] != values[k]);
        best = choose(wins, values[k], best);
        *winner = pick(wins, (vec_int){0} + k, *winner);
    }
    return best;
}

/* Turns the sums of `columns` outputs from the c-th on, at sums + point * stride, into results of tile `tile` of an image. */
static inline __attribute__((always_inline)) void finish_tile(const float* sums, long stride, const Shape* s, long m,
                                                              long tile, const float* bias, float* out, uint8_t* winner,
                                                              long c, long columns) {
    long top = tile / s->across * m, first = tile % s->across * m, height = s->height, width = s->width;
    for (long k = 0; k < columns; k += 8) {
        vec half[4 * 6], results[4 * 4];
        for (long x = 0; x < 6; x++) {
            vec column[6];
            for (long y = 0; y < 6; y++) column[y] = load(sums + (6 * y + x) * stride + k);
            points_to_results(column, half + x, 6, m);
        }
        for (long y = 0; y < m; y++) points_to_results(half + 6 * y, results + 4 * y, 1, m);
        if (winner) {
            for (long y = 0; y < smaller(2, height / 2 - top / 2); y++)
                for (long x = 0; x < smaller(2, width / 2 - first / 2); x++) {
                    vec_int which;
                    long at = ((top / 2 + y) * (width / 2) + first / 2 + x) * s->co + c + k;
                    store(out + at, pool(results + 8 * y + 2 * x, results + 8 * y + 4 + 2 * x, &which));
                    *(vec_byte*)(winner + at) = __builtin_convertvector(which, vec_byte);
                }
            continue;
        }
        vec added = bias ? load(bias + c + k) : all(0);
        for (long y = 0; y < smaller(m, height - top); y++)
            for (long x = 0; x < smaller(m, width - first); x++)
                store(out + ((top + y) * width + first + x) * s->co + c + k, results[4 * y + x] + added);
    }
}

/* Transforms the gradient of a tile's results, of an image, to points at d + point * stride, co values each. */
static inline __attribute__((always_inline)) void transform_gradient(const float* gradient, const uint8_t* winner,
                                                                     const Shape* s, long m, long tile, float* d,
                                                                     long stride) {
    long top = tile / s->across * m, first = tile % s->across * m, height = s->height, width = s->width;
    for (long c = 0; c < s->co; c += 8) {
        vec results[4 * 4] = {{0}}, half[6 * 4], points[6];
        if (winner) {
            for (long y = 0; y < smaller(2, height / 2 - top / 2); y++)
                for (long x = 0; x < smaller(2, width / 2 - first / 2); x++) {
                    long at = ((top / 2 + y) * (width / 2) + first / 2 + x) * s->co + c;
                    vec value = load(gradient + at);
                    vec_int which = __builtin_convertvector(*(const vec_byte*)(winner + at), vec_int);
                    for (int k = 0; k < 4; k++)
                        results[(2 * y + k / 2) * 4 + 2 * x + k % 2] = where(which == k, value);
                }
        } else {
            for (long y = 0; y < smaller(m, height - top); y++)
                for (long x = 0; x < smaller(m, width - first); x++)
                    results[4 * y + x] = load(gradient + ((top + y) * width + first + x) * s->co + c);
        }
        for (long x = 0; x < m; x++) {
            vec column[4];
            for (long y = 0; y < m; y++) column[y] = results[4 * y + x];
            results_to_points(column, half + x, 4, m);
        }
        for (long y = 0; y < 6; y++) {
            results_to_points(half + 4 * y, points, 1, m);
            for (long x = 0; x < 6; x++) store(d + (6 * y + x) * stride + c, points[x]);
        }
    }
}

/* ---- forward ---- */

/* out <- convolution of x [images][height][width][ci] with packed filters, plus bias [co] if there is one. With `winner`
 * the result is pooled 2x2 without a bias, and winner says which of the four won. */
void winograd_forward_fp32(const float* x, const float* packed, const float* bias, float* out, uint8_t* winner,
                           long images, long height, long width, long ci, long co, long side) {
    Shape s = shape_of(images, height, width, ci, co, side, winner != NULL);
    long unit = larger(LEAST_UNIT, smaller(MOST_UNIT, UNIT_BYTES / (POINTS * ci * 4) / ROWS * ROWS)), total = images * s.tiles;
    long v_stride = unit * ci + 16, m_stride = unit * GROUP + 16;
    long out_area = winner ? height / 2 * (width / 2) : height * width;
#pragma omp parallel
    {
        float *v = aligned(POINTS * v_stride * 4), *sums = aligned(POINTS * m_stride * 4), *zeros = aligned(ci * 4);
        memset(zeros, 0, (size_t)ci * 4);
#pragma omp for schedule(guided)
        for (long start = 0; start < total; start += unit) {
            long count = smaller(unit, total - start);
            for (long i = 0; i < count; i++) {
                long image = (start + i) / s.tiles;
                transform_patch(x + image * height * width * ci, zeros, &s, (start + i) % s.tiles, v + i * ci, v_stride);
            }
            for (long c = 0; c < co; c += GROUP) {
                long columns = smaller(GROUP, co - c);
                for (long p = 0; p < POINTS; p++)
                    for (long k = 0; k < columns; k += PANEL)
                        product(count, v + p * v_stride, ci, 1, packed + ((c + k) / PANEL * POINTS + p) * ci * PANEL, PANEL,
                                sums + p * m_stride + k, GROUP, ci, 0);
                for (long i = 0; i < count; i++) {
                    long image = (start + i) / s.tiles, tile = (start + i) % s.tiles;
                    float* to = out + image * out_area * co;
                    uint8_t* to_winner = winner ? winner + image * out_area * co : NULL;
                    if (side == 3)
                        finish_tile(sums + i * GROUP, m_stride, &s, 4, tile, bias, to, to_winner, c, columns);
                    else
                        finish_tile(sums + i * GROUP, m_stride, &s, 2, tile, bias, to, NULL, c, columns);
                }
            }
        }
        free(v), free(sums), free(zeros);
    }
}

/* ---- back ---- */

/* Adds the patches of an image's tiles, given as points at d + point * stride + tile * row, and writes its ci channels;
 * `sums` has room for 8 channels of all that the patches cover. */
static void gather_patches(const float* d, long stride, long row, const Shape* s, float* sums, float* image) {
    long pad = s->side / 2, sums_width = (s->across - 1) * s->m + 6, sums_height = (s->down - 1) * s->m + 6;
    for (long c = 0; c < s->ci; c += 8) {
        memset(sums, 0, (size_t)(sums_height * sums_width * 8) * 4);
        for (long tile = 0; tile < s->tiles; tile++) {
            vec half[POINTS], patch[6];
            for (long x = 0; x < 6; x++) {
                vec column[6];
                for (long y = 0; y < 6; y++) column[y] = load(d + (6 * y + x) * stride + tile * row + c);
                points_to_patch(column, half + x, 6);
            }
            float* corner = sums + (tile / s->across * s->m * sums_width + tile % s->across * s->m) * 8;
            for (long y = 0; y < 6; y++) {
                points_to_patch(half + 6 * y, patch, 1);
                for (long x = 0; x < 6; x++) {
                    float* at = corner + (y * sums_width + x) * 8;
                    store(at, load(at) + patch[x]);
                }
            }
        }
        for (long y = 0; y < s->height; y++)
            for (long x = 0; x < s->width; x++)
                store(image + (y * s->width + x) * s->ci + c, load(sums + ((y + pad) * sums_width + x + pad) * 8));
    }
}

/* Gradients of the convolution: of its input (unless NULL, with filters packed as transposed), of its weights, as
 * [side][side][ci][co], and of its biases [co] (unless NULL). */
void winograd_backward_fp32(const float* gradient, const float* x, const uint8_t* winner, const float* packed,
                            float* input_gradient, float* weight_gradient, float* bias_gradient, long images,
                            long height, long width, long ci, long co, long side) {
    Shape s = shape_of(images, height, width, ci, co, side, winner != NULL);
    long columns = rounded_up(ci, 32), x_row = row_of(ci), g_row = row_of(co), back_row = row_of(columns);
    long image_floats = POINTS * s.tiles * (x_row + g_row + (input_gradient ? back_row : 0));
    long chunk = larger(CHUNK_BYTES / 4 / image_floats, (LEAST_CHUNK + s.tiles - 1) / s.tiles);
    chunk = smaller(images, larger(chunk, omp_get_max_threads()));
    long x_stride = chunk * s.tiles * x_row + 16, g_stride = chunk * s.tiles * g_row + 16;
    long back_stride = chunk * s.tiles * back_row + 16;
    long out_area = winner ? height / 2 * (width / 2) : height * width;
    float *v = aligned(POINTS * x_stride * 4), *d = aligned(POINTS * g_stride * 4);
    float *back = input_gradient ? aligned(POINTS * back_stride * 4) : NULL, *zeros = aligned(ci * 4);
    float* sums = aligned(POINTS * ci * g_row * 4);
    memset(zeros, 0, (size_t)ci * 4);
    if (bias_gradient) memset(bias_gradient, 0, (size_t)co * 4);
    long sums_groups = (co + GROUP - 1) / GROUP, back_groups = input_gradient ? (columns + GROUP - 1) / GROUP : 0;
#pragma omp parallel
    {
        long covered = ((s.across - 1) * s.m + 6) * ((s.down - 1) * s.m + 6);
        float* patches = input_gradient ? aligned(covered * 8 * 4) : NULL;
        for (long start = 0; start < images; start += chunk) {
            long count = smaller(chunk, images - start), tiles = count * s.tiles;
#pragma omp for schedule(guided)
            for (long i = 0; i < tiles; i++) {
                long image = start + i / s.tiles, tile = i % s.tiles, from = image * out_area * co;
                transform_patch(x + image * height * width * ci, zeros, &s, tile, v + i * x_row, x_stride);
                if (side == 3)
                    transform_gradient(gradient + from, winner ? winner + from : NULL, &s, 4, tile, d + i * g_row, g_stride);
                else
                    transform_gradient(gradient + from, NULL, &s, 2, tile, d + i * g_row, g_stride);
            }
#pragma omp for schedule(dynamic)
            for (long item = 0; item < POINTS * (sums_groups + back_groups); item++) {
                long p = item % POINTS, group = item / POINTS;
                if (group < sums_groups) {
                    for (long c = group * GROUP; c < smaller(co, (group + 1) * GROUP); c += PANEL)
                        product(ci, v + p * x_stride, 1, x_row, d + p * g_stride + c, g_row, sums + p * ci * g_row + c,
                                g_row, tiles, start > 0);
                    continue;
                }
                group -= sums_groups;
                for (long c = group * GROUP; c < smaller(columns, (group + 1) * GROUP); c += PANEL)
                    product(tiles, d + p * g_stride, g_row, 1, packed + (c / PANEL * POINTS + p) * co * PANEL, PANEL,
                            back + p * back_stride + c, back_row, co, 0);
            }
            if (bias_gradient) {
                /* At point 1, 1 a tile's transformed gradient is the sum of its gradients. */
#pragma omp for schedule(static) nowait
                for (long c = 0; c < co; c += 8) {
                    vec sum = all(0);
                    for (long i = 0; i < tiles; i++) sum += load(d + 7 * g_stride + i * g_row + c);
                    store(bias_gradient + c, load(bias_gradient + c) + sum);
                }
            }
            if (input_gradient) {
#pragma omp for schedule(guided) nowait
                for (long n = 0; n < count; n++)
                    gather_patches(back + n * s.tiles * back_row, back_stride, back_row, &s, patches,
                                   input_gradient + (start + n) * height * width * ci);
            }
#pragma omp barrier
        }
        unpack_gradient(sums, weight_gradient, &s);
        free(patches);
    }
    free(v), free(d), free(back), free(zeros), free(sums);
}
