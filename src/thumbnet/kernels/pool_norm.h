/* Pooling, response normalization and patches of channels-last tensors, for one element type.
 *
 * Included once per type with: VALUE (the element), NAME(x) (suffixes a function), LOAD(v) and STORE(f) (to and from
 * float), FAST(call) (the call of a faster form that tells whether it has done the work, or 0). Tensors are [images, height, width, channels] in memory; every loop over channels is contiguous and
 * vectorizes.
 */

static inline void NAME(load)(const VALUE* restrict from, float* restrict to, long channels) {
    for (long c = 0; c < channels; c++) to[c] = LOAD(from[c]);
}

/* Max pooling, windows clipped at the borders; with `relu`, of max(x, 0). `winner` keeps which of the window's
 * kernel * kernel positions won, 255 where ReLU cut the maximum off, so that backward needs neither input nor output.
 */
void NAME(max_pool_forward)(const VALUE* restrict input, VALUE* restrict output, uint8_t* restrict winner, long images,
                            long height, long width, long channels, long out_height, long out_width, long kernel,
                            long stride, long top, long left, long relu) {
    if (FAST(max_pool_forward_avx512(input, output, winner, images, height, width, channels, out_height, out_width,
                                     kernel, stride, top, left, relu)))
        return;
#pragma omp parallel for collapse(2) schedule(static)
    for (long n = 0; n < images; n++) {
        for (long oy = 0; oy < out_height; oy++) {
            float best[MAX_CHANNELS], row[MAX_CHANNELS];
            int32_t which[MAX_CHANNELS];
            for (long ox = 0; ox < out_width; ox++) {
                long y0 = oy * stride - top, x0 = ox * stride - left;
                for (long c = 0; c < channels; c++) best[c] = -INFINITY, which[c] = 0;
                for (long ky = 0; ky < kernel; ky++) {
                    if (y0 + ky < 0 || y0 + ky >= height) continue;
                    for (long kx = 0; kx < kernel; kx++) {
                        if (x0 + kx < 0 || x0 + kx >= width) continue;
                        NAME(load)(input + ((n * height + y0 + ky) * width + x0 + kx) * channels, row, channels);
                        int32_t position = (int32_t)(ky * kernel + kx);
                        for (long c = 0; c < channels; c++) {
                            /* A NaN wins and stays, as in torch: it must reach the loss and be seen. */
                            int take = (row[c] > best[c]) | (row[c] != row[c]);
                            best[c] = take ? row[c] : best[c];
                            which[c] = take ? position : which[c];
                        }
                    }
                }
                long at = ((n * out_height + oy) * out_width + ox) * channels;
                if (relu)
                    for (long c = 0; c < channels; c++) {
                        which[c] = best[c] <= 0 ? 255 : which[c];
                        best[c] = best[c] <= 0 ? 0 : best[c];
                    }
                for (long c = 0; c < channels; c++) output[at + c] = STORE(best[c]);
                for (long c = 0; c < channels; c++) winner[at + c] = (uint8_t)which[c];
            }
        }
    }
}

/* Gathers: each input position sums the gradients of the windows it won, so nothing is zeroed or written twice. */
void NAME(max_pool_backward)(const VALUE* restrict gradient, const uint8_t* restrict winner,
                             VALUE* restrict input_gradient, long images, long height, long width, long channels,
                             long out_height, long out_width, long kernel, long stride, long top, long left) {
    if (FAST(max_pool_backward_avx512(gradient, winner, input_gradient, images, height, width, channels, out_height,
                                      out_width, kernel, stride, top, left)))
        return;
#pragma omp parallel for collapse(2) schedule(static)
    for (long n = 0; n < images; n++) {
        for (long y = 0; y < height; y++) {
            float sum[MAX_CHANNELS];
            for (long x = 0; x < width; x++) {
                for (long c = 0; c < channels; c++) sum[c] = 0;
                for (long ky = (y + top) % stride; ky < kernel; ky += stride) {
                    long oy = (y + top - ky) / stride;
                    if (y + top < ky || oy >= out_height) continue;
                    for (long kx = (x + left) % stride; kx < kernel; kx += stride) {
                        long ox = (x + left - kx) / stride;
                        if (x + left < kx || ox >= out_width) continue;
                        long at = ((n * out_height + oy) * out_width + ox) * channels;
                        uint8_t position = (uint8_t)(ky * kernel + kx);
                        for (long c = 0; c < channels; c++)
                            sum[c] += winner[at + c] == position ? LOAD(gradient[at + c]) : 0.0f;
                    }
                }
                VALUE* to = input_gradient + ((n * height + y) * width + x) * channels;
                for (long c = 0; c < channels; c++) to[c] = STORE(sum[c]);
            }
        }
    }
}

