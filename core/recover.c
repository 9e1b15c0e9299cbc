/* SPDX-License-Identifier: MIT */
/*
 * Recover: finish or undo what a dead process left, while others go on.
 *
 * A process is dead when the kernel dropped its OFD lock. The recoverer takes that very lock, so
 * there is one recoverer, and the kernel lets the next one in should it die too. Steps, each safe to
 * repeat:
 *   1. announce: purge_needs_scan, so that a successor scans even if we die right after step 2;
 *   2. retire the process's thread slots and mark it DYING: from now on everything it owned is dead
 *      by incarnation, which needs no system call to see;
 *   3. a purge in scan mode (purge.c): steal and mend locks, then walk the words, collecting what the
 *      dead owned, what lists may have lost, and dropping the dead's holder bits; then the lists.
 *      Everything found becomes lazy, still warm;
 *   4. leases of the dead get a deadline (lease.c);
 *   5. the process slot is free again, under the next incarnation.
 * docs/recovery.md ties this to the model in tests/spin.
 */
#include "internal.h"

/* Step 2 for one process: its threads' slots are nobody's, under new incarnations. */
void vm__retire_threads(vm_region *r, uint32_t process, const vm_thread *but)
{
    for (uint32_t i = 0; i < r->nr_threads; i++) {
        if (!vm__slot_was_used(r, i))
            continue;
        uint64_t state = VM_LOAD(&r->slots[i].state);
        bool is_its = state & 1 && (state >> 1 & (VM_PROCESSES - 1)) == process;
        if (is_its && !(but && but->index == i))
            VM_STORE(&r->slots[i].state, ((state >> 32) + 1) << 32);
    }
}

/* Dead by incarnation: its slot was retired. */
static bool is_retired(const vm_region *r, vm_word w)
{
    uint32_t slot = vm__owner(w);
    if (slot >= r->nr_threads)
        return true;
    uint64_t state = VM_LOAD(&r->slots[slot].state);
    return !(state & 1) || (state >> 32 & VM_INC_MASK) != vm__inc(w);
}

bool vm__is_retired_process(const vm_region *r, uint32_t process, uint32_t incarnation)
{
    if (process >= VM_PROCESSES)
        return true;
    uint64_t state = VM_LOAD(&r->processes[process].state);
    return !(state & VM_PROCESS_LIVE) || (state >> 32 & VM_INC_MASK) != incarnation;
}

static bool is_dead_process(const vm_region *r, vm_word w)
{
    return vm__is_retired_process(r, vm__owner(w), vm__inc(w));
}

static void mark_dying(const vm_region *r, uint64_t dying[VM_PROCESSES / 64])
{
    memset(dying, 0, VM_PROCESSES / 8);
    for (uint32_t p = 0; p < VM_PROCESS_NAMES; p++)
        if (VM_LOAD(&r->processes[p].state) & VM_PROCESS_DYING)
            dying[p / 64] |= 1ull << p % 64;
}

/* A joiner on a dead process's slot is LIVE again, but holds nothing yet: its bits are the old one's. */
static void drop_holder_bits(vm_region *r, uint64_t page, const uint64_t dying[VM_PROCESSES / 64])
{
    for (uint32_t i = 0; i < VM_PROCESSES / 64; i++)
        if (dying[i] && VM_LOAD(&r->sharings[page].holders[i]) & dying[i])
            VM_AND(&r->sharings[page].holders[i], ~dying[i]);
}

/* A shared range whose holders may be dead, or one that a live owner shares just now, with a bit that a dead
 * adopter left; by the end of this it may be shared, and dropped. True: it was taken, its word is PURGING(t). */
static bool scan_shared(vm_region *r, vm_thread *t, uint64_t page, vm_word w, const uint64_t *dying)
{
    drop_holder_bits(r, page, dying); /* also while a live one is FREEING: it looks once more */
    if (vm__state(w) == VM_FREEING && is_dead_process(r, w))
        VM_CAS(&r->heads[page].word, w, (w & ~VM_WORD_STATE_MASK) | VM_BUSY);
    return vm__take_if_unheld(r, t, page, t->purging);
}

