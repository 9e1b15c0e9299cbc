/* SPDX-License-Identifier: MIT */
/* Node: what the pools of a node have in common, whichever design keeps them. */
#include "cache.h"

#include <stdio.h>

uint32_t vm__pool_cap(uint64_t nr_pages)
{
    uint64_t cap = VM_POOL_CAP_PAGES / nr_pages;
    return cap < VM_POOL_CAP_RANGES_MIN ? VM_POOL_CAP_RANGES_MIN : (uint32_t)cap;
}

/* Not more than there are pages, whatever a neighbour wrote. */
uint32_t vm__pool_count(const vm_region *r, const vm_pool *p)
{
    const vm_pools_kept *kept = r->design->kept;
    uint32_t nr = kept->count ? kept->count(r, p) : VM_RELAXED(&p->nr_ranges);
    return nr <= r->map.nr_pages ? nr : (uint32_t)r->map.nr_pages;
}

const uint32_t vm__decay_all[VM_POOL_PAGES_MAX] = {[0 ... VM_POOL_PAGES_MAX - 1] = UINT32_MAX};

uint32_t vm__decay_quota(const uint32_t *quota, uint64_t nr_pages, uint32_t nr_ranges)
{
    uint32_t goes = quota ? quota[vm__pool_index(nr_pages)] : (uint32_t)vm__percent_up(nr_ranges, VM_DECAY_PERCENT);
    return goes < nr_ranges ? goes : nr_ranges;
}

uint64_t vm__check_lists_of_pools(const vm_region *r, uint32_t node, vm_report *report)
{
    uint64_t listed = 0;
    char what[64];
    for (uint32_t k = 0; k < VM_POOL_PAGES_MAX; k++) {
        vm_pool *p = &r->map.nodes[node].pool[k];
        uint32_t nr, counted = vm__pool_count(r, p), in_use = VM_RELAXED(&p->in_use);
        snprintf(what, sizeof what, "node %u, pool of %u pages", node, k + 1);
        listed += vm__list_check(r, VM_RELAXED(&p->head), VM_POOLED, k + 1, what, &nr, report);
        if (nr != counted)
            vm__report(report, "%s: counter %u, list %u", what, counted, nr);
        if (in_use)
            vm__report(report, "%s: still in use by slot %u", what, vm__token_slot(in_use));
    }
    return listed;
}
