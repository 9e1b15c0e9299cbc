/* SPDX-License-Identifier: MIT */
/* Stats: counted from the words when asked, so that the hot path counts nothing. */
#include "internal.h"

#include <time.h>

#define LOOKS 100
#define LOOK_PAUSE_NS 1000000

static void add_range(vm_stats *s, vm_word w)
{
    uint64_t len = vm__len(w);
    s->nr_ranges++;
    switch (vm__state(w)) {
    case VM_FREE:
        s->free_pages += len;
        s->nr_free_ranges++;
        if (len > s->largest_free_pages)
            s->largest_free_pages = len;
        break;
    case VM_BUSY:
    case VM_FREEING:
        s->busy_pages += len;
        s->nr_busy++;
        s->nr_shared += (w & VM_WORD_SHARED) != 0;
        break;
    case VM_CACHED:
        s->cached_pages += len;
        break;
    case VM_POOLED:
        s->pooled_pages += len;
        break;
    case VM_LAZY:
        s->lazy_pages += len;
        break;
    default:
        s->moving_pages += len;
        break;
    }
}

static void add_counters(const vm_region *r, vm_stats *s)
{
    const vm_header *h = r->h;
    for (uint32_t p = 0; p < VM_PROCESS_NAMES; p++)
        s->nr_processes += (VM_LOAD(&r->processes[p].state) & VM_PROCESS_LIVE) != 0;
    for (uint32_t i = 0; i < r->nr_threads; i++) {
        if (!vm__slot_was_used(r, i))
            continue;
        const vm_slot *slot = &r->slots[i];
        uint64_t state = VM_LOAD(&slot->state);
        s->nr_thread_slots += i >= VM_PROCESSES && state & 1;
        s->nr_alloc += VM_PEEK(&slot->nr_alloc);
        s->nr_pool_hit += VM_PEEK(&slot->nr_pool_hit);
        s->nr_lazy_hit += VM_PEEK(&slot->nr_lazy_hit);
        s->nr_space_hit += VM_PEEK(&slot->nr_space_hit);
        s->nr_failed += VM_PEEK(&slot->nr_failed);
        s->lock_wait_ns += VM_PEEK(&slot->lock_wait_ns);
    }
    s->nr_purges = h->nr_purges;
    s->nr_purged_pages = h->nr_purged_pages;
    s->nr_discards = h->nr_discards;
    s->nr_splits = h->nr_splits;
    s->nr_merges = h->nr_merges;
    s->nr_recovered = h->nr_recovered;
    s->nr_leases = VM_PEEK(&h->nr_leases);
    s->resident_bytes = vm__pages_resident_bytes(r);
}

/* Sums that change when a boundary does, nearly always. */
static uint64_t moves(const vm_region *r)
{
    return VM_LOAD(&r->h->nr_splits) + VM_LOAD(&r->h->nr_merges);
}

static int look_unlocked(vm_region *r, int (*walk)(vm_region *, void *), void *arg)
{
    struct timespec pause = {0, LOOK_PAUSE_NS};
    int rc = 0;
    for (int i = 0; i < LOOKS; i++) {
        uint64_t before = moves(r);
        bool is_quiet = !VM_LOAD(&r->h->space_lock.owner);
        rc = walk(r, arg);
        is_quiet = is_quiet && !VM_LOAD(&r->h->space_lock.owner) && moves(r) == before;
        if ((rc == 0 && is_quiet) || rc == -ENOMEM)
            break;
        nanosleep(&pause, NULL);
    }
    return rc;
}

int vm__look(vm_region *r, vm_thread *t, int (*walk)(vm_region *, void *), void *arg)
{
    if (!t)
        return look_unlocked(r, walk, arg);
    int rc = vm__space_lock(r, t, 0);
    if (rc == -EUCLEAN) /* the index cannot be rebuilt, but one can look */
        rc = vm__lock(r, t, &r->h->space_lock, 0);
    if (rc)
        return rc;
    rc = walk(r, arg);
    vm__space_unlock(r, t);
    return rc;
}

/* NULL in a read-only attachment; then *rc is 0. */
static vm_thread *enter(vm_region *r, int *rc)
{
    vm_thread *t = r->readonly ? NULL : vm__thread(r);
    *rc = t || r->readonly ? 0 : vm__thread_error(r);
    if (t)
        vm__enter(t);
    return t;
}
static void leave(vm_thread *t)
{
    if (t)
        vm__leave(t);
}

static int add_all(vm_region *r, void *arg)
{
    vm_stats *s = arg;
    uint64_t page = 0;
    *s = (vm_stats){.nr_pages = r->nr_pages};
    for (vm_word w; (w = vm__scan(r, page)); page += vm__len(w))
        add_range(s, w);
    return page == r->nr_pages ? 0 : VM_CORRUPT(r);
}

int vm_get_stats(vm_region *r, vm_stats *out)
{
    int rc;
    vm_stats s;
    vm_thread *t = enter(r, &rc);
    if (rc == 0)
        rc = vm__look(r, t, add_all, &s);
    leave(t);
    if (rc)
        return rc;
    add_counters(r, &s);
    *out = s;
    return 0;
}

typedef struct picture {
    vm_range_info *info;
    size_t nr, room;
} picture;

static int copy_range(picture *p, const vm_region *r, uint64_t page, vm_word w)
{
    if (p->nr == p->room) {
        size_t room = p->room ? 2 * p->room : 1024;
        vm_range_info *grown = realloc(p->info, room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        p->info = grown;
        p->room = room;
    }
    bool is_busy = vm__state(w) == VM_BUSY || vm__state(w) == VM_FREEING;
    p->info[p->nr++] = (vm_range_info){page,         vm__len(w),   is_busy ? VM_LOAD(&r->heads[page].aux) : 0,
                                       vm__state(w), vm__owner(w), (w & VM_WORD_SHARED) != 0,
                                       (w & VM_WORD_DIRTY) != 0};
    return 0;
}

static int copy_all(vm_region *r, void *arg)
{
    picture *p = arg;
    uint64_t page = 0;
    int rc = 0;
    p->nr = 0;
    for (vm_word w; rc == 0 && (w = vm__scan(r, page)); page += vm__len(w))
        rc = copy_range(p, r, page, w);
    return rc ? rc : page == r->nr_pages ? 0 : VM_CORRUPT(r);
}

/* Copied under the lock, told outside it: a callback may allocate. */
int vm_walk(vm_region *r, int (*each)(void *, const vm_range_info *), void *arg)
{
    int rc;
    picture p = {0};
    vm_thread *t = enter(r, &rc);
    if (rc == 0)
        rc = vm__look(r, t, copy_all, &p);
    leave(t);
    for (size_t i = 0; rc == 0 && i < p.nr; i++)
        rc = each(arg, &p.info[i]);
    free(p.info);
    return rc;
}
