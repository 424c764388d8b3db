/* Arithmetic of sizes, and memory for them. */
#pragma once
#include <stdio.h>
#include <stdlib.h>

static inline long smaller(long a, long b) { return a < b ? a : b; }
static inline long larger(long a, long b) { return a > b ? a : b; }
static inline long rounded_up(long value, long step) { return (value + step - 1) / step * step; }

/* Memory that begins at a cache line; the process ends where there is none, rather than write beyond what it has. */
static inline void* aligned(long bytes) {
    void* memory = aligned_alloc(64, (size_t)rounded_up(bytes, 64));
    if (!memory && bytes) {
        fprintf(stderr, "thumbnet: no memory for %ld bytes\n", bytes);
        abort();
    }
    return memory;
}
