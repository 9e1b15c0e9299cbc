/* SPDX-License-Identifier: MIT */
/*
 * Purge: make lazily freed ranges reusable by any size, and give their pages back.
 *
 * Under one lock: every node's pools decay by a quarter (all of them if full), its lazy list is
 * detached whole, the shelf is cleared; what was collected is sorted, neighbours become runs, each
 * run is discarded by one punched hole and returned to space by one merge. The start node rotates,
 * so that low-numbered nodes are not always hit first. Purge, shrink (`full`) and recovery (a scan:
 * trust no list, look at the words; keep what is found warm) are this one code path.
 *
 * Death: collected ranges are PURGING(owner). Whoever gets purge_lock from a dead owner scans the
 * words for them; discarding twice is harmless.
 * Locks: purge_lock -> lease_lock -> a node's pool_lock -> space_lock. After: Linux mm/vmalloc.c,
 * __purge_vmap_area_lazy(); start bias: Chinner's complaint of 12 January 2024.
 */
#include "internal.h"

#define RUNS_PER_LOCK 64   /* others get a turn on space_lock in between */
#define BATCH_START 1024
#define LOOK_FOR_DEATH_EVERY 64

typedef struct vm_piece {
    uint64_t page, nr_pages;
} vm_piece;

struct vm_batch { /* process-private: what a dead purger held is in the words */
    vm_piece *piece;
    size_t nr, room;
    uint64_t pages_returned;
};

static int by_page(const void *a, const void *b)
{
    const vm_piece *x = a, *y = b;
    return x->page < y->page ? -1 : x->page > y->page;
}

/* Sort, and make one piece of neighbours. */
static void merge_neighbours(vm_batch *b)
{
    size_t out = 0;
    if (b->nr == 0)
        return;
    qsort(b->piece, b->nr, sizeof *b->piece, by_page);
    for (size_t i = 1; i < b->nr; i++) {
        vm_piece *last = &b->piece[out];
        if (last->page + last->nr_pages == b->piece[i].page)
            last->nr_pages += b->piece[i].nr_pages;
        else
            b->piece[++out] = b->piece[i];
    }
    b->nr = out + 1;
}

/* Put pieces back on the lazy lists, range by range as their words say (`merged`: a piece may hold
 * several). */
static void keep_lazy(vm_region *r, vm_thread *t, const vm_batch *b, size_t from)
{
    for (size_t i = from; i < b->nr; i++) {
        uint64_t end = b->piece[i].page + b->piece[i].nr_pages;
        for (uint64_t page = b->piece[i].page, len; page < end; page += len) {
            len = vm__len(VM_LOAD(&r->heads[page].word));
            if (len == 0 || len > end - page)
                break;
            VM_STORE(&r->heads[page].word, t->moving | len << VM_WORD_LEN_SHIFT);
            vm__lazy_put(r, t, page, len);
        }
    }
}

/* Discard outside the lock, then hand runs to space. On failure the rest stays lazy. */
static int return_to_space(vm_region *r, vm_thread *t, vm_batch *b, unsigned flags)
{
    merge_neighbours(b);
    for (size_t i = 0; i < b->nr;) {
        bool dirty[RUNS_PER_LOCK];
        size_t n = b->nr - i < RUNS_PER_LOCK ? b->nr - i : RUNS_PER_LOCK;
        for (size_t k = 0; k < n; k++)
            dirty[k] = vm__pages_discard(r, b->piece[i + k].page, b->piece[i + k].nr_pages) != 0;
        int rc = vm__space_lock(r, t, flags & VM_NO_WAIT ? 0 : flags);
        if (rc) {
            keep_lazy(r, t, b, i);
            b->nr = 0;
            return rc;
        }
        for (size_t k = 0; k < n; k++, i++) {
            vm__space_put(r, t, b->piece[i].page, b->piece[i].nr_pages, dirty[k]);
            b->pages_returned += b->piece[i].nr_pages;
        }
        VM_PUT(&r->h->nr_discards, r->h->nr_discards + n);
        vm__space_unlock(r, t);
    }
    b->nr = 0;
    return 0;
}

/* Collect a range whose word is PURGING(t). Without memory to remember it, it is lazy again, in no
 * list: the next purge's scan finds it. */
void vm__batch_add(vm_region *r, vm_thread *t, vm_batch *b, uint64_t page, uint64_t nr_pages)
{
    VM_ASSERT_HELD(t, &r->h->purge_lock);
    (void)t;
    if (b->nr == b->room) {
        size_t room = b->room ? b->room * 2 : BATCH_START;
        vm_piece *grown = realloc(b->piece, room * sizeof *grown);
        if (!grown) {
            VM_ADD(&r->h->lazy_pages, nr_pages);
            VM_STORE(&r->heads[page].word, vm__word(VM_LAZY, VM_WORD_DIRTY, nr_pages, 0, 0));
            VM_PUT(&r->h->purge_needs_scan, 1);
            return;
        }
        b->piece = grown;
        b->room = room;
    }
    b->piece[b->nr++] = (vm_piece){page, nr_pages};
}

/* Every list is detached, whatever happens to the pools: after a scan none may keep what it took. */
static int collect(vm_region *r, vm_thread *t, unsigned flags, bool decays, vm_batch *b)
{
    uint64_t start = VM_PEEK(&r->h->purge_start_node);
    const vm_pool_design *design = vm__pool_design(r);
    int first = 0;
    VM_PUT(&r->h->purge_start_node, start + 1);
    for (uint32_t i = 0; i < r->nr_nodes; i++) {
        vm_node *n = &r->nodes[(start + i) % r->nr_nodes];
        int rc = decays ? design->decay(r, t, n, flags & VM_PURGE_FULL, flags, b) : 0; /* before this cycle's */
        vm__lazy_collect(r, t, n, b);
        first = first ? first : rc;
    }
    vm__lazy_collect_shelf(r, t, b);
    return first;
}

