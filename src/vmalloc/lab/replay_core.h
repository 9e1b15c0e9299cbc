/* SPDX-License-Identifier: MIT */
/*
 * A recording's requests on the real allocator: the loop that one thread runs for one recorded CPU.
 *
 * Every allocation of the recording has a slot of its own on a board all threads share; a free names the
 * slot it frees and waits until the allocation's thread has published it. The recording's order is one in
 * which every allocation precedes its free, so the earliest request not yet done never waits: no deadlock.
 */
#ifndef VMALLOC_LAB_REPLAY_CORE_H
#define VMALLOC_LAB_REPLAY_CORE_H

#include <stddef.h>
#include <stdint.h>

#include "vmalloc.h"

typedef struct vm_replay_request {
    uint32_t slot;
    uint32_t nr_pages;    /* 0: free what the slot holds */
    uint32_t align_pages; /* of an allocation            */
} vm_replay_request;

typedef struct vm_replay_slot {
    uint64_t page, id;
    uint32_t state; /* 0 until published; then one of vm_replay_state */
} vm_replay_slot;

enum vm_replay_state { VM_REPLAY_THERE = 1, VM_REPLAY_FAILED = 2 };

typedef struct vm_replay_board { /* starts as zeros */
    uint32_t nr_ready;
    uint32_t stop; /* set from outside, and by a thread that cannot go on */
    _Alignas(64) vm_replay_slot slot[];
} vm_replay_board;

typedef struct vm_replay_result {
    uint64_t started_ns, ended_ns; /* CLOCK_MONOTONIC, between the gate and the last request */
    uint64_t cpu_ns;               /* of this thread, waiting included                       */
    uint64_t wait_ns;              /* of cpu_ns: waiting for other threads' allocations      */
    uint64_t nr_waits, nr_failed;  /* nr_failed: allocations without a range                 */
    int64_t error;                 /* of the last failure; of what stopped the loop          */
} vm_replay_result;

size_t vm_replay_board_bytes(size_t nr_slots);
/* One thread of nr_threads. 0, or -EINTR after `stop`, or what a free failed with: that is never expected. */
int vm_replay_work(vm_region *r, vm_replay_board *board, uint32_t nr_threads, const vm_replay_request *request,
                   size_t nr_requests, vm_replay_result *out);

#endif
