/* SPDX-License-Identifier: MIT */
/*
 * Pools as lock-free lists with a version tag: the textbook's answer to the question under the patch.
 *
 * Head and tag are one 64-bit word; every change of the list is one CAS on it that raises the tag. So a taker who read
 * the head's link and was overtaken fails, whatever stands there again by now (ABA), until 2^32 changes later. The tag
 * guards the list and not the range: what was popped is POOLED until its word is claimed by CAS, and who finds the word
 * otherwise was overtaken by a scan, and drops the entry.
 *
 * A range is linked while it is MOVING(owner) and becomes POOLED after; a head that is MOVING yet is a miss. Only POOLED
 * is ever claimed.
 *
 * There is no counter, which a death or a scan could leave off: each range's head has, above its link, how many the list had
 * with it, and what lies under it does not change while it is listed.
 *
 * Death: a range popped and not claimed, and a chain that a dead decay detached, are POOLED in no list; the scan of the
 * words takes every POOLED range (scan.c), and takers go on meanwhile.
 * After: R. K. Treiber, "Systems Programming: Coping with Parallelism" (IBM RJ 5118, 1986).
 */
#include "cache.h"

#define TRIES 64 /* then others are at it: a miss */

static vm_pool *pool_of(vm_node *n, uint64_t nr_pages) { return &n->pool[vm__pool_index(nr_pages)]; }

static bool is_link(const vm_region *r, uint32_t link) { return link && link <= r->map.nr_pages; }
static uint32_t link_of(const vm_region *r, uint64_t tagged)
{
    return is_link(r, (uint32_t)tagged) ? (uint32_t)tagged : 0;
}
static uint64_t with_link(uint64_t tagged, uint32_t link) { return ((tagged >> 32) + 1) << 32 | link; }
/* The link behind `link`, or 0 at the end of the list or where a hint is wrong. */
static uint32_t link_after(const vm_region *r, uint32_t link)
{
    return link_of(r, VM_RELAXED(&r->map.heads[link - 1].aux));
}
/* How many there are from `link` on; 0 at the end. */
static uint32_t height_of(const vm_region *r, uint32_t link)
{
    return link ? (uint32_t)(VM_ACQUIRE(&r->map.heads[link - 1].aux) >> 32) : 0;
}

/* The tag says whether the range was still the first when it was looked at. */
static uint32_t count(const vm_region *r, const vm_pool *p)
{
    uint32_t nr = 0;
    for (int i = 0; i < TRIES; i++) {
        uint64_t head = VM_ACQUIRE(&p->tagged);
        nr = height_of(r, link_of(r, head));
        if (VM_RELAXED(&p->tagged) == head)
            break;
    }
    return nr;
}

static vm_word pooled(const vm_region *r, const vm_node *n, uint64_t nr_pages)
{
    return vm__word(VM_POOLED, VM_WORD_DIRTY, nr_pages, vm__node_index(r, n), 0);
}

/* Put a chain of `nr` on top of `under`: the last one's link, and how high each lies. */
static void stack(vm_region *r, uint32_t first, uint32_t nr, uint32_t under)
{
    uint64_t height = (uint64_t)height_of(r, under) + nr;
    for (uint32_t at = first; at && nr--; height--) {
        uint32_t next = nr ? link_after(r, at) : under;
        VM_PUT(&r->map.heads[at - 1].aux, height << 32 | next);
        at = next;
    }
}

static uint32_t link_at(const vm_region *r, uint32_t link, uint32_t nth)
{
    for (; link && nth; nth--)
        link = link_after(r, link);
    return link;
}

/* Link a chain of `nr` in front. A long one takes a while to write, and who changes the list meanwhile makes that vain: then
 * the back half goes alone, and so on. So a decay comes to its end however busy the pool is. */
static void push(vm_region *r, vm_pool *p, uint32_t first, uint32_t nr)
{
    for (;;) {
        uint64_t head = VM_ACQUIRE(&p->tagged);
        stack(r, first, nr, link_of(r, head));
        if (VM_CAS(&p->tagged, head, with_link(head, first)))
            return;
        if (nr > 1) {
            uint32_t front = nr / 2, back = link_at(r, first, front);
            if (back)
                push(r, p, back, nr - front);
            nr = front;
        }
    }
}

/* The whole list is ours; nobody's pop of it can succeed any more. */
static uint32_t detach(vm_region *r, vm_pool *p)
{
    uint64_t head;
    do
        head = VM_ACQUIRE(&p->tagged);
    while (!VM_CAS(&p->tagged, head, with_link(head, 0)));
    return link_of(r, head);
}

/* A listed range is not ready. Its pusher may be at it still, or be dead: the next purge mends it. What a purger holds is
 * his. Anything else no list should hold. */
static void doubt_word(vm_region *r, vm_word w)
{
    if (vm__state(w) == VM_PURGING || VM_RELAXED(&r->map.h->purge_needs_scan))
        return;
    if (vm__state(w) != VM_MOVING || vm__owner_is_dead(r, vm__token(vm__owner(w), vm__inc(w))))
        VM_PUT(&r->map.h->purge_needs_scan, 1);
}

