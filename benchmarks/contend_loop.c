/* SPDX-License-Identifier: MIT */
/* One measurement of bench_contention.py and bench_thread.py: `contend_loop POOLS WORKERS MS` forks WORKERS
 * processes that allocate and free for MS milliseconds, sizes random from 1..16 pages, 16 live each. Prints the
 * pairs all of them did in a second, in millions; the ns that a pair waited for locks; how often in 1,000 pairs a
 * lock was found taken; and the pages that were neither in use nor free when all had stopped. */
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <vmalloc.h>

#define NR_LIVE 16
#define PAIRS_PER_LOOK 64
enum { ALL_READY = 1, STOP, LEAVE };

typedef struct shared {
    uint32_t ready, stopped, state;
    uint64_t pairs[64], waits[64];
} shared;

static void work(vm_region *r, shared *s, int index)
{
    vm_range live[NR_LIVE] = {{0}};
    uint32_t x = 2463534242u + (uint32_t)index * 7919u;
    uint64_t pairs = 0;
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* whoever breaks the measurement off leaves nobody at work */
    __atomic_add_fetch(&s->ready, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&s->state, __ATOMIC_RELAXED) == 0)
        usleep(100);
    while (__atomic_load_n(&s->state, __ATOMIC_RELAXED) < STOP)
        for (int i = 0; i < PAIRS_PER_LOOK; i++, pairs++) {
            x ^= x << 13, x ^= x >> 17, x ^= x << 5;
            vm_range *a = &live[x % NR_LIVE];
            if ((a->nr_pages && vm_free(r, a->page, a->id, 0)) || vm_alloc(r, 1 + (x >> 8) % 16, 1, 0, a))
                _exit(1);
        }
    s->pairs[index] = pairs;
    s->waits[index] = vm_lock_waits(r);
    __atomic_add_fetch(&s->stopped, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&s->state, __ATOMIC_RELAXED) != LEAVE) /* what it keeps ready is counted first */
        usleep(100);
    _exit(0);
}

/* Until all workers counted; false if one failed. */
static bool have_all(uint32_t *count, int workers)
{
    while (__atomic_load_n(count, __ATOMIC_ACQUIRE) < (uint32_t)workers) {
        if (waitpid(-1, NULL, WNOHANG) > 0)
            return false;
        usleep(100);
    }
    return true;
}

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

/* The microseconds in which all worked; negative if one failed. */
static double measure(shared *s, int workers, struct timespec pause)
{
    if (!have_all(&s->ready, workers))
        return -1;
    double began = now_us();
    __atomic_store_n(&s->state, ALL_READY, __ATOMIC_SEQ_CST);
    nanosleep(&pause, NULL);
    __atomic_store_n(&s->state, STOP, __ATOMIC_SEQ_CST);
    return have_all(&s->stopped, workers) ? now_us() - began : -1;
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    vm_options options = {.nr_pages = 1 << 20, .pools = (vm_pools)atoi(argv[1])};
    int workers = atoi(argv[2]), failed = 0, status;
    struct timespec pause = {atol(argv[3]) / 1000, atol(argv[3]) % 1000 * 1000000};
    vm_region *r;
    shared *s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (workers < 1 || workers > 64 || vm_create(&options, &r) != 0)
        return 2;
    for (int i = 0; i < workers; i++)
        if (fork() == 0)
            work(r, s, i);
    double us = measure(s, workers, pause);
    vm_stats stats;
    int rc = vm_get_stats(r, &stats);
    __atomic_store_n(&s->state, LEAVE, __ATOMIC_SEQ_CST);
    while (wait(&status) > 0)
        failed |= status;
    uint64_t pairs = 0, waits = 0;
    for (int i = 0; i < workers; i++)
        pairs += s->pairs[i], waits += s->waits[i];
    printf("%.4f %.2f %.4f %lu\n", (double)pairs / us, (double)stats.lock_wait_ns / (double)pairs,
           1e3 * (double)waits / (double)pairs,
           (unsigned long)(stats.cached_pages + stats.pooled_pages + stats.lazy_pages));
    return failed || rc || us < 0;
}
