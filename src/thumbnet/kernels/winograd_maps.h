/* The one-dimensional maps of Winograd's minimal filtering, and the same transposed, of eight channels at a time.
 *
 * A patch d of n inputs and a filter g of n - m + 1 give m results, A' [(G g) * (B' d)]; n, m are 6, 4 or 8, 6 or 8, 4.
 * With 6 values the interpolation points are 0, 1, -1, 2, -2 and infinity, with 8 also 1/2 and -1/2, whose column of A
 * is scaled by 8. Points with both signs come as a sum and a difference of even and odd parts. `by` is the distance
 * from a result to the next; n and m are constants wherever a map is called.
 */
#pragma once
#include "lanes.h"

/* o <- B' d */
INLINE void patch_to_points(const vec* d, vec* o, long by, long n) {
    if (n == 6) {
        vec even = d[4] - 4 * d[2], odd = d[3] - 4 * d[1], even2 = d[4] - d[2], odd2 = 2 * (d[3] - d[1]);
        o[0] = 4 * d[0] - 5 * d[2] + d[4];
        o[by] = even + odd, o[2 * by] = even - odd;
        o[3 * by] = even2 + odd2, o[4 * by] = even2 - odd2;
        o[5 * by] = 4 * d[1] - 5 * d[3] + d[5];
        return;
    }
    vec even = d[2] + d[6] - 4.25f * d[4], odd = d[1] + d[5] - 4.25f * d[3];
    vec even2 = 0.25f * d[2] - 1.25f * d[4] + d[6], odd2 = 0.5f * d[1] - 2.5f * d[3] + 2 * d[5];
    vec half = 4 * d[2] - 5 * d[4] + d[6], odd_half = 2 * d[1] - 2.5f * d[3] + 0.5f * d[5];
    o[0] = d[0] - d[6] + 5.25f * (d[4] - d[2]);
    o[by] = even + odd, o[2 * by] = even - odd;
    o[3 * by] = even2 + odd2, o[4 * by] = even2 - odd2;
    o[5 * by] = half + odd_half, o[6 * by] = half - odd_half;
    o[7 * by] = d[7] - d[1] + 5.25f * (d[3] - d[5]);
}

/* o <- B v */
INLINE void points_to_patch(const vec* v, vec* o, long by, long n) {
    vec even = v[1] + v[2], odd = v[1] - v[2], even2 = v[3] + v[4], odd2 = v[3] - v[4];
    if (n == 6) {
        o[0] = 4 * v[0];
        o[by] = 4 * (v[5] - odd) - 2 * odd2;
        o[2 * by] = -5 * v[0] - 4 * even - even2;
        o[3 * by] = odd + 2 * odd2 - 5 * v[5];
        o[4 * by] = v[0] + even + even2;
        o[5 * by] = v[5];
        return;
    }
    vec half = v[5] + v[6], odd_half = v[5] - v[6];
    o[0] = v[0];
    o[by] = odd + 0.5f * odd2 + 2 * odd_half - v[7];
    o[2 * by] = even + 0.25f * even2 + 4 * half - 5.25f * v[0];
    o[3 * by] = 5.25f * v[7] - 4.25f * odd - 2.5f * (odd2 + odd_half);
    o[4 * by] = 5.25f * v[0] - 4.25f * even - 1.25f * even2 - 5 * half;
    o[5 * by] = odd + 2 * odd2 + 0.5f * odd_half - 5.25f * v[7];
    o[6 * by] = even + even2 + half - v[0];
    o[7 * by] = v[7];
}

/* o <- A' s */
INLINE void points_to_results(const vec* s, vec* o, long by, long n, long m) {
    vec even = s[1] + s[2], odd = s[1] - s[2], even2 = s[3] + s[4], odd2 = s[3] - s[4];
    o[0] = s[0] + even + even2;
    o[by] = odd + 2 * odd2;
    o[2 * by] = even + 4 * even2;
    o[3 * by] = odd + 8 * odd2;
    if (m == 6) o[4 * by] = even + 16 * even2, o[5 * by] = odd + 32 * odd2;
    if (n == 8) {
        vec half = s[5] + s[6], odd_half = s[5] - s[6];
        o[0] += 8 * half;
        o[by] += 4 * odd_half;
        o[2 * by] += 2 * half;
        o[3 * by] += odd_half;
        if (m == 6) o[4 * by] += 0.5f * half, o[5 * by] += 0.25f * odd_half;
    }
    o[(m - 1) * by] += s[n - 1];
}

