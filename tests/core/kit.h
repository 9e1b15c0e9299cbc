/* SPDX-License-Identifier: MIT */
/*
 * KIT: what the C tests share. Regions of every design, children that are waited for, a seeded
 * random number, and the two questions at the end of every test: does check() find nothing, and do
 * all pages come back?
 */
#ifndef VM_TESTS_KIT_H
#define VM_TESTS_KIT_H

#include "check.h"
#include "face/face.h"

#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define UNUSED __attribute__((unused))
#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))

/* Sanitizers make everything 5 to 20 times slower: a test does so much less then. */
#if defined(__SANITIZE_THREAD__)
#define IS_TSAN 1
#define SLOWER 8
#elif defined(__SANITIZE_ADDRESS__)
#define IS_TSAN 0
#define SLOWER 4
#else
#define IS_TSAN 0
#define SLOWER 1
#endif

#define FOR_EACH_DESIGN(d) for (vm_pools d = 0; d < VM_NR_POOL_DESIGNS; d++)

/* What the small regions here are, unless a test says otherwise: one node, so that nothing depends
 * on the CPU we happen to run on, and a purge only when asked for. */
#define SMALL .nr_nodes = 1, .nr_threads = 8, .lazy_pages_max = 1u << 28

#define MAKE(...) make_region(&(vm_options){__VA_ARGS__})
UNUSED static vm_region *make_region(const vm_options *options)
{
    vm_region *r = NULL;
    CHECK_EQ(vm_create(options, &r), 0);
    return r;
}

UNUSED static void say_finding(void *arg, const char *text)
{
    fprintf(stderr, "  check(%s): %s\n", (const char *)arg, text);
}

/* Nobody else is working: every invariant holds. */
#define CHECK_CLEAN(r) CHECK_EQ(vm_check((r), true, say_finding, "clean"), 0)

UNUSED static vm_stats stats_of(vm_region *r)
{
    vm_stats s;
    CHECK_EQ(vm_get_stats(r, &s), 0);
    CHECK_EQ(s.free_pages + s.busy_pages + s.cached_pages + s.pooled_pages + s.lazy_pages + s.moving_pages, s.nr_pages);
    return s;
}

/* Everything was freed: a shrink brings every page back to space. */
#define CHECK_ALL_FREE(r)                                    \
    do {                                                     \
        CHECK_EQ(vm_shrink((r), NULL), 0);                   \
        CHECK_EQ(stats_of(r).free_pages, (r)->map.nr_pages); \
        CHECK_CLEAN(r);                                      \
    } while (0)

/* The end of a test that freed everything. */
#define FINISH(r)                  \
    do {                           \
        CHECK_CLEAN(r);            \
        CHECK_ALL_FREE(r);         \
        CHECK_EQ(vm_detach(r), 0); \
    } while (0)

UNUSED static vm_range take(vm_region *r, uint64_t nr_pages)
{
    vm_range a = {0};
    CHECK_EQ(vm_alloc(r, nr_pages, 1, 0, &a), 0);
    CHECK(a.nr_pages >= nr_pages && a.page + a.nr_pages <= r->map.nr_pages);
    return a;
}
#define GIVE_BACK(r, a) CHECK_EQ(vm_free((r), (a).page, (a).id, 0), 0)

/* ---- chance: xorshift64*, seeded ---- */
UNUSED static uint64_t next_random(uint64_t *seed)
{
    *seed ^= *seed >> 12, *seed ^= *seed << 25, *seed ^= *seed >> 27;
    return *seed * 0x2545f4914f6cdd1dull;
}
UNUSED static uint64_t random_below(uint64_t *seed, uint64_t n) { return (next_random(seed) >> 11) % n; }
UNUSED static uint64_t random_pages(uint64_t *seed, uint64_t max)
{
    uint64_t most = 1ull << random_below(seed, 64 - (uint64_t)__builtin_clzll(max) + 1);
    return 1 + random_below(seed, most < max ? most : max);
}

/* ---- children ---- */
#define CHILD(pid, ...)                                                                   \
    do {                                                                                  \
        fflush(NULL);                                                                     \
        (pid) = fork();                                                                   \
        CHECK((pid) >= 0);                                                                \
        if ((pid) == 0) {                                                                 \
            prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that ends leaves nobody behind */ \
            __VA_ARGS__;                                                                  \
            fflush(NULL);                                                                 \
            _exit(0);                                                                     \
        }                                                                                 \
    } while (0)

UNUSED static int end_of(pid_t pid)
{
    int status = 0;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    return status;
}
UNUSED static void ended_well(pid_t pid)
{
    int status = end_of(pid);
    if (!WIFEXITED(status) || WEXITSTATUS(status)) {
        fprintf(stderr, "child %d ended with status 0x%x\n", pid, (unsigned)status);
        exit(1);
    }
}
#define IN_CHILD(...)             \
    do {                          \
        pid_t pid_;               \
        CHILD(pid_, __VA_ARGS__); \
        ended_well(pid_);         \
    } while (0)

/* Memory that parent and children see alike. */
UNUSED static void *shared_memory(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    return p;
}

UNUSED static double seconds(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

#endif
