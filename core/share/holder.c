/* SPDX-License-Identifier: MIT */
/*
 * Holders: which processes reference a shared range.
 *
 * One bit per process slot; set and clear are idempotent, so a dead holder's reference is cleared by
 * a scan, without a log. How often a process holds a range is its own affair (`references`). Freeing
 * is two words, the range's and its holders', hence a handshake:
 *   last drop  clear my bit, move the word BUSY -> FREEING, read the holders again; if any, undo and
 *              look once more, because a drop in between left it to us;
 *   adopt      set my bit, then look whether the range is still BUSY under that id; else clear it.
 * Both sides write before they read, with full fences, so at least one sees the other. Whoever adds a
 * reference, a bit or a lease, waits while the word is FREEING before another one is given up: a freer
 * reads the holders one after the other and might else see neither.
 *
 * First sharing: FREEING, not yet S, while the holders are written; so what stale adopters left here is
 * gone before anybody can trust it, and a scan that meets it knows that only its owner had it.
 */
#include "share.h"

#define LOOK_FOR_DEATHS_NS 10000000ull

/* Leases last: one that was given for a bit cannot be missed then. */
static bool is_held(vm_region *r, uint64_t page)
{
    for (uint32_t i = 0, nr = vm__nr_holders(r); i < nr; i++)
        if (__atomic_load_n(vm__holders(r, page, i), __ATOMIC_SEQ_CST))
            return true;
    return __atomic_load_n(&r->map.sharings[page].nr_leases, __ATOMIC_SEQ_CST) != 0;
}

/* If nobody references the shared range any more, make its word `taken`. */
bool vm__take_if_unheld(vm_thread *t, uint64_t page, vm_word taken)
{
    vm_region *r = t->region;
    uint64_t freeing_flags = vm__word(VM_FREEING, VM_WORD_SHARED, 0, r->process, r->process_inc);
    while (!is_held(r, page)) {
        vm_word w = VM_ACQUIRE(&r->map.heads[page].word);
        if (vm__state(w) != VM_BUSY || !(w & VM_WORD_SHARED))
            return false; /* another one is at it */
        vm_word freeing = freeing_flags | (w & (VM_WORD_LEN_MASK | VM_WORD_DIRTY));
        if (!VM_CAS(&r->map.heads[page].word, w, freeing))
            continue;
        /* who leaves, or joins, is taken for dead, and its FREEING ended: then it is not done */
        bool was_held = is_held(r, page);
        vm_word then = was_held ? w : taken | (w & VM_WORD_LEN_MASK);
        if (VM_CAS(&r->map.heads[page].word, freeing, then) && !was_held)
            return true;
    }
    return false;
}

void vm__release_if_unheld(vm_thread *t, uint64_t page)
{
    vm_region *r = t->region;
    if (vm__take_if_unheld(t, page, t->moving))
        vm__pass_back(t, page, vm__len(VM_ACQUIRE(&r->map.heads[page].word)));
}

/* ---- this process's own counts [holder_mutex] ---- */

/* Wiped in a forked child; fork.c writes there what it inherits. */
static int need_references(vm_region *r)
{
    if (r->references)
        return 0;
    r->references = vm__private_pages(r->map.nr_pages * sizeof *r->references, true);
    return r->references ? 0 : -ENOMEM;
}

/* Does this process hold the range `id` there? What it counted of an earlier one does not matter. */
bool vm__holds(const vm_region *r, uint64_t page, uint64_t id)
{
    return r->references && r->references[page].count && r->references[page].id == id;
}

static void count_one(vm_region *r, uint64_t page, uint64_t id)
{
    vm_reference *own = &r->references[page];
    if (own->id != id)
        *own = (vm_reference){.id = id};
    own->count++;
}

/* ---- share ---- */

/* This process, and its child-to-be, are the range's only holders. */
static void write_holders(vm_region *r, uint64_t page, uint32_t heir)
{
    uint64_t *own = vm__holder_word(r, page, r->process);
    uint64_t *its = heir < VM_PROCESSES ? vm__holder_word(r, page, heir) : NULL;
    for (uint32_t i = 0, nr = vm__nr_holders(r); i < nr; i++) {
        uint64_t *word = vm__holders(r, page, i), bits = word == own ? vm__holder_bit(r, r->process) : 0;
        if (word == its)
            bits |= vm__holder_bit(r, heir);
        VM_PUT(word, bits);
    }
    VM_PUT(&r->map.sharings[page].nr_leases, 0);
}

