/* What the input does to the pixels of a batch, a pass each: the crop, its sums, the affine map to the network's input.
 *
 * Pictures are uint8, channel after channel, each row by row. No OpenMP here: the input works in a thread of its own
 * beside the team that trains, which must not wait for it. Every value is what NumPy computes in `input/distort.py`, to
 * the bit. */

#include <stdint.h>
#include <string.h>

/* Return the place in 0 .. side-1 that a position beyond the border shows; the border itself is not repeated. */
static inline long reflected(long position, long side) {
    if (side == 1) return 0;
    long period = 2 * side - 2;
    position %= period;
    if (position < 0) position += period;
    return position < side ? position : period - position;
}

/* to[x] <- from[length - 1 - x], eight bytes at a time: rows are shorter than the vectors a compiler would choose. */
static inline void reverse(uint8_t* restrict to, const uint8_t* restrict from, long length) {
    long x = 0;
    for (; x + 8 <= length; x += 8) {
        uint64_t eight;
        memcpy(&eight, from + length - 8 - x, 8);
        eight = __builtin_bswap64(eight);
        memcpy(to + x, &eight, 8);
    }
    for (; x < length; x++) to[x] = from[length - 1 - x];
}

/* crops[n][c] <- the crop x crop window of picture n that begins at (top, left) of the picture with a reflected border of
 * `pad` pixels; left and right exchanged where flip[n]. `stride` is the distance of two pictures in bytes. */
void crop_u8(uint8_t* restrict crops, const uint8_t* restrict images, const int64_t* restrict top,
             const int64_t* restrict left, const uint8_t* restrict flip, long count, long stride, long channels,
             long height, long width, long crop, long pad) {
    uint8_t line[crop];
    for (long n = 0; n < count; n++) {
        long y0 = top[n] - pad, x0 = left[n] - pad;
        /* Columns first .. last-1 of the window lie in the picture. */
        long first = x0 < 0 ? -x0 : 0, last = width - x0 < crop ? width - x0 : crop;
        if (first > crop) first = crop;
        if (last < first) last = first;
        for (long c = 0; c < channels; c++) {
            for (long y = 0; y < crop; y++) {
                const uint8_t* from = images + n * stride + (c * height + reflected(y0 + y, height)) * width;
                uint8_t* to = crops + ((n * channels + c) * crop + y) * crop;
                uint8_t* row = flip[n] ? line : to;
                for (long x = 0; x < first; x++) row[x] = from[reflected(x0 + x, width)];
                memcpy(row + first, from + x0 + first, (size_t)(last - first));
                for (long x = last; x < crop; x++) row[x] = from[reflected(x0 + x, width)];
                if (flip[n]) reverse(to, line, crop);
            }
        }
    }
}

/* sums[p], squares[p] <- the sum of plane p's pixels, and of their squares. */
void plane_sums_u8(const uint8_t* restrict planes, int64_t* restrict sums, int64_t* restrict squares, long count,
                   long pixels) {
    const long piece = 65536; /* of so many squares the sum fits 32 bits */
    for (long p = 0; p < count; p++) {
        sums[p] = squares[p] = 0;
        for (long start = 0; start < pixels; start += piece) {
            long stop = start + piece < pixels ? start + piece : pixels;
            uint32_t sum = 0, square = 0;
            for (long i = start; i < stop; i++) {
                uint32_t value = planes[p * pixels + i];
                sum += value;
                square += value * value;
            }
            sums[p] += sum;
            squares[p] += square;
        }
    }
}

/* out[n][i][c] <- (planes[n][c][i] - centre[n][c]) * scale[n][c] + shift[n][c]. The product is rounded before the sum, as
 * NumPy rounds it: it goes through memory, for a compiler would make one instruction of both. */
void affine_fp32(float* restrict out, const uint8_t* restrict planes, const float* restrict centre,
                 const float* restrict scale, const float* restrict shift, long count, long channels, long pixels) {
    enum { STRIP = 64, RGB = 3 };
    for (long n = 0; n < count; n++) {
        const float *middle = centre + n * channels, *factor = scale + n * channels, *rest = shift + n * channels;
        for (long start = 0; start < pixels; start += STRIP) {
            long length = pixels - start < STRIP ? pixels - start : STRIP;
            float* to = out + (n * pixels + start) * channels;
            float product[RGB][STRIP];
            for (long c0 = 0; c0 < channels; c0 += RGB) {
                long some = channels - c0 < RGB ? channels - c0 : RGB;
                for (long c = 0; c < some; c++) {
                    const uint8_t* from = planes + (n * channels + c0 + c) * pixels + start;
                    for (long i = 0; i < length; i++)
                        product[c][i] = ((float)from[i] - middle[c0 + c]) * factor[c0 + c];
                }
                if (channels == RGB) /* interleaved by whole vectors */
                    for (long i = 0; i < length; i++)
                        for (long c = 0; c < RGB; c++) to[i * RGB + c] = product[c][i] + rest[c];
                else
                    for (long c = 0; c < some; c++)
                        for (long i = 0; i < length; i++) to[i * channels + c0 + c] = product[c][i] + rest[c0 + c];
            }
        }
    }
}
