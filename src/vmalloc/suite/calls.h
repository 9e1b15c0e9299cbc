/* SPDX-License-Identifier: MIT */
/*
 * The calls of vmalloc.h that the tests make, each under the board's mutex if the job has one.
 *
 * The design `off-mutex` is `off` with a mutex of the C library around every call: then that mutex is what
 * workers contend for, and the allocator's own locks are always free.
 */
#ifndef VMALLOC_SUITE_CALLS_H
#define VMALLOC_SUITE_CALLS_H

#include <errno.h>
#include <pthread.h>

#include "loops.h"

/* False: somebody has it, and VM_NO_WAIT says not to wait. */
static inline bool vm_suite_lock(const vm_suite_job *job, unsigned flags)
{
    if (!job->mutex)
        return true;
    int rc = pthread_mutex_trylock(job->mutex);
    if (rc == EBUSY) {
        if (flags & VM_NO_WAIT)
            return false;
        uint64_t started = vm_suite_now_ns();
        rc = pthread_mutex_lock(job->mutex);
        *job->mutex_wait_ns += vm_suite_now_ns() - started;
    }
    if (rc == EOWNERDEAD) /* what its owner left is the allocator's to recover */
        pthread_mutex_consistent(job->mutex);
    return true;
}

static inline int vm_suite_unlock(const vm_suite_job *job, int rc)
{
    if (job->mutex)
        pthread_mutex_unlock(job->mutex);
    return rc;
}

static inline int vm_suite_alloc(vm_region *r, const vm_suite_job *job, uint64_t nr_pages, uint64_t align_pages,
                                 unsigned flags, vm_range *out)
{
    if (!vm_suite_lock(job, flags))
        return -EAGAIN;
    return vm_suite_unlock(job, vm_alloc(r, nr_pages, align_pages, flags, out));
}

/* Plain pages, by the entry that returns in registers. A range that is longer than asked for, as some are while space is
 * short, is looked at as far as it was asked for. */
static inline int vm_suite_take(vm_region *r, const vm_suite_job *job, uint64_t nr_pages, vm_range *out)
{
    vm_suite_lock(job, 0);
    vm_taken got = vm_take(r, nr_pages);
    vm_suite_unlock(job, 0);
    *out = (vm_range){got.page, nr_pages, got.id, false};
    return got.id ? 0 : -(int)got.page;
}

static inline int vm_suite_free(vm_region *r, const vm_suite_job *job, uint64_t page, uint64_t id, unsigned flags)
{
    vm_suite_lock(job, 0);
    return vm_suite_unlock(job, vm_free(r, page, id, flags));
}

static inline int vm_suite_free_bulk(vm_region *r, const vm_suite_job *job, size_t count, const vm_range *ranges)
{
    vm_suite_lock(job, 0);
    return vm_suite_unlock(job, vm_free_bulk(r, count, ranges));
}

static inline int vm_suite_alloc_congruent(vm_region *r, const vm_suite_job *job, size_t count, const uint64_t *offsets,
                                           const uint64_t *nr_pages, uint64_t align_pages, vm_range *out)
{
    vm_suite_lock(job, 0);
    return vm_suite_unlock(job, vm_alloc_congruent(r, count, offsets, nr_pages, align_pages, out));
}

static inline int vm_suite_resize(vm_region *r, const vm_suite_job *job, vm_range *range, uint64_t nr_pages)
{
    vm_suite_lock(job, 0);
    return vm_suite_unlock(job, vm_resize(r, range, nr_pages));
}

static inline int vm_suite_share(vm_region *r, const vm_suite_job *job, uint64_t page, uint64_t id)
{
    vm_suite_lock(job, 0);
    return vm_suite_unlock(job, vm_share(r, page, id));
}

static inline int vm_suite_adopt(vm_region *r, const vm_suite_job *job, uint64_t page, uint64_t id, vm_range *out)
{
    vm_suite_lock(job, 0);
    return vm_suite_unlock(job, vm_adopt(r, page, id, out));
}

#endif
