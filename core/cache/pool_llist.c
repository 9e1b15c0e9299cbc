/* SPDX-License-Identifier: MIT */
/*
 * Pools as lock-free lists: the question Dave Chinner asked under the patch.
 *
 * Anybody adds a single range with one CAS on the head. A taker owns the pool's in_use flag for a
 * moment, detaches the whole list with one exchange, takes the first range and puts the rest back as
 * a batch, for which it must know first and last; a taker who finds the flag set falls through to
 * the next level. The last is remembered from put-back to put-back, so only ranges that were pushed
 * onto an empty list are ever walked, each once.
 *
 * Head and count are one 64-bit word: a range and its count come and go in one CAS, so neither a death nor a scan, which
 * empties the list while others add to it, can lose one of the two. What a taker has in hand stays counted.
 *
 * Death: a range is MOVING(owner) between word and link and a chain that a dead taker detached is
 * found by the scan of the words (scan.c); the flag names its owner.
 * After: the linux-mm thread of 11 to 18 January 2024; lib/llist.c for the roles.
 */
#include "cache.h"

static vm_pool *pool_of(vm_node *n, uint64_t nr_pages) { return &n->pool[vm__pool_index(nr_pages)]; }

/* The link behind `link`, or 0 at the end of the list or where a hint is wrong. */
static uint32_t link_after(const vm_region *r, uint32_t link)
{
    uint64_t next = VM_RELAXED(&r->map.heads[link - 1].aux);
    return next <= r->map.nr_pages ? (uint32_t)next : 0;
}
static bool is_link(const vm_region *r, uint32_t link) { return link && link <= r->map.nr_pages; }
static uint32_t count(const vm_region *r, const vm_pool *p) { return (void)r, VM_RELAXED(&p->nr_listed); }

/* That head, and so many fewer than `old` counts. */
static uint64_t counted(uint32_t head, uint64_t old, uint32_t taken)
{
    uint64_t nr = old >> 32;
    return (nr > taken ? nr - taken : 0) << 32 | head;
}

static void push(vm_region *r, vm_pool *p, uint64_t page)
{
    uint64_t old;
    do {
        old = VM_ACQUIRE(&p->counted);
        VM_PUT(&r->map.heads[page].aux, (uint32_t)old);
    } while (!VM_CAS(&p->counted, old, ((old >> 32) + 1) << 32 | (page + 1)));
}

/* The whole list; it stays counted. [in_use] */
static uint32_t detach(vm_pool *p)
{
    uint64_t old;
    do
        old = VM_ACQUIRE(&p->counted);
    while (!VM_CAS(&p->counted, old, counted(0, old, 0)));
    return (uint32_t)old;
}

static bool enter_pool(vm_thread *t, vm_pool *p)
{
    vm_region *r = t->region;
    vm_token owner = VM_RELAXED(&p->in_use);
    if (owner == 0)
        return VM_CAS(&p->in_use, 0, t->token);
    if (vm_unlikely(!VM_RELAXED(&r->map.h->purge_needs_scan)) && vm__owner_is_dead(r, owner))
        VM_PUT(&r->map.h->purge_needs_scan, 1); /* the next purge mends it */
    return false;
}
static void leave_pool(vm_pool *p) { VM_STORE(&p->in_use, 0); }

/* Last link of a chain, at most the whole region long. */
static uint32_t last_of(const vm_region *r, uint32_t link)
{
    uint32_t next;
    for (uint64_t steps = 0; steps < r->map.nr_pages && (next = link_after(r, link)); steps++)
        link = next;
    return link;
}

/* Put back first..last, `taken` fewer than were detached; what was pushed meanwhile ends up behind it. [in_use] */
static void put_back(vm_region *r, vm_pool *p, uint32_t first, uint32_t last, uint32_t taken)
{
    uint64_t old;
    do {
        old = VM_ACQUIRE(&p->counted);
        VM_PUT(&r->map.heads[last - 1].aux, (uint32_t)old);
    } while (!VM_CAS(&p->counted, old, counted(first, old, taken)));
    VM_PUT(&p->tail, is_link(r, (uint32_t)old) ? last_of(r, (uint32_t)old) : last);
}

/* The same where nothing is left of what was detached. [in_use] */
static void put_back_none(vm_pool *p, uint32_t taken)
{
    uint64_t old;
    do
        old = VM_ACQUIRE(&p->counted);
    while (!VM_CAS(&p->counted, old, counted((uint32_t)old, old, taken)));
    VM_PUT(&p->tail, 0);
}

/* A listed range's word, if it may be taken: POOLED, or MOVING while its pusher finishes. */
static bool claim(vm_region *r, uint64_t page, uint64_t nr_pages, vm_word mine)
{
    for (;;) {
        vm_word w = VM_ACQUIRE(&r->map.heads[page].word);
        if ((vm__state(w) != VM_POOLED && vm__state(w) != VM_MOVING) || vm__len(w) != nr_pages
            || !vm__is_within(r, page, nr_pages))
            return false;
        if (VM_CAS(&r->map.heads[page].word, w, vm__with_len(mine, nr_pages)))
            return true;
    }
}

