/* SPDX-License-Identifier: MIT */
/* Stats: counted from the words when asked, and hits from the ids that they took, so that the hot path counts nothing. */
#include "face.h"

void vm__add_range(vm_stats *s, vm_word w)
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

static uint64_t nr_processes(const vm_region *r)
{
    uint64_t nr = 0;
    for (uint32_t p = 0; p < vm__high_process(r); p++)
        nr += (VM_ACQUIRE(&r->map.processes[p].state) & VM_PROCESS_LIVE) != 0;
    return nr;
}

void vm__add_counters(const vm_region *r, vm_stats *s)
{
    const vm_header *h = r->map.h;
    s->nr_processes = nr_processes(r);
    for (uint32_t i = 0; i < r->map.nr_threads; i++) {
        if (!vm__slot_was_used(r, i))
            continue;
        const vm_slot *slot = &r->map.slots[i];
        uint64_t state = VM_ACQUIRE(&slot->state);
        s->nr_thread_slots += i >= vm__first_thread(r) && state & 1 && !(state & VM_SLOT_HELPER);
        s->nr_alloc += VM_RELAXED(&slot->nr_alloc);
        s->nr_magazine_hit += vm__magazine_hits(slot);
        s->nr_slab_hit += VM_RELAXED(&slot->nr_slab_hit);
        s->nr_pool_hit += VM_RELAXED(&slot->nr_pool_hit);
        s->nr_neighbour_hit += VM_RELAXED(&slot->nr_neighbour_hit);
        s->nr_lazy_hit += VM_RELAXED(&slot->nr_lazy_hit);
        s->nr_space_hit += VM_RELAXED(&slot->nr_space_hit);
        s->nr_failed += VM_RELAXED(&slot->nr_failed);
        s->lock_wait_ns += VM_RELAXED(&slot->lock_wait_ns);
    }
    s->nr_purges = VM_RELAXED(&h->nr_purges);
    s->nr_purged_pages = VM_RELAXED(&h->nr_purged_pages);
    s->nr_discards = VM_RELAXED(&h->nr_discards);
    s->nr_splits = VM_RELAXED(&h->nr_splits);
    s->nr_merges = VM_RELAXED(&h->nr_merges);
    s->nr_recovered = VM_RELAXED(&h->nr_recovered);
    s->nr_leases = VM_RELAXED(&h->nr_leases);
    s->nr_ticks = VM_RELAXED(&h->nr_ticks);
    s->nr_decayed_pages = VM_RELAXED(&h->nr_decayed_pages);
    s->helper_pid = vm__helper_pid(r);
    s->per_cpu = !r->design->kept->take_here ? 0 : vm__sequence_cpu() < 0 ? -1 : 1;
    s->pressure = VM_RELAXED(&h->pressure);
    s->pressure_sources = VM_RELAXED(&h->pressure_sources);
    s->resident_bytes = vm__pages_resident_bytes(r);
}

static int add_all(vm_region *r, void *arg)
{
    vm_stats *s = arg;
    uint64_t page = 0;
    *s = (vm_stats){.nr_pages = r->map.nr_pages};
    for (vm_word w; (w = vm__word_at(r, page)); page += vm__len(w))
        vm__add_range(s, w);
    return page == r->map.nr_pages ? 0 : VM_CORRUPT(r);
}

int vm_get_stats(vm_region *r, vm_stats *out)
{
    int rc;
    vm_stats s;
    vm_thread *t = vm__look_enter(r, &rc);
    if (rc == 0)
        rc = vm__look(r, t, add_all, &s);
    vm__look_leave(t);
    if (rc)
        return rc;
    vm__add_counters(r, &s);
    *out = s;
    return 0;
}

void vm_get_glance(const vm_region *r, vm_glance *out)
{
    const vm_header *h = r->map.h;
    *out = (vm_glance){VM_RELAXED(&h->free_pages), VM_RELAXED(&h->lazy_pages), vm__pooled_pages(r),
                       VM_RELAXED(&h->nr_leases), nr_processes(r)};
}