/* y = x * (bias + alpha * band(x^2))^-0.75 over rows of channels; with `relu`, of max(x, 0). */
void NAME(lrn_forward)(const VALUE* restrict input, VALUE* restrict output, long rows, long channels, long radius,
                       float bias, float alpha, long relu) {
    if (FAST(lrn_forward_avx512(input, output, rows, channels, radius, bias, alpha, relu))) return;
#pragma omp parallel
    {
        float x[MAX_CHANNELS], s[MAX_CHANNELS], padded[MAX_CHANNELS + 2 * MAX_RADIUS] = {0};
#pragma omp for schedule(static)
        for (long r = 0; r < rows; r++) {
            NAME(load)(input + r * channels, x, channels);
            if (relu)
                for (long c = 0; c < channels; c++) x[c] = x[c] <= 0 ? 0 : x[c];
            for (long c = 0; c < channels; c++) padded[radius + c] = x[c] * x[c];
            band_sum(padded, s, channels, radius);
            for (long c = 0; c < channels; c++) s[c] = bias + alpha * s[c];
            power_minus_three_quarters(s, channels);
            for (long c = 0; c < channels; c++) output[r * channels + c] = STORE(x[c] * s[c]);
        }
    }
}

/* dx = g s^-b - 2 a b x band(g x s^(-b-1)), with s computed again from the input: cheaper than keeping it. */
void NAME(lrn_backward)(const VALUE* restrict gradient, const VALUE* restrict input, VALUE* restrict input_gradient,
                        long rows, long channels, long radius, float bias, float alpha, long relu) {
    if (FAST(lrn_backward_avx512(gradient, input, input_gradient, rows, channels, radius, bias, alpha, relu))) return;
#pragma omp parallel
    {
        float x[MAX_CHANNELS], g[MAX_CHANNELS], s[MAX_CHANNELS], scale[MAX_CHANNELS], inner[MAX_CHANNELS];
        float padded[MAX_CHANNELS + 2 * MAX_RADIUS] = {0};
#pragma omp for schedule(static)
        for (long r = 0; r < rows; r++) {
            const VALUE* from = input + r * channels;
            NAME(load)(from, x, channels);
            NAME(load)(gradient + r * channels, g, channels);
            if (relu)
                for (long c = 0; c < channels; c++) x[c] = x[c] <= 0 ? 0 : x[c];
            for (long c = 0; c < channels; c++) padded[radius + c] = x[c] * x[c];
            band_sum(padded, s, channels, radius);
            for (long c = 0; c < channels; c++) scale[c] = s[c] = bias + alpha * s[c];
            power_minus_three_quarters(scale, channels);
            for (long c = 0; c < channels; c++) padded[radius + c] = g[c] * x[c] * scale[c] / s[c];
            band_sum(padded, inner, channels, radius);
            float factor = 2 * 0.75f * alpha;
            for (long c = 0; c < channels; c++) {
                float dx = g[c] * scale[c] - factor * x[c] * inner[c];
                input_gradient[r * channels + c] = STORE(relu && x[c] == 0 ? 0.0f : dx);
            }
        }
    }
}

/* sums[c] <- the sum over the window of `reach` around (y, x), clipped at the borders, of values[.., c]^2. */
static inline void NAME(window_squares)(const VALUE* restrict values, float* restrict sums, long y, long x, long height,
                                        long width, long channels, long reach) {
    for (long c = 0; c < channels; c++) sums[c] = 0;
    for (long wy = y < reach ? 0 : y - reach; wy <= y + reach && wy < height; wy++)
        for (long wx = x < reach ? 0 : x - reach; wx <= x + reach && wx < width; wx++) {
            const VALUE* at = values + (wy * width + wx) * channels;
            for (long c = 0; c < channels; c++) sums[c] += LOAD(at[c]) * LOAD(at[c]);
        }
}

/* y = x * (1 + alpha * window(x^2))^-0.75, the window lying within one channel's map. */
void NAME(map_norm_forward)(const VALUE* restrict input, VALUE* restrict output, long images, long height, long width,
                            long channels, long reach, float alpha) {
#pragma omp parallel for schedule(static)
    for (long n = 0; n < images; n++) {
        const VALUE* image = input + n * height * width * channels;
        VALUE* to = output + n * height * width * channels;
        float s[MAX_CHANNELS];
        for (long p = 0; p < height * width; p++) {
            NAME(window_squares)(image, s, p / width, p % width, height, width, channels, reach);
            for (long c = 0; c < channels; c++) s[c] = 1 + alpha * s[c];
            power_minus_three_quarters(s, channels);
            for (long c = 0; c < channels; c++) to[p * channels + c] = STORE(LOAD(image[p * channels + c]) * s[c]);
        }
    }
}

