/* SPDX-License-Identifier: MIT */
/*
 * One side of bench_steady.py: the same work, epoch after epoch.
 *
 * Compiled three times: with USE_VM against libvmalloc; with HOLD, where each worker holds its memory all the time and only
 * writes to it, which is what no allocator can be faster than; without both against malloc, which LD_PRELOAD then replaces.
 * Arguments: SHAPE WORKERS thread|process EPOCHS [prelude]. The workers share out the arrays of an epoch. All of them
 * allocate and write to every page, then all free; what is resident is looked at after each half. A line an epoch:
 *
 *   FAULTS PAGES NS_PER_PAGE RESIDENT_FULL RESIDENT_EMPTY        (faults are those of all workers, bytes of all)
 *
 * SHAPE is NxBYTES, or mixed:N or drawn:N, N sizes log-uniform from 4 KiB to 32 MiB: the same ones in every epoch, or
 * new ones.
 */
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096u
#define WORKERS_MAX 256
#define PRELUDE 70

#ifdef USE_VM
#include <vmalloc.h>
typedef vm_range handle;
static vm_region *region;

static void setup(void)
{
    vm_options options = {.nr_pages = 16ull << 30 >> 12, .pools = VM_POOLS_MAGAZINE};
    const char *pools = getenv("STEADY_LOOP_POOLS"); /* 0..3: another design */
    if (pools)
        options.pools = (vm_pools)atoi(pools);
    if (vm_create(&options, &region) != 0)
        exit(2);
}
static uint8_t *take(handle *h, size_t bytes)
{
    if (vm_alloc(region, (bytes + PAGE - 1) / PAGE, 1, 0, h) != 0)
        exit(3);
    return vm_pointer(region, h->page);
}
static void give_back(handle h)
{
    if (vm_free(region, h.page, h.id, 0) != 0)
        exit(4);
}
/* All that is ours, whoever touched it. */
static uint64_t resident(void)
{
    vm_stats s;
    if (vm_get_stats(region, &s) != 0)
        exit(5);
    if (getenv("STEADY_LOOP_SAY"))
        fprintf(stderr, "busy %lu cached %lu pooled %lu lazy %lu MiB, hits: pool %lu warm %lu space %lu; purged %lu\n",
                s.busy_pages >> 8, s.cached_pages >> 8, s.pooled_pages >> 8, s.lazy_pages >> 8, s.nr_pool_hit,
                s.nr_lazy_hit, s.nr_space_hit, s.nr_purged_pages >> 8);
    return s.resident_bytes;
}
#else
static void setup(void) {}
static uint64_t resident(void)
{
    unsigned long total, pages;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f || fscanf(f, "%lu %lu", &total, &pages) != 2)
        exit(5);
    fclose(f);
    return pages * PAGE;
}
typedef void *handle;
#ifdef HOLD
#define HOLD_BYTES (4ull << 30)
static __thread uint8_t *held, *next;

/* Side by side in one shared mapping of the worker's, as the region's pages are; what all are given back for begins anew. */
static uint8_t *take(handle *h, size_t bytes)
{
    if (!held)
        next = held = mmap(NULL, HOLD_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (held == MAP_FAILED)
        exit(3);
    *h = next;
    next += (bytes + PAGE - 1) / PAGE * PAGE;
    return *h;
}
static void give_back(handle h)
{
    (void)h;
    next = held;
}
#else
static uint8_t *take(handle *h, size_t bytes)
{
    *h = malloc(bytes);
    if (!*h)
        exit(3);
    return *h;
}
static void give_back(handle h) { free(h); }
#endif
#endif

static struct {
    pthread_barrier_t barrier;
    uint64_t faults[WORKERS_MAX], ns[WORKERS_MAX], pages[WORKERS_MAX];
} *common;

static int nr_workers, nr_epochs, nr_arrays, is_thread, has_prelude, is_drawn;
static size_t one_size; /* 0: mixed */

static uint64_t now_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t faults(void)
{
    struct rusage u;
    getrusage(is_thread ? RUSAGE_THREAD : RUSAGE_SELF, &u);
    return (uint64_t)(u.ru_minflt + u.ru_majflt);
}

static uint64_t random64(uint64_t *x) { return *x ^= *x << 13, *x ^= *x >> 7, *x ^= *x << 17; }

static size_t size_of(uint64_t *seed)
{
    if (one_size)
        return one_size;
    double u = (double)(random64(seed) >> 11) / (double)(1ull << 53);
    return (size_t)((double)PAGE * exp2(13 * u));
}

static void touch(uint8_t *at, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += PAGE)
        *(volatile uint8_t *)(at + i) = 1;
}