/* Share what only this process has; `heir`: with whom at once, VM_PROCESSES for nobody. */
int vm__share_for(vm_thread *t, uint64_t page, uint64_t id, uint32_t heir)
{
    vm_region *r = t->region;
    vm_word *word = &r->map.heads[page].word, w = VM_ACQUIRE(word);
    if (!vm__is_like(w, t->busy))
        return -ENOENT; /* another process's, and it did not share it */
    int rc = need_references(r);
    if (rc)
        return rc;
    vm_word sharing = vm__word(VM_FREEING, w & VM_WORD_DIRTY, vm__len(w), r->process, r->process_inc);
    if (!VM_CAS(word, w, sharing))
        return -ENOENT;
    if (VM_ACQUIRE(&r->map.heads[page].aux) != id) { /* freed and taken again, by another thread of ours */
        VM_CAS(word, sharing, w);
        return -ESTALE;
    }
    write_holders(r, page, heir);
    if (!VM_CAS(word, sharing, w | VM_WORD_SHARED))
        return -ENOENT; /* freed meanwhile, by a mistake of this process */
    r->references[page] = (vm_reference){.id = id, .count = 1};
    return 0;
}

static int share(vm_thread *t, uint64_t page, uint64_t id)
{
    vm_region *r = t->region;
    vm_word w = VM_ACQUIRE(&r->map.heads[page].word);
    if ((vm__state(w) != VM_BUSY && vm__state(w) != VM_FREEING) || vm__len(w) == 0)
        return -ENOENT;
    if (VM_ACQUIRE(&r->map.heads[page].aux) != id)
        return -ESTALE;
    if (w & VM_WORD_SHARED)
        return vm__holds(r, page, id) ? 0 : -ENOENT;
    return vm__share_for(t, page, id, VM_PROCESSES);
}

int vm__share(vm_thread *t, uint64_t page, uint64_t id)
{
    vm_region *r = t->region;
    if (r->map.flags & VM_FLAG_KEEP)
        return -EINVAL; /* its ranges belong to no process */
    vm__mutex_lock(r, &r->holder_mutex, VM_RANK_HOLDER);
    int rc = page < r->map.nr_pages ? share(t, page, id) : -ENOENT;
    vm__mutex_unlock(r, &r->holder_mutex, VM_RANK_HOLDER);
    return rc;
}

/* ---- adopt ---- */

/* Of the process that frees or shares it. */
static uint32_t pid_of_owner(const vm_region *r, vm_word w)
{
    return vm__owner(w) < r->map.nr_processes ? VM_RELAXED(&r->map.processes[vm__owner(w)].pid) : 0;
}

/* The word once nobody is in the middle of freeing it; a dead freer is recovered. One that died before
 * the range was shared is left to the scan, which must find it as it was. */
int vm__wait_while_freeing(vm_thread *t, uint64_t page, vm_word *out)
{
    vm_region *r = t->region;
    uint64_t started = vm__wait_start();
    for (;;) {
        *out = __atomic_load_n(&r->map.heads[page].word, __ATOMIC_SEQ_CST);
        if (vm__state(*out) != VM_FREEING)
            return 0;
        bool is_dead = vm__incarnation_is_dead(r, vm__owner(*out), vm__inc(*out));
        if (is_dead && !(*out & VM_WORD_SHARED))
            return 0;
        if (is_dead)
            VM_CAS(&r->map.heads[page].word, *out, vm__with_state(*out, VM_BUSY));
        int rc = vm__wait_slice(r, started, *out, pid_of_owner(r, *out));
        if (rc)
            return rc;
        vm__yield();
    }
}

/* Clear our bit. True: we were the last of a range that may be another one by now; it is MOVING(t). */
static bool clear_bit(vm_thread *t, uint64_t page)
{
    vm_region *r = t->region;
    VM_AND(vm__holder_word(r, page, r->process), ~vm__holder_bit(r, r->process));
    return vm__take_if_unheld(t, page, t->moving);
}

static int adopt(vm_thread *t, uint64_t page, uint64_t id, vm_range *out, bool *is_last)
{
    vm_region *r = t->region;
    vm_word w;
    int rc = need_references(r);
    if (rc)
        return rc;
    VM_OR(vm__holder_word(r, page, r->process), vm__holder_bit(r, r->process));
    rc = vm__wait_while_freeing(t, page, &w);
    uint64_t len = vm__len(w), there = VM_ACQUIRE(&r->map.heads[page].aux);
    bool is_it = rc == 0 && vm__state(w) == VM_BUSY && w & VM_WORD_SHARED && len && len <= r->map.nr_pages - page
                 && there == id;
    if (!is_it) {
        /* whoever freed it meanwhile may have seen our bit and left the rest to us */
        *is_last = !vm__holds(r, page, there) && clear_bit(t, page);
        return rc ? rc : -ESTALE;
    }
    count_one(r, page, id);
    vm__charge(r, len);
    *out = (vm_range){page, len, id, false};
    return 0;
}