/* o <- A g */
INLINE void results_to_points(const vec* g, vec* o, long by, long n, long m) {
    vec even = g[0] + g[2], odd = g[1] + g[3], even2 = g[0] + 4 * g[2], odd2 = 2 * g[1] + 8 * g[3];
    if (m == 6) even += g[4], odd += g[5], even2 += 16 * g[4], odd2 += 32 * g[5];
    o[0] = g[0];
    o[by] = even + odd, o[2 * by] = even - odd;
    o[3 * by] = even2 + odd2, o[4 * by] = even2 - odd2;
    if (n == 8) {
        vec half = 8 * g[0] + 2 * g[2], odd_half = 4 * g[1] + g[3];
        if (m == 6) half += 0.5f * g[4], odd_half += 0.25f * g[5];
        o[5 * by] = half + odd_half, o[6 * by] = half - odd_half;
    }
    o[(n - 1) * by] = g[m - 1];
}

/* o <- G g */
INLINE void filter_to_points(const vec* g, vec* o, long by, long n, long m) {
    vec even = g[0] + g[2], odd = g[1], even2 = g[0] + 4 * g[2], odd2 = 2 * g[1];
    if (n == 6) {
        o[0] = g[0] * (1 / 4.0f);
        o[by] = (even + odd) * (-1 / 6.0f), o[2 * by] = (even - odd) * (-1 / 6.0f);
        o[3 * by] = (even2 + odd2) * (1 / 24.0f), o[4 * by] = (even2 - odd2) * (1 / 24.0f);
        o[5 * by] = g[2];
        return;
    }
    vec half = g[0] + 0.25f * g[2], odd_half = 0.5f * g[1];
    if (m == 4) {
        even += g[4], odd += g[3], even2 += 16 * g[4], odd2 += 8 * g[3];
        half += 0.0625f * g[4], odd_half += 0.125f * g[3];
    }
    o[0] = g[0];
    o[by] = (even + odd) * (-2 / 9.0f), o[2 * by] = (even - odd) * (-2 / 9.0f);
    o[3 * by] = (even2 + odd2) * (1 / 90.0f), o[4 * by] = (even2 - odd2) * (1 / 90.0f);
    o[5 * by] = (half + odd_half) * (4 / 45.0f), o[6 * by] = (half - odd_half) * (4 / 45.0f);
    o[7 * by] = g[n - m];
}

/* o <- G' u */
INLINE void points_to_filter(const vec* u, vec* o, long by, long n, long m) {
    if (n == 6) {
        vec even = (u[1] + u[2]) * (-1 / 6.0f), odd = (u[1] - u[2]) * (-1 / 6.0f);
        vec even2 = (u[3] + u[4]) * (1 / 24.0f), odd2 = (u[3] - u[4]) * (1 / 24.0f);
        o[0] = u[0] * (1 / 4.0f) + even + even2;
        o[by] = odd + 2 * odd2;
        o[2 * by] = even + 4 * even2 + u[5];
        return;
    }
    vec even = (u[1] + u[2]) * (-2 / 9.0f), odd = (u[1] - u[2]) * (-2 / 9.0f);
    vec even2 = (u[3] + u[4]) * (1 / 90.0f), odd2 = (u[3] - u[4]) * (1 / 90.0f);
    vec half = (u[5] + u[6]) * (4 / 45.0f), odd_half = (u[5] - u[6]) * (4 / 45.0f);
    o[0] = u[0] + even + even2 + half;
    o[by] = odd + 2 * odd2 + 0.5f * odd_half;
    o[2 * by] = even + 4 * even2 + 0.25f * half;
    if (m == 4) {
        o[3 * by] = odd + 8 * odd2 + 0.125f * odd_half;
        o[4 * by] = even + 16 * even2 + 0.0625f * half;
    }
    o[(n - m) * by] += u[7];
}