/* dx = g s^-b - 2 a b x window(g x s^(-b-1)). `inner` has room for the latter's terms, float [images, H, W, C]. */
void NAME(map_norm_backward)(const VALUE* restrict gradient, const VALUE* restrict input,
                             VALUE* restrict input_gradient, float* restrict inner, long images, long height,
                             long width, long channels, long reach, float alpha) {
#pragma omp parallel for schedule(static)
    for (long n = 0; n < images; n++) {
        long start = n * height * width * channels;
        const VALUE *image = input + start, *g = gradient + start;
        VALUE* to = input_gradient + start;
        float *terms = inner + start, s[MAX_CHANNELS], scale[MAX_CHANNELS];
        for (long p = 0; p < height * width; p++) {
            NAME(window_squares)(image, s, p / width, p % width, height, width, channels, reach);
            for (long c = 0; c < channels; c++) scale[c] = s[c] = 1 + alpha * s[c];
            power_minus_three_quarters(scale, channels);
            for (long c = 0; c < channels; c++) {
                long at = p * channels + c;
                terms[at] = LOAD(g[at]) * LOAD(image[at]) * scale[c] / s[c];
                to[at] = STORE(LOAD(g[at]) * scale[c]);
            }
        }
        for (long p = 0; p < height * width; p++) {
            long y = p / width, x = p % width;
            for (long c = 0; c < channels; c++) s[c] = 0;
            for (long wy = y < reach ? 0 : y - reach; wy <= y + reach && wy < height; wy++)
                for (long wx = x < reach ? 0 : x - reach; wx <= x + reach && wx < width; wx++)
                    for (long c = 0; c < channels; c++) s[c] += terms[(wy * width + wx) * channels + c];
            for (long c = 0; c < channels; c++) {
                long at = p * channels + c;
                to[at] = STORE(LOAD(to[at]) - 2 * 0.75f * alpha * LOAD(image[at]) * s[c]);
            }
        }
    }
}

/* The patch around every position, zeros outside of the picture: patches[y, x, n, ky, kx, c] = input[n, y +
 * ky - reach, x + kx - reach, c], which makes the patches of one position the rows of one matrix. */
void NAME(patches_forward)(const VALUE* restrict input, VALUE* restrict patches, long images, long height, long width,
                           long channels, long reach) {
    long kernel = 2 * reach + 1;
#pragma omp parallel for schedule(static)
    for (long p = 0; p < height * width; p++) {
        VALUE* to = patches + p * images * kernel * kernel * channels;
        for (long n = 0; n < images; n++)
            for (long ky = 0; ky < kernel; ky++)
                for (long kx = 0; kx < kernel; kx++, to += channels) {
                    long y = p / width + ky - reach, x = p % width + kx - reach;
                    if (y < 0 || y >= height || x < 0 || x >= width)
                        memset(to, 0, channels * sizeof(VALUE));
                    else
                        memcpy(to, input + ((n * height + y) * width + x) * channels, channels * sizeof(VALUE));
                }
    }
}

/* Gathers: each input position sums the gradients of the patches it lies in. */
void NAME(patches_backward)(const VALUE* restrict gradient, VALUE* restrict input_gradient, long images, long height,
                            long width, long channels, long reach) {
    long kernel = 2 * reach + 1;
#pragma omp parallel for schedule(static)
    for (long n = 0; n < images; n++) {
        float sum[MAX_CHANNELS];
        for (long p = 0; p < height * width; p++) {
            for (long c = 0; c < channels; c++) sum[c] = 0;
            for (long ky = 0; ky < kernel; ky++)
                for (long kx = 0; kx < kernel; kx++) {
                    long y = p / width - ky + reach, x = p % width - kx + reach;
                    if (y < 0 || y >= height || x < 0 || x >= width) continue;
                    const VALUE* from =
                        gradient + (((y * width + x) * images + n) * kernel * kernel + ky * kernel + kx) * channels;
                    for (long c = 0; c < channels; c++) sum[c] += LOAD(from[c]);
                }
            VALUE* to = input_gradient + (n * height * width + p) * channels;
            for (long c = 0; c < channels; c++) to[c] = STORE(sum[c]);
        }
    }
}
