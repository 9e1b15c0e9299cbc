/* SPDX-License-Identifier: MIT */
/* The loop itself; replay_core.h says what it is for. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "replay_core.h"

#include <errno.h>
#include <sched.h>
#include <time.h>

#define STOP_EVERY 1024 /* requests */
#define SPINS 64        /* looks at a slot before the processor is left to others */

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec ts;
    clock_gettime(clock, &ts);
    return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

static bool is_stopped(const vm_replay_board *board) { return __atomic_load_n(&board->stop, __ATOMIC_RELAXED) != 0; }

static void wait_for_all(vm_replay_board *board, uint32_t nr_threads)
{
    __atomic_add_fetch(&board->nr_ready, 1, __ATOMIC_ACQ_REL);
    while (__atomic_load_n(&board->nr_ready, __ATOMIC_ACQUIRE) < nr_threads && !is_stopped(board))
        sched_yield();
}

static uint32_t state_of(const vm_replay_slot *slot) { return __atomic_load_n(&slot->state, __ATOMIC_ACQUIRE); }

/* The slot's state; 0 if the replay was stopped meanwhile. */
static uint32_t wait_for(const vm_replay_board *board, const vm_replay_slot *slot, vm_replay_result *out)
{
    uint64_t started = clock_ns(CLOCK_THREAD_CPUTIME_ID);
    uint32_t state = 0;
    for (uint32_t i = 1; !(state = state_of(slot)) && !is_stopped(board); i++)
        if (i % SPINS == 0)
            sched_yield();
    out->wait_ns += clock_ns(CLOCK_THREAD_CPUTIME_ID) - started;
    out->nr_waits++;
    return state;
}

static void allocate(vm_region *r, const vm_replay_request *q, vm_replay_slot *slot, vm_replay_result *out)
{
    vm_range got;
    int rc = vm_alloc(r, q->nr_pages, q->align_pages, 0, &got);
    if (rc == 0) {
        slot->page = got.page;
        slot->id = got.id;
    } else {
        out->nr_failed++;
        out->error = rc;
    }
    __atomic_store_n(&slot->state, rc ? VM_REPLAY_FAILED : VM_REPLAY_THERE, __ATOMIC_RELEASE);
}

static int serve(vm_region *r, vm_replay_board *board, const vm_replay_request *q, vm_replay_result *out)
{
    vm_replay_slot *slot = &board->slot[q->slot];
    if (q->nr_pages) {
        allocate(r, q, slot, out);
        return 0;
    }
    uint32_t state = state_of(slot);
    if (!state)
        state = wait_for(board, slot, out);
    if (!state)
        return -EINTR;
    return state == VM_REPLAY_THERE ? vm_free(r, slot->page, slot->id, 0) : 0;
}

size_t vm_replay_board_bytes(size_t nr_slots) { return sizeof(vm_replay_board) + nr_slots * sizeof(vm_replay_slot); }

int vm_replay_work(vm_region *r, vm_replay_board *board, uint32_t nr_threads, const vm_replay_request *request,
                   size_t nr_requests, vm_replay_result *out)
{
    int rc = 0;
    vm_lock_wait_ns(r); /* this thread's slot, before the clock runs */
    wait_for_all(board, nr_threads);
    uint64_t cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID);
    out->started_ns = clock_ns(CLOCK_MONOTONIC);
    for (size_t i = 0; i < nr_requests && rc == 0; i++)
        rc = i % STOP_EVERY == 0 && is_stopped(board) ? -EINTR : serve(r, board, &request[i], out);
    out->ended_ns = clock_ns(CLOCK_MONOTONIC);
    out->cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID) - cpu;
    if (rc) {
        out->error = rc;
        __atomic_store_n(&board->stop, 1, __ATOMIC_RELAXED); /* others may wait for what this one never does */
    }
    return rc;
}