static bool is_lost(const vm_region *r, const vm_thread *t, vm_word w)
{
    switch (vm__state(w)) {
    case VM_LAZY:
        return true; /* listed or not: the lists are detached right after the scan */
    case VM_POOLED:
        return r->pools == VM_POOLS_LLIST; /* the same; before_scan keeps takers out */
    case VM_PURGING:
        return ((w ^ t->purging) & ~(VM_WORD_LEN_MASK | VM_WORD_DIRTY)) != 0; /* purge_lock is ours: its owner died */
    case VM_CACHED:
    case VM_MOVING:
        return is_retired(r, w);
    case VM_BUSY:
    case VM_FREEING: /* not S yet: its owner was about to share it, and nobody else had it */
        return !(w & VM_WORD_SHARED) && !(r->flags & VM_FLAG_KEEP) && is_dead_process(r, w);
    default:
        return false;
    }
}

/* Walk the words; collect into `out` what the dead owned and what lists may have lost. */
int vm__recover_scan(vm_region *r, vm_thread *t, unsigned flags, vm_batch *out)
{
    VM_ASSERT_HELD(t, &r->h->purge_lock);
    uint64_t dying[VM_PROCESSES / 64], page = 0, lazy = 0, reclaimed = 0;
    int rc = vm__space_lock(r, t, flags & VM_NO_WAIT);
    if (rc)
        return rc;
    mark_dying(r, dying);
    for (vm_word w; (w = vm__scan(r, page)); page += vm__len(w)) {
        bool taken = false;
        if (vm__state(w) == VM_MOVING && !is_retired(r, w))
            VM_PUT(&r->h->purge_needs_scan, 1); /* a live pusher may be linking it into a lost chain */
        if (is_lost(r, t, w))
            taken = VM_CAS(&r->heads[page].word, w, t->purging | (w & VM_WORD_LEN_MASK));
        else if (vm__state(w) == VM_FREEING || (vm__state(w) == VM_BUSY && w & VM_WORD_SHARED))
            taken = scan_shared(r, t, page, w, dying);
        if (taken) {
            lazy += vm__state(w) == VM_LAZY ? vm__len(w) : 0;
            reclaimed += vm__state(w) == VM_LAZY || vm__state(w) == VM_POOLED ? 0 : vm__len(w);
            vm__batch_add(r, t, out, page, vm__len(w));
        }
    }
    VM_ADD(&r->h->lazy_pages, (uint64_t)0 - lazy);
    VM_PUT(&r->h->nr_recovered, r->h->nr_recovered + reclaimed);
    vm__space_unlock(r, t);
    return page == r->nr_pages ? 0 : VM_CORRUPT(r);
}

/* A death between a counter and its word leaves the sum of lazy pages off: set it right. Exact when
 * nobody frees meanwhile; else off by what is in flight, and read as signed. */
int vm__settle_lazy_pages(vm_region *r, vm_thread *t, unsigned flags)
{
    VM_ASSERT_HELD(t, &r->h->purge_lock);
    int rc = vm__space_lock(r, t, flags & VM_NO_WAIT);
    if (rc)
        return rc;
    uint64_t before = VM_LOAD(&r->h->lazy_pages), sum = 0, page = 0;
    for (vm_word w; (w = vm__scan(r, page)); page += vm__len(w))
        sum += vm__state(w) == VM_LAZY ? vm__len(w) : 0;
    if (sum != before)
        VM_ADD(&r->h->lazy_pages, sum - before);
    vm__space_unlock(r, t);
    return 0;
}

