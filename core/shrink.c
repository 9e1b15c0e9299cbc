/* SPDX-License-Identifier: MIT */
/*
 * Shrink: give everything back, under pressure or on request.
 *
 * Every magazine is drained, the dead are recovered, and a full purge empties pools and lazy lists:
 * the same code path and lock as an ordinary purge, because a shrinker beside a purger once leaked
 * ranges in the kernel (fixed April 2026). After: Linux mm/vmalloc.c, vmap_node_shrink_scan().
 */
#include "internal.h"

int vm_shrink(vm_region *r, uint64_t *pages_returned)
{
    vm_thread *t = vm__thread(r);
    if (!t)
        return vm__thread_error(r);
    if (VM_LOAD(&r->h->corrupt))
        return -EUCLEAN;
    vm__enter(t);
    uint64_t pages = 0;
    vm__drain_all(r, t);
    int rc = vm__recover_dead(r, t, 0, NULL);
    if (rc == 0)
        rc = vm__purge(r, t, VM_PURGE_FULL, &pages);
    vm__leave(t);
    if (rc == 0 && pages_returned)
        *pages_returned = pages;
    return rc;
}
