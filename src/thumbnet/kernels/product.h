/* Products of small float32 matrices that lie in the cache. */
#pragma once
#include "lanes.h"

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

/* c [rows][PANEL] = or += a [rows][depth] x b [depth][PANEL]; distances are from row to row and along the depth. */
INLINE void block(long rows, const float* a, long a_row, long a_depth, const float* b, long b_depth, float* c,
                  long c_row, long depth, int add) {
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
#define REST(r)                                                        \
    case r:                                                            \
        block(r, a, a_row, a_depth, b, b_depth, c, c_row, depth, add); \
        break
    switch (rows) {
        REST(5);
        REST(4);
        REST(3);
        REST(2);
        REST(1);
        default:
            break;
    }
#undef REST
}
