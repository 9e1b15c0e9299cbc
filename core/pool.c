/* SPDX-License-Identifier: MIT */
/*
 * Pools: ready ranges of one exact size in a node; which design keeps them is the region's choice.
 *
 * One interface (vm_pool_design), three files: none at all (`off`), pool_locked.c (the patch, and
 * under the magazines), pool_llist.c (Chinner's question). A request looks at its CPU's node, then
 * at the neighbours that seem to have its size. What the pools refuse goes to the lazy lists.
 */
#include "internal.h"

#include <sched.h>

#define POOL_CAP_PAGES 8192

/* Most ranges of a size a pool keeps. */
uint32_t vm__pool_cap(uint64_t nr_pages)
{
    uint64_t cap = POOL_CAP_PAGES / nr_pages;
    return cap < 16 ? 16 : (uint32_t)cap;
}

uint32_t vm__node_here(const vm_region *r)
{
    int cpu = sched_getcpu();
    return cpu < 0 ? 0 : (uint32_t)cpu % r->nr_nodes;
}

static uint32_t no_take(vm_region *r, vm_thread *t, vm_node *n, uint64_t nr_pages, uint64_t align_pages, uint32_t max,
                        uint64_t *pages)
{
    (void)r, (void)t, (void)n, (void)nr_pages, (void)align_pages, (void)max, (void)pages;
    return 0;
}
static uint32_t no_give(vm_region *r, vm_thread *t, vm_node *n, uint64_t nr_pages, uint32_t count,
                        const uint64_t *pages)
{
    (void)r, (void)t, (void)n, (void)nr_pages, (void)count, (void)pages;
    return 0;
}
static int no_decay(vm_region *r, vm_thread *t, vm_node *n, bool full, unsigned flags, vm_batch *out)
{
    (void)r, (void)t, (void)n, (void)full, (void)flags, (void)out;
    return 0;
}
static int no_before_scan(vm_region *r, vm_thread *t, vm_node *n, unsigned flags)
{
    (void)r, (void)t, (void)n, (void)flags;
    return 0;
}
static void no_after_scan(vm_region *r, vm_thread *t, vm_node *n, vm_batch *out)
{
    (void)r, (void)t, (void)n, (void)out;
}
const vm_pool_design vm__pool_off = {no_take, no_give, no_decay, no_before_scan, no_after_scan};

const vm_pool_design *vm__pool_design(const vm_region *r)
{
    switch (r->pools) {
    case VM_POOLS_OFF:
        return &vm__pool_off;
    case VM_POOLS_LLIST:
        return &vm__pool_llist;
    default:
        return &vm__pool_locked;
    }
}

uint32_t vm__pool_take(vm_region *r, vm_thread *t, uint64_t nr_pages, uint64_t align_pages, uint32_t max,
                       uint64_t *pages)
{
    const vm_pool_design *design = vm__pool_design(r);
    uint32_t here = vm__node_here(r), index = vm__pool_index(nr_pages), got = 0;
    for (uint32_t i = 0; i < r->nr_nodes && !got; i++) {
        vm_node *n = &r->nodes[(here + i) % r->nr_nodes];
        if (VM_PEEK(&n->pool[index].head))
            got = design->take(r, t, n, nr_pages, align_pages, max, pages);
    }
    return got;
}

/* Words are MOVING(t). What this CPU's pool does not keep becomes lazy. */
void vm__pool_give(vm_region *r, vm_thread *t, uint64_t nr_pages, uint32_t count, const uint64_t *pages)
{
    vm_node *n = &r->nodes[vm__node_here(r)];
    uint32_t kept = count ? vm__pool_design(r)->give(r, t, n, nr_pages, count, pages) : 0;
    for (uint32_t i = kept; i < count; i++)
        vm__lazy_put(r, t, pages[i], nr_pages);
}
