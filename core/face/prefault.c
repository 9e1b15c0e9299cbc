/* SPDX-License-Identifier: MIT */
/*
 * Prefault: what a program makes resident before it needs it.
 *
 * vm_alloc_cold() takes from space, vm_populate() makes the pages resident, by as many threads as the caller likes, and
 * vm_free() gives them back: now they are warm and found by size. vm_keep_warm() raises what may stay warm by that much
 * first, so that the free does not give them back at once and idle time does not either.
 */
#include "face.h"

int vm_alloc_cold(vm_region *r, uint64_t nr_pages, uint64_t align_pages, vm_range *out)
{
    vm_thread *t = vm__thread(r);
    if (!t)
        return vm__thread_error(r);
    if (!vm__is_power_of_two(align_pages) || nr_pages == 0)
        return -EINVAL;
    int health = vm__health(r);
    if (vm_unlikely(health))
        return health;
    if (nr_pages > r->map.nr_pages || align_pages > r->map.nr_pages)
        return -ENOSPC;
    vm__enter(t);
    vm__count(&t->slot->nr_alloc);
    int rc = vm__space_take(t, nr_pages, align_pages, 0, out);
    if (rc == 0)
        vm__count_served(t, VM_LEVEL_SPACE);
    else if (rc == -ENOSPC)
        vm__count(&t->slot->nr_failed);
    vm__leave(t);
    return rc;
}

int vm_populate(vm_region *r, uint64_t page, uint64_t nr_pages)
{
    if (r->readonly)
        return -EROFS;
    if (r->map.flags & VM_FLAG_NO_DATA || !vm__is_within(r, page, nr_pages))
        return -EINVAL;
    return vm__pages_populate(r, page, nr_pages);
}

int vm_keep_warm(vm_region *r, uint64_t nr_pages)
{
    vm_thread *t = vm__thread(r);
    if (!t)
        return vm__thread_error(r);
    int64_t lazy = (int64_t)VM_RELAXED(&r->map.h->lazy_pages);
    uint64_t floor = (lazy > 0 ? (uint64_t)lazy : 0) + nr_pages;
    floor = floor < r->map.nr_pages ? floor : r->map.nr_pages;
    if (floor > VM_RELAXED(&r->map.h->floor_pages)) /* of two at once the lower may win: a wish, not a promise */
        VM_PUT(&r->map.h->floor_pages, floor);
    return 0;
}

/* Whole pages are discarded, so that what nobody writes to takes no memory. */
int vm__zero(vm_region *r, uint64_t page, uint64_t bytes, uint64_t punch_bytes)
{
    uint64_t whole = bytes >> r->map.page_shift, punched = bytes >= punch_bytes ? whole << r->map.page_shift : 0;
    if (r->map.flags & VM_FLAG_NO_DATA || !vm__is_within(r, page, vm_pages_of(r, bytes)))
        return -EINVAL;
    if (punched && vm__pages_discard(r, page, whole) != 0)
        punched = 0;
    memset(r->map.data + (page << r->map.page_shift) + punched, 0, bytes - punched);
    return 0;
}

int vm_zero(vm_region *r, uint64_t page, uint64_t bytes) { return vm__zero(r, page, bytes, VM_ZEROS_PUNCH_BYTES); }
