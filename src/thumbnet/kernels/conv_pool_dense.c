/* A network's first convolution with its bias, and the max pool behind it, in float32: a picture at a time, so that
 * what the convolution makes, the largest thing in such a network, stays in the cache, forward and back.
 *
 * The convolution is a matrix product: a pixel's window, kernel lines of kernel * channels values and a 1 for the bias,
 * times filters [window][outputs]. Tensors are channels-last without gaps; outputs are a multiple of 32. Pictures need
 * no gradient; those of the filters are the same to the bit with as many threads.
 */
#include <math.h>
#include <omp.h>

#include "product.h"

/* Rows of pixels whose gradients are multiplied at a time. */
#define ROWS_BACK 2

typedef struct {
    long height, width, channels, side, outputs, depth;
    /* of the pool */
    long out_height, out_width, kernel, stride, top, left;
} Layers;

static Layers layers_of(long height, long width, long channels, long side, long outputs, long out_height,
                        long out_width, long kernel, long stride, long top, long left) {
    return (Layers){height,     width,     channels, side,   outputs, side * side * channels + 1,
                    out_height, out_width, kernel,   stride, top,     left};
}

static long padded_width(const Layers* s) { return (s->width + s->side - 1) * s->channels; }

static long padded_size(const Layers* s) { return (s->height + s->side - 1) * padded_width(s); }

/* Copies a picture into the middle of `padded`, whose border holds zeros. */
static void pad(const Layers* s, const float* image, float* padded) {
    long line = s->width * s->channels, pad = s->side / 2;
    for (long y = 0; y < s->height; y++)
        memcpy(padded + (y + pad) * padded_width(s) + pad * s->channels, image + y * line, (size_t)line * 4);
}

/* windows [width][depth] <- the windows around row y. */
static void unroll_row(const Layers* s, const float* padded, long y, float* windows) {
    long line = s->side * s->channels;
    for (long x = 0; x < s->width; x++, windows += s->depth) {
        for (long k = 0; k < s->side; k++)
            memcpy(windows + k * line, padded + (y + k) * padded_width(s) + x * s->channels, (size_t)line * 4);
        windows[s->depth - 1] = 1;
    }
}

/* Max pool of maps [height][width][outputs]; winner <- which position of the window won, 255 where ReLU cut it off. */
static void pool(const Layers* s, const float* maps, float* out, uint8_t* winner, int relu) {
    for (long oy = 0; oy < s->out_height; oy++) {
        for (long ox = 0; ox < s->out_width; ox++, out += s->outputs, winner += s->outputs) {
            long y0 = oy * s->stride - s->top, x0 = ox * s->stride - s->left;
            for (long c = 0; c < s->outputs; c += 8) {
                vec best = all(-INFINITY);
                vec_int which = {0};
                for (long y = larger(y0, 0); y < smaller(y0 + s->kernel, s->height); y++)
                    for (long x = larger(x0, 0); x < smaller(x0 + s->kernel, s->width); x++) {
                        vec value = load(maps + (y * s->width + x) * s->outputs + c);
                        vec_int wins = (value > best) | (value != value);
                        best = choose(wins, value, best);
                        which = pick(wins, (vec_int){0} + (int)((y - y0) * s->kernel + x - x0), which);
                    }
                if (relu) {
                    vec_int cut = best <= 0;
                    best = choose(cut, all(0), best);
                    which = pick(cut, (vec_int){0} + 255, which);
                }
                store(out + c, best);
                *(vec_byte*)(winner + c) = __builtin_convertvector(which, vec_byte);
            }
        }
    }
}

