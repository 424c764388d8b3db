/* 3x3 and 5x5 convolutions in float32 by Winograd's minimal filtering, and their gradients.
 *
 * A patch d of n x n inputs and a filter g of k x k give a tile of m x m results, m = n - k + 1, as
 * A' [(G g G') * (B' d B)] A: n n products instead of m m k k. For 3x3 filters n is 6 or 8, for 5x5 it is 8: a quarter,
 * a fifth and a sixth of them. The sum over channels is made between the brackets, where it is n n matrix products
 * [tiles][ci] x [ci][co]. Source: Lavin and Gray, arXiv:1509.09308. The gradients are the same maps transposed, so they
 * are those of what is computed forward, to rounding.
 *
 * Tensors are channels-last without gaps. ci is a multiple of 8, co of 32. With a pool only the results under its 2x2
 * windows are made.
 *
 * Results and gradients of inputs are the same whoever computes them. Gradients of weights are sums over the images of
 * each thread, added in the order of the threads: with as many threads they are the same to the bit. A value that is
 * not finite reaches all channels of the tiles that see it, and infinity becomes NaN on the way.
 */
#include <omp.h>

#include "product.h"
#include "winograd_maps.h"

#define MOST_POINTS 64
#define MOST_TILE 6
/* What a thread works on forward: tiles of about so many bytes of transformed inputs, but no fewer than so many rows,
 * and outputs at a time; for a second cache of 512 KiB. */
#define UNIT_BYTES (256 << 10)
#define LEAST_UNIT (4 * ROWS)
#define MOST_UNIT (8 * ROWS)
#define GROUP 64
/* What a thread works on back: images of so many bytes of everything transformed, but no fewer than so many tiles. */
#define CHUNK_BYTES (1 << 20)
#define LEAST_CHUNK 48

typedef struct {
    /* n: side of a patch; m: of its results; points = n n */
    long height, width, ci, co, n, m, points;
    /* tiles in a column and in a row of an image, tiles of an image */
    long down, across, tiles;
} Shape;

static Shape shape_of(long height, long width, long ci, long co, long side, long n, int pooled) {
    long m = n - side + 1;
    Shape s = {height, width, ci, co, n, m, n * n, 0, 0, 0};
    s.down = ((pooled ? height / 2 * 2 : height) + m - 1) / m;
    s.across = ((pooled ? width / 2 * 2 : width) + m - 1) / m;
    s.tiles = s.down * s.across;
    return s;
}

/* Floats from a row of a matrix to the next: not a multiple of a page, so that columns spread over the cache. */
static long row_of(long columns) { return columns % 32 ? columns : columns + 16; }

/* A function of tiles, with the sides of patches and of their results as constants. */
#define OF_FORM(function, s, ...)                   \
    ((s)->n == 6   ? function(6, 4, s, __VA_ARGS__) \
     : (s)->m == 6 ? function(8, 6, s, __VA_ARGS__) \
                   : function(8, 4, s, __VA_ARGS__))

/* ---- filters ---- */

INLINE void pack_filters(long n, long m, const Shape* s, const float* weights, float* packed, long o, long i,
                         long transposed) {
    long side = n - m + 1, depth = transposed ? s->co : s->ci;
    vec half[MOST_POINTS], points[MOST_POINTS];
    for (long x = 0; x < side; x++) {
        vec column[5];
        for (long y = 0; y < side; y++) column[y] = load(weights + ((o * side + y) * side + x) * s->ci + i);
        filter_to_points(column, half + x, n, n, m);
    }
    for (long y = 0; y < n; y++) filter_to_points(half + n * y, points + n * y, 1, n, m);
    for (long p = 0; p < n * n; p++) {
        if (transposed)
            store(packed + ((i / PANEL * n * n + p) * depth + o) * PANEL + i % PANEL, points[p]);
        else
            for (long k = 0; k < 8; k++)
                packed[((o / PANEL * n * n + p) * depth + i + k) * PANEL + o % PANEL] = points[p][k];
    }
}

