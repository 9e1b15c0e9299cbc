/* SPDX-License-Identifier: MIT */
/* Stats: counted from the words when asked, so that the hot path counts nothing. */
#include "internal.h"

static void add_range(vm_stats *s, vm_word w)
{
    uint64_t len = vm__len(w);
    s->nr_ranges++;
    switch (vm__state(w)) {
    case VM_FREE:
        s->free_pages += len;
        s->nr_free_ranges++;
        if (len > s->largest_free_pages)
            s->largest_free_pages = len;
        break;
    case VM_BUSY:
    case VM_FREEING:
        s->busy_pages += len;
        s->nr_busy++;
        s->nr_shared += (w & VM_WORD_SHARED) != 0;
        break;
    case VM_CACHED:
        s->cached_pages += len;
        break;
    case VM_POOLED:
        s->pooled_pages += len;
        break;
    case VM_LAZY:
        s->lazy_pages += len;
        break;
    default:
        s->moving_pages += len;
        break;
    }
}

static void add_counters(const vm_region *r, vm_stats *s)
{
    const vm_header *h = r->h;
    for (uint32_t p = 0; p < VM_PROCESS_NAMES; p++)
        s->nr_processes += (VM_LOAD(&r->processes[p].state) & VM_PROCESS_LIVE) != 0;
    for (uint32_t i = 0; i < r->nr_threads; i++) {
        if (!vm__slot_was_used(r, i))
            continue;
        const vm_slot *slot = &r->slots[i];
        uint64_t state = VM_LOAD(&slot->state);
        s->nr_thread_slots += i >= VM_PROCESSES && state & 1;
        s->nr_alloc += VM_PEEK(&slot->nr_alloc);
        s->nr_pool_hit += VM_PEEK(&slot->nr_pool_hit);
        s->nr_lazy_hit += VM_PEEK(&slot->nr_lazy_hit);
        s->nr_space_hit += VM_PEEK(&slot->nr_space_hit);
        s->nr_failed += VM_PEEK(&slot->nr_failed);
        s->lock_wait_ns += VM_PEEK(&slot->lock_wait_ns);
    }
    s->nr_purges = h->nr_purges;
    s->nr_purged_pages = h->nr_purged_pages;
    s->nr_discards = h->nr_discards;
    s->nr_splits = h->nr_splits;
    s->nr_merges = h->nr_merges;
    s->nr_recovered = h->nr_recovered;
    s->resident_bytes = vm__pages_resident_bytes(r);
}

int vm_get_stats(vm_region *r, vm_stats *out)
{
    vm_thread *t = vm__thread(r);
    if (!t)
        return vm__thread_error(r);
    vm_stats s = {.nr_pages = r->nr_pages};
    uint64_t page = 0;
    vm__enter(t);
    int rc = vm__space_lock(r, t, 0);
    if (rc == 0) {
        for (vm_word w; (w = vm__scan(r, page)); page += vm__len(w))
            add_range(&s, w);
        vm__space_unlock(r, t);
        rc = page == r->nr_pages ? 0 : VM_CORRUPT(r);
    }
    vm__leave(t);
    if (rc)
        return rc;
    add_counters(r, &s);
    *out = s;
    return 0;
}

/* Copied under the lock, told outside it: a callback may allocate. */
int vm_walk(vm_region *r, int (*each)(void *, const vm_range_info *), void *arg)
{
    vm_thread *t = vm__thread(r);
    if (!t)
        return vm__thread_error(r);
    size_t nr = 0, room = 1024;
    vm_range_info *info = malloc(room * sizeof *info);
    uint64_t page = 0;
    int rc = info ? 0 : -ENOMEM;
    vm__enter(t);
    if (rc == 0)
        rc = vm__space_lock(r, t, 0);
    if (rc == 0) {
        for (vm_word w; (w = vm__scan(r, page)); page += vm__len(w)) {
            if (nr == room) {
                vm_range_info *grown = realloc(info, 2 * room * sizeof *info);
                if (!grown) {
                    rc = -ENOMEM;
                    break;
                }
                info = grown;
                room *= 2;
            }
            bool is_busy = vm__state(w) == VM_BUSY || vm__state(w) == VM_FREEING;
            info[nr++] = (vm_range_info){page,         vm__len(w),   is_busy ? VM_LOAD(&r->heads[page].aux) : 0,
                                         vm__state(w), vm__owner(w), (w & VM_WORD_SHARED) != 0,
                                         (w & VM_WORD_DIRTY) != 0};
        }
        vm__space_unlock(r, t);
        if (rc == 0 && page != r->nr_pages)
            rc = VM_CORRUPT(r);
    }
    vm__leave(t);
    for (size_t i = 0; rc == 0 && i < nr; i++)
        rc = each(arg, &info[i]);
    free(info);
    return rc;
}
