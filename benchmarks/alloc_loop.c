/* SPDX-License-Identifier: MIT */
/*
 * One side of bench_alloc.py: allocate, store one byte, free, on request.
 *
 * Compiled with USE_VM=1 against libvmalloc, with USE_VM=2 the same with the hits of vmalloc_inline.h, with USE_VM=3 through
 * vm_alloc(), whose result goes through memory; with USE_FLOOR against the least that could be done; without both against malloc,
 * which LD_PRELOAD then replaces. Each line on stdin is one round, `hot BYTES N`, `random MAX_PAGES N` (256 live) or
 * `remote BYTES N`; the answer is `NS_PER_PAIR RESIDENT_BYTES`. Rounds are short, so that the driver can
 * let all allocators take turns. Times are CPU time, for `remote` that of both sides.
 *
 * Remote: the other side frees, a thread for malloc and a forked process for vmalloc; what was
 * allocated goes in batches through a ring in shared memory, as pointer or {page, id}.
 */
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define NR_LIVE 256
#define NR_BATCHES 4
#define BATCH 128
#define PAGE 4096u

/* What each pair reads lies at no low 12 bits of an address at which a small magazine's header is stored: such a load waits for
 * the store, and in one process of ten takes 6 ns more for life (docs/decisions/0049). */
static struct {
    _Alignas(4096) char apart[2560];
    volatile size_t size;
    struct vm_region *region;
    uint8_t *base;
} own;

/* ---- the two sides ---- */
#ifdef USE_VM
#if USE_VM == 2
#include <vmalloc_inline.h>
#define TAKE vm_take_inline
#define FREE vm_free_inline
#else
#include <vmalloc.h>
#define TAKE vm_take
#define FREE vm_free
#endif
typedef struct handle {
    uint64_t page, id;
} handle;
static void setup(void)
{
    vm_options options = {.nr_pages = 1 << 21, .pools = VM_POOLS_MAGAZINE};
    const char *pools = getenv("ALLOC_LOOP_POOLS"); /* 0..3: another design */
    if (pools)
        options.pools = (vm_pools)atoi(pools);
    if (vm_create(&options, &own.region) != 0)
        exit(2);
    own.base = vm_pointer(own.region, 0);
}
static inline handle take(size_t bytes)
{
#if USE_VM == 3
    vm_range got;
    if (vm_alloc(own.region, (bytes + PAGE - 1) / PAGE, 1, 0, &got) != 0)
        exit(3);
#else
    vm_taken got = TAKE(own.region, (bytes + PAGE - 1) / PAGE);
#endif
    uint64_t page = got.page, id = got.id;
    __asm__("" : "+r"(page), "+r"(id)); /* see vm_take(): not through the stack */
    if (!id)
        exit(3);
    *(volatile uint8_t *)(own.base + page * PAGE) = 1;
    return (handle){page, id};
}
static inline void give_back(handle h)
{
    if (FREE(own.region, h.page, h.id, 0) != 0)
        exit(4);
}
static inline int is_set(handle h) { return h.id != 0; }
#elif defined USE_FLOOR
/* Nothing but a stack of ready ranges for each size, of as many pages as we have, in shared memory as ours; and the caller's
 * byte. No check, no word, no id, one thread. */
enum { FLOOR_READY = 63, FLOOR_PAGES = 1 << 21, FLOOR_SIZES = 257 };
typedef struct handle {
    uint64_t page, nr_pages;
} handle;
static struct {
    _Alignas(64) uint32_t count;
    uint32_t page[FLOOR_READY];
} ready[FLOOR_SIZES];
static uint64_t next_page;
static uint8_t *base;

static void setup(void)
{
    base = mmap(NULL, (size_t)FLOOR_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE,
                -1, 0);
    if (base == MAP_FAILED)
        exit(2);
}
static __attribute__((noinline, cold)) handle first_time(uint64_t nr_pages)
{
    handle h = {next_page, nr_pages};
    next_page += nr_pages;
    if (next_page > FLOOR_PAGES)
        exit(3);
    return h;
}
static __attribute__((noinline)) handle floor_take(uint64_t nr_pages)
{
    uint32_t count = ready[nr_pages].count;
    if (!count)
        return first_time(nr_pages);
    ready[nr_pages].count = count - 1;
    return (handle){ready[nr_pages].page[count - 1], nr_pages};
}
static __attribute__((noinline)) void floor_free(handle h)
{
    uint32_t count = ready[h.nr_pages].count;
    if (count == FLOOR_READY)
        exit(4);
    ready[h.nr_pages].page[count] = (uint32_t)h.page;
    ready[h.nr_pages].count = count + 1;
}
static inline handle take(size_t bytes)
{
    handle h = floor_take((bytes + PAGE - 1) / PAGE);
    uint64_t page = h.page, nr_pages = h.nr_pages;
    __asm__("" : "+r"(page), "+r"(nr_pages)); /* as above */
    *(volatile uint8_t *)(base + page * PAGE) = 1;
    return (handle){page, nr_pages};
}
static inline void give_back(handle h) { floor_free(h); }
static inline int is_set(handle h) { return h.nr_pages != 0; }
#else
#include <pthread.h>
typedef struct handle {
    void *p;
} handle;
static void setup(void) {}
static inline handle take(size_t bytes)
{
    handle h = {malloc(bytes)};
    if (!h.p)
        exit(3);
    *(volatile uint8_t *)h.p = 1;
    return h;
}
static inline void give_back(handle h) { free(h.p); }
static inline int is_set(handle h) { return h.p != NULL; }
#endif

