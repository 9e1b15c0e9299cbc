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
 *   5. the process slot is free again, under the next incarnation, if all of that was done: who waits for nobody may not
 *      get a lock of the dead's, and leaves the rest to the next one.
 * A recording of the dead ends before step 3.
 * docs/recovery.md ties this to the model in tests/spin.
 */
#include "mend.h"

static bool is_damaged(vm_region *r, const vm_lock *lock)
{
    vm_token owner = VM_ACQUIRE(&lock->owner) & VM_TOKEN_MASK;
    return VM_RELAXED(&lock->needs_mending) || (owner && vm__owner_is_dead(r, owner));
}

static void note(int *first, int rc) { *first = *first ? *first : rc; }

/* What names and leases keep is only right once their locks are mended. */
int vm__mend_tables(vm_thread *t, unsigned flags)
{
    vm_region *r = t->region;
    int first = 0, rc;
    if (is_damaged(r, &r->map.h->names_lock)) {
        note(&first, rc = vm__names_lock(t, flags));
        if (rc == 0)
            vm__unlock(t, &r->map.h->names_lock);
    }
    if (is_damaged(r, &r->map.h->warm.lock)) {
        note(&first, rc = vm__warm_lock(t, flags));
        if (rc == 0)
            vm__warm_unlock(t);
    }
    if (is_damaged(r, &r->map.h->lease_lock)) {
        note(&first, rc = vm__lease_lock(t, flags));
        if (rc == 0)
            vm__unlock(t, &r->map.h->lease_lock);
    }
    return first;
}

/* Steps 1 and 2 for every dead process we can claim. Returns how many. */
static uint32_t claim_dead(vm_thread *t, const vm_tie *tie, bool claimed[VM_PROCESSES])
{
    vm_region *r = t->region;
    uint32_t nr = 0;
    memset(claimed, 0, VM_PROCESSES * sizeof *claimed); /* more slots may be used by the time they are released */
    for (uint32_t p = 0; p < vm__high_process(r); p++) {
        if (p == r->process || (uint32_t)VM_ACQUIRE(&r->map.processes[p].state) == 0
            || vm__claim_process(r, tie, p) != 0)
            continue;
        uint64_t state = VM_ACQUIRE(&r->map.processes[p].state);
        if ((uint32_t)state == 0) { /* recovered by another, just now */
            vm__unclaim_process(r, tie, p);
            continue;
        }
        VM_PUT(&r->map.h->purge_needs_scan, 1);
        vm__retire_threads(r, p, NULL);
        VM_STORE(&r->map.processes[p].state, state >> 32 << 32 | VM_PROCESS_DYING);
        vm__event(t, VM_EVENT_DIE, VM_RELAXED(&r->map.processes[p].pid), p);
        claimed[p] = true;
        nr++;
    }
    return nr;
}

/* Step 5, under purge_lock: while a process is DYING every scan takes its holder bits for a dead one's. */
static void release_slots(vm_region *r, const void *arg)
{
    const bool *claimed = arg;
    for (uint32_t p = 0; p < vm__high_process(r); p++)
        if (claimed[p])
            vm__free_process(r, p);
}

/* Is there anybody to claim? Looked at before a claim is made, which takes a description of its own. */
static bool may_be_dead(vm_region *r)
{
    for (uint32_t p = 0; p < vm__high_process(r); p++)
        if (p != r->process && (uint32_t)VM_ACQUIRE(&r->map.processes[p].state) && vm__process_is_dead(r, p))
            return true;
    return false;
}

/* Recover every dead process. 0 also when there was none. */
int vm__recover_dead(vm_thread *t, unsigned flags, uint64_t *pages)
{
    vm_region *r = t->region;
    bool claimed[VM_PROCESSES];
    vm_tie tie;
    int rc = 0;
    if (!(flags & VM_LOCK_FLAGS)) /* claims are per process: threads take turns */
        vm__mutex_lock(r, &r->recover_mutex, VM_RANK_RECOVER);
    else if (!vm__mutex_trylock(r, &r->recover_mutex, VM_RANK_RECOVER))
        return -EAGAIN;
    uint64_t before = VM_ACQUIRE(&r->map.h->nr_recovered);
    if (may_be_dead(r) && vm__tie(r, &tie) == 0) {
        uint32_t nr = claim_dead(t, &tie, claimed);
        if (nr) {
            vm__recording_end_of_dead(r, false);
            vm__ring_look(t); /* perhaps it was what we follow */
            /* where that fails their slots stay, or nobody would mend what they left */
            bool is_mended = vm__mend_tables(t, flags & VM_LOCK_FLAGS) == 0;
            rc = vm__purge_scan(t, flags & VM_LOCK_FLAGS, is_mended ? release_slots : NULL, claimed);
            vm__event(t, VM_EVENT_RECOVER, nr, VM_ACQUIRE(&r->map.h->nr_recovered) - before);
        }
        vm__untie(r, &tie); /* and with it every claim */
    }
    if (pages)
        *pages += VM_ACQUIRE(&r->map.h->nr_recovered) - before;
    vm__mutex_unlock(r, &r->recover_mutex, VM_RANK_RECOVER);
    return rc;
}
