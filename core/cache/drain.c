/* SPDX-License-Identifier: MIT */
/*
 * Drain: a neighbour who is out of memory empties magazines that are not its own.
 *
 * The drainer sets `drain` in the slot, runs a barrier in all attached processes and waits for the owner's marks
 * (magazine.c) to go: from then on the owner takes nothing. It may still add; the drainer changes words, by CAS from
 * CACHED, and no magazine.
 */
#include "cache.h"

#define DRAIN_ROUNDS 200
#define DRAIN_PAUSE_NS 50000

/* Of its slot's, and of a magazine's if that is not NULL. False: stopped in the middle; never robbed. */
static bool out_of_operation(const vm_slot *slot, const vm_magazine *m)
{
    for (int i = 0; i < DRAIN_ROUNDS; i++) {
        if (!VM_ACQUIRE(&slot->in_operation) && !(m && vm__magazine_is_taking(VM_ACQUIRE(&m->header))))
            return true;
        if (i > DRAIN_ROUNDS / 2)
            vm__sleep_ns(DRAIN_PAUSE_NS);
        else
            vm__yield();
    }
    return false;
}

/* Only the words change: the entries stay, stale, for the owner to skip; it may be adding to them. */
static void take_all(vm_thread *t, const vm_magazine *m, uint64_t nr_pages, vm_word cached, uint32_t node)
{
    vm_region *r = t->region;
    uint32_t count = vm__magazine_count(VM_ACQUIRE(&m->header));
    for (uint32_t k = 0; k < count; k++) {
        uint64_t page = VM_RELAXED(&m->page[k]), len = nr_pages << VM_WORD_LEN_SHIFT;
        if (vm__is_within(r, page, nr_pages) && VM_CAS(&r->map.heads[page].word, cached | len, t->moving | len))
            vm__lazy_put_for(t, page, nr_pages, node);
    }
}

/* What the words say is CACHED by a slot whose owner takes nothing now, wherever it is. Returns the pages. */
static uint64_t take_by_words(vm_thread *t, vm_word cached, uint32_t node)
{
    vm_region *r = t->region;
    uint64_t page = 0, pages = 0;
    if (vm__space_lock(t, 0) != 0)
        return 0;
    for (vm_word w; (w = vm__word_at(r, page)); page += vm__len(w)) {
        vm_word len = w & VM_WORD_LEN_MASK;
        if (vm__is_like(w, cached) && VM_CAS(&r->map.heads[page].word, w, t->moving | len)) {
            vm__lazy_put_for(t, page, vm__len(w), node);
            pages += vm__len(w);
        }
    }
    vm__space_unlock(t);
    return pages;
}

/* Empty a live neighbour's magazines into the lazy list; `lost`: and count here what is CACHED by it but in
 * none of them. EAGAIN: it is in the middle of something. */
static int drain(vm_thread *t, uint32_t index, uint64_t *lost)
{
    vm_region *r = t->region;
    vm_slot *slot = &r->map.slots[index];
    uint64_t state = VM_ACQUIRE(&slot->state);
    vm_token drainer = VM_ACQUIRE(&slot->drain);
    if (!(state & 1))
        return 0;
    if (VM_RELAXED(&r->map.processes[vm__slot_process(r, state)].no_barrier))
        return -EAGAIN; /* our barrier would not reach it */
    if (drainer && (!vm__owner_is_dead(r, drainer) || !VM_CAS(&slot->drain, drainer, 0)))
        return -EAGAIN;
    if (!VM_CAS(&slot->drain, 0, t->token))
        return -EAGAIN;
    vm_word cached = vm__word(VM_CACHED, VM_WORD_DIRTY, 0, index, (uint32_t)(state >> 32));
    uint32_t node = vm__group_of_process(r, vm__slot_process(r, state)) * r->map.nodes_each;
    vm__barrier_everywhere();
    int rc = VM_ACQUIRE(&slot->state) == state && out_of_operation(slot, NULL) ? 0 : -EAGAIN;
    for (uint32_t n = vm__next_opened(slot, 1); n <= VM_POOL_PAGES_MAX && rc == 0; n = vm__next_opened(slot, n + 1)) {
        if (out_of_operation(slot, &slot->magazine[n]))
            take_all(t, &slot->magazine[n], n, cached, node);
        else
            rc = -EAGAIN;
    }
    if (rc == 0)
        vm__run_drain(t, slot, cached);
    if (rc == 0 && lost)
        *lost += take_by_words(t, cached, node);
    VM_CAS(&slot->drain, t->token, 0);
    return rc;
}

int vm__magazine_drain(vm_thread *t, uint32_t index) { return drain(t, index, NULL); }

/* Every slot's magazines, our own included. Without membarrier only our own. */
void vm__drain_all(vm_thread *t)
{
    vm_region *r = t->region;
    vm__magazine_flush_all(t);
    if (!r->design->has_magazines || !r->can_drain)
        return;
    for (uint32_t i = vm__first_thread(r); i < r->map.nr_threads; i++)
        if (i != t->index && vm__slot_was_used(r, i))
            vm__magazine_drain(t, i);
}

/* Take back what is CACHED by a live slot but in no magazine, as scribbling over one leaves it. Returns the
 * pages; a slot that is in the middle of something keeps its own. */
uint64_t vm__magazines_reclaim(vm_thread *t)
{
    vm_region *r = t->region;
    uint64_t lost = 0;
    if (!r->design->has_magazines)
        return 0;
    if (t->fast_pages && vm__magazine_flush_all(t))
        lost += take_by_words(t, t->cached, vm__node_here(r));
    for (uint32_t i = vm__first_thread(r); r->can_drain && i < r->map.nr_threads; i++)
        if (i != t->index && vm__slot_was_used(r, i))
            drain(t, i, &lost);
    return lost;
}