/* ---- rounds ---- */
static double now_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static double hot(volatile size_t *bytes, long n)
{
    double start = now_ns(CLOCK_PROCESS_CPUTIME_ID);
    for (long i = 0; i < n; i++)
        give_back(take(*bytes));
    return (now_ns(CLOCK_PROCESS_CPUTIME_ID) - start) / (double)n;
}

static double random_sizes(size_t max_pages, long n)
{
    static handle live[NR_LIVE];
    static uint32_t x = 2463534242u;
    double start = now_ns(CLOCK_PROCESS_CPUTIME_ID);
    for (long i = 0; i < n; i++) {
        x ^= x << 13, x ^= x >> 17, x ^= x << 5;
        handle *h = &live[x % NR_LIVE];
        if (is_set(*h))
            give_back(*h);
        *h = take((1 + (x >> 8) % max_pages) * PAGE);
    }
    return (now_ns(CLOCK_PROCESS_CPUTIME_ID) - start) / (double)n;
}

#ifndef USE_FLOOR
/* Batches go round; each side counts the CPU time of its work on a batch and not of its waiting, so
 * that a machine with other work to do still gives figures. */
typedef struct batch {
    _Alignas(128) uint64_t is_full;
    _Alignas(128) handle what[BATCH];
} batch;
typedef struct shared {
    batch batch[NR_BATCHES];
    double freed_ns;
} shared;
static shared *ring;
static int begin[2], end[2]; /* pipes: the other side sleeps between rounds */

static void wait_until(uint64_t *is_full, uint64_t wanted)
{
    for (long spins = 0; __atomic_load_n(is_full, __ATOMIC_ACQUIRE) != wanted; spins++)
        if (spins % 256 == 255)
            sched_yield();
}

static void stay_on(int cpu) /* so that the ranges do travel; one CPU is no error */
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof set, &set);
}

static void *free_what_comes(void *unused)
{
    uint64_t at = 0;
    stay_on(1);
    for (long n; read(begin[0], &n, sizeof n) == sizeof n;) {
        double ns = 0;
        for (; n > 0; n--, at++) {
            batch *b = &ring->batch[at % NR_BATCHES];
            wait_until(&b->is_full, 1);
            double start = now_ns(CLOCK_THREAD_CPUTIME_ID);
            for (int i = 0; i < BATCH; i++)
                give_back(b->what[i]);
            ns += now_ns(CLOCK_THREAD_CPUTIME_ID) - start;
            __atomic_store_n(&b->is_full, 0, __ATOMIC_RELEASE);
        }
        ring->freed_ns = ns;
        if (write(end[1], &n, sizeof n) != sizeof n)
            break;
    }
    return unused;
}

static void start_other_side(void)
{
    ring = mmap(NULL, sizeof *ring, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (ring == MAP_FAILED || pipe(begin) || pipe(end))
        exit(5);
#ifdef USE_VM
    if (fork() == 0) {
        prctl(PR_SET_PDEATHSIG, 9);
        free_what_comes(NULL);
        _exit(0);
    }
#else
    pthread_t thread;
    pthread_create(&thread, NULL, free_what_comes, NULL);
#endif
}

static double remote(size_t bytes, long n)
{
    static uint64_t at;
    double ns = 0;
    if (!ring) {
        start_other_side();
        stay_on(0);
    }
    n /= BATCH;
    if (write(begin[1], &n, sizeof n) != sizeof n)
        exit(5);
    for (long k = 0; k < n; k++, at++) {
        batch *b = &ring->batch[at % NR_BATCHES];
        wait_until(&b->is_full, 0);
        double start = now_ns(CLOCK_THREAD_CPUTIME_ID);
        for (int i = 0; i < BATCH; i++)
            b->what[i] = take(bytes);
        ns += now_ns(CLOCK_THREAD_CPUTIME_ID) - start;
        __atomic_store_n(&b->is_full, 1, __ATOMIC_RELEASE);
    }
    long left;
    if (read(end[0], &left, sizeof left) != sizeof left)
        exit(5);
    return (ns + ring->freed_ns) / (double)(n * BATCH);
}

#endif

static size_t resident_bytes(void)
{
    size_t total, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%zu %zu", &total, &resident) != 2)
        resident = 0;
    if (f)
        fclose(f);
    return resident * PAGE;
}

static double run(const char *name, volatile size_t *size, long n)
{
    if (strcmp(name, "hot") == 0)
        return hot(size, n);
    if (strcmp(name, "random") == 0)
        return random_sizes(*size, n);
#ifdef USE_FLOOR
    exit(6); /* it has no other side */
#else
    return remote(*size, n);
#endif
}

int main(void)
{
    char name[16];
    size_t wanted;
    long n;
    setup();
    while (scanf("%15s %zu %ld", name, &wanted, &n) == 3) {
        own.size = wanted;
        double ns = run(name, &own.size, n);
        printf("%.3f %zu\n", ns, resident_bytes());
        fflush(stdout);
    }
    return 0;
}