static uint32_t take(vm_thread *t, vm_node *n, uint64_t nr_pages, uint64_t align_pages, uint32_t max, uint64_t *pages)
{
    vm_region *r = t->region;
    vm_pool *p = pool_of(n, nr_pages);
    vm_word ready = pooled(r, n, nr_pages);
    (void)max;
    for (int i = 0; i < TRIES; i++) {
        uint64_t head = VM_ACQUIRE(&p->tagged);
        uint32_t link = link_of(r, head);
        if (!link)
            return 0;
        uint64_t page = link - 1;
        vm_word w = VM_ACQUIRE(&r->map.heads[page].word);
        uint32_t next = link_after(r, link);
        if (w == ready && (page & (align_pages - 1) || !vm__is_within(r, page, nr_pages)))
            return 0; /* a miss, as in the kernel: only the first is looked at */
        if (vm__state(w) == VM_MOVING) {
            doubt_word(r, w);
            return 0;
        }
        if (!VM_CAS(&p->tagged, head, with_link(head, next)))
            continue;
        if (w == ready && VM_CAS(&r->map.heads[page].word, ready, vm__moving(t, nr_pages))) {
            pages[0] = page;
            return 1;
        }
        doubt_word(r, VM_ACQUIRE(&r->map.heads[page].word));
    }
    return 0;
}

static uint32_t give(vm_thread *t, vm_node *n, uint64_t nr_pages, uint32_t count, const uint64_t *pages)
{
    vm_region *r = t->region;
    vm_pool *p = pool_of(n, nr_pages);
    vm_word ready = pooled(r, n, nr_pages);
    uint32_t kept = 0;
    for (; kept < count && vm__pool_count(r, p) < vm__pool_cap(nr_pages); kept++) {
        push(r, p, (uint32_t)pages[kept] + 1, 1);
        VM_STORE(&r->map.heads[pages[kept]].word, ready);
    }
    return kept;
}

/* A detached chain: keep its hot front, take the rest. What its pusher has not finished stays. */
static void cut(vm_thread *t, vm_node *n, uint64_t nr_pages, uint32_t first, uint32_t keep, vm_batch *out)
{
    vm_region *r = t->region;
    vm_pool *p = pool_of(n, nr_pages);
    uint32_t kept = 0, last_kept = 0;
    uint64_t most = r->map.nr_pages;
    for (uint32_t at = first, next; at && most--; at = next) {
        vm_word w = VM_ACQUIRE(&r->map.heads[at - 1].word);
        next = link_after(r, at);
        if (kept < keep || vm__state(w) == VM_MOVING) {
            if (!last_kept)
                first = at;
            else if (link_after(r, last_kept) != at)
                VM_PUT(&r->map.heads[last_kept - 1].aux, at);
            last_kept = at;
            kept++;
        } else if (w == pooled(r, n, nr_pages) && vm__is_within(r, at - 1, nr_pages)
                   && VM_CAS(&r->map.heads[at - 1].word, w, vm__purging(t, nr_pages))) {
            vm__batch_add(t, out, at - 1, nr_pages);
        } else {
            doubt_word(r, VM_ACQUIRE(&r->map.heads[at - 1].word));
        }
    }
    if (last_kept)
        push(r, p, first, kept);
}

static uint32_t length_of(const vm_region *r, uint32_t link)
{
    uint32_t len = 0;
    for (; link && len < r->map.nr_pages; link = link_after(r, link))
        len++;
    return len;
}

static int decay(vm_thread *t, vm_node *n, const uint32_t *quota, unsigned flags, vm_batch *out)
{
    vm_region *r = t->region;
    VM_ASSERT_HELD(t, &r->map.h->purge_lock);
    (void)flags;
    for (uint32_t nr_pages = 1; nr_pages <= VM_POOL_PAGES_MAX; nr_pages++) {
        vm_pool *p = pool_of(n, nr_pages);
        if (!VM_RELAXED(&p->head) || (quota && !quota[vm__pool_index(nr_pages)]))
            continue;
        uint32_t first = detach(r, p), len = length_of(r, first);
        uint32_t keep = len - vm__decay_quota(quota, nr_pages, len);
        cut(t, n, nr_pages, first, keep, out);
    }
    return 0;
}

/* Takers go on: what the scan took they find PURGING, and drop. */
static int before_scan(vm_thread *t, vm_node *n, unsigned flags) { return (void)t, (void)n, (void)flags, 0; }

static void after_scan(vm_thread *t, vm_node *n, vm_batch *out)
{
    vm_region *r = t->region;
    for (uint32_t nr_pages = 1; nr_pages <= VM_POOL_PAGES_MAX; nr_pages++) {
        vm_pool *p = pool_of(n, nr_pages);
        if (VM_RELAXED(&p->head))
            cut(t, n, nr_pages, detach(r, p), 0, out);
    }
}

const vm_pools_kept vm__pools_tagged = {
    .take = take,
    .give = give,
    .decay = decay,
    .count = count,
    .before_scan = before_scan,
    .after_scan = after_scan,
    .scan_takes_from = 0,
    .check = vm__check_lists_of_pools,
};
