/* SPDX-License-Identifier: MIT */
/*
 * Alloc: the way of a request, top to bottom.
 *
 *   magazine -> pool (this CPU's node, then neighbours) -> lazy (warm large ranges) -> space
 *            -> purge once, retry -> shrink and drain, retry -> recover the dead, retry -> ENOSPC
 *
 * The magazine step is here, inline, because it is the hot path: plain stores, no locked
 * instruction, between an entry and an exit mark that let a neighbour drain this slot safely
 * (magazine.c). Everything below it is a station of its own.
 */
#include "internal.h"

static bool is_power_of_two(uint64_t n) { return n && !(n & (n - 1)); }

/* Make a range whose word is ours (MOVING) busy: the id first, the word commits. */
void vm__hand_out(vm_region *r, vm_thread *t, uint64_t page, uint64_t nr_pages, bool zeroed, vm_range *out)
{
    uint64_t id = vm__new_id(t, nr_pages);
    VM_PUT(&r->heads[page].aux, id);
    VM_STORE(&r->heads[page].word, t->busy | nr_pages << VM_WORD_LEN_SHIFT);
    *out = (vm_range){page, nr_pages, id, zeroed};
}

static void count(uint64_t *counter) { VM_PUT(counter, VM_PEEK(counter) + 1); }

/* A ready range of exactly that size, from the magazine (what the hit leaves to us) or from a pool. */
static int take_ready(vm_region *r, vm_thread *t, uint64_t nr_pages, uint64_t align_pages, vm_range *out)
{
    uint64_t page;
    if (vm__magazine_take(r, t, nr_pages, align_pages, out))
        return 0;
    if (t->fast_pages)
        return vm__magazine_refill(r, t, nr_pages, align_pages, out);
    if (!vm__pool_take(r, t, nr_pages, align_pages, 1, &page))
        return -ENOSPC;
    vm__hand_out(r, t, page, nr_pages, false, out);
    return 0;
}

/* One pass through the stations below the hit; ENOSPC if none has it. */
static int try_stations(vm_region *r, vm_thread *t, uint64_t nr_pages, uint64_t align_pages, unsigned flags,
                        vm_range *out)
{
    if (nr_pages <= VM_POOL_PAGES_MAX && r->pools != VM_POOLS_OFF
        && take_ready(r, t, nr_pages, align_pages, out) == 0) {
        count(&t->slot->nr_pool_hit);
        return 0;
    }
    if (nr_pages > VM_POOL_PAGES_MAX && vm__lazy_take(r, t, nr_pages, align_pages, out) == 0) {
        count(&t->slot->nr_lazy_hit);
        return 0;
    }
    int rc = -ENOSPC;
    if (nr_pages <= t->fast_pages && align_pages == 1)
        rc = vm__magazine_stock(r, t, nr_pages, flags & VM_NO_WAIT, out);
    if (rc)
        rc = vm__space_take(r, t, nr_pages, align_pages, flags, out);
    if (rc == 0)
        count(&t->slot->nr_space_hit);
    return rc;
}

#define ROOM_ATTEMPTS 6

/* What may still bring pages back, cheapest first. The last step is repeated, since neighbours who run
 * fill their magazines again, and one in the middle of an operation is not drained. */
static int make_room(vm_region *r, vm_thread *t, int attempt, unsigned flags)
{
    uint64_t pages = 0;
    if (attempt == 0)
        return vm__purge(r, t, flags, &pages);
    vm__drain_all(r, t);
    int rc = attempt == 1 ? 0 : vm__recover_dead(r, t, flags, &pages);
    return rc ? rc : vm__purge(r, t, flags | VM_PURGE_FULL, &pages);
}

int vm__alloc_slow(vm_region *r, vm_thread *t, uint64_t nr_pages, uint64_t align_pages, unsigned flags, vm_range *out)
{
    if (VM_LOAD(&r->h->corrupt))
        return -EUCLEAN;
    vm__enter(t);
    count(&t->slot->nr_alloc);
    int rc = try_stations(r, t, nr_pages, align_pages, flags, out);
    for (int attempt = 0; rc == -ENOSPC && attempt < ROOM_ATTEMPTS && !(flags & VM_NO_PURGE); attempt++) {
        rc = make_room(r, t, attempt, flags);
        if (rc == 0)
            rc = try_stations(r, t, nr_pages, align_pages, flags, out);
    }
    if (rc == -ENOSPC)
        count(&t->slot->nr_failed);
    vm__leave(t);
    return rc;
}

static bool injected_failure(vm_region *r)
{
    return vm_unlikely(r->fail_every) && __atomic_add_fetch(&r->nr_requests, 1, __ATOMIC_RELAXED) % r->fail_every == 0;
}

/* All that is not a plain hit. Kept out of line so that the hit needs no stack frame. */
static __attribute__((noinline, cold)) int alloc_checked(vm_region *r, uint64_t nr_pages, uint64_t align_pages,
                                                         unsigned flags, vm_range *out)
{
    if (flags & VM_HIT_ONLY)
        return -EAGAIN;
    vm_thread *t = vm__thread(r);
    if (!t)
        return vm__thread_error(r);
    if (!is_power_of_two(align_pages) || nr_pages == 0)
        return -EINVAL;
    if (injected_failure(r) || nr_pages > r->nr_pages || align_pages > r->nr_pages)
        return -ENOSPC;
    return vm__alloc_slow(r, t, nr_pages, align_pages, flags, out);
}