static uint32_t take(vm_thread *t, vm_node *n, uint64_t nr_pages, uint64_t align_pages, uint32_t max, uint64_t *pages)
{
    vm_region *r = t->region;
    vm_pool *p = pool_of(n, nr_pages);
    (void)max;
    if (!enter_pool(t, p))
        return 0;
    uint32_t got = 0, first = detach(p), tail = VM_RELAXED(&p->tail);
    if (is_link(r, first)) {
        uint32_t rest = link_after(r, first);
        if (!((first - 1) & (align_pages - 1)) && claim(r, first - 1, nr_pages, t->moving)) {
            pages[got++] = first - 1;
        } else {
            rest = first; /* a miss, as in the kernel: only the first is looked at */
        }
        if (rest)
            put_back(r, p, rest, is_link(r, tail) ? tail : last_of(r, rest), got);
        else
            put_back_none(p, got);
    }
    leave_pool(p);
    return got;
}

static uint32_t give(vm_thread *t, vm_node *n, uint64_t nr_pages, uint32_t count, const uint64_t *pages)
{
    vm_region *r = t->region;
    vm_pool *p = pool_of(n, nr_pages);
    vm_word moving = vm__moving(t, nr_pages);
    vm_word pooled = vm__word(VM_POOLED, VM_WORD_DIRTY, nr_pages, (uint32_t)(n - r->map.nodes), 0);
    uint32_t kept = 0;
    for (; kept < count && vm__pool_count(r, p) < vm__pool_cap(nr_pages); kept++) {
        push(r, p, pages[kept]);
        VM_CAS(&r->map.heads[pages[kept]].word, moving, pooled); /* fails if somebody took it already */
    }
    return kept;
}

/* For who must have what is in it: a taker that only is not running is waited for, as for a lock. */
static int wait_for_pool(vm_thread *t, vm_pool *p, unsigned flags)
{
    vm_region *r = t->region;
    uint64_t started = vm__wait_start();
    while (!enter_pool(t, p)) {
        vm_token owner = VM_ACQUIRE(&p->in_use);
        if (flags & VM_LOCK_FLAGS || owner == t->token || (owner && vm__owner_is_dead(r, owner)))
            return -EAGAIN; /* it is left for the next purge, or to a scan, which may be ours */
        int rc = owner ? vm__wait_slice(r, started, owner, vm__pid_of(r, owner)) : 0;
        if (rc)
            return rc;
        vm__yield();
    }
    return 0;
}

/* Keep the hot front, take the rest. */
static void decay_one(vm_thread *t, vm_node *n, uint64_t nr_pages, const uint32_t *quota, vm_batch *out)
{
    vm_region *r = t->region;
    vm_pool *p = pool_of(n, nr_pages);
    uint32_t head = detach(p), first = is_link(r, head) ? head : 0, len = 0, last_kept = 0;
    for (uint32_t at = first; at && len < r->map.nr_pages; at = link_after(r, at))
        len++;
    uint32_t keep = len - vm__decay_quota(quota, nr_pages, len), at = first;
    for (uint32_t i = 0; i < keep && at; i++) {
        last_kept = at;
        at = link_after(r, at);
    }
    uint32_t taken = 0;
    while (at && taken < len) {
        uint32_t next = link_after(r, at);
        if (claim(r, at - 1, nr_pages, t->purging))
            vm__batch_add(t, out, at - 1, nr_pages);
        taken++;
        at = next;
    }
    if (last_kept)
        put_back(r, p, first, last_kept, taken);
    else
        put_back_none(p, taken);
    leave_pool(p);
}

static int decay(vm_thread *t, vm_node *n, const uint32_t *quota, unsigned flags, vm_batch *out)
{
    VM_ASSERT_HELD(t, &t->region->map.h->purge_lock);
    int first = 0;
    for (uint32_t i = 0; i < VM_POOL_PAGES_MAX; i++) {
        vm_pool *p = &n->pool[i];
        if (quota && !quota[i])
            continue;
        if (!VM_RELAXED(&p->head) && !VM_RELAXED(&p->in_use)) /* a taker holds the list that it took */
            continue;
        int rc = wait_for_pool(t, p, flags);
        if (rc == 0)
            decay_one(t, n, i + 1, quota, out);
        else if (rc != -EAGAIN)
            first = first ? first : rc;
    }
    return first;
}

/* Keep takers out of every pool; adders may go on. */
static int before_scan(vm_thread *t, vm_node *n, unsigned flags)
{
    vm_region *r = t->region;
    uint64_t started = vm__wait_start();
    for (uint32_t i = 0; i < VM_POOL_PAGES_MAX; i++) {
        vm_pool *p = &n->pool[i];
        for (;;) {
            vm_token owner = VM_ACQUIRE(&p->in_use);
            if (owner == t->token || ((!owner || vm__owner_is_dead(r, owner)) && VM_CAS(&p->in_use, owner, t->token)))
                break;
            int rc = flags & VM_LOCK_FLAGS ? -EAGAIN : vm__wait_slice(r, started, owner, vm__pid_of(r, owner));
            if (rc == 0) {
                vm__yield();
                continue;
            }
            while (i-- > 0)
                VM_CAS(&n->pool[i].in_use, t->token, 0);
            return rc;
        }
    }
    return 0;
}

static void after_scan(vm_thread *t, vm_node *n, vm_batch *out)
{
    for (uint32_t i = 0; i < VM_POOL_PAGES_MAX; i++) {
        vm_pool *p = &n->pool[i];
        if (VM_RELAXED(&p->in_use) != t->token)
            continue;
        vm__chain_take(t, (uint32_t)VM_SWAP(&p->counted, 0), out);
        VM_PUT(&p->tail, 0);
        leave_pool(p);
    }
}

const vm_pools_kept vm__pools_llist = {
    .take = take,
    .give = give,
    .decay = decay,
    .count = count,
    .before_scan = before_scan,
    .after_scan = after_scan,
    .scan_takes_from = 0,
    .check = vm__check_lists_of_pools,
};
