/* SPDX-License-Identifier: MIT */
/*
 * The kernel's vmalloc test suite as loops over vmalloc.h, one call per worker and round.
 *
 * Workers are threads or processes. They share a board, one mapping that starts as zeros: the gate
 * they start at, a stop flag, where they write results, a mutex for the design that has one, and a stamp per
 * page of the region that names the page's present owner, so that a page handed out twice is seen at once.
 * After: Linux lib/test_vmalloc.c.
 */
#ifndef VMALLOC_SUITE_LOOPS_H
#define VMALLOC_SUITE_LOOPS_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmalloc.h"

enum {
    VM_SUITE_TESTS = 13,
    VM_SUITE_LONG_BUSY = 15000, /* ranges long_busy_list_alloc holds; the kernel's number */
    VM_SUITE_BATCH = 64,        /* ranges kvfree_rcu frees together */
    VM_SUITE_EXCHANGES = 16,
};

/* What a test can end with besides 0 and a negative errno. */
enum { VM_SUITE_OVERLAP = 1, VM_SUITE_CONTENTS = 2, VM_SUITE_STOPPED = 3 };

typedef uint16_t vm_suite_stamp; /* the owner's worker number + 1; 0: nobody's */

typedef struct vm_suite_result { /* of one worker and test; added up over rounds */
    uint64_t passed, failed, xfailed;
    uint64_t ns, lock_wait_ns;
    int64_t error; /* what the last one that did not pass ended with */
} vm_suite_result;

/* kvfree_rcu_2: a batch of ranges on its way to another worker, who frees it. */
typedef struct vm_suite_exchange {
    _Alignas(64) uint32_t is_taken;
    uint32_t count;
    vm_suite_stamp stamp;
    vm_range range[VM_SUITE_BATCH];
} vm_suite_exchange;

typedef struct vm_suite_worker {
    _Alignas(64) vm_suite_result test[VM_SUITE_TESTS];
    uint64_t cycles; /* of all its tests, as the kernel's get_cycles() counts them */
    uint64_t ended_ns;
} vm_suite_worker;

typedef struct vm_suite_board {
    uint32_t is_open; /* the gate; a futex                                     */
    uint32_t nr_workers;
    volatile int stop; /* read rarely; set from outside                         */
    uint32_t nr_ready; /* workers at the gate                                   */
    uint32_t nr_done;  /* tests ended, for a progress bar                       */
    bool has_mutex;    /* each call of the allocator is made under it           */
    pthread_mutex_t mutex;
    uint64_t opened_ns;
    vm_suite_exchange exchange[VM_SUITE_EXCHANGES];
    vm_suite_worker worker[]; /* nr_workers of them, then the stamps, one a page */
} vm_suite_board;

typedef struct vm_suite_job {
    uint32_t worker; /* from 0 */
    bool use_huge, touch;
    uint64_t nr_loops;
    uint64_t nr_pages;   /* of fix_size, vm_map_ram, no_block; 0: one */
    uint64_t nr_objects; /* of pcpu_alloc                             */
    uint64_t nr_fit;     /* L: holes full_fit_alloc makes             */
    uint64_t seed;
    vm_suite_stamp *stamps;
    vm_suite_exchange *exchange;
    pthread_mutex_t *mutex;  /* NULL: none                           */
    uint64_t *mutex_wait_ns; /* added to                             */
    const volatile int *stop;
    vm_range *held; /* room for vm_suite_held_max() ranges */
} vm_suite_job;

uint64_t vm_suite_now_ns(void);
uint64_t vm_suite_held_max(const vm_suite_job *job, uint64_t page_bytes);
/* Test number `test` once: 0, or what it failed with, which is also added to *out. */
int vm_suite_run(vm_region *r, uint32_t test, const vm_suite_job *job, vm_suite_result *out);

size_t vm_suite_board_bytes(uint32_t nr_workers, uint64_t nr_pages);
/* Make a board of zeros ready. A negative errno if there can be no mutex. */
int vm_suite_prepare(vm_suite_board *board, uint32_t nr_workers, bool has_mutex);
vm_suite_stamp *vm_suite_stamps(vm_suite_board *board);
void vm_suite_open(vm_suite_board *board); /* let the waiting workers start */
/* A whole worker: wait at the gate, then the tests in this order. `job` lacks only what the board has. */
int vm_suite_work(vm_region *r, vm_suite_board *board, vm_suite_job *job, const uint8_t *order, size_t nr_tests);

#endif
