/* SPDX-License-Identifier: MIT */
/*
 * Crowds of bench_steady.py.
 *
 * Arguments: PROCESSES THREADS PAIRS [nothing]. So many processes with so many threads each do PAIRS pairs of one page
 * together, each the same number. Prints the seconds that took once all threads were there, how many calls failed, the
 * longest pair in seconds, where a waiter that starves would show, and the CPU seconds of all. With `nothing` the threads
 * wake up, look at the clock as often, call nothing, and end: what the machine itself takes for so many threads.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <vmalloc.h>

#define STACK_BYTES 65536

typedef struct shared {
    uint32_t nr_ready, pad;
    uint64_t nr_failed, longest_ns;
} shared;

static vm_region *region;
static shared *all;
static long pairs_each;
static int calls_nothing;
static int gate[2];

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void note_longest(uint64_t ns)
{
    uint64_t old = __atomic_load_n(&all->longest_ns, __ATOMIC_RELAXED);
    while (ns > old && !__atomic_compare_exchange_n(&all->longest_ns, &old, ns, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        ;
}

static void *work(void *unused)
{
    uint64_t longest = 0, nr_failed = 0;
    char byte;
    (void)unused;
    __atomic_add_fetch(&all->nr_ready, 1, __ATOMIC_SEQ_CST);
    if (read(gate[0], &byte, 1) != 0) /* until nobody can write to it */
        _exit(4);
    for (long i = 0; i < pairs_each; i++) {
        vm_range a;
        uint64_t began = now_ns();
        if (!calls_nothing)
            nr_failed += vm_alloc(region, 1, 1, 0, &a) != 0 || vm_free(region, a.page, a.id, 0) != 0;
        uint64_t took = now_ns() - began;
        longest = took > longest ? took : longest;
    }
    note_longest(longest);
    __atomic_add_fetch(&all->nr_failed, nr_failed, __ATOMIC_RELAXED);
    return NULL;
}

static void run_threads(int nr)
{
    pthread_t *thread = calloc((size_t)nr, sizeof *thread);
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, STACK_BYTES);
    for (int i = 0; i < nr; i++)
        if (pthread_create(&thread[i], &small, work, NULL) != 0)
            _exit(3);
    for (int i = 0; i < nr; i++)
        pthread_join(thread[i], NULL);
    free(thread);
}

static double seconds_of(clockid_t clock)
{
    struct timespec t = {0, 0};
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* What they took until now. */
static double cpu_of(int nr, const pid_t *child)
{
    double sum = 0;
    clockid_t clock;
    for (int i = 0; i < nr; i++)
        sum += clock_getcpuclockid(child[i], &clock) == 0 ? seconds_of(clock) : 0;
    return sum;
}

static double cpu_of_ended_children(void)
{
    struct rusage u;
    getrusage(RUSAGE_CHILDREN, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

int main(int argc, char **argv)
{
    if (argc < 4)
        return 1;
    int nr_processes = atoi(argv[1]), nr_threads = atoi(argv[2]), status, failed = 0;
    uint32_t nr = (uint32_t)(nr_processes * nr_threads);
    vm_options options = {.nr_pages = 1 << 18, .nr_threads = 3840, .pools = VM_POOLS_MAGAZINE};
    pid_t *child = calloc((size_t)nr_processes, sizeof *child);
    pairs_each = atol(argv[3]) / (long)nr;
    calls_nothing = argc > 4;
    all = mmap(NULL, sizeof *all, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED || pipe(gate) != 0 || vm_create(&options, &region) != 0)
        return 2;
    for (int i = 0; i < nr_processes; i++)
        if ((child[i] = fork()) == 0) {
            close(gate[1]);
            run_threads(nr_threads);
            _exit(0);
        }
    while (__atomic_load_n(&all->nr_ready, __ATOMIC_ACQUIRE) < nr)
        usleep(1000);
    double cpu = cpu_of(nr_processes, child);
    uint64_t began = now_ns();
    close(gate[1]);
    while (wait(&status) > 0)
        failed |= status;
    double took = (double)(now_ns() - began) / 1e9;
    printf("%.4f %lu %.3f %.4f\n", took, all->nr_failed, (double)all->longest_ns / 1e9, cpu_of_ended_children() - cpu);
    return failed != 0;
}
