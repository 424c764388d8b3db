/* The float32 layers around the speed network's convolutions: batch normalization + GELU, two passes over memory each
 * way, and whitening + GELU, one pass. Tensors are channels-last without gaps; channels are multiples of 8.
 *
 * Sums over a batch are made in SLICES, whatever the number of threads, so that they repeat exactly.
 */
#include "lanes.h"

#define SLICES 64
/* Sums of float32 over so many positions, or over a row of a whitened picture, are added in double. */
#define POSITIONS 32

static long slice_begin(long slice, long count) { return slice * count / SLICES; }

static void add_slices(const double* partial, double* sums, long count) {
    for (long i = 0; i < count; i++) {
        sums[i] = 0;
        for (long slice = 0; slice < SLICES; slice++) sums[i] += partial[slice * count + i];
    }
}

static inline void add_to(double* sums, vec values) {
    for (int i = 0; i < 8; i++) sums[i] += values[i];
}

/* ---- GELU ---- */

/* exp(-x) for x from 0 to 87. */
static inline vec exp_minus(vec x) {
    /* 2^(n + f) with |f| <= 1/2: n goes into the exponent, 2^f is its Taylor polynomial in f ln 2. */
    vec scaled = x * -1.44269504f, magic = all(12582912.0f);
    vec n = (scaled + magic) - magic, f = (scaled - n) * 0.69314718f;
    vec power = all(1 / 720.0f);
    power = power * f + 1 / 120.0f;
    power = power * f + 1 / 24.0f;
    power = power * f + 1 / 6.0f;
    power = power * f + 0.5f;
    power = power * f + 1.0f;
    power = power * f + 1.0f;
    return (vec)((vec_int)power + (__builtin_convertvector(n, vec_int) << 23));
}

/* The normal distribution's cumulative function, to 1e-7, and its density; beyond 13 they stay what they are there,
 * which is next to nothing but for numbers beyond 1e30. Source: Abramowitz and Stegun, 7.1.26. */
static inline void normal(vec x, vec* cumulative, vec* density) {
    vec magnitude = choose(x < 0, -x, x), bounded = choose(magnitude < 13, magnitude, all(13));
    vec bell = exp_minus(bounded * bounded * 0.5f), t = 1 / (1 + 0.3275911f * 0.70710678f * bounded);
    vec tail = all(1.061405429f);
    tail = tail * t - 1.453152027f;
    tail = tail * t + 1.421413741f;
    tail = tail * t - 0.284496736f;
    tail = tail * t + 0.254829592f;
    tail = tail * t * bell * 0.5f;
    *cumulative = choose(x < 0, tail, 1 - tail);
    *density = bell * 0.39894228f;
}

/* NaN stays NaN: it is multiplied by x itself. */
static inline vec gelu(vec x) {
    vec cumulative, density;
    normal(x, &cumulative, &density);
    return x * cumulative;
}

static inline vec gelu_slope(vec x) {
    vec cumulative, density;
    normal(x, &cumulative, &density);
    return cumulative + x * density;
}

/* ---- batch normalization + GELU ---- */

/* sums <- sums and sums of squares of each channel, double [2][channels]. */
void norm_sums_fp32(const float* z, double* sums, long images, long height, long width, long channels) {
    long positions = images * height * width;
    double* partial = aligned(SLICES * 2 * channels * 8);
#pragma omp parallel for schedule(guided)
    for (long slice = 0; slice < SLICES; slice++) {
        double* to = partial + slice * 2 * channels;
        memset(to, 0, (size_t)(2 * channels) * 8);
        long end = slice_begin(slice + 1, positions);
        for (long first = slice_begin(slice, positions); first < end; first += POSITIONS) {
            for (long c = 0; c < channels; c += 8) {
                vec sum = all(0), square = all(0);
                for (long p = first; p < smaller(end, first + POSITIONS); p++) {
                    vec value = load(z + p * channels + c);
                    sum += value, square += value * value;
                }
                add_to(to + c, sum), add_to(to + channels + c, square);
            }
        }
    }
    add_slices(partial, sums, 2 * channels);
    free(partial);
}

static inline vec before_gelu(const float* z, const float* added, long at, vec scale, vec shift) {
    vec value = load(z + at) * scale + shift;
    if (added) value += load(added + at);
    return value;
}

/* out <- GELU(scale z + shift + added); added may be NULL. */
void norm_gelu_forward_fp32(const float* z, const float* added, float* out, const float* scale, const float* shift,
                            long images, long height, long width, long channels) {
#pragma omp parallel for schedule(guided)
    for (long row = 0; row < images * height; row++)
        for (long at = row * width * channels; at < (row + 1) * width * channels; at += channels)
            for (long c = 0; c < channels; c += 8)
                store(out + at + c, gelu(before_gelu(z, added, at + c, load(scale + c), load(shift + c))));
}

