/* SPDX-License-Identifier: MIT */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "measure.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, ADDS = 200000, LINE_ROUNDS = 50000, WAKE_ROUNDS = 2000, PAGES = 2048, COLD_BYTES = 128 << 20 };

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

int sim_measure_locked(double *add_ns, double *cas_ns)
{
    _Atomic uint64_t word = 0;
    double begin = now_ns();
    for (int i = 0; i < ADDS; i++)
        atomic_fetch_add(&word, 1);
    *add_ns = (now_ns() - begin) / ADDS;
    begin = now_ns();
    for (int i = 0; i < ADDS; i++) {
        uint64_t seen = atomic_load_explicit(&word, memory_order_relaxed);
        atomic_compare_exchange_strong(&word, &seen, seen + 1);
    }
    *cas_ns = (now_ns() - begin) / ADDS;
    return 0;
}

/* ---- two threads ------------------------------------------------------------------------------ */

typedef struct pair {
    _Alignas(64) _Atomic uint32_t turn;
    int cpu;
    int rounds;
    bool sleeps;
    int error;
} pair;

static int pin(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    return pthread_setaffinity_np(pthread_self(), sizeof set, &set);
}

static void wait_for(pair *p, uint32_t turn)
{
    uint32_t seen;
    while ((seen = atomic_load(&p->turn)) != turn)
        if (p->sleeps)
            syscall(SYS_futex, &p->turn, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void pass(pair *p, uint32_t turn)
{
    atomic_store(&p->turn, turn);
    if (p->sleeps)
        syscall(SYS_futex, &p->turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static void *answer(void *of)
{
    pair *p = of;
    p->error = pin(p->cpu);
    for (int i = 0; i < p->rounds; i++) {
        wait_for(p, 1);
        pass(p, 0);
    }
    return NULL;
}

static int to_and_fro(int cpu_a, int cpu_b, int rounds, bool sleeps, double *ns)
{
    if (cpu_a < 0 || cpu_b < 0 || cpu_a >= CPU_SETSIZE || cpu_b >= CPU_SETSIZE)
        return -EINVAL;
    pair p = {.cpu = cpu_b, .rounds = rounds, .sleeps = sleeps};
    cpu_set_t before;
    pthread_getaffinity_np(pthread_self(), sizeof before, &before);
    pthread_t other;
    int rc = pin(cpu_a);
    if (rc || (rc = pthread_create(&other, NULL, answer, &p))) {
        pthread_setaffinity_np(pthread_self(), sizeof before, &before);
        return -rc;
    }
    double begin = now_ns();
    for (int i = 0; i < rounds; i++) {
        pass(&p, 1);
        wait_for(&p, 0);
    }
    *ns = (now_ns() - begin) / rounds / 2;
    pthread_join(other, NULL);
    pthread_setaffinity_np(pthread_self(), sizeof before, &before);
    return -p.error;
}

int sim_measure_line(int cpu_a, int cpu_b, double *ns) { return to_and_fro(cpu_a, cpu_b, LINE_ROUNDS, false, ns); }

int sim_measure_wake(int cpu_a, int cpu_b, double *ns) { return to_and_fro(cpu_a, cpu_b, WAKE_ROUNDS, true, ns); }

/* ---- pages ------------------------------------------------------------------------------------ */

static double clear_all(char *at, size_t bytes)
{
    double begin = now_ns();
    for (size_t i = 0; i < bytes; i += PAGE)
        memset(at + i, 1, PAGE);
    return (now_ns() - begin) / (double)(bytes / PAGE);
}

int sim_measure_pages(double *touch_ns, double *hot_ns, double *cold_ns)
{
    char *at = mmap(NULL, COLD_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        return -errno;
    madvise(at, COLD_BYTES, MADV_NOHUGEPAGE);
    double begin = now_ns();
    for (size_t i = 0; i < PAGES; i++)
        at[i * PAGE] = 1;
    *touch_ns = (now_ns() - begin) / PAGES;
    clear_all(at, COLD_BYTES); /* all of it is there now, its beginning no longer in the cache */
    *cold_ns = clear_all(at, COLD_BYTES / 4);
    clear_all(at, 16 * PAGE);
    *hot_ns = clear_all(at, 16 * PAGE);
    munmap(at, COLD_BYTES);
    return 0;
}

static void *run_until(void *of)
{
    _Atomic bool *stop = of;
    while (!atomic_load_explicit(stop, memory_order_relaxed))
        sched_yield();
    return NULL;
}

int sim_measure_unmap(int threads, double *ns)
{
    _Atomic bool stop = false;
    pthread_t *other = calloc((size_t)threads + 1, sizeof *other);
    char *at = mmap(NULL, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int started = 0, rc = other && at != MAP_FAILED ? 0 : -ENOMEM;
    while (!rc && started < threads && pthread_create(&other[started], NULL, run_until, &stop) == 0)
        started++;
    if (!rc) {
        memset(at, 1, (size_t)PAGES * PAGE);
        double begin = now_ns();
        for (size_t i = 0; i < PAGES; i++)
            madvise(at + i * PAGE, PAGE, MADV_DONTNEED);
        *ns = (now_ns() - begin) / PAGES;
    }
    atomic_store(&stop, true);
    for (int i = 0; i < started; i++)
        pthread_join(other[i], NULL);
    if (at != MAP_FAILED)
        munmap(at, (size_t)PAGES * PAGE);
    free(other);
    return rc ? rc : started < threads ? -EAGAIN : 0;
}
