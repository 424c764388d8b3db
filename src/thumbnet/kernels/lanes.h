/* Vectors of floats in GCC's own notation, which it compiles for whatever the processor has.
 */
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "sizes.h"

/* Of functions that are compiled for the constants that they are called with. */
#define INLINE static inline __attribute__((always_inline))

/* Eight values, at any address. */
typedef float vec __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t vec_int __attribute__((vector_size(32)));
typedef uint8_t vec_byte __attribute__((vector_size(8), aligned(1), may_alias));

static inline vec load(const float* from) { return *(const vec*)from; }
static inline void store(float* to, vec values) { *(vec*)to = values; }
static inline vec all(float value) { return (vec){0} + value; }

/* Values where the mask has ones (a comparison's result), 0 elsewhere. */
static inline vec where(vec_int mask, vec values) { return (vec)(mask & (vec_int)values); }
static inline vec_int pick(vec_int mask, vec_int yes, vec_int no) { return (mask & yes) | (~mask & no); }
static inline vec choose(vec_int mask, vec yes, vec no) { return (vec)pick(mask, (vec_int)yes, (vec_int)no); }
