/* SPDX-License-Identifier: MIT */
/*
 * Purge: make lazily freed ranges reusable by any size, and give their pages back.
 *
 * Under one lock: every node's pools decay by their share (all of them if full), its lazy list is
 * detached whole, the warm lists are cleared; what was collected is sorted, neighbours become runs, each
 * run is discarded by one punched hole and returned to space by one merge. The start node rotates,
 * so that low-numbered nodes are not always hit first. Purge, shrink (`full`) and recovery (a scan:
 * trust no list, look at the words; keep what is found warm) are this one code path. A free above the
 * threshold gives back one bounded step only (vm__purge_step()).
 *
 * Death: collected ranges are PURGING(owner). Whoever gets purge_lock from a dead owner scans the
 * words for them; discarding twice is harmless.
 * After: Linux mm/vmalloc.c, __purge_vmap_area_lazy(); start bias: Chinner's complaint of 12 January 2024.
 */
#include "mend.h"

#define LOOK_FOR_DEATH_EVERY 64

/* Put a piece back on a node's lazy list, range by range as their words say (merged, it may hold several). */
static void keep_piece(vm_thread *t, const vm_piece *piece, uint32_t node)
{
    vm_region *r = t->region;
    uint64_t end = piece->page + piece->nr_pages;
    for (uint64_t page = piece->page, len; page < end; page += len) {
        len = vm__len(VM_ACQUIRE(&r->map.heads[page].word));
        if (len == 0 || len > end - page)
            break;
        VM_STORE(&r->map.heads[page].word, vm__moving(t, len));
        vm__lazy_put_for(t, page, len, node);
    }
}

static void keep_lazy(vm_thread *t, const vm_batch *b, size_t from)
{
    uint32_t here = vm__node_here(t->region);
    for (size_t i = from; i < b->nr; i++)
        keep_piece(t, &b->piece[i], b->piece[i].node == UINT32_MAX ? here : b->piece[i].node);
}

/* Discard outside the lock, unless the pages go along, then hand runs to space. On failure the rest stays lazy. */
static int return_to_space(vm_thread *t, vm_batch *b, unsigned flags)
{
    vm_region *r = t->region;
    vm__batch_merge(b);
    bool keeps_pages = flags & VM_PURGE_UNPUNCHED && r->map.data;
    for (size_t i = 0; i < b->nr;) {
        bool dirty[VM_RUNS_PER_LOCK];
        size_t n = b->nr - i < VM_RUNS_PER_LOCK ? b->nr - i : VM_RUNS_PER_LOCK;
        for (size_t k = 0; k < n; k++)
            dirty[k] = keeps_pages || vm__pages_discard(r, b->piece[i + k].page, b->piece[i + k].nr_pages) != 0;
        int rc = vm__space_lock(t, flags & VM_LOCK_FLAGS);
        if (rc) {
            keep_lazy(t, b, i);
            b->nr = 0;
            return rc;
        }
        uint64_t may_clean = VM_CLEAN_TURN_PAGES;
        for (size_t k = 0; k < n; k++, i++) {
            vm__space_put(t, b->piece[i].page, b->piece[i].nr_pages, dirty[k], &may_clean);
            if (!dirty[k])
                vm__event(t, VM_EVENT_DISCARD, b->piece[i].page, b->piece[i].nr_pages);
            b->runs_returned++;
            b->pages_returned += b->piece[i].nr_pages;
        }
        VM_PUT(&r->map.h->nr_discards, r->map.h->nr_discards + (keeps_pages ? 0 : n));
        vm__space_unlock(t);
    }
    b->nr = 0;
    return 0;
}

/* Every list is detached, whatever happens to the pools: after a scan none may keep what it took. */
static int collect(vm_thread *t, unsigned flags, bool decays, vm_batch *b)
{
    vm_region *r = t->region;
    uint64_t start = VM_RELAXED(&r->map.h->purge_start_node);
    const vm_pools_kept *kept = r->design->kept;
    int first = 0;
    VM_PUT(&r->map.h->purge_start_node, start + 1);
    for (uint32_t i = 0, nr = vm__nodes_used(r); i < nr; i++) {
        vm_node *n = &r->map.nodes[(start + i) % nr];
        const uint32_t *quota = flags & VM_PURGE_FULL ? vm__decay_all : NULL;
        int rc = decays && kept->decay ? kept->decay(t, n, quota, flags, b) : 0; /* before this cycle's */
        first = first ? first : rc;
    }
    int rc = vm__warm_collect_all(t, flags & VM_LOCK_FLAGS, b);
    return first ? first : rc;
}

/* Others get a turn on space_lock in between. */
static void collect_all_dirty(vm_thread *t, unsigned flags, vm_batch *b)
{
    uint64_t from = 0;
    while (from < t->region->map.nr_pages && vm__space_collect_dirty(t, &from, UINT64_MAX, flags, b) == 0)
        ;
}