/* Transforms float32 weights [co][side][side][ci] for the products: panels of columns, in them the points, in them the
 * depth, in them PANEL columns. Columns are outputs and the depth is inputs; with `transposed`, for the gradient of the
 * input, the other way round, and inputs are filled up with zeros to a multiple of 32. */
void winograd_pack_fp32(const float* weights, float* packed, long ci, long co, long side, long n, long transposed) {
    Shape s = shape_of(0, 0, ci, co, side, n, 0);
    if (transposed && ci % 32) memset(packed, 0, (size_t)(rounded_up(ci, 32) * co * s.points) * 4);
#pragma omp parallel for schedule(static)
    for (long o = 0; o < co; o++)
        for (long i = 0; i < ci; i += 8) OF_FORM(pack_filters, &s, weights, packed, o, i, transposed);
}

/* Eight outputs' weights [side][side][ci][co] for input i <- transformed gradient [points][ci][row_of(co)]. */
INLINE void unpack_gradient(long n, long m, const Shape* s, const float* gradient, float* weights, long i, long o) {
    long side = n - m + 1, row = row_of(s->co);
    vec half[MOST_POINTS], filter[5];
    for (long x = 0; x < n; x++) {
        vec column[8];
        for (long y = 0; y < n; y++) column[y] = load(gradient + ((y * n + x) * s->ci + i) * row + o);
        points_to_filter(column, half + x, n, n, m);
    }
    for (long y = 0; y < side; y++) {
        points_to_filter(half + n * y, filter, 1, n, m);
        for (long x = 0; x < side; x++) store(weights + ((y * side + x) * s->ci + i) * s->co + o, filter[x]);
    }
}

/* ---- tiles ---- */