int vm__adopt(vm_thread *t, uint64_t page, uint64_t id, vm_range *out)
{
    vm_region *r = t->region;
    if (page >= r->map.nr_pages || !(VM_ACQUIRE(&r->map.heads[page].word) & VM_WORD_SHARED))
        return -ESTALE; /* do not touch the side table of what was never shared */
    bool is_last = false;
    vm__mutex_lock(r, &r->holder_mutex, VM_RANK_HOLDER);
    int rc = adopt(t, page, id, out, &is_last);
    vm__mutex_unlock(r, &r->holder_mutex, VM_RANK_HOLDER);
    if (is_last)
        vm__pass_back(t, page, vm__len(VM_ACQUIRE(&r->map.heads[page].word)));
    return rc;
}

/* ---- drop ---- */

/* One reference less. What came with fork is counted apart, for vm_drop_inherited(). */
static bool uncount_one(vm_reference *own, unsigned flags)
{
    if (flags & VM_INHERITED) {
        if (own->inherited == 0)
            return false; /* let go of already */
        own->inherited--;
    }
    own->count--;
    if (own->inherited > own->count)
        own->inherited = own->count;
    return true;
}

/* Do only the dead hold it still? Asked now and then, or what they held would stay until pages are short. */
static bool is_left_to_the_dead(vm_region *r, uint64_t page)
{
    uint64_t now = vm__now_ns();
    if (now - r->looked_for_deaths_ns < LOOK_FOR_DEATHS_NS)
        return false;
    r->looked_for_deaths_ns = now;
    for (uint32_t p = 0; p < vm__high_process(r); p++)
        if (VM_ACQUIRE(vm__holder_word(r, page, p)) & vm__holder_bit(r, p) && vm__process_is_dead(r, p))
            return true;
    return false;
}

int vm__drop_shared(vm_thread *t, uint64_t page, uint64_t id, unsigned flags, vm_range *kept, bool *ask)
{
    vm_region *r = t->region;
    int rc = -ENOENT;
    bool is_last = false;
    *ask = false;
    vm__mutex_lock(r, &r->holder_mutex, VM_RANK_HOLDER);
    if (vm__holds(r, page, id) && VM_ACQUIRE(&r->map.heads[page].aux) == id
        && uncount_one(&r->references[page], flags)) {
        rc = 0;
        is_last = r->references[page].count == 0 && clear_bit(t, page);
        *ask = !is_last && r->references[page].count == 0 && is_left_to_the_dead(r, page);
    }
    vm__mutex_unlock(r, &r->holder_mutex, VM_RANK_HOLDER);
    if (is_last)
        vm__release_or_keep(t, page, vm__len(VM_ACQUIRE(&r->map.heads[page].word)), id, true, kept);
    return rc;
}

/* ---- what a child inherits (fork.c) ---- */

/* A child-to-be holds what we hold. Our own bit stays set meanwhile. */
int vm__hold_for(vm_thread *t, uint64_t page, uint64_t id, uint32_t heir, bool may_wait)
{
    vm_region *r = t->region;
    vm_word w;
    if (!vm__holds(r, page, id))
        return -ENOENT;
    if (heir >= VM_PROCESSES)
        return 0;
    VM_OR(vm__holder_word(r, page, heir), vm__holder_bit(r, heir));
    if (!may_wait)
        return vm__state(__atomic_load_n(&r->map.heads[page].word, __ATOMIC_SEQ_CST)) == VM_FREEING ? -EBUSY : 0;
    return vm__wait_while_freeing(t, page, &w);
}

/* In the child: count what the parent set our bit for. */
int vm__inherit(vm_region *r, const vm_inherited *range)
{
    int rc = need_references(r);
    if (rc == 0)
        r->references[range->page] = (vm_reference){.id = range->id, .count = range->count, .inherited = range->count};
    return rc;
}

static bool drop_inherited(vm_thread *t, const vm_inherited *range, bool *is_last)
{
    vm_region *r = t->region;
    vm_reference *own = r->references ? &r->references[range->page] : NULL;
    if (!own || own->id != range->id || own->inherited == 0)
        return false;
    own->count -= own->inherited;
    own->inherited = 0;
    *is_last = own->count == 0 && VM_ACQUIRE(&r->map.heads[range->page].aux) == range->id && clear_bit(t, range->page);
    return true;
}

uint64_t vm__drop_inherited(vm_thread *t)
{
    vm_region *r = t->region;
    uint64_t nr = 0;
    for (size_t i = 0; i < r->inheritance.nr; i++) {
        const vm_inherited *range = &r->inheritance.range[i];
        bool is_last = false;
        vm__mutex_lock(r, &r->holder_mutex, VM_RANK_HOLDER);
        nr += drop_inherited(t, range, &is_last);
        vm__mutex_unlock(r, &r->holder_mutex, VM_RANK_HOLDER);
        if (is_last)
            vm__pass_back(t, range->page, vm__len(VM_ACQUIRE(&r->map.heads[range->page].word)));
    }
    return nr;
}
