/* SPDX-License-Identifier: MIT */
/*
 * One measurement of bench_growth.py, in an address space (ranges of numbers, no pages behind), so that
 * the allocator is measured and not the discarding of memory. Prints median and 99th percentile in ns.
 *
 * `growth_loop hot NR_PAGES LIVE`: take and free one page with LIVE others live; samples of 64 pairs.
 * `growth_loop space NR_PAGES FILL`: without pools, at FILL % taken in 4096 pieces: 256 ranges of 1..64
 * pages are taken, freed and purged; the sample is that over 256.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <vmalloc.h>

#define NR_PIECES 4096u
#define NR_BATCH 256
#define NR_PAIRS 64
#define NR_SAMPLES 2000

static double samples[NR_SAMPLES];
static uint32_t x = 2463534242u;
static uint32_t next_random(void) { return x ^= x << 13, x ^= x >> 17, x ^= x << 5; }

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}
static void must(int rc)
{
    if (rc) {
        fprintf(stderr, "growth_loop: error %d\n", rc);
        exit(1);
    }
}
static int by_value(const void *a, const void *b)
{
    double d = *(const double *)a - *(const double *)b;
    return d < 0 ? -1 : d > 0;
}

static double hot_sample(vm_region *r)
{
    vm_range a;
    double start = now_ns();
    for (int i = 0; i < NR_PAIRS; i++) {
        must(vm_alloc(r, 1, 1, 0, &a));
        must(vm_free(r, a.page, a.id, 0));
    }
    return (now_ns() - start) / NR_PAIRS;
}

static double space_sample(vm_region *r)
{
    static vm_range a[NR_BATCH];
    double start = now_ns();
    for (int i = 0; i < NR_BATCH; i++)
        must(vm_alloc(r, 1 + next_random() % 64, 1, 0, &a[i]));
    for (int i = 0; i < NR_BATCH; i++)
        must(vm_free(r, a[i].page, a[i].id, 0));
    must(vm_purge(r, NULL));
    return (now_ns() - start) / NR_BATCH;
}

static void fill(vm_region *r, uint64_t nr_pages, uint64_t percent)
{
    static vm_range pieces[NR_PIECES];
    uint64_t each = nr_pages / NR_PIECES;
    for (uint32_t i = 0; i < NR_PIECES; i++)
        must(vm_alloc(r, each, 1, 0, &pieces[i]));
    for (uint32_t left = NR_PIECES * (100 - (uint32_t)percent) / 100; left;) {
        vm_range *p = &pieces[next_random() % NR_PIECES];
        if (!p->nr_pages)
            continue;
        must(vm_free(r, p->page, p->id, 0));
        p->nr_pages = 0;
        left--;
    }
    must(vm_shrink(r, NULL));
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    int is_hot = strcmp(argv[1], "hot") == 0;
    uint64_t nr_pages = strtoull(argv[2], NULL, 0), n = strtoull(argv[3], NULL, 0);
    vm_options options = {.nr_pages = nr_pages,
                          .granule_bytes = 4096,
                          .lazy_pages_max = 1ull << 40,
                          .pools = is_hot ? VM_POOLS_MAGAZINE : VM_POOLS_OFF};
    vm_region *r;
    vm_range a;
    must(vm_create(&options, &r));
    if (is_hot) {
        for (uint64_t i = 0; i < n; i++)
            must(vm_alloc(r, 1, 1, 0, &a));
    } else {
        fill(r, nr_pages, n);
    }
    for (int i = -NR_SAMPLES / 10; i < NR_SAMPLES; i++) {
        double ns = is_hot ? hot_sample(r) : space_sample(r);
        if (i >= 0)
            samples[i] = ns;
    }
    qsort(samples, NR_SAMPLES, sizeof *samples, by_value);
    printf("%.2f %.2f\n", samples[NR_SAMPLES / 2], samples[NR_SAMPLES * 99 / 100]);
    return 0;
}