/* First pass back: inner <- gradient * GELU'(scale z + shift + added); sums <- sums of inner and of inner * z, double
 * [2][channels]. */
void norm_gelu_backward_fp32(const float* gradient, const float* z, const float* added, float* inner,
                             const float* scale, const float* shift, double* sums, long images, long height, long width,
                             long channels) {
    long positions = images * height * width;
    double* partial = aligned(SLICES * 2 * channels * 8);
#pragma omp parallel for schedule(guided)
    for (long slice = 0; slice < SLICES; slice++) {
        double* to = partial + slice * 2 * channels;
        memset(to, 0, (size_t)(2 * channels) * 8);
        long end = slice_begin(slice + 1, positions);
        for (long first = slice_begin(slice, positions); first < end; first += POSITIONS) {
            for (long c = 0; c < channels; c += 8) {
                vec sum = all(0), product = all(0), scales = load(scale + c), shifts = load(shift + c);
                for (long p = first; p < smaller(end, first + POSITIONS); p++) {
                    long at = p * channels + c;
                    vec back = load(gradient + at) * gelu_slope(before_gelu(z, added, at, scales, shifts));
                    store(inner + at, back);
                    sum += back, product += back * load(z + at);
                }
                add_to(to + c, sum), add_to(to + channels + c, product);
            }
        }
    }
    add_slices(partial, sums, 2 * channels);
    free(partial);
}

/* Second pass back: out <- a inner + b z + c; a, b, c are float [3][channels]. out may be inner. */
void norm_backward_fp32(const float* inner, const float* z, float* out, const float* factors, long images, long height,
                        long width, long channels) {
    const float *a = factors, *b = factors + channels, *constant = factors + 2 * channels;
#pragma omp parallel for schedule(guided)
    for (long row = 0; row < images * height; row++)
        for (long at = row * width * channels; at < (row + 1) * width * channels; at += channels)
            for (long c = 0; c < channels; c += 8)
                store(out + at + c,
                      load(a + c) * load(inner + at + c) + load(b + c) * load(z + at + c) + load(constant + c));
}

/* ---- whitening: 2x2 convolution without padding, bias, GELU ---- */

/* Before the GELU: filters f to f + 7 at a pixel; weights [2][2][channels][filters], pixels [..][width + 1][channels].
 */
static inline vec whiten(const float* pixel, const float* weights, const float* bias, long width, long channels,
                         long filters, long f) {
    vec sum = load(bias + f);
    for (long y = 0; y < 2; y++)
        for (long k = 0; k < 2 * channels; k++)
            sum += pixel[y * (width + 1) * channels + k] * load(weights + (y * 2 * channels + k) * filters + f);
    return sum;
}

/* images [images][height + 1][width + 1][channels] -> out [images][height][width][filters]. */
void whiten_dense_forward_fp32(const float* pixels, const float* weights, const float* bias, float* out, long images,
                               long height, long width, long channels, long filters) {
#pragma omp parallel for schedule(guided)
    for (long row = 0; row < images * height; row++) {
        const float* pixel = pixels + (row / height * (height + 1) + row % height) * (width + 1) * channels;
        float* to = out + row * width * filters;
        for (long x = 0; x < width; x++, pixel += channels, to += filters)
            for (long f = 0; f < filters; f += 8)
                store(to + f, gelu(whiten(pixel, weights, bias, width, channels, filters, f)));
    }
}

/* sums <- gradient of the bias, double [filters]; the values before the GELU are computed again. */
void whiten_dense_backward_fp32(const float* pixels, const float* weights, const float* bias, const float* gradient,
                                double* sums, long images, long height, long width, long channels, long filters) {
    double* partial = aligned(SLICES * filters * 8);
#pragma omp parallel for schedule(guided)
    for (long slice = 0; slice < SLICES; slice++) {
        double* total = partial + slice * filters;
        memset(total, 0, (size_t)filters * 8);
        for (long row = slice_begin(slice, images * height); row < slice_begin(slice + 1, images * height); row++) {
            const float* first = pixels + (row / height * (height + 1) + row % height) * (width + 1) * channels;
            for (long f = 0; f < filters; f += 8) {
                vec sum = all(0);
                for (long x = 0; x < width; x++) {
                    vec value = whiten(first + x * channels, weights, bias, width, channels, filters, f);
                    sum += load(gradient + (row * width + x) * filters + f) * gelu_slope(value);
                }
                add_to(total + f, sum);
            }
        }
    }
    add_slices(partial, sums, filters);
    free(partial);
}