/* After a death: the words first, then the lists, so that no list keeps what the scan found. */
static int scan_and_collect(vm_thread *t, unsigned flags, bool decays, vm_batch *b)
{
    vm_region *r = t->region;
    const vm_pools_kept *kept = r->design->kept;
    uint32_t entered = 0, nr = vm__nodes_used(r);
    int rc = 0;
    VM_PUT(&r->map.h->purge_needs_scan, 0);
    while (kept->before_scan && entered < nr && (rc = kept->before_scan(t, &r->map.nodes[entered], flags)) == 0)
        entered++;
    if (rc == 0)
        rc = vm__warm_close(t, flags & VM_LOCK_FLAGS);
    if (rc == 0)
        rc = vm__scan(t, flags, b);
    if (rc == 0)
        rc = vm__lease_deaths(t, flags);
    int collected = collect(t, flags, decays, b);
    while (entered-- > 0)
        kept->after_scan(t, &r->map.nodes[entered], b);
    if (rc || collected)
        VM_PUT(&r->map.h->purge_needs_scan, 1);
    return rc ? rc : collected;
}

/* The recent peak of use sets the threshold; at each purge it sinks towards present use. No more is granted than `most`. */
static void sink_peak(vm_thread *t, uint64_t most, unsigned flags)
{
    vm_region *r = t->region;
    if (vm__space_lock(t, flags) != 0)
        return;
    uint64_t used = r->map.nr_pages - r->map.h->free_pages;
    vm__space_sink_peak(t, vm__live_pages(r));
    vm__space_grant(t, used, most);
    vm__space_unlock(t);
}

/* A freeing thread leaves the purge to whoever is at it, unless that one died. */
static int try_lock_purge(vm_thread *t)
{
    vm_region *r = t->region;
    if (vm__trylock(t, &r->map.h->purge_lock))
        return 0;
    vm_token owner = VM_ACQUIRE(&r->map.h->purge_lock.owner) & VM_TOKEN_MASK;
    if (++t->nr_purges_left % LOOK_FOR_DEATH_EVERY || !owner || !vm__owner_is_dead(r, owner))
        return -EAGAIN;
    return vm__lock(t, &r->map.h->purge_lock, VM_LOCK_BRIEF);
}

static int lock_purge(vm_thread *t, unsigned flags)
{
    vm_region *r = t->region;
    int rc = flags & VM_PURGE_IF_IDLE ? try_lock_purge(t) : vm__lock(t, &r->map.h->purge_lock, flags);
    if (rc == 0 && VM_RELAXED(&r->map.h->purge_lock.needs_mending)) {
        VM_PUT(&r->map.h->purge_needs_scan, 1);
        VM_STORE(&r->map.h->purge_lock.needs_mending, 0);
    }
    return rc;
}

int vm__purge(vm_thread *t, unsigned flags, uint64_t *pages_returned)
{
    vm_region *r = t->region;
    vm_batch b = {0};
    uint64_t before = VM_RELAXED(&r->map.h->nr_purges);
    int rc = lock_purge(t, flags);
    if (rc)
        return rc;
    if (flags & VM_PURGE_IF_NOBODY_DID && VM_RELAXED(&r->map.h->nr_purges) != before) {
        vm__unlock(t, &r->map.h->purge_lock);
        return 0;
    }
    vm__expire_leases(t, VM_NO_WAIT, 0, NULL); /* somebody has the lock: the next purge, then */
    rc = VM_ACQUIRE(&r->map.h->purge_needs_scan) ? scan_and_collect(t, flags, true, &b) : collect(t, flags, true, &b);
    if (!(flags & VM_PURGE_UNPUNCHED) && VM_RELAXED(&r->map.h->dirty_pages))
        collect_all_dirty(t, flags & VM_LOCK_FLAGS, &b);
    int returned = return_to_space(t, &b, flags);
    if (!(flags & VM_PURGE_UNPUNCHED))
        sink_peak(t, r->map.flags & VM_FLAG_NO_DATA ? UINT64_MAX : vm__headroom_pages(r), 0);
    VM_PUT(&r->map.h->nr_purges, r->map.h->nr_purges + 1);
    VM_PUT(&r->map.h->nr_purged_pages, r->map.h->nr_purged_pages + b.pages_returned);
    vm__event(t, VM_EVENT_PURGE, b.runs_returned, b.pages_returned);
    vm__unlock(t, &r->map.h->purge_lock);
    free(b.piece);
    if (pages_returned)
        *pages_returned += b.pages_returned;
    return rc ? rc : returned;
}

/* As lock_purge(), for who waits for nobody. What a death left is noted for the next scan. */
static bool try_to_step(vm_thread *t) { return lock_purge(t, VM_PURGE_IF_IDLE) == 0; }

/* `gave_back`: pages went to the system, not only to space. */
static uint64_t end_step(vm_thread *t, vm_batch *b, bool gave_back)
{
    vm_header *h = t->region->map.h;
    uint64_t pages = b->pages_returned;
    if (gave_back) {
        VM_PUT(&h->nr_purged_pages, h->nr_purged_pages + pages);
        VM_PUT(&h->nr_steps, h->nr_steps + 1);
        if (h->nr_steps % VM_PEAK_SINK_STEPS == 0) /* a free may be at it: no files are read */
            sink_peak(t, VM_RELAXED(&h->granted_pages), VM_NO_WAIT);
    }
    if (pages)
        vm__event(t, VM_EVENT_PURGE, b->runs_returned, pages);
    vm__unlock(t, &h->purge_lock);
    free(b->piece);
    return pages;
}