/* The hit: a ready range from this thread's magazine. Larger alignments go the checked way. */
int vm_alloc(vm_region *r, uint64_t nr_pages, uint64_t align_pages, unsigned flags, vm_range *out)
{
    vm_thread *t = vm__current;
    if (vm_unlikely(t->fast_serial != r->fast_serial || nr_pages > VM_POOL_PAGES_MAX || align_pages != 1))
        return alloc_checked(r, nr_pages, align_pages, flags, out);
    vm_magazine *m = &t->magazine[nr_pages];
    uint64_t header = VM_PEEK(&m->header), serial = header >> 8;
    VM_PUT(&m->header, VM_MAGAZINE_TAKING);
    __atomic_signal_fence(__ATOMIC_SEQ_CST); /* the drainer's membarrier is the other half */
    uint64_t page = VM_PEEK(vm__magazine_top(m, header));
    if (vm_unlikely(VM_LOOK(&t->slot->drain) || page + nr_pages > r->nr_pages || vm__serial_is_spent(serial)))
        goto missed;
    vm_head *head = &r->heads[page];
    vm_word cached = t->cached | nr_pages << VM_WORD_LEN_SHIFT;
    if (vm_unlikely(VM_LOOK(&head->word) != cached))
        goto missed;
    uint64_t id = serial << VM_ID_SIZE_BITS | nr_pages;
    VM_PUT(&head->aux, id);
    VM_STORE(&head->word, cached ^ t->flip);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    VM_STORE(&m->header, header + (1 << 8) - 1); /* the next serial, one range less */
    *out = (vm_range){page, nr_pages, id, false};
    return 0;
missed:
    VM_STORE(&m->header, header);
    return alloc_checked(t->region, nr_pages, 1, flags, out);
}

int vm_alloc_bulk(vm_region *r, uint64_t nr_pages, uint64_t align_pages, size_t count_, vm_range *out)
{
    for (size_t i = 0; i < count_; i++) {
        int rc = vm_alloc(r, nr_pages, align_pages, 0, &out[i]);
        if (rc) {
            vm_free_bulk(r, i, out);
            return rc;
        }
    }
    return 0;
}

/* Lowest base at which every [base + offset[i], + nr_pages[i]) is free: each misfit moves the base
 * to where that member would fit, so it only ever grows. */
static uint64_t find_congruent(const vm_region *r, size_t count_, const uint64_t *offsets, const uint64_t *nr_pages,
                               uint64_t align_pages)
{
    uint64_t base = 0;
    for (size_t i = 0, fitting = 0; fitting < count_; i = (i + 1) % count_) {
        uint64_t found = vm__index_find(r, base + offsets[i], nr_pages[i]);
        if (found == VM_NONE)
            return VM_NONE;
        if (found == base + offsets[i]) {
            fitting++;
            continue;
        }
        base = (found - offsets[i] + align_pages - 1) & ~(align_pages - 1);
        fitting = 0;
    }
    return base;
}

static int check_congruent(const vm_region *r, size_t n, const uint64_t *offsets, const uint64_t *nr_pages,
                           uint64_t align_pages, uint64_t *total)
{
    if (n == 0 || !is_power_of_two(align_pages))
        return -EINVAL;
    for (size_t i = 0; i < n; i++) {
        if (nr_pages[i] == 0 || offsets[i] & (align_pages - 1) || nr_pages[i] > r->nr_pages || offsets[i] > r->nr_pages)
            return -EINVAL;
        if (i && offsets[i] < offsets[i - 1] + nr_pages[i - 1])
            return -EINVAL; /* must be ascending and disjoint */
        *total += nr_pages[i];
    }
    return 0;
}

static int try_congruent(vm_region *r, vm_thread *t, size_t n, const uint64_t *offsets, const uint64_t *nr_pages,
                         uint64_t align_pages, uint64_t total, vm_range *out)
{
    int rc = vm__space_lock(r, t, 0);
    if (rc)
        return rc;
    uint64_t base = VM_NONE;
    rc = vm__space_fits(r, total);
    if (rc == 0)
        base = find_congruent(r, n, offsets, nr_pages, align_pages);
    if (base == VM_NONE)
        rc = -ENOSPC;
    for (size_t i = 0; rc == 0 && i < n; i++)
        rc = vm__space_words_agree(r, base + offsets[i], nr_pages[i]) ? 0 : VM_CORRUPT(r);
    for (size_t i = 0; rc == 0 && i < n; i++)
        rc = vm__space_carve(r, t, base + offsets[i], nr_pages[i], &out[i]) ? 0 : VM_CORRUPT(r);
    vm__space_unlock(r, t);
    return rc;
}

int vm_alloc_congruent(vm_region *r, size_t n, const uint64_t *offsets, const uint64_t *nr_pages, uint64_t align_pages,
                       vm_range *out)
{
    uint64_t total = 0;
    vm_thread *t = vm__thread(r);
    int rc = t ? check_congruent(r, n, offsets, nr_pages, align_pages, &total) : vm__thread_error(r);
    if (rc == 0 && VM_LOAD(&r->h->corrupt))
        rc = -EUCLEAN;
    if (rc)
        return rc;
    vm__enter(t);
    rc = try_congruent(r, t, n, offsets, nr_pages, align_pages, total, out);
    for (int attempt = 0; rc == -ENOSPC && attempt < ROOM_ATTEMPTS; attempt++) {
        rc = make_room(r, t, attempt, 0);
        if (rc == 0)
            rc = try_congruent(r, t, n, offsets, nr_pages, align_pages, total, out);
    }
    vm__leave(t);
    return rc;
}

int vm_lookup(vm_region *r, uint64_t page, vm_range *out)
{
    if (page >= r->nr_pages)
        return -ENOENT;
    vm_word w = VM_LOAD(&r->heads[page].word);
    if (vm__state(w) != VM_BUSY || vm__len(w) == 0 || vm__len(w) > r->nr_pages - page)
        return -ENOENT;
    *out = (vm_range){page, vm__len(w), VM_LOAD(&r->heads[page].aux), false};
    return 0;
}
