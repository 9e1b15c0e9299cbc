/* SPDX-License-Identifier: MIT */
/*
 * Upkeep: purge, shrink, recover and tick, on request; and how long this process waits.
 *
 * Shrink gives everything back: every magazine is drained, the dead are recovered, and a full purge empties pools and
 * lazy lists: the same code path and lock as an ordinary purge, because a shrinker beside a purger once leaked ranges in
 * the kernel (fixed April 2026). After: Linux mm/vmalloc.c, vmap_node_shrink_scan().
 */
#include "face.h"

/* A purge on request: of what is lazy and the decay's share of the pools, or of everything (VM_PURGE_FULL). */
static int give_back(vm_region *r, unsigned flags, uint64_t *pages_returned)
{
    vm_thread *t = vm__thread(r);
    if (!t)
        return vm__thread_error(r);
    int health = vm__health(r);
    if (vm_unlikely(health))
        return health;
    vm__enter(t);
    uint64_t pages = 0;
    int rc = vm__recover_dead(t, 0, NULL);
    vm__expire_leases(t, VM_NO_WAIT, 0, NULL); /* what it frees may go into our magazines */
    if (flags & VM_PURGE_FULL) {
        VM_PUT(&r->map.h->floor_pages, 0);
        vm__drain_all(t);
    }
    if (rc == 0)
        rc = vm__purge(t, flags, &pages);
    if (flags & VM_PURGE_FULL)
        vm__event(t, VM_EVENT_SHRINK, 0, pages);
    vm__leave(t);
    if (rc == 0 && pages_returned)
        *pages_returned = pages;
    return rc;
}

int vm_purge(vm_region *r, uint64_t *pages_returned) { return give_back(r, 0, pages_returned); }
int vm_shrink(vm_region *r, uint64_t *pages_returned) { return give_back(r, VM_PURGE_FULL, pages_returned); }

int vm_recover(vm_region *r, uint64_t *pages_reclaimed)
{
    vm_thread *t = vm__thread(r);
    uint64_t pages = 0;
    if (!t)
        return vm__thread_error(r);
    int health = vm__health(r);
    if (vm_unlikely(health))
        return health;
    vm__enter(t);
    int rc = vm__recover_dead(t, 0, &pages);
    if (rc == 0)
        rc = vm__mend_tables(t, 0);
    if (rc == 0 && VM_ACQUIRE(&r->map.h->purge_needs_scan))
        rc = vm__purge_scan(t, 0, NULL, NULL);
    else if (rc == 0 && VM_RELAXED(&r->map.h->lazy_is_off))
        rc = vm__purge_count(t, 0);
    vm__leave(t);
    if (rc == 0 && pages_reclaimed)
        *pages_reclaimed = pages;
    return rc;
}

int vm_expire_leases(vm_region *r, uint64_t older_than_ns, uint64_t *nr_ended)
{
    vm_thread *t = vm__thread(r);
    uint64_t nr = 0;
    if (!t)
        return vm__thread_error(r);
    int health = vm__health(r);
    if (vm_unlikely(health))
        return health;
    vm__enter(t);
    int rc = vm__recover_dead(t, 0, NULL);
    if (rc == 0)
        rc = vm__expire_leases(t, VM_EXPIRE_KEPT, older_than_ns, &nr);
    vm__leave(t);
    if (rc == 0)
        *nr_ended = nr;
    return rc;
}

void vm__tick_here(vm_thread *t, bool (*go_on)(vm_thread *))
{
    vm_region *r = t->region;
    vm__enter(t);
    if (!vm__mutex_trylock(r, &r->tick_mutex, VM_RANK_TICK)) {
        vm__leave(t);
        return;
    }
    bool is_round = vm__tick(t, go_on) > 0;
    vm__leave(t);
    vm_lost *lost = is_round && go_on(t) ? vm__look_at_channels(t, go_on) : NULL; /* a fork waits for tick_mutex, too */
    vm__mutex_unlock(r, &r->tick_mutex, VM_RANK_TICK);
    if (!lost)
        return;
    vm__enter(t);
    vm__end_lost(t, lost);
    vm__leave(t);
}

static bool to_the_end(vm_thread *t)
{
    (void)t;
    return true;
}

int vm_tick(vm_region *r)
{
    vm_thread *t = vm__thread(r);
    if (!t)
        return vm__thread_error(r);
    int health = vm__health(r);
    if (vm_unlikely(health))
        return health;
    vm__helpers_resume_if_missing();
    vm__tick_here(t, to_the_end);
    return 0;
}

/* ---- waiting ---- */

void vm_wait_begin(vm_wait *wait) { vm__wait_with(wait); }
void vm_wait_end(void) { vm__wait_with(NULL); }
uint32_t vm_busy_pid(const vm_region *r)
{
    (void)r;
    return vm__busy_pid();
}

void vm_set_lock_timeout(vm_region *r, double seconds) { r->lock_timeout_ns = (uint64_t)(seconds * 1e9); }

uint64_t vm_lock_wait_ns(vm_region *r)
{
    vm_thread *t = vm__thread(r);
    return t ? VM_RELAXED(&t->slot->lock_wait_ns) : 0;
}

uint64_t vm_lock_waits(vm_region *r)
{
    const vm_thread *t = vm__thread(r);
    return t ? t->nr_lock_waits : 0;
}