static void prelude(void)
{
    handle h[PRELUDE];
    for (int i = 0; i < PRELUDE; i++) {
        size_t bytes = (4u << 20) + (size_t)i * 45000;
        touch(take(&h[i], bytes), bytes);
    }
    for (int i = 0; i < PRELUDE; i++)
        give_back(h[i]);
}

static void epoch(int worker, int number, handle *h)
{
    int mine = nr_arrays / nr_workers + (worker < nr_arrays % nr_workers);
    uint64_t seed = 88172645463325252ull + 7919 * (uint64_t)worker + (is_drawn ? 104729 * (uint64_t)number : 0);
    for (int i = 0; i < 8; i++)
        random64(&seed);
    uint64_t before = faults(), start = now_ns(CLOCK_THREAD_CPUTIME_ID), pages = 0;
    for (int i = 0; i < mine; i++) {
        size_t bytes = size_of(&seed);
        touch(take(&h[i], bytes), bytes);
        pages += (bytes + PAGE - 1) / PAGE;
    }
    common->ns[worker] = now_ns(CLOCK_THREAD_CPUTIME_ID) - start;
    pthread_barrier_wait(&common->barrier); /* all is in use */
    pthread_barrier_wait(&common->barrier); /* and was looked at */
    start = now_ns(CLOCK_THREAD_CPUTIME_ID);
    for (int i = 0; i < mine; i++)
        give_back(h[i]);
    common->ns[worker] += now_ns(CLOCK_THREAD_CPUTIME_ID) - start;
    common->pages[worker] = pages;
    common->faults[worker] = faults() - before;
    pthread_barrier_wait(&common->barrier);
    pthread_barrier_wait(&common->barrier);
}

static void *work(void *arg)
{
    int worker = (int)(intptr_t)arg;
    handle *h = calloc((size_t)nr_arrays / (size_t)nr_workers + 1, sizeof *h);
    if (has_prelude && worker == 0)
        prelude();
    pthread_barrier_wait(&common->barrier);
    for (int i = 0; i < nr_epochs; i++)
        epoch(worker, i, h);
    free(h);
    return NULL;
}

static void watch(void)
{
    pthread_barrier_wait(&common->barrier);
    for (int i = 0; i < nr_epochs; i++) {
        uint64_t all_faults = 0, pages = 0, ns = 0;
        pthread_barrier_wait(&common->barrier);
        uint64_t full = resident();
        pthread_barrier_wait(&common->barrier);
        pthread_barrier_wait(&common->barrier);
        uint64_t empty = resident();
        for (int w = 0; w < nr_workers; w++) {
            all_faults += common->faults[w];
            pages += common->pages[w];
            ns += common->ns[w];
        }
        printf("%lu %lu %.1f %lu %lu\n", all_faults, pages, (double)ns / (double)pages, full, empty);
        pthread_barrier_wait(&common->barrier);
    }
}

static void parse(int argc, char **argv)
{
    if (argc < 5)
        exit(1);
    is_drawn = strncmp(argv[1], "drawn:", 6) == 0;
    if (is_drawn || strncmp(argv[1], "mixed:", 6) == 0)
        nr_arrays = atoi(argv[1] + 6);
    else if (sscanf(argv[1], "%dx%zu", &nr_arrays, &one_size) != 2)
        exit(1);
    nr_workers = atoi(argv[2]);
    is_thread = strcmp(argv[3], "thread") == 0;
    nr_epochs = atoi(argv[4]);
    has_prelude = argc > 5;
    if (nr_workers < 1 || nr_workers > WORKERS_MAX)
        exit(1);
}

int main(int argc, char **argv)
{
    parse(argc, argv);
    common = mmap(NULL, sizeof *common, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pthread_barrierattr_t shared;
    pthread_barrierattr_init(&shared);
    pthread_barrierattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
    pthread_barrier_init(&common->barrier, &shared, (unsigned)nr_workers + 1);
    setup();
    pthread_t thread;
    for (intptr_t w = 0; w < nr_workers; w++) {
        if (is_thread) {
            pthread_create(&thread, NULL, work, (void *)w);
        } else if (fork() == 0) {
            work((void *)w);
            _exit(0);
        }
    }
    watch();
    while (!is_thread && wait(NULL) > 0)
        ;
    return 0;
}
