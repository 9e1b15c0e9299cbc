/* SPDX-License-Identifier: MIT */
/*
 * Release: where a range goes that nobody references any more. magazine -> pool -over its cap-> lazy
 *
 * What one process allocates and another frees must come back to who allocates: in the magazine of who only frees it
 * would lie until that one overflows, and a flow of messages would go round through as many places as a magazine has. So large
 * ones go on to the pool in small batches (magazine.c).
 *
 * What lies where few such requests find a place goes back to space (vm__goes_apart(), docs/decisions/0063).
 */
#include "cache.h"

/* Its word is MOVING(t). The length is from a word that a
 * neighbour may have scribbled over: what is no range is left to the words, which do not parse then. */
static void release(vm_thread *t, uint64_t page, uint64_t nr_pages, bool is_foreign)
{
    vm_region *r = t->region;
    if (vm_unlikely(!vm__is_within(r, page, nr_pages))) {
        VM_CORRUPT(r);
        return;
    }
    vm__event(t, VM_EVENT_FREE, page, nr_pages);
    if (!vm__is_pooled(r, nr_pages)) {
        vm__lazy_put(t, page, nr_pages);
        return;
    }
    bool may_keep = is_foreign ? vm__magazine_has_foreign(t, nr_pages) : t->fast_pages != 0;
    if (may_keep && vm__magazine_put_slow(t, page, nr_pages, is_foreign))
        return;
    vm__pool_give(t, nr_pages, 1, &page);
}

void vm__release(vm_thread *t, uint64_t page, uint64_t nr_pages) { release(t, page, nr_pages, false); }

void vm__pass_back(vm_thread *t, uint64_t page, uint64_t nr_pages)
{
    if (vm__magazine_has_foreign(t, nr_pages))
        vm__charge(t->region, nr_pages); /* others' until now */
    release(t, page, nr_pages, true);
}

/* Its pages first, outside the lock: a page must not make the free range around it dirty. False: its id says nothing of it,
 * or the lock was long in use. */
static bool release_apart(vm_thread *t, uint64_t page, uint64_t nr_pages, uint64_t id)
{
    vm_region *r = t->region;
    uint64_t may_clean = 0;
    if (vm_likely(!vm__id_is_apart(id)) || !vm__is_pooled(r, nr_pages) || !vm__is_within(r, page, nr_pages))
        return false;
    bool is_dirty = vm__pages_discard(r, page, nr_pages) != 0;
    if (vm__space_lock(t, VM_LOCK_BRIEF) != 0)
        return false;
    vm__event(t, VM_EVENT_FREE, page, nr_pages); /* before whoever gets it next writes of it */
    vm__space_put(t, page, nr_pages, is_dirty, &may_clean);
    vm__space_unlock(t);
    return true;
}

void vm__release_or_keep(vm_thread *t, uint64_t page, uint64_t nr_pages, uint64_t id, bool is_foreign, vm_range *kept)
{
    if (kept && vm__is_within(t->region, page, nr_pages))
        vm__hand_out(t, page, nr_pages, false, kept);
    else if (release_apart(t, page, nr_pages, id))
        return;
    else if (is_foreign)
        vm__pass_back(t, page, nr_pages);
    else
        vm__release(t, page, nr_pages);
}