/* maps <- each pooled gradient at the position that won it, added up where a position won several windows. */
static void unpool(const Layers* s, const float* gradient, const uint8_t* winner, float* maps) {
    memset(maps, 0, (size_t)(s->height * s->width * s->outputs) * 4);
    for (long oy = 0; oy < s->out_height; oy++) {
        for (long ox = 0; ox < s->out_width; ox++, gradient += s->outputs, winner += s->outputs) {
            long y0 = oy * s->stride - s->top, x0 = ox * s->stride - s->left;
            for (long y = larger(y0, 0); y < smaller(y0 + s->kernel, s->height); y++)
                for (long x = larger(x0, 0); x < smaller(x0 + s->kernel, s->width); x++) {
                    float* to = maps + (y * s->width + x) * s->outputs;
                    int position = (int)((y - y0) * s->kernel + x - x0);
                    for (long c = 0; c < s->outputs; c += 8) {
                        vec_int which = __builtin_convertvector(*(const vec_byte*)(winner + c), vec_int);
                        store(to + c, load(to + c) + where(which == position, load(gradient + c)));
                    }
                }
        }
    }
}

/* out, winner [images][out_height][out_width][outputs] <- the pooled convolution of images; filters [depth][outputs],
 * the last row the biases. */
void conv_pool_dense_forward_fp32(const float* images, const float* filters, float* out, uint8_t* winner, long count,
                                  long height, long width, long channels, long side, long outputs, long out_height,
                                  long out_width, long kernel, long stride, long top, long left, long relu) {
    Layers s = layers_of(height, width, channels, side, outputs, out_height, out_width, kernel, stride, top, left);
    long area = height * width, out_area = out_height * out_width * outputs;
#pragma omp parallel
    {
        float *padded = aligned(padded_size(&s) * 4), *windows = aligned(width * s.depth * 4);
        float* maps = aligned(area * outputs * 4);
        memset(padded, 0, (size_t)padded_size(&s) * 4);
#pragma omp for schedule(guided)
        for (long n = 0; n < count; n++) {
            pad(&s, images + n * area * channels, padded);
            for (long y = 0; y < height; y++) {
                unroll_row(&s, padded, y, windows);
                for (long c = 0; c < outputs; c += PANEL)
                    product(width, windows, s.depth, 1, filters + c, outputs, maps + y * width * outputs + c, outputs,
                            s.depth, 0);
            }
            pool(&s, maps, out + n * out_area, winner + n * out_area, relu != 0);
        }
        free(padded), free(windows), free(maps);
    }
}

/* sums [depth][outputs] <- gradients of the filters; every thread adds up those of its share of the images. */
void conv_pool_dense_backward_fp32(const float* gradient, const uint8_t* winner, const float* images, float* sums,
                                   long count, long height, long width, long channels, long side, long outputs,
                                   long out_height, long out_width, long kernel, long stride, long top, long left) {
    Layers s = layers_of(height, width, channels, side, outputs, out_height, out_width, kernel, stride, top, left);
    long area = height * width, out_area = out_height * out_width * outputs, size = s.depth * outputs;
    long threads = larger(1, smaller(count, omp_get_max_threads()));
    float* partial = aligned(threads * size * 4);
    memset(partial, 0, (size_t)(threads * size) * 4);
#pragma omp parallel num_threads((int)threads)
    {
        float *padded = aligned(padded_size(&s) * 4), *windows = aligned(ROWS_BACK * width * s.depth * 4);
        float* maps = aligned(area * outputs * 4);
        memset(padded, 0, (size_t)padded_size(&s) * 4);
#pragma omp for schedule(static)
        for (long thread = 0; thread < threads; thread++) {
            for (long n = thread * count / threads; n < (thread + 1) * count / threads; n++) {
                pad(&s, images + n * area * channels, padded);
                unpool(&s, gradient + n * out_area, winner + n * out_area, maps);
                for (long y = 0; y < height; y += ROWS_BACK) {
                    long rows = smaller(ROWS_BACK, height - y);
                    for (long k = 0; k < rows; k++) unroll_row(&s, padded, y + k, windows + k * width * s.depth);
                    for (long c = 0; c < outputs; c += PANEL)
                        product(s.depth, windows, 1, s.depth, maps + y * width * outputs + c, outputs,
                                partial + thread * size + c, outputs, rows * width, 1);
                }
            }
        }
        free(padded), free(windows), free(maps);
    }
    memcpy(sums, partial, (size_t)size * 4);
    for (long thread = 1; thread < threads; thread++)
        for (long i = 0; i < size; i += 8) store(sums + i, load(sums + i) + load(partial + thread * size + i));
    free(partial);
}