/* A bounded part of a purge, for a thread that has something else to do: it takes the oldest lazy ranges, waits for nobody,
 * and leaves pools and whatever a death hid to a purge. */
uint64_t vm__purge_step(vm_thread *t, uint64_t most_pages, uint32_t most_ranges, unsigned flags)
{
    vm_batch b = {0};
    if (!try_to_step(t))
        return 0;
    if (vm__warm_collect(t, most_pages, most_ranges, &b) == 0)
        return_to_space(t, &b, flags | VM_NO_WAIT);
    return end_step(t, &b, !(flags & VM_PURGE_UNPUNCHED));
}

uint64_t vm__purge_pools(vm_thread *t, uint32_t node, const uint32_t *quota)
{
    vm_region *r = t->region;
    vm_batch b = {0};
    if (!r->design->kept->decay || !try_to_step(t))
        return 0;
    if (r->design->kept->decay(t, &r->map.nodes[node], quota, VM_NO_WAIT, &b) == 0)
        return_to_space(t, &b, VM_NO_WAIT);
    return end_step(t, &b, b.pages_returned != 0);
}

uint64_t vm__purge_unused_cpus(vm_thread *t, const vm_cpus *online, const vm_cpus *may_run)
{
    vm_batch b = {0};
    if (!try_to_step(t))
        return 0;
    t->region->design->kept->decay_unused_cpus(t, online, may_run, &b);
    return_to_space(t, &b, VM_NO_WAIT);
    return end_step(t, &b, b.pages_returned != 0);
}

bool vm__purge_dirty(vm_thread *t, uint64_t *from, uint64_t *pages)
{
    vm_region *r = t->region;
    vm_batch b = {0};
    if (!try_to_step(t))
        return false;
    int rc = vm__space_collect_dirty(t, from, VM_DIRTY_STEP_PAGES, VM_NO_WAIT, &b);
    if (b.nr)
        return_to_space(t, &b, VM_NO_WAIT); /* also if the index turned out wrong: what was collected is ours */
    *pages += end_step(t, &b, b.pages_returned != 0);
    bool is_end = *from >= r->map.nr_pages;
    *from = is_end ? 0 : *from;
    return rc == 0 && !is_end;
}

bool vm__purge_is_behind(vm_region *r)
{
    const vm_lock *lock = &r->map.h->purge_lock;
    vm_token owner = VM_ACQUIRE(&lock->owner) & VM_TOKEN_MASK;
    return VM_ACQUIRE(&r->map.h->purge_needs_scan) || VM_RELAXED(&lock->needs_mending)
           || (owner && vm__owner_is_dead(r, owner)) || vm__warm_is_damaged(r);
}

void vm__count_tick(vm_thread *t, uint64_t decayed_pages)
{
    vm_header *h = t->region->map.h;
    if (decayed_pages)
        vm__event(t, VM_EVENT_DECAY, 0, decayed_pages);
    if (!vm__trylock(t, &h->purge_lock))
        return;
    VM_PUT(&h->nr_ticks, h->nr_ticks + 1);
    VM_PUT(&h->nr_decayed_pages, h->nr_decayed_pages + decayed_pages);
    vm__unlock(t, &h->purge_lock);
}

/* What the pools keep becomes lazy, where a request of any size finds it; no pages are given back. */
bool vm__pools_to_warm(vm_thread *t)
{
    vm_region *r = t->region;
    vm_batch b = {0};
    if (!r->design->kept->decay || try_lock_purge(t) != 0)
        return false;
    for (uint32_t i = 0; i < vm__nodes_used(r); i++, b.nr = 0) {
        r->design->kept->decay(t, &r->map.nodes[i], vm__decay_all, VM_NO_WAIT, &b);
        for (size_t k = 0; k < b.nr; k++)
            keep_piece(t, &b.piece[k], i);
    }
    vm__unlock(t, &r->map.h->purge_lock);
    free(b.piece);
    return true;
}

int vm__purge_scan(vm_thread *t, unsigned flags, void (*then)(vm_region *, const void *), const void *arg)
{
    vm_region *r = t->region;
    vm_batch b = {0};
    int rc = lock_purge(t, flags);
    if (rc)
        return rc;
    rc = scan_and_collect(t, flags, false, &b);
    keep_lazy(t, &b, 0);
    if (rc == 0)
        rc = vm__mend_lazy_pages(t, flags);
    if (rc == 0 && then)
        then(r, arg);
    vm__unlock(t, &r->map.h->purge_lock);
    free(b.piece);
    return rc;
}

int vm__purge_count(vm_thread *t, unsigned flags)
{
    int rc = lock_purge(t, flags);
    if (rc)
        return rc;
    rc = vm__mend_lazy_pages(t, flags);
    vm__unlock(t, &t->region->map.h->purge_lock);
    return rc;
}