static bool is_damaged(vm_region *r, const vm_lock *lock)
{
    vm_token owner = VM_LOAD(&lock->owner) & VM_TOKEN_MASK;
    return VM_PEEK(&lock->needs_repair) || (owner && vm__owner_is_dead(r, owner));
}

/* What names and leases keep is only right once their locks are mended. */
static void mend_tables(vm_region *r, vm_thread *t)
{
    if (is_damaged(r, &r->h->names_lock) && vm__names_lock(r, t) == 0)
        vm__unlock(r, t, &r->h->names_lock);
    if (is_damaged(r, &r->h->lease_lock) && vm__lease_lock(r, t, 0) == 0)
        vm__unlock(r, t, &r->h->lease_lock);
}

/* Steps 1 and 2 for every dead process we can claim. Returns how many. */
static uint32_t claim_dead(vm_region *r, bool claimed[VM_PROCESSES])
{
    uint32_t nr = 0;
    for (uint32_t p = 0; p < VM_PROCESS_NAMES; p++) {
        claimed[p] = false;
        if (p == r->process || (uint32_t)VM_LOAD(&r->processes[p].state) == 0 || vm__claim_process(r->lock_fd, p) != 0)
            continue;
        uint64_t state = VM_LOAD(&r->processes[p].state);
        if ((uint32_t)state == 0) { /* recovered by another, just now */
            vm__unclaim_process(r->lock_fd, p);
            continue;
        }
        VM_PUT(&r->h->purge_needs_scan, 1);
        vm__retire_threads(r, p, NULL);
        VM_STORE(&r->processes[p].state, state >> 32 << 32 | VM_PROCESS_DYING);
        claimed[p] = true;
        nr++;
    }
    return nr;
}

/* Step 5, under purge_lock: while a process is DYING every scan takes its holder bits for a dead one's. */
static void release_slots(vm_region *r, const void *arg)
{
    const bool *claimed = arg;
    for (uint32_t p = 0; p < VM_PROCESS_NAMES; p++)
        if (claimed[p])
            vm__free_process(r, p);
}

static void unclaim_dead(vm_region *r, const bool claimed[VM_PROCESSES])
{
    for (uint32_t p = 0; p < VM_PROCESS_NAMES; p++)
        if (claimed[p])
            vm__unclaim_process(r->lock_fd, p);
}

/* Recover every dead process. 0 also when there was none. */
int vm__recover_dead(vm_region *r, vm_thread *t, unsigned flags, uint64_t *pages)
{
    bool claimed[VM_PROCESSES];
    int rc = 0;
    if (flags & VM_NO_WAIT ? pthread_mutex_trylock(&r->recover_mutex) != 0
                           : pthread_mutex_lock(&r->recover_mutex) != 0)
        return flags & VM_NO_WAIT ? -EAGAIN : 0; /* claims are per process: threads take turns */
    uint64_t before = VM_LOAD(&r->h->nr_recovered);
    if (claim_dead(r, claimed)) {
        mend_tables(r, t);
        rc = vm__purge_scan(r, t, flags & VM_NO_WAIT, release_slots, claimed);
        unclaim_dead(r, claimed);
    }
    if (pages)
        *pages += VM_LOAD(&r->h->nr_recovered) - before;
    pthread_mutex_unlock(&r->recover_mutex);
    return rc;
}

int vm_recover(vm_region *r, uint64_t *pages_reclaimed)
{
    vm_thread *t = vm__thread(r);
    uint64_t pages = 0;
    if (!t)
        return vm__thread_error(r);
    if (VM_LOAD(&r->h->corrupt))
        return -EUCLEAN;
    vm__enter(t);
    int rc = vm__recover_dead(r, t, 0, &pages);
    if (rc == 0 && VM_LOAD(&r->h->purge_needs_scan))
        rc = vm__purge_scan(r, t, 0, NULL, NULL);
    vm__leave(t);
    if (rc == 0 && pages_reclaimed)
        *pages_reclaimed = pages;
    return rc;
}
