/* SPDX-License-Identifier: MIT */
/*
 * Slowest free of bench_steady.py.
 *
 * Arguments: ARRAYS PROCESSES LOCK. Allocates and writes to so many one-page arrays, has so many idle processes attach,
 * lets one of them take LOCK (none, purge, space, warm, pool, names, lease) and stops it there; then frees every other
 * array, and turns an empty loop for as long. Prints in ns the slowest of the frees and of the turns, by the clock on the
 * wall, in CPU time, and by the clock among those that were not preempted; and how many frees slept.
 *
 * It stands on the region's layout (core/base/layout.h): the lock's word gets the neighbour's token.
 */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/layout.h"
#include <vmalloc.h>

static vm_region *region;

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* The region's header, from the place of its data. */
static vm_header *header(void)
{
    vm_info info;
    vm_describe(region, &info);
    uint8_t *data = vm_pointer(region, 0);
    for (uint8_t *at = data;; at -= VM_MAP_ALIGN) {
        vm_header *h = (vm_header *)at;
        if (at != data && h->magic == VM_MAGIC && memcmp(h->id, info.id, sizeof info.id) == 0)
            return h;
    }
}

static vm_lock *lock_of(vm_header *h, const char *name)
{
    return strcmp(name, "purge") == 0   ? &h->purge_lock
           : strcmp(name, "space") == 0 ? &h->space_lock
           : strcmp(name, "warm") == 0  ? &h->warm.lock
           : strcmp(name, "names") == 0 ? &h->names_lock
           : strcmp(name, "lease") == 0 ? &h->lease_lock
           : strcmp(name, "pool") == 0  ? &((vm_node *)((uint8_t *)h + h->off_nodes))->pool_lock
                                        : NULL;
}

/* The process's own slot: number and incarnation as its first thread writes them into a lock. */
static vm_token token(vm_header *h)
{
    vm_info info;
    vm_describe(region, &info);
    vm_slot *slots = (vm_slot *)((uint8_t *)h + h->off_threads);
    return vm__token(info.process_slot, (uint32_t)(slots[info.process_slot].state >> 32));
}

static void be_neighbour(vm_lock *lock, int ready)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    vm_range range;
    if (vm_alloc(region, 1, 1, 0, &range) != 0)
        _exit(3);
    if (lock)
        __atomic_store_n(&lock->owner, token(header()), __ATOMIC_SEQ_CST);
    if (write(ready, "", 1) != 1)
        _exit(4);
    if (lock)
        raise(SIGSTOP);
    for (;;)
        pause();
}

static void start(int nr, const char *name)
{
    int ready[2];
    char byte;
    vm_lock *lock = lock_of(header(), name);
    if (pipe(ready))
        exit(5);
    for (int i = 0; i < nr; i++) {
        if (fork() == 0)
            be_neighbour(i == nr - 1 ? lock : NULL, ready[1]);
        if (read(ready[0], &byte, 1) != 1)
            exit(5);
    }
}

/* Of what is measured, one free or one empty turn: time by the clock, in CPU time, and the switches of this thread. */
typedef struct times {
    uint64_t wall, cpu, preempted, slept;
} times;

static times now(void)
{
    struct rusage use;
    getrusage(RUSAGE_THREAD, &use);
    return (times){clock_ns(CLOCK_MONOTONIC), clock_ns(CLOCK_THREAD_CPUTIME_ID), (uint64_t)use.ru_nivcsw,
                   (uint64_t)use.ru_nvcsw};
}

typedef struct worst {
    uint64_t wall, cpu, undisturbed; /* by the clock, of those that nobody preempted */
    uint64_t nr_slept;
} worst;

static uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

static void note(worst *w, times before, times after)
{
    uint64_t wall = after.wall - before.wall;
    w->wall = larger(w->wall, wall);
    w->cpu = larger(w->cpu, after.cpu - before.cpu);
    if (after.preempted == before.preempted)
        w->undisturbed = larger(w->undisturbed, wall);
    w->nr_slept += after.slept != before.slept;
}

static worst of_frees(const vm_range *a, long n)
{
    worst w = {0, 0, 0, 0};
    for (long i = 0; i < n; i += 2) {
        times before = now();
        if (vm_free(region, a[i].page, a[i].id, 0) != 0)
            exit(6);
        note(&w, before, now());
    }
    return w;
}

static worst of_nothing(uint64_t ns)
{
    worst w = {0, 0, 0, 0};
    for (uint64_t end = clock_ns(CLOCK_MONOTONIC) + ns; clock_ns(CLOCK_MONOTONIC) < end;) {
        times before = now();
        note(&w, before, now());
    }
    return w;
}

int main(int argc, char **argv)
{
    if (argc < 4)
        return 1;
    long n = atol(argv[1]);
    vm_options options = {.nr_pages = 1 << 20, .lazy_pages_max = 4096, .pools = VM_POOLS_MAGAZINE};
    if (vm_create(&options, &region) != 0)
        return 2;
    vm_range *a = calloc((size_t)n, sizeof *a);
    for (long i = 0; i < n; i++) {
        if (vm_alloc(region, 1, 1, 0, &a[i]) != 0)
            return 3;
        *(volatile char *)vm_pointer(region, a[i].page) = 1;
    }
    start(atoi(argv[2]), argv[3]);
    uint64_t began = clock_ns(CLOCK_MONOTONIC);
    worst frees = of_frees(a, n), own = of_nothing(clock_ns(CLOCK_MONOTONIC) - began);
    printf("%lu %lu %lu %lu %lu %lu %lu\n", frees.wall, own.wall, frees.cpu, own.cpu, frees.undisturbed,
           own.undisturbed, frees.nr_slept);
    return 0; /* the others die with us */
}
