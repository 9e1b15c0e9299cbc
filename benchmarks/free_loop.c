/* SPDX-License-Identifier: MIT */
/*
 * Slowest free of bench_steady.py.
 *
 * Arguments: ARRAYS PROCESSES LOCK. Allocates and writes to so many one-page arrays, has so many idle processes attach,
 * lets one of them take LOCK (none, purge, space, warm, pool, names, lease) and stops it there; then frees every other
 * array and prints the slowest of these frees in ns, and the slowest of as many turns of an empty loop.
 *
 * It stands on the region's layout (core/base/layout.h): the lock's word gets the neighbour's token.
 */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
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

/* By the clock on the wall, and in CPU time, in which being preempted costs nothing. */
typedef struct times {
    uint64_t wall, cpu;
} times;

static times slowest(vm_range *a, long n)
{
    times worst = {0, 0};
    for (long i = 0; i < n; i += 2) {
        uint64_t cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID), before = clock_ns(CLOCK_MONOTONIC);
        if (a && vm_free(region, a[i].page, a[i].id, 0) != 0)
            exit(6);
        uint64_t took = clock_ns(CLOCK_MONOTONIC) - before;
        cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID) - cpu;
        worst.wall = took > worst.wall ? took : worst.wall;
        worst.cpu = cpu > worst.cpu ? cpu : worst.cpu;
    }
    return worst;
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
    times own = slowest(NULL, n), worst = slowest(a, n);
    printf("%lu %lu %lu %lu\n", worst.wall, own.wall, worst.cpu, own.cpu);
    return 0; /* the others die with us */
}
