/* SPDX-License-Identifier: MIT */
/*
 * Headroom of bench_steady.py: a region that has little more pages than are in use.
 *
 * Arguments: LIVE_PAGES REGION_PAGES THREADS SECONDS. Each thread keeps its share of LIVE_PAGES in ranges of 1 to 256
 * pages, and while it has that many it frees one at random and allocates another. Prints allocations a second and how
 * many found no room.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <vmalloc.h>

#define PAGES_MAX 256
#define RANGES_MAX 65536
#define THREADS_MAX 64

static vm_region *region;
static uint64_t share, end_ns;
static struct {
    _Alignas(128) uint64_t done, failed;
} counts[THREADS_MAX];

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t random64(uint64_t *x) { return *x ^= *x << 13, *x ^= *x >> 7, *x ^= *x << 17; }

static void *churn(void *arg)
{
    int me = (int)(intptr_t)arg;
    vm_range *live = calloc(RANGES_MAX, sizeof *live);
    uint64_t seed = 88172645463325252ull + (uint64_t)me * 7919, pages = 0, nr = 0;
    for (int i = 0; i < 8; i++)
        random64(&seed);
    while (now_ns() < end_ns) {
        for (int i = 0; i < 64; i++) {
            uint64_t want = 1 + random64(&seed) % PAGES_MAX;
            while (nr && pages + want > share) {
                uint64_t at = random64(&seed) % nr;
                pages -= live[at].nr_pages;
                if (vm_free(region, live[at].page, live[at].id, 0) != 0)
                    exit(4);
                live[at] = live[--nr];
            }
            if (nr < RANGES_MAX && vm_alloc(region, want, 1, 0, &live[nr]) == 0) {
                *(volatile char *)vm_pointer(region, live[nr].page) = 1;
                pages += live[nr++].nr_pages;
                counts[me].done++;
            } else {
                counts[me].failed++;
            }
        }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc < 5)
        return 1;
    int nr_threads = atoi(argv[3]);
    double seconds = atof(argv[4]);
    share = strtoull(argv[1], NULL, 10) / (uint64_t)nr_threads;
    vm_options options = {.nr_pages = strtoull(argv[2], NULL, 10), .pools = VM_POOLS_MAGAZINE};
    if (nr_threads > THREADS_MAX || vm_create(&options, &region) != 0)
        return 2;
    end_ns = now_ns() + (uint64_t)(seconds * 1e9);
    pthread_t thread[THREADS_MAX];
    for (intptr_t i = 0; i < nr_threads; i++)
        pthread_create(&thread[i], NULL, churn, (void *)i);
    uint64_t done = 0, failed = 0;
    for (int i = 0; i < nr_threads; i++) {
        pthread_join(thread[i], NULL);
        done += counts[i].done;
        failed += counts[i].failed;
    }
    vm_stats s;
    vm_get_stats(region, &s);
    printf("%.0f %lu %lu\n", (double)done / seconds, failed, s.nr_purges);
    return 0;
}
