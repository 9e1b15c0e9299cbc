/* SPDX-License-Identifier: MIT */
/*
 * Pools: ready ranges of one exact size in a node; which design keeps them is the region's choice.
 *
 * One interface (vm_pools_kept), a file each: pool_locked.c (the patch, and under the magazines), pool_llist.c
 * (Chinner's question), pool_tagged.c and pool_percpu.c (his and others' answers). A request looks at its CPU's node, then at the neighbours that seem to have its size. What the
 * pools refuse goes to the lazy lists.
 */
#include "cache.h"

#define DECLARE(name, pools, has_magazines) extern const vm_pools_kept vm__pools_##pools;
VM_POOL_DESIGNS(DECLARE)
const vm_pools_kept vm__pools_none = {0}; /* vm__is_pooled() is false */

#define ROW(name, pools, has_magazines) {#name, &vm__pools_##pools, has_magazines},
static const vm_pool_design designs[] = {VM_POOL_DESIGNS(ROW)};

const vm_pool_design *vm__pool_design(uint32_t pools)
{
    return pools < sizeof designs / sizeof *designs ? &designs[pools] : NULL;
}

void vm__count(uint64_t *counter) { VM_PUT(counter, VM_RELAXED(counter) + 1); }

void vm__count_served(vm_thread *t, vm_level level)
{
    vm_slot *s = t->slot;
    uint64_t *served[] = {
        [VM_LEVEL_MAGAZINE] = &s->nr_magazine_hit, [VM_LEVEL_SLAB] = &s->nr_slab_hit,
        [VM_LEVEL_POOL] = &s->nr_pool_hit,         [VM_LEVEL_NEIGHBOUR] = &s->nr_neighbour_hit,
        [VM_LEVEL_LAZY] = &s->nr_lazy_hit,         [VM_LEVEL_SPACE] = &s->nr_space_hit,
    };
    vm__count(served[level]);
    t->level = (uint8_t)level;
}

static uint32_t take_from(vm_thread *t, vm_node *n, uint64_t nr_pages, uint64_t align_pages, uint32_t max,
                          uint64_t *pages)
{
    uint32_t index = vm__pool_index(nr_pages), got = 0;
    if (VM_RELAXED(&n->pool[index].head))
        got = t->region->design->kept->take(t, n, nr_pages, align_pages, max, pages);
    if (got) {
        uint32_t nr = vm__pool_count(t->region, &n->pool[index]);
        if (nr < VM_RELAXED(&n->low[index]))
            VM_PUT(&n->low[index], nr);
    }
    return got;
}

/* Somebody is at a node's pools. On a busy machine he may have been preempted there: who can goes elsewhere first. */
static bool is_held(const vm_node *n) { return vm__lock_is_taken(&n->pool_lock); }

/* From this CPU's node, then from the others of this group: from those that nobody is at, then from all. */
static uint32_t take_near(vm_thread *t, uint64_t nr_pages, uint64_t align_pages, uint32_t max, uint64_t *pages,
                          vm_level *level)
{
    vm_region *r = t->region;
    uint32_t cpu = vm__cpu(), each = r->map.nodes_each, nr_held = 0, got = 0;
    vm_node *own = &r->map.nodes[vm__group_here(r) * each];
    for (uint32_t i = 0; i < 2 * each && !got && (i < each || nr_held); i++) {
        vm_node *n = &own[(cpu + i) % each];
        *level = i % each ? VM_LEVEL_NEIGHBOUR : VM_LEVEL_POOL;
        if (i < each && is_held(n))
            nr_held++;
        else
            got = take_from(t, n, nr_pages, align_pages, max, pages);
    }
    if (got)
        t->flow_node = NULL;
    return got;
}

static uint32_t take_far(vm_thread *t, uint64_t nr_pages, uint64_t align_pages, uint32_t max, uint64_t *pages,
                         vm_level *level)
{
    vm_region *r = t->region;
    uint32_t each = r->map.nodes_each, nr = vm__nodes_used(r), got = 0, next = (vm__group_here(r) + 1) * each;
    *level = VM_LEVEL_NEIGHBOUR;
    for (uint32_t i = 0; i < nr - each && !got; i++) {
        vm_node *n = &r->map.nodes[(next + i) % nr];
        got = take_from(t, n, nr_pages, align_pages, max, pages);
        t->flow_node = got ? n : t->flow_node;
    }
    return got;
}

uint32_t vm__pool_take(vm_thread *t, uint64_t nr_pages, uint64_t align_pages, uint32_t max, bool is_own,
                       uint64_t *pages, vm_level *level)
{
    const vm_pools_kept *kept = t->region->design->kept;
    if (!is_own)
        return take_far(t, nr_pages, align_pages, max, pages, level);
    uint32_t got = kept->take_here ? kept->take_here(t, nr_pages, align_pages, pages) : 0;
    *level = VM_LEVEL_SLAB;
    return got ? got : take_near(t, nr_pages, align_pages, max, pages, level);
}

/* A ready range that is a little longer, the tightest first: while space is short, so that what is ready serves more than
 * its own size. Its length, or 0. */
uint64_t vm__pool_take_longer(vm_thread *t, uint64_t nr_pages, uint64_t align_pages, uint64_t *page, vm_level *level)
{
    uint64_t most = vm__longest_ready_for(t->region, nr_pages);
    for (uint64_t len = nr_pages + 1; len <= most; len++)
        if (take_near(t, len, align_pages, 1, page, level) || take_far(t, len, align_pages, 1, page, level))
            return len;
    return 0;
}

/* This CPU's node, or the first other of the group that nobody is at. */
static vm_node *node_to_give(const vm_region *r)
{
    uint32_t each = r->map.nodes_each, cpu = vm__cpu();
    vm_node *own = &r->map.nodes[vm__group_here(r) * each];
    for (uint32_t i = 0; i < each; i++)
        if (!is_held(&own[(cpu + i) % each]))
            return &own[(cpu + i) % each];
    return &own[cpu % each];
}

/* Words are MOVING(t). What the pool does not keep becomes lazy. */
void vm__pool_give(vm_thread *t, uint64_t nr_pages, uint32_t count, const uint64_t *pages)
{
    vm_region *r = t->region;
    vm_node *n = node_to_give(r);
    uint32_t kept = count ? r->design->kept->give(t, n, nr_pages, count, pages) : 0;
    if (kept < count)
        vm__lazy_put_many(t, nr_pages, count - kept, pages + kept, vm__node_here(r));
}

uint64_t vm__pooled_pages(const vm_region *r)
{
    uint64_t pages = 0;
    for (uint32_t i = 0; i < vm__nodes_used(r); i++) {
        pages += r->design->kept->pages_here ? r->design->kept->pages_here(r, i) : 0;
        for (uint32_t k = 0; k < VM_POOL_PAGES_MAX; k++)
            pages += (uint64_t)vm__pool_count(r, &r->map.nodes[i].pool[k]) * (k + 1);
    }
    return pages;
}
