/* SPDX-License-Identifier: MIT */
/*
 * One measurement of bench_sharing.py. Pages are never touched, so that only the allocator's own work counts. Prints
 * one number.
 *
 * `share_loop plain P`: ns to take and free a page of a region with P process slots.
 * `share_loop share P`: the same of a page that was shared in between.
 * `share_loop spread P`: the same, 4,096 ranges of 64 KiB at a time, so that no record is in a near cache.
 * `share_loop bytes P PAGES`: resident bytes of metadata for each range of so many pages, once it was shared.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <vmalloc.h>

#define NR_PAIRS 20000
#define NR_RANGES 4096

static vm_region *r;

static void must(int rc)
{
    if (rc) {
        fprintf(stderr, "share_loop: error %d\n", rc);
        exit(1);
    }
}
static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}
static int by_value(const void *a, const void *b)
{
    double d = *(const double *)a - *(const double *)b;
    return d < 0 ? -1 : d > 0;
}

static void pairs(bool shared)
{
    vm_range a;
    for (int i = 0; i < NR_PAIRS; i++) {
        must(vm_alloc(r, 1, 1, 0, &a));
        if (shared)
            must(vm_share(r, a.page, a.id));
        must(vm_free(r, a.page, a.id, 0));
    }
}

static void spread(uint64_t nr_pages)
{
    static vm_range a[NR_RANGES];
    for (int i = 0; i < NR_RANGES; i++) {
        must(vm_alloc(r, nr_pages, 1, 0, &a[i]));
        must(vm_share(r, a[i].page, a[i].id));
    }
    for (int i = 0; i < NR_RANGES; i++)
        must(vm_free(r, a[i].page, a[i].id, 0));
}

static double resident(void)
{
    vm_stats s;
    must(vm_get_stats(r, &s));
    return (double)s.resident_bytes;
}

/* Sharing alone: the same ranges, not shared, have their words and ids too. */
static double bytes(uint64_t nr_pages)
{
    static vm_range a[NR_RANGES];
    for (int i = 0; i < NR_RANGES; i++)
        must(vm_alloc(r, nr_pages, 1, 0, &a[i]));
    double before = resident();
    for (int i = 0; i < NR_RANGES; i++)
        must(vm_share(r, a[i].page, a[i].id));
    return (resident() - before) / NR_RANGES;
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    vm_options options = {.nr_pages = 4ull << 18, .nr_processes = (uint32_t)atoi(argv[2]), .pools = VM_POOLS_MAGAZINE};
    must(vm_create(&options, &r));
    if (strcmp(argv[1], "bytes") == 0) {
        printf("%.1f\n", bytes(strtoull(argv[3], NULL, 10)));
        return 0;
    }
    double sample[9];
    bool is_spread = strcmp(argv[1], "spread") == 0, shared = strcmp(argv[1], "plain") != 0;
    for (int i = -1; i < 9; i++) { /* the first does not count */
        double start = now_ns();
        if (is_spread)
            spread(16);
        else
            pairs(shared);
        if (i >= 0)
            sample[i] = (now_ns() - start) / (is_spread ? NR_RANGES : NR_PAIRS);
    }
    qsort(sample, 9, sizeof *sample, by_value);
    printf("%.2f\n", sample[4]);
    return 0;
}
