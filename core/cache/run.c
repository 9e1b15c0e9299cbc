/* SPDX-License-Identifier: MIT */
/*
 * Run: pages side by side that a thread took from space in advance, for all sizes, to cut ranges from without a lock.
 *
 * Who asks space for much, and met others at a lock, gets one behind what it asks for (vm__space_take_many()): so the first
 * filling of many threads takes few turns at space_lock. A run is one range, CACHED by the slot, clean or longer than what a
 * magazine keeps (vm__may_be_run()); the slot names it, as a hint. It is cut from its front, between entry and exit as
 * whatever uses the magazines: the heads of the rest and of the pieces lie inside the run until its first head, written last,
 * makes them visible. So a death leaves the run whole or cut, and all of it is the dead one's by its words.
 */
#include "cache.h"

/* So many pages the next run may have. Who never met anybody at a lock needs none. A quota wants each range to be charged;
 * while space is short others need the pages. */
uint64_t vm__run_most(const vm_thread *t)
{
    uint64_t most = t->cold_pages / VM_RUN_SHARE;
    if (!t->has_waited || t->is_tight || t->cold_pages < VM_RUN_AFTER_PAGES
        || VM_RELAXED(&t->region->map.h->quota_pages))
        return 0;
    return most < VM_RUN_PAGES_MAX ? most : VM_RUN_PAGES_MAX;
}

/* The word of a slot's run; 0: it has none, and the hint was wrong. `cached`: of that slot. */
static vm_word run_of(const vm_region *r, const vm_slot *s, vm_word cached, uint64_t *page)
{
    uint64_t run = VM_RELAXED(&s->run);
    if (!run || run > r->map.nr_pages)
        return 0;
    *page = run - 1;
    vm_word w = vm__word_at(r, *page);
    return w && vm__is_like(w, cached) ? w : 0;
}

/* Cut `nr` ranges, MOVING(t), from the front of a run whose word is w. */
static void cut(vm_thread *t, uint64_t page, vm_word w, uint64_t nr_pages, uint32_t nr, uint64_t *pages)
{
    vm_region *r = t->region;
    uint64_t end = page + nr * nr_pages, rest = vm__len(w) - nr * nr_pages;
    VM_ASSERT(VM_RELAXED(&t->slot->in_operation) && nr && nr * nr_pages <= vm__len(w));
    if (rest)
        VM_STORE(&r->map.heads[end].word, vm__with_len(w, rest));
    for (uint32_t i = nr; i-- > 0;) {
        pages[i] = page + i * nr_pages;
        VM_STORE(&r->map.heads[pages[i]].word, vm__moving(t, nr_pages));
    }
    VM_STORE(&t->slot->run, rest ? end + 1 : 0);
}

/* Take the run, whose word is w, away from t's slot: it is MOVING(t) then. */
static void take_off(vm_thread *t, uint64_t page, vm_word w)
{
    VM_STORE(&t->region->map.heads[page].word, vm__moving(t, vm__len(w)));
    VM_STORE(&t->slot->run, 0);
}

/* To space, clean if it is; who gives it back waits for nobody. Its word is MOVING(t), before that it was w. */
static void put_back(vm_thread *t, uint64_t page, vm_word w)
{
    uint64_t may_clean = 0;
    VM_ASSERT(vm__word_at(t->region, page) == vm__moving(t, vm__len(w)));
    if (vm__space_lock(t, VM_NO_WAIT) != 0) {
        vm__lazy_put(t, page, vm__len(w));
        return;
    }
    vm__space_put(t, page, vm__len(w), w & VM_WORD_DIRTY, &may_clean);
    vm__space_unlock(t);
}

/* One that another may take as well, by its word. */
static void claim_and_put_back(vm_thread *t, uint64_t page, vm_word w)
{
    if (VM_CAS(&t->region->map.heads[page].word, w, vm__moving(t, vm__len(w))))
        put_back(t, page, w);
}

/* How many of up to `max` ranges can be cut from a run whose word is w. */
static uint64_t how_many(vm_word w, uint64_t nr_pages, uint32_t max)
{
    uint64_t nr = vm__len(w) / nr_pages, most = nr < max ? nr : max, rest = vm__len(w) - most * nr_pages;
    return rest == 0 || vm__may_be_run(w, rest) ? most : 0;
}

/* Up to `max` ranges from this thread's run, MOVING(t). Returns how many; what is too short goes back to space. */
uint32_t vm__run_cut(vm_thread *t, uint64_t nr_pages, uint32_t max, uint64_t *pages, bool *is_clean)
{
    uint64_t page;
    if (!VM_RELAXED(&t->slot->run) || !vm__magazines_enter(t))
        return 0;
    vm_word w = run_of(t->region, t->slot, t->cached, &page);
    uint64_t fit = how_many(w, nr_pages, max);
    if (fit)
        cut(t, page, w, nr_pages, (uint32_t)fit, pages);
    else if (w)
        take_off(t, page, w);
    else
        VM_STORE(&t->slot->run, 0); /* somebody drained it */
    vm__magazines_leave(t);
    if (w && !fit)
        put_back(t, page, w);
    *is_clean = !(w & VM_WORD_DIRTY);
    return (uint32_t)fit;
}

/* What space gave: the slot's run from now on. While somebody drains the slot it goes back, unless he found it by its word. */
void vm__run_keep(vm_thread *t, const vm_run *run)
{
    vm_word w = vm__word_at(t->region, run->page);
    if (vm__magazines_enter(t)) {
        VM_STORE(&t->slot->run, run->page + 1);
        vm__magazines_leave(t);
    } else if (vm__is_like(w, t->cached)) {
        claim_and_put_back(t, run->page, w);
    }
}

/* Between enter and leave: the run goes back to space. */
void vm__run_return(vm_thread *t)
{
    uint64_t page;
    vm_word w = run_of(t->region, t->slot, t->cached, &page);
    if (!w)
        return;
    take_off(t, page, w);
    put_back(t, page, w);
}

/* A neighbour's, whose owner takes nothing now; the hint stays, stale, for him to see. */
void vm__run_drain(vm_thread *t, const vm_slot *slot, vm_word cached)
{
    uint64_t page;
    vm_word w = run_of(t->region, slot, cached, &page);
    if (w)
        claim_and_put_back(t, page, w);
}
