/* SPDX-License-Identifier: MIT */
/* One measurement of bench_thread.py: `held_loop POOLS THREADS PAIRS` starts so many threads, which do so many pairs together
 * at random sizes from 1..16 pages, 16 live each at most, and write to what they get. Then each frees what it has left
 * and stays. Prints the pages that are ready then, and the MiB that the region has in memory. */
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <vmalloc.h>

#define NR_LIVE 16
#define PAGES_MOST 16
#define STACK_BYTES 65536

static vm_region *region;
static long pairs_each;
static pthread_barrier_t all_done, all_counted;

static void give_back(const vm_range *a)
{
    if (a->nr_pages && vm_free(region, a->page, a->id, 0))
        exit(1);
}

static void *work(void *seed)
{
    vm_range live[NR_LIVE] = {{0}};
    uint32_t x = 2463534242u + (uint32_t)(uintptr_t)seed * 7919u;
    for (long i = 0; i < pairs_each; i++) {
        x ^= x << 13, x ^= x >> 17, x ^= x << 5;
        vm_range *a = &live[x % NR_LIVE];
        give_back(a);
        if (vm_alloc(region, 1 + (x >> 8) % PAGES_MOST, 1, 0, a))
            exit(1);
        for (uint64_t page = 0; page < a->nr_pages; page++)
            *(volatile char *)vm_pointer(region, a->page + page) = 1;
    }
    for (int i = 0; i < NR_LIVE; i++)
        give_back(&live[i]);
    pthread_barrier_wait(&all_done);
    pthread_barrier_wait(&all_counted);
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* thousands of threads at work for nobody would be in everybody's way */
    unsigned threads = (unsigned)atoi(argv[2]);
    vm_options options = {.nr_pages = 1 << 20, .pools = (vm_pools)atoi(argv[1]), .nr_threads = threads + 16};
    if (threads < 1 || vm_create(&options, &region) != 0)
        return 2;
    pairs_each = atol(argv[3]) / (long)threads;
    pthread_t *thread = calloc(threads, sizeof *thread);
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, STACK_BYTES);
    pthread_barrier_init(&all_done, NULL, threads + 1);
    pthread_barrier_init(&all_counted, NULL, threads + 1);
    for (unsigned i = 0; i < threads; i++)
        if (pthread_create(&thread[i], &small, work, (void *)(uintptr_t)i)) {
            fprintf(stderr, "thread %u of %u could not be started\n", i + 1, threads);
            return 3;
        }
    pthread_barrier_wait(&all_done);
    vm_stats s;
    int rc = vm_get_stats(region, &s);
    printf("%lu %.1f\n", (unsigned long)(s.cached_pages + s.pooled_pages + s.lazy_pages),
           (double)s.resident_bytes / (1 << 20));
    pthread_barrier_wait(&all_counted);
    for (unsigned i = 0; i < threads; i++)
        pthread_join(thread[i], NULL);
    return rc != 0;
}
