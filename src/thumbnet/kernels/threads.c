/* Where the threads of a team run. */

#define _GNU_SOURCE
#include <omp.h>
#include <sched.h>
#include <stdint.h>

/* Lets thread i of the calling thread's team of `count` run on cores[i * each] to cores[i * each + each - 1] alone. Where
 * the system refuses, a thread keeps the cores that it had. */
void place_threads(const int64_t* cores, long count, long each) {
    int64_t highest = 0;
    for (long i = 0; i < count * each; i++)
        if (cores[i] > highest) highest = cores[i];
#pragma omp parallel num_threads((int)count)
    {
        cpu_set_t* set = CPU_ALLOC(highest + 1);
        if (set) {
            const size_t bytes = CPU_ALLOC_SIZE(highest + 1);
            CPU_ZERO_S(bytes, set);
            for (long i = 0; i < each; i++) CPU_SET_S(cores[omp_get_thread_num() * each + i], bytes, set);
            sched_setaffinity(0, bytes, set);
            CPU_FREE(set);
        }
    }
}
