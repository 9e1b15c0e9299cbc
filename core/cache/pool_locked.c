/* SPDX-License-Identifier: MIT */
/*
 * Pools as in the patch: a list and its length per size, one lock per node for all sizes.
 *
 * Links live in the ranges' heads (aux). A range leaves and enters the list and changes its word
 * inside one critical section; who dies in there leaves the lock to a thief, who rebuilds the node's
 * lists from the words.
 *
 * The node's pool_lock is mended by rebuilding its lists from the words.
 * After: Linux mm/vmalloc.c, node_pool_del_va() and decay_va_pool_node().
 */
#include "cache.h"

/* The range a stored link names, or VM_NONE where the list ends or a hint is wrong. */
static uint64_t entry_of(const vm_region *r, uint64_t link, uint64_t nr_pages, uint32_t node)
{
    if (link == 0 || link > r->map.nr_pages)
        return VM_NONE;
    vm_word w = VM_RELAXED(&r->map.heads[link - 1].word);
    bool is_ready = vm__state(w) == VM_POOLED && vm__len(w) == nr_pages && vm__owner(w) == node;
    return is_ready && vm__is_within(r, link - 1, nr_pages) ? link - 1 : VM_NONE;
}

static vm_word pooled(uint32_t node, uint64_t nr_pages)
{
    return vm__word(VM_POOLED, VM_WORD_DIRTY, nr_pages, node, 0);
}

static void push(vm_region *r, vm_node *n, uint64_t nr_pages, uint32_t count, const uint64_t *pages)
{
    VM_ASSERT_RANK_HELD(r, VM_RANK_POOL);
    uint32_t index = vm__pool_index(nr_pages);
    vm_pool *p = &n->pool[index];
    vm_word word = pooled(vm__node_index(r, n), nr_pages);
    uint32_t nr = VM_RELAXED(&p->nr_ranges), link = VM_RELAXED(&p->head);
    for (uint32_t i = 0; i < count; i++, nr++) {
        VM_PUT(&r->map.heads[pages[i]].aux, link);
        VM_STORE(&r->map.heads[pages[i]].word, word);
        VM_PUT(&n->next[index][nr % VM_POOL_NEXT], (uint32_t)pages[i]);
        link = (uint32_t)pages[i] + 1;
    }
    VM_PUT(&p->head, link);
    VM_PUT(&p->nr_ranges, nr);
}

/* The heads of the next ranges lie in the cache of who gave them, and a list shows one after the other. The hints beside it
 * show all, so that they come at the same time, and while the lock comes. After a decay some name other ranges: that costs
 * time only. */
_Static_assert((int)VM_POOL_NEXT >= (int)VM_MAGAZINE_REFILL_MAX, "no hint is looked at twice");
static void look_ahead(const vm_region *r, const vm_node *n, uint64_t nr_pages, uint32_t max)
{
    uint32_t index = vm__pool_index(nr_pages), nr = VM_RELAXED(&n->pool[index].nr_ranges);
    uint32_t most = nr < max ? nr : max;
    for (uint32_t i = 1; i <= most; i++) {
        uint64_t page = VM_RELAXED(&n->next[index][(nr - i) % VM_POOL_NEXT]);
        if (page < r->map.nr_pages) /* whatever a neighbour wrote */
            vm__expect_write(&r->map.heads[page]);
    }
}

/* Lists of this node from the words. */
static int rebuild(vm_thread *t, vm_node *n, unsigned flags)
{
    vm_region *r = t->region;
    VM_ASSERT_HELD(t, &n->pool_lock);
    int rc = vm__space_lock(t, flags);
    if (rc)
        return rc;
    for (uint32_t i = 0; i < VM_POOL_PAGES_MAX; i++) {
        VM_PUT(&n->pool[i].head, 0);
        VM_PUT(&n->pool[i].nr_ranges, 0);
    }
    uint64_t page = 0;
    for (vm_word w; (w = vm__word_at(r, page)); page += vm__len(w))
        if (vm__state(w) == VM_POOLED && vm__owner(w) == vm__node_index(r, n) && vm__len(w) <= VM_POOL_PAGES_MAX)
            push(r, n, vm__len(w), 1, &page);
    vm__space_unlock(t);
    return page == r->map.nr_pages ? 0 : VM_CORRUPT(r);
}

