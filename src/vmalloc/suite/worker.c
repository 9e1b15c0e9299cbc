/* SPDX-License-Identifier: MIT */
/*
 * The worker: what one thread or process does with the tests of loops.c, and the board it shares with others.
 *
 * It waits at the board's gate, runs its tests in its order, and writes what came of each into its own part
 * of the board.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "loops.h"

#include <errno.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

uint64_t vm_suite_now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

static uint64_t now_cycles(void)
{
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    uint64_t count;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(count));
    return count;
#else
    return vm_suite_now_ns();
#endif
}

size_t vm_suite_board_bytes(uint32_t nr_workers, uint64_t nr_pages)
{
    return sizeof(vm_suite_board) + nr_workers * sizeof(vm_suite_worker) + nr_pages * sizeof(vm_suite_stamp);
}

vm_suite_stamp *vm_suite_stamps(vm_suite_board *board) { return (vm_suite_stamp *)&board->worker[board->nr_workers]; }

/* A robust mutex: a worker that dies with it leaves a region that its own locks keep whole. */
static int make_mutex(pthread_mutex_t *mutex)
{
    pthread_mutexattr_t how;
    int rc = pthread_mutexattr_init(&how);
    if (rc)
        return -rc;
    rc = pthread_mutexattr_setpshared(&how, PTHREAD_PROCESS_SHARED);
    rc = rc ? rc : pthread_mutexattr_setrobust(&how, PTHREAD_MUTEX_ROBUST);
    rc = rc ? rc : pthread_mutex_init(mutex, &how);
    pthread_mutexattr_destroy(&how);
    return -rc;
}

int vm_suite_prepare(vm_suite_board *board, uint32_t nr_workers, bool has_mutex)
{
    int rc = has_mutex ? make_mutex(&board->mutex) : 0;
    board->nr_workers = nr_workers;
    board->has_mutex = has_mutex;
    return rc;
}

void vm_suite_open(vm_suite_board *board)
{
    board->opened_ns = vm_suite_now_ns();
    __atomic_store_n(&board->is_open, 1, __ATOMIC_RELEASE);
    syscall(SYS_futex, &board->is_open, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

/* False: told to stop, or the parent that would open is gone. */
static bool wait_at_gate(vm_suite_board *board)
{
    struct timespec slice = {0, 100000000};
    pid_t parent = getppid();
    __atomic_add_fetch(&board->nr_ready, 1, __ATOMIC_RELEASE);
    while (!__atomic_load_n(&board->is_open, __ATOMIC_ACQUIRE)) {
        if (board->stop || getppid() != parent)
            return false;
        syscall(SYS_futex, &board->is_open, FUTEX_WAIT, 0, &slice, NULL, 0);
    }
    return true;
}

int vm_suite_work(vm_region *r, vm_suite_board *board, vm_suite_job *job, const uint8_t *order, size_t nr_tests)
{
    vm_info info;
    vm_describe(r, &info);
    size_t bytes = vm_suite_held_max(job, info.granule_bytes) * sizeof(vm_range);
    vm_suite_worker *mine = &board->worker[job->worker];
    uint64_t mutex_wait_ns = 0;
    int first = 0;
    job->mutex = board->has_mutex ? &board->mutex : NULL;
    job->mutex_wait_ns = &mutex_wait_ns;
    job->stamps = vm_suite_stamps(board);
    job->exchange = board->exchange;
    job->stop = &board->stop;
    job->held = malloc(bytes);
    if (!job->held)
        return -ENOMEM;
    memset(job->held, 1, bytes); /* and this thread's slot: both before the clock runs */
    vm_lock_wait_ns(r);
    bool is_open = wait_at_gate(board);
    uint64_t started = now_cycles();
    for (size_t i = 0; is_open && i < nr_tests && !board->stop; i++) {
        int rc = vm_suite_run(r, order[i], job, &mine->test[order[i]]);
        first = first ? first : rc;
        __atomic_add_fetch(&board->nr_done, 1, __ATOMIC_RELAXED);
    }
    mine->cycles = now_cycles() - started;
    mine->ended_ns = vm_suite_now_ns();
    free(job->held);
    return is_open ? first : VM_SUITE_STOPPED;
}