/* After a death: the words first, then the lists, so that no list keeps what the scan found. */
static int scan_and_collect(vm_region *r, vm_thread *t, unsigned flags, bool decays, vm_batch *b)
{
    const vm_pool_design *design = vm__pool_design(r);
    uint32_t entered = 0;
    int rc = 0;
    VM_PUT(&r->h->purge_needs_scan, 0);
    while (entered < r->nr_nodes && (rc = design->before_scan(r, t, &r->nodes[entered], flags)) == 0)
        entered++;
    if (rc == 0)
        rc = vm__recover_scan(r, t, flags, b);
    if (rc == 0)
        rc = vm__lease_deaths(r, t, flags);
    int collected = collect(r, t, flags, decays, b);
    while (entered-- > 0)
        design->after_scan(r, t, &r->nodes[entered], b);
    if (rc)
        VM_PUT(&r->h->purge_needs_scan, 1);
    return rc ? rc : collected;
}

/* The recent peak of use sets the threshold; it sinks to the present by a quarter a purge. */
static void sink_peak(vm_region *r, vm_thread *t)
{
    uint64_t most = r->flags & VM_FLAG_NO_DATA ? UINT64_MAX : vm__pages_most(r);
    if (vm__space_lock(r, t, 0) != 0)
        return;
    uint64_t used = r->nr_pages - r->h->free_pages, peak = r->h->used_peak;
    VM_PUT(&r->h->used_peak, peak > used ? peak - (peak - used) / 4 : used);
    vm__space_grant(r, used, most);
    vm__space_unlock(r, t);
}

/* A freeing thread leaves the purge to whoever is at it, unless that one died. */
static int try_lock_purge(vm_region *r, vm_thread *t)
{
    if (vm__trylock(r, t, &r->h->purge_lock))
        return 0;
    vm_token owner = VM_LOAD(&r->h->purge_lock.owner) & VM_TOKEN_MASK;
    if (++t->nr_purges_left % LOOK_FOR_DEATH_EVERY || !owner || !vm__owner_is_dead(r, owner))
        return -EAGAIN;
    return vm__lock(r, t, &r->h->purge_lock, 0);
}

static int lock_purge(vm_region *r, vm_thread *t, unsigned flags)
{
    int rc = flags & VM_PURGE_IF_IDLE ? try_lock_purge(r, t) : vm__lock(r, t, &r->h->purge_lock, flags);
    if (rc == 0 && VM_PEEK(&r->h->purge_lock.needs_repair)) {
        VM_PUT(&r->h->purge_needs_scan, 1);
        VM_STORE(&r->h->purge_lock.needs_repair, 0);
    }
    return rc;
}

int vm__purge(vm_region *r, vm_thread *t, unsigned flags, uint64_t *pages_returned)
{
    vm_batch b = {0};
    int rc = lock_purge(r, t, flags);
    if (rc)
        return rc;
    vm__expire_leases(r, t, VM_NO_WAIT, 0, NULL); /* somebody has the lock: the next purge, then */
    rc = VM_LOAD(&r->h->purge_needs_scan) ? scan_and_collect(r, t, flags, true, &b) : collect(r, t, flags, true, &b);
    int returned = return_to_space(r, t, &b, flags);
    sink_peak(r, t);
    VM_PUT(&r->h->nr_purges, r->h->nr_purges + 1);
    VM_PUT(&r->h->nr_purged_pages, r->h->nr_purged_pages + b.pages_returned);
    vm__unlock(r, t, &r->h->purge_lock);
    free(b.piece);
    if (pages_returned)
        *pages_returned += b.pages_returned;
    return rc ? rc : returned;
}

int vm__purge_scan(vm_region *r, vm_thread *t, unsigned flags, void (*then)(vm_region *, const void *), const void *arg)
{
    vm_batch b = {0};
    int rc = lock_purge(r, t, flags);
    if (rc)
        return rc;
    rc = scan_and_collect(r, t, flags, false, &b);
    keep_lazy(r, t, &b, 0);
    if (rc == 0)
        rc = vm__settle_lazy_pages(r, t, flags);
    if (rc == 0 && then)
        then(r, arg);
    vm__unlock(r, t, &r->h->purge_lock);
    free(b.piece);
    return rc;
}

/* A purge on request: of what is lazy and a quarter of the pools, or of everything (VM_PURGE_FULL). */
int vm__give_back(vm_region *r, unsigned flags, uint64_t *pages_returned)
{
    vm_thread *t = vm__thread(r);
    if (!t)
        return vm__thread_error(r);
    if (VM_LOAD(&r->h->corrupt))
        return -EUCLEAN;
    vm__enter(t);
    uint64_t pages = 0;
    int rc = vm__recover_dead(r, t, 0, NULL);
    vm__expire_leases(r, t, VM_NO_WAIT, 0, NULL); /* what it frees may go into our magazines */
    if (flags & VM_PURGE_FULL)
        vm__drain_all(r, t);
    if (rc == 0)
        rc = vm__purge(r, t, flags, &pages);
    vm__leave(t);
    if (rc == 0 && pages_returned)
        *pages_returned = pages;
    return rc;
}

int vm_purge(vm_region *r, uint64_t *pages_returned) { return vm__give_back(r, 0, pages_returned); }