static int lock_node(vm_thread *t, vm_node *n, unsigned flags)
{
    int rc = vm__lock(t, &n->pool_lock, flags);
    if (rc || vm_likely(!VM_RELAXED(&n->pool_lock.needs_mending)))
        return rc;
    rc = rebuild(t, n, flags);
    if (rc)
        vm__unlock(t, &n->pool_lock);
    else
        VM_STORE(&n->pool_lock.needs_mending, 0);
    return rc;
}

/* The first ranges of a list, up to `max`; of another group's the last lot stays if it is not whole, for the next taker.
 * `rest`: the link behind them. */
static uint32_t look_at_first(const vm_region *r, const vm_node *n, uint64_t nr_pages, uint64_t align_pages,
                              uint32_t max, uint64_t *pages, uint64_t *rest)
{
    uint32_t node = vm__node_index(r, n), nr = 0, nr_whole = 0;
    bool is_flow = vm__group_of_node(r, node) != vm__group_here(r);
    uint64_t lot_pages = vm__lot_pages(nr_pages), link = VM_RELAXED(&n->pool[vm__pool_index(nr_pages)].head), page;
    for (*rest = link; nr < max; nr++) {
        page = entry_of(r, link, nr_pages, node);
        if (page == VM_NONE || page & (align_pages - 1))
            break;
        pages[nr] = page;
        link = VM_RELAXED(&r->map.heads[page].aux);
        if (!is_flow || !link || !vm__is_of_one_lot(page, link - 1, lot_pages)) {
            nr_whole = nr + 1;
            *rest = link;
        }
    }
    if (nr_whole)
        return nr_whole;
    *rest = link;
    return nr;
}

/* Unlink them. A list that a neighbour bent into a ring ends where it meets itself. */
static uint32_t pop(vm_thread *t, vm_node *n, uint64_t nr_pages, uint64_t align_pages, uint32_t max, uint64_t *pages)
{
    vm_region *r = t->region;
    VM_ASSERT_RANK_HELD(r, VM_RANK_POOL);
    vm_pool *p = &n->pool[vm__pool_index(nr_pages)];
    uint64_t rest;
    uint32_t nr = look_at_first(r, n, nr_pages, align_pages, max, pages, &rest), got = 0;
    for (; got < nr && vm__state(VM_RELAXED(&r->map.heads[pages[got]].word)) == VM_POOLED; got++)
        VM_STORE(&r->map.heads[pages[got]].word, vm__moving(t, nr_pages));
    if (got) {
        uint32_t listed = VM_RELAXED(&p->nr_ranges);
        VM_PUT(&p->head, (uint32_t)rest);
        VM_PUT(&p->nr_ranges, listed > got ? listed - got : 0);
    }
    return got;
}

/* As in the kernel only the head is looked at; a misaligned one is a miss. A lock somebody holds for
 * long is a miss too: the next node, or space, will do. */
static uint32_t take(vm_thread *t, vm_node *n, uint64_t nr_pages, uint64_t align_pages, uint32_t max, uint64_t *pages)
{
    vm__expect_pool(n, nr_pages);
    look_ahead(t->region, n, nr_pages, max);
    if (lock_node(t, n, VM_LOCK_BRIEF) != 0)
        return 0;
    uint32_t got = pop(t, n, nr_pages, align_pages, max, pages);
    vm__unlock(t, &n->pool_lock);
    return got;
}

static uint32_t give(vm_thread *t, vm_node *n, uint64_t nr_pages, uint32_t count, const uint64_t *pages)
{
    uint32_t cap = vm__pool_cap(nr_pages);
    vm_pool *p = &n->pool[vm__pool_index(nr_pages)];
    vm__expect_pool(n, nr_pages);
    if (VM_RELAXED(&p->nr_ranges) >= cap || lock_node(t, n, VM_NO_WAIT) != 0)
        return 0; /* a free waits for nobody: what is not kept becomes lazy */
    uint32_t nr = VM_RELAXED(&p->nr_ranges), room = nr < cap ? cap - nr : 0, kept = count < room ? count : room;
    if (kept)
        push(t->region, n, nr_pages, kept, pages);
    vm__unlock(t, &n->pool_lock);
    return kept;
}

