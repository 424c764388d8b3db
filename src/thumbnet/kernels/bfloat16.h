/* bfloat16 in plain C: the upper half of a float. */
#pragma once
#include <stdint.h>
#include <string.h>

typedef uint16_t bfloat16;

static inline float float_of(bfloat16 value) {
    uint32_t bits = (uint32_t)value << 16;
    float result;
    memcpy(&result, &bits, 4);
    return result;
}

/* Rounds to nearest, ties to even. A NaN's payload may not round up into infinity, so NaN becomes the quiet NaN. */
static inline bfloat16 bfloat16_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
    return (bfloat16)(value != value ? 0x7fc0u : rounded);
}
