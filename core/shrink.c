/* SPDX-License-Identifier: MIT */
/*
 * Shrink: give everything back, under pressure or on request.
 *
 * Every magazine is drained, the dead are recovered, and a full purge empties pools and lazy lists:
 * the same code path and lock as an ordinary purge, because a shrinker beside a purger once leaked
 * ranges in the kernel (fixed April 2026). After: Linux mm/vmalloc.c, vmap_node_shrink_scan().
 */
#include "internal.h"

int vm_shrink(vm_region *r, uint64_t *pages_returned) { return vm__give_back(r, VM_PURGE_FULL, pages_returned); }