/* The list is hot first: keep its front, take the rest. Counter and links are hints: no list is longer than
 * the region has room for, whatever they say. */
static void decay_one(vm_thread *t, vm_node *n, uint64_t nr_pages, const uint32_t *quota, vm_batch *out)
{
    vm_region *r = t->region;
    VM_ASSERT_RANK_HELD(r, VM_RANK_POOL);
    vm_pool *p = &n->pool[vm__pool_index(nr_pages)];
    uint64_t most = r->map.nr_pages / nr_pages;
    uint32_t node = vm__node_index(r, n), counted = VM_RELAXED(&p->nr_ranges);
    uint32_t len = counted < most ? counted : (uint32_t)most, keep = len - vm__decay_quota(quota, nr_pages, len);
    uint64_t last = VM_NONE, page = entry_of(r, VM_RELAXED(&p->head), nr_pages, node);
    for (uint32_t i = 0; i < keep && page != VM_NONE; i++) {
        last = page;
        page = entry_of(r, VM_RELAXED(&r->map.heads[page].aux), nr_pages, node);
    }
    for (uint64_t steps = 0; page != VM_NONE && steps < most; steps++) {
        uint64_t next = VM_RELAXED(&r->map.heads[page].aux);
        VM_STORE(&r->map.heads[page].word, vm__purging(t, nr_pages));
        vm__batch_add(t, out, page, nr_pages);
        page = entry_of(r, next, nr_pages, node);
    }
    if (last == VM_NONE)
        VM_PUT(&p->head, 0);
    else
        VM_PUT(&r->map.heads[last].aux, 0);
    VM_PUT(&p->nr_ranges, keep);
}

static int decay(vm_thread *t, vm_node *n, const uint32_t *quota, unsigned flags, vm_batch *out)
{
    VM_ASSERT_HELD(t, &t->region->map.h->purge_lock);
    bool any = false;
    for (uint32_t i = 0; i < VM_POOL_PAGES_MAX && !any; i++)
        any = VM_RELAXED(&n->pool[i].nr_ranges) != 0;
    if (!any)
        return 0;
    int rc = lock_node(t, n, flags);
    if (rc)
        return rc;
    for (uint32_t i = 0; i < VM_POOL_PAGES_MAX; i++)
        if (VM_RELAXED(&n->pool[i].nr_ranges))
            decay_one(t, n, i + 1, quota, out);
    vm__unlock(t, &n->pool_lock);
    return 0;
}

/* Only a lock left by a dead owner means damage. */
static int before_scan(vm_thread *t, vm_node *n, unsigned flags)
{
    vm_region *r = t->region;
    vm_token owner = VM_ACQUIRE(&n->pool_lock.owner) & VM_TOKEN_MASK;
    if (!VM_RELAXED(&n->pool_lock.needs_mending) && (!owner || !vm__owner_is_dead(r, owner)))
        return 0;
    int rc = lock_node(t, n, flags);
    if (rc == 0)
        vm__unlock(t, &n->pool_lock);
    return rc;
}
static void after_scan(vm_thread *t, vm_node *n, vm_batch *out) { (void)t, (void)n, (void)out; }

static int doubt(vm_thread *t, vm_node *n, void (*look)(const vm_region *, uint32_t, void *), void *arg)
{
    int rc = vm__lock(t, &n->pool_lock, 0);
    if (rc)
        return rc;
    look(t->region, vm__node_index(t->region, n), arg);
    VM_PUT(&n->pool_lock.needs_mending, 1); /* the scan, or whoever comes first, rebuilds */
    vm__unlock(t, &n->pool_lock);
    return 0;
}

const vm_pools_kept vm__pools_locked = {
    .take = take,
    .give = give,
    .decay = decay,
    .before_scan = before_scan,
    .after_scan = after_scan,
    .scan_takes_from = UINT32_MAX, /* none: its lists are mended by their lock */
    .doubt = doubt,
    .check = vm__check_lists_of_pools,
};