/* Transforms the patch of tile `tile` of an image to v + point * stride, ci values for each point. */
INLINE void transform_patch(long n, long m, const Shape* s, const float* image, const float* zeros, long tile, float* v,
                            long stride) {
    long pad = (n - m) / 2, top = tile / s->across * m - pad, first = tile % s->across * m - pad;
    const float* at[MOST_POINTS];
    for (long y = 0; y < n; y++)
        for (long x = 0; x < n; x++) {
            int inside = top + y >= 0 && top + y < s->height && first + x >= 0 && first + x < s->width;
            at[n * y + x] = inside ? image + ((top + y) * s->width + first + x) * s->ci : zeros;
        }
    for (long c = 0; c < s->ci; c += 8) {
        vec half[MOST_POINTS], points[8];
        for (long x = 0; x < n; x++) {
            vec column[8];
            for (long y = 0; y < n; y++) column[y] = load(at[n * y + x] + c);
            patch_to_points(column, half + x, n, n);
        }
        for (long y = 0; y < n; y++) {
            patch_to_points(half + n * y, points, 1, n);
            for (long x = 0; x < n; x++) store(v + (n * y + x) * stride + c, points[x]);
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

/* Turns the sums of `columns` outputs from the c-th on, at sums + point * stride, into results of tile `tile` of an
 * image. */
INLINE void finish_tile(long n, long m, const Shape* s, const float* sums, long stride, long tile, const float* bias,
                        float* out, uint8_t* winner, long c, long columns) {
    long top = tile / s->across * m, first = tile % s->across * m, height = s->height, width = s->width;
    for (long k = 0; k < columns; k += 8) {
        vec half[MOST_TILE * 8], results[MOST_TILE * MOST_TILE];
        for (long x = 0; x < n; x++) {
            vec column[8];
            for (long y = 0; y < n; y++) column[y] = load(sums + (n * y + x) * stride + k);
            points_to_results(column, half + x, n, n, m);
        }
        for (long y = 0; y < m; y++) points_to_results(half + n * y, results + m * y, 1, n, m);
        if (winner) {
            for (long y = 0; y < smaller(m / 2, height / 2 - top / 2); y++)
                for (long x = 0; x < smaller(m / 2, width / 2 - first / 2); x++) {
                    vec_int which;
                    long at = ((top / 2 + y) * (width / 2) + first / 2 + x) * s->co + c + k;
                    store(out + at, pool(results + 2 * y * m + 2 * x, results + (2 * y + 1) * m + 2 * x, &which));
                    *(vec_byte*)(winner + at) = __builtin_convertvector(which, vec_byte);
                }
            continue;
        }
        vec added = bias ? load(bias + c + k) : all(0);
        for (long y = 0; y < smaller(m, height - top); y++)
            for (long x = 0; x < smaller(m, width - first); x++)
                store(out + ((top + y) * width + first + x) * s->co + c + k, results[m * y + x] + added);
    }
}

/* Transforms the gradient of a tile's results, of an image, to points at d + point * stride, co values each. */
INLINE void transform_gradient(long n, long m, const Shape* s, const float* gradient, const uint8_t* winner, long tile,
                               float* d, long stride) {
    long top = tile / s->across * m, first = tile % s->across * m, height = s->height, width = s->width;
    for (long c = 0; c < s->co; c += 8) {
        vec results[MOST_TILE * MOST_TILE] = {{0}}, half[8 * MOST_TILE], points[8];
        if (winner) {
            for (long y = 0; y < smaller(m / 2, height / 2 - top / 2); y++)
                for (long x = 0; x < smaller(m / 2, width / 2 - first / 2); x++) {
                    long at = ((top / 2 + y) * (width / 2) + first / 2 + x) * s->co + c;
                    vec value = load(gradient + at);
                    vec_int which = __builtin_convertvector(*(const vec_byte*)(winner + at), vec_int);
                    for (int k = 0; k < 4; k++) results[(2 * y + k / 2) * m + 2 * x + k % 2] = where(which == k, value);
                }
        } else {
            for (long y = 0; y < smaller(m, height - top); y++)
                for (long x = 0; x < smaller(m, width - first); x++)
                    results[m * y + x] = load(gradient + ((top + y) * width + first + x) * s->co + c);
        }
        for (long x = 0; x < m; x++) {
            vec column[MOST_TILE];
            for (long y = 0; y < m; y++) column[y] = results[m * y + x];
            results_to_points(column, half + x, m, n, m);
        }
        for (long y = 0; y < n; y++) {
            results_to_points(half + m * y, points, 1, n, m);
            for (long x = 0; x < n; x++) store(d + (n * y + x) * stride + c, points[x]);
        }
    }
}

/* ---- forward ---- */

/* out <- convolution of x [images][height][width][ci] with packed filters, plus bias [co] if there is one. With
 * `winner` the result is pooled 2x2 without a bias, and winner says which of the four won. */
void winograd_forward_fp32(const float* x, const float* packed, const float* bias, float* out, uint8_t* winner,
                           long images, long height, long width, long ci, long co, long side, long n) {
    Shape s = shape_of(height, width, ci, co, side, n, winner != NULL);
    long unit = larger(LEAST_UNIT, smaller(MOST_UNIT, UNIT_BYTES / (s.points * ci * 4) / ROWS * ROWS));
    long total = images * s.tiles;
    long v_stride = unit * ci + 16, sums_stride = unit * GROUP + 16;
    long out_area = winner ? height / 2 * (width / 2) : height * width;
#pragma omp parallel
    {
        float *v = aligned(s.points * v_stride * 4), *sums = aligned(s.points * sums_stride * 4),
              *zeros = aligned(ci * 4);
        memset(zeros, 0, (size_t)ci * 4);
#pragma omp for schedule(guided)
        for (long start = 0; start < total; start += unit) {
            long count = smaller(unit, total - start);
            for (long i = 0; i < count; i++) {
                long image = (start + i) / s.tiles;
                OF_FORM(transform_patch, &s, x + image * height * width * ci, zeros, (start + i) % s.tiles, v + i * ci,
                        v_stride);
            }
            for (long c = 0; c < co; c += GROUP) {
                long columns = smaller(GROUP, co - c);
                for (long p = 0; p < s.points; p++)
                    for (long k = 0; k < columns; k += PANEL)
                        product(count, v + p * v_stride, ci, 1, packed + ((c + k) / PANEL * s.points + p) * ci * PANEL,
                                PANEL, sums + p * sums_stride + k, GROUP, ci, 0);
                for (long i = 0; i < count; i++) {
                    long image = (start + i) / s.tiles, tile = (start + i) % s.tiles;
                    float* to = out + image * out_area * co;
                    uint8_t* to_winner = winner ? winner + image * out_area * co : NULL;
                    OF_FORM(finish_tile, &s, sums + i * GROUP, sums_stride, tile, bias, to, to_winner, c, columns);
                }
            }
        }
        free(v), free(sums), free(zeros);
    }
}

/* ---- back ---- */

/* Adds the patches of an image's tiles, given as points at d + point * stride + tile * row, and writes its ci channels;
 * `sums` has room for 8 channels of all that the patches cover. */
INLINE void gather_patches(long n, long m, const Shape* s, const float* d, long stride, long row, float* sums,
                           float* image) {
    long pad = (n - m) / 2, sums_width = (s->across - 1) * m + n, sums_height = (s->down - 1) * m + n;
    for (long c = 0; c < s->ci; c += 8) {
        memset(sums, 0, (size_t)(sums_height * sums_width * 8) * 4);
        for (long tile = 0; tile < s->tiles; tile++) {
            vec half[MOST_POINTS], patch[8];
            for (long x = 0; x < n; x++) {
                vec column[8];
                for (long y = 0; y < n; y++) column[y] = load(d + (n * y + x) * stride + tile * row + c);
                points_to_patch(column, half + x, n, n);
            }
            float* corner = sums + (tile / s->across * m * sums_width + tile % s->across * m) * 8;
            for (long y = 0; y < n; y++) {
                points_to_patch(half + n * y, patch, 1, n);
                for (long x = 0; x < n; x++) {
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

/* What one thread needs for the gradients: the images of a chunk transformed (inputs, whose place is taken by their
 * gradients; gradients of the results), sums over all its images of the products of both and of the gradients, and room
 * for patches that are laid over each other. */
typedef struct {
    long chunk, x_row, g_row, x_stride, g_stride;
    float *x, *gradient, *sums, *bias_sums, *patches;
} Workspace;

static Workspace workspace_of(const Shape* s, int wants_input) {
    Workspace w = {.x_row = row_of(wants_input ? rounded_up(s->ci, 32) : s->ci), .g_row = row_of(s->co)};
    w.chunk =
        larger(CHUNK_BYTES / 4 / (s->points * s->tiles * (w.x_row + w.g_row)), (LEAST_CHUNK + s->tiles - 1) / s->tiles);
    w.x_stride = w.chunk * s->tiles * w.x_row + 16, w.g_stride = w.chunk * s->tiles * w.g_row + 16;
    w.x = aligned(s->points * w.x_stride * 4), w.gradient = aligned(s->points * w.g_stride * 4);
    w.sums = aligned(s->points * s->ci * w.g_row * 4), w.bias_sums = aligned(s->co * 4);
    w.patches = aligned(((s->across - 1) * s->m + s->n) * ((s->down - 1) * s->m + s->n) * 8 * 4);
    memset(w.sums, 0, (size_t)(s->points * s->ci * w.g_row) * 4);
    memset(w.bias_sums, 0, (size_t)s->co * 4);
    return w;
}

static void free_workspace(Workspace w) {
    free(w.x), free(w.gradient), free(w.sums), free(w.bias_sums), free(w.patches);
}

/* Products over the transformed tiles of a chunk: sums += inputs' x gradients; then inputs <- gradients x filters. */
static void multiply_back(const Shape* s, Workspace w, long tiles, const float* packed) {
    for (long p = 0; p < s->points; p++) {
        float *x = w.x + p * w.x_stride, *gradient = w.gradient + p * w.g_stride, *sums = w.sums + p * s->ci * w.g_row;
        for (long c = 0; c < s->co; c += PANEL)
            product(s->ci, x, 1, w.x_row, gradient + c, w.g_row, sums + c, w.g_row, tiles, 1);
        for (long c = 0; packed && c < rounded_up(s->ci, 32); c += PANEL)
            product(tiles, gradient, w.g_row, 1, packed + (c / PANEL * s->points + p) * s->co * PANEL, PANEL, x + c,
                    w.x_row, s->co, 0);
    }
    /* At point 1, 1 a tile's transformed gradient is the sum of its gradients. */
    for (long c = 0; c < s->co; c += 8) {
        vec sum = all(0);
        for (long i = 0; i < tiles; i++) sum += load(w.gradient + (s->n + 1) * w.g_stride + i * w.g_row + c);
        store(w.bias_sums + c, load(w.bias_sums + c) + sum);
    }
}

/* Gradients of the convolution: of its input (unless NULL, with filters packed as transposed), of its weights, as
 * [side][side][ci][co], and of its biases [co] (unless NULL). Every thread has its share of the images, whose tiles
 * stay in its caches. */
void winograd_backward_fp32(const float* gradient, const float* x, const uint8_t* winner, const float* packed,
                            float* input_gradient, float* weight_gradient, float* bias_gradient, long images,
                            long height, long width, long ci, long co, long side, long n) {
    Shape s = shape_of(height, width, ci, co, side, n, winner != NULL);
    long area = height * width * ci, out_area = (winner ? height / 2 * (width / 2) : height * width) * co;
    long threads = larger(1, smaller(images, omp_get_max_threads()));
    Workspace* works = malloc((size_t)threads * sizeof(Workspace));
    float* zeros = aligned(ci * 4);
    memset(zeros, 0, (size_t)ci * 4);
#pragma omp parallel num_threads((int)threads)
    {
#pragma omp for schedule(static)
        for (long thread = 0; thread < threads; thread++) {
            Workspace w = works[thread] = workspace_of(&s, input_gradient != NULL);
            long end = (thread + 1) * images / threads;
            for (long first = thread * images / threads; first < end; first += w.chunk) {
                long tiles = smaller(w.chunk, end - first) * s.tiles;
                for (long i = 0; i < tiles; i++) {
                    long image = first + i / s.tiles, tile = i % s.tiles;
                    OF_FORM(transform_patch, &s, x + image * area, zeros, tile, w.x + i * w.x_row, w.x_stride);
                    OF_FORM(transform_gradient, &s, gradient + image * out_area,
                            winner ? winner + image * out_area : NULL, tile, w.gradient + i * w.g_row, w.g_stride);
                }
                multiply_back(&s, w, tiles, input_gradient ? packed : NULL);
                for (long i = 0; input_gradient && i < tiles; i += s.tiles)
                    OF_FORM(gather_patches, &s, w.x + i * w.x_row, w.x_stride, w.x_row, w.patches,
                            input_gradient + (first + i / s.tiles) * area);
            }
        }
#pragma omp for schedule(static)
        for (long i = 0; i < ci; i++) {
            for (long thread = 1; thread < threads; thread++)
                for (long p = 0; p < s.points; p++) {
                    float* to = works[0].sums + (p * ci + i) * works[0].g_row;
                    const float* from = works[thread].sums + (p * ci + i) * works[0].g_row;
                    for (long o = 0; o < co; o += 8) store(to + o, load(to + o) + load(from + o));
                }
            for (long o = 0; o < co; o += 8) OF_FORM(unpack_gradient, &s, works[0].sums, weight_gradient, i, o);
        }
    }
    for (long thread = 0; thread < threads; thread++) {
        for (long o = 0; bias_gradient && o < co; o++)
            bias_gradient[o] = (thread ? bias_gradient[o] : 0) + works[thread].bias_sums[o];
        free_workspace(works[thread]);
    }
    free(works), free(zeros);
}
