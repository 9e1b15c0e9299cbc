/* SPDX-License-Identifier: MIT */
/*
 * Charge: how much each process holds, and the quota.
 *
 * A hit costs nothing for it: what comes into a process's reach is added to its charge on the slow paths, what leaves is
 * not taken off. Where the charge exceeds the quota the words are counted, and the charge is what they say.
 */
#include "cache.h"

void vm__charge_slow(vm_region *r, uint64_t nr_pages)
{
    if (r->process < VM_PROCESSES)
        VM_ADD(&r->map.processes[r->process].charged_pages, nr_pages);
}

/* For each holder, or for the first one only. */
static void count_holders(const vm_region *r, uint64_t page, uint64_t nr_pages, bool once, uint64_t held[VM_PROCESSES])
{
    for (uint32_t i = 0; i < vm__nr_holders(r); i++)
        for (uint64_t bits = VM_ACQUIRE(vm__holders(r, page, i)); bits; bits &= bits - 1) {
            held[vm__process_of(i * 64 + (uint32_t)__builtin_ctzll(bits), r->map.nr_processes)] += nr_pages;
            if (once)
                return;
        }
}

void vm__add_held(const vm_region *r, uint64_t page, vm_word w, bool once, uint64_t held[VM_PROCESSES])
{
    vm_state s = vm__state(w);
    uint32_t owner = vm__owner(w);
    if (vm__is_shared(w))
        count_holders(r, page, vm__len(w), once, held);
    else if ((s == VM_BUSY || s == VM_FREEING) && !vm__process_is_retired(r, owner, vm__inc(w)))
        held[owner] += vm__len(w);
    else if (s == VM_CACHED && !vm__owner_is_retired(r, w))
        held[vm__slot_process(r, VM_RELAXED(&r->map.slots[owner].state))] += vm__len(w);
}

void vm__count_held(const vm_region *r, bool once, uint64_t held[VM_PROCESSES])
{
    uint64_t page = 0;
    memset(held, 0, VM_PROCESSES * sizeof *held);
    for (vm_word w; (w = vm__word_at(r, page)); page += vm__len(w))
        vm__add_held(r, page, w, once, held);
}

/* A quota was set where there was none: until then nobody was charged. What is taken meanwhile may be charged twice, until
 * the words are counted again. */
void vm__charge_all(vm_region *r)
{
    uint64_t held[VM_PROCESSES];
    vm__count_held(r, false, held);
    for (uint32_t p = 0; p <= r->map.nr_processes; p++)
        if (held[p])
            VM_ADD(&r->map.processes[p].charged_pages, held[p]);
}

int vm__quota_fits(vm_thread *t, uint64_t nr_pages)
{
    vm_region *r = t->region;
    uint64_t quota = VM_RELAXED(&r->map.h->quota_pages), *charged = &r->map.processes[r->process].charged_pages;
    uint64_t held[VM_PROCESSES], before = VM_ACQUIRE(charged);
    if (!quota || before + nr_pages <= quota)
        return 0;
    if (nr_pages > quota)
        return -EDQUOT;
    vm__magazine_flush_all(t);
    vm__count_held(r, false, held);
    uint64_t now = before; /* lower: another thread counted meanwhile */
    while (now >= before && !VM_CAS(charged, now, held[r->process] + (now - before)))
        now = VM_ACQUIRE(charged); /* what others were charged meanwhile stays on top */
    return held[r->process] + nr_pages <= quota ? 0 : -EDQUOT;
}
