/* SPDX-License-Identifier: MIT */
/*
 * Scan: trust no list, look at the words. It collects what the dead owned and what lists may have lost, and drops the
 * dead's holder bits. purge.c says when; purge_lock is held.
 */
#include "mend.h"

static bool is_dead_process(const vm_region *r, vm_word w)
{
    return vm__process_is_retired(r, vm__owner(w), vm__inc(w));
}

/* As bits of holders. */
static void mark_dying(const vm_region *r, uint64_t dying[VM_PROCESSES / 64])
{
    memset(dying, 0, VM_PROCESSES / 8);
    for (uint32_t p = 0; p < vm__high_process(r); p++)
        if (VM_ACQUIRE(&r->map.processes[p].state) & VM_PROCESS_DYING)
            dying[vm__holder_of(p, r->map.nr_processes) / 64] |= vm__holder_bit(r, p);
}

/* A joiner on a dead process's slot is LIVE again, but holds nothing yet: its bits are the old one's. */
static void drop_holder_bits(vm_region *r, uint64_t page, const uint64_t dying[VM_PROCESSES / 64])
{
    for (uint32_t i = 0, nr = vm__nr_holders(r); i < nr; i++)
        if (dying[i] && VM_ACQUIRE(vm__holders(r, page, i)) & dying[i])
            VM_AND(vm__holders(r, page, i), ~dying[i]);
}

/* A shared range whose holders may be dead, or one that a live owner shares just now, with a bit that a dead
 * adopter left; by the end of this it may be shared, and dropped. True: it was taken, its word is PURGING(t). */
static bool scan_shared(vm_thread *t, uint64_t page, vm_word w, const uint64_t *dying)
{
    vm_region *r = t->region;
    drop_holder_bits(r, page, dying); /* also while a live one is FREEING: it looks once more */
    if (vm__state(w) == VM_FREEING && is_dead_process(r, w))
        VM_CAS(&r->map.heads[page].word, w, vm__with_state(w, VM_BUSY));
    return vm__take_if_unheld(t, page, t->purging);
}

static bool is_lost(const vm_region *r, const vm_thread *t, vm_word w)
{
    switch (vm__state(w)) {
    case VM_LAZY:
        return true; /* listed or not: the lists are detached right after the scan */
    case VM_POOLED:
        return vm__owner(w) >= r->design->kept->scan_takes_from; /* the same; who takes one now finds it taken */
    case VM_PURGING:
        return !vm__is_like(w, t->purging); /* purge_lock is ours: its owner died */
    case VM_CACHED:
    case VM_MOVING:
        return vm__owner_is_retired(r, w);
    case VM_BUSY:
    case VM_FREEING: /* not S yet: its owner was about to share it, and nobody else had it */
        return !(w & VM_WORD_SHARED) && !(r->map.flags & VM_FLAG_KEEP) && is_dead_process(r, w);
    default:
        return false;
    }
}

/* What was lazy stays with those who freed it: all of it is taken, and nearly all only for a moment. */
static uint32_t node_of(const vm_region *r, vm_word w)
{
    return vm__state(w) == VM_LAZY && vm__owner(w) < vm__nodes_used(r) ? vm__owner(w) : UINT32_MAX;
}

/* Walk the words; collect into `out` what the dead owned and what lists may have lost. */
int vm__scan(vm_thread *t, unsigned flags, vm_batch *out)
{
    vm_region *r = t->region;
    VM_ASSERT_HELD(t, &r->map.h->purge_lock);
    uint64_t dying[VM_PROCESSES / 64], page = 0, lazy = 0, reclaimed = 0;
    int rc = vm__space_lock(t, flags & VM_LOCK_FLAGS);
    if (rc)
        return rc;
    mark_dying(r, dying);
    for (vm_word w; (w = vm__word_at(r, page)); page += vm__len(w)) {
        bool taken = false;
        if (vm__state(w) == VM_MOVING && !vm__owner_is_retired(r, w))
            VM_PUT(&r->map.h->purge_needs_scan, 1); /* a live pusher may be linking it into a lost chain */
        if (is_lost(r, t, w))
            taken = VM_CAS(&r->map.heads[page].word, w, t->purging | (w & VM_WORD_LEN_MASK));
        else if (vm__state(w) == VM_FREEING || (vm__state(w) == VM_BUSY && w & VM_WORD_SHARED))
            taken = scan_shared(t, page, w, dying);
        if (taken) {
            lazy += vm__state(w) == VM_LAZY ? vm__len(w) : 0;
            reclaimed += vm__state(w) == VM_LAZY || vm__state(w) == VM_POOLED ? 0 : vm__len(w);
            vm__batch_add_of(t, out, page, vm__len(w), node_of(r, w));
        }
    }
    VM_ADD(&r->map.h->lazy_pages, (uint64_t)0 - lazy);
    VM_PUT(&r->map.h->nr_recovered, r->map.h->nr_recovered + reclaimed);
    vm__space_unlock(t);
    return page == r->map.nr_pages ? 0 : VM_CORRUPT(r);
}

#define LAZY_LOOKS 3 /* at all words, while others work */

/* Is the sum of the words exact? Who makes a range lazy, or takes one, has it MOVING between counter and word. */
static bool count_lazy(const vm_region *r, uint64_t *before, uint64_t *sum)
{
    uint64_t page = 0;
    bool is_under_way = false;
    *before = VM_ACQUIRE(&r->map.h->lazy_pages);
    *sum = 0;
    for (vm_word w; (w = vm__word_at(r, page)); page += vm__len(w)) {
        *sum += vm__state(w) == VM_LAZY ? vm__len(w) : 0;
        is_under_way = is_under_way || vm__state(w) == VM_MOVING;
    }
    return !is_under_way && VM_ACQUIRE(&r->map.h->lazy_pages) == *before;
}

/* A death between a counter and its word leaves the sum of lazy pages off: set it right. While others free and take, a
 * walk counts some of their pages twice: then it stays as it is, off by what the dead one had under way, and is read as
 * signed; the next scan looks again. */
int vm__mend_lazy_pages(vm_thread *t, unsigned flags)
{
    vm_header *h = t->region->map.h;
    VM_ASSERT_HELD(t, &h->purge_lock);
    int rc = vm__space_lock(t, flags & VM_LOCK_FLAGS);
    if (rc)
        return rc;
    uint64_t before, sum;
    bool is_exact = false;
    for (int i = 0; i < LAZY_LOOKS && !is_exact; i++)
        is_exact = count_lazy(t->region, &before, &sum);
    if (is_exact && sum != before)
        VM_ADD(&h->lazy_pages, sum - before);
    VM_PUT(&h->lazy_is_off, !is_exact);
    vm__space_unlock(t);
    return 0;
}
