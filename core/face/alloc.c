/* SPDX-License-Identifier: MIT */
/*
 * Alloc: the way of a request, top to bottom.
 *
 *   magazine -> pool (this CPU's node, then neighbours) -> warm (freed ranges, by size) -> space
 *            -> make room (vm__make_room(), cheapest first, a retry after each) -> ENOSPC
 *
 * The magazine step is the hot path, in vmalloc_inline.h: plain stores, no locked
 * instruction, between an entry and an exit mark that let a neighbour drain this slot safely
 * (magazine.c). Everything below it is a station of its own.
 *
 * While space is short, but not very, large requests are served in few rounded sizes (try_whole(), docs/decisions/0047).
 */
#include "face.h"

/* While space is short: a ready range that is a little longer, whole. */
static int take_longer(vm_thread *t, uint64_t nr_pages, uint64_t align_pages, vm_range *out, vm_level *level)
{
    uint64_t page, len = vm__pool_take_longer(t, nr_pages, align_pages, &page, level);
    if (!len)
        return -ENOSPC;
    vm__hand_out(t, page, len, false, out);
    return 0;
}

/* A ready range of exactly that size, from the magazine (what the hit leaves to us) or from a pool. */
static int take_ready(vm_thread *t, uint64_t nr_pages, uint64_t align_pages, vm_range *out, vm_level *level)
{
    uint64_t page;
    *level = VM_LEVEL_MAGAZINE;
    if (vm__magazine_take(t, nr_pages, align_pages, out))
        return 0;
    if (t->fast_pages) {
        int rc = vm__magazine_refill(t, nr_pages, align_pages, true, out, level);
        return rc && t->is_tight ? take_longer(t, nr_pages, align_pages, out, level) : rc;
    }
    if (!vm__pool_take(t, nr_pages, align_pages, 1, true, &page, level))
        return -ENOSPC;
    vm__hand_out(t, page, nr_pages, false, out);
    return 0;
}

/* A warm range: of a pooled size a few at once, of a larger one also a little longer. */
static int take_warm(vm_thread *t, uint64_t nr_pages, uint64_t align_pages, bool is_own, vm_range *out)
{
    uint64_t pages[VM_MAGAZINE_REFILL_MAX];
    uint32_t most = nr_pages <= t->fast_pages ? vm__magazine_want(t, nr_pages) : 1;
    if (nr_pages <= VM_POOL_PAGES_MAX && !vm__is_pooled(t->region, nr_pages))
        return -ENOSPC; /* without pools: as the kernel before 6.9 */
    uint64_t len;
    uint32_t got = vm__warm_take(t, nr_pages, align_pages, most, is_own, pages, &len);
    if (!got)
        return -ENOSPC;
    if (got == most && nr_pages <= t->fast_pages && t->hit.cap[nr_pages])
        vm__magazine_grow(t, nr_pages);
    vm__hand_out(t, pages[0], len, false, out);
    vm__magazine_keep(t, nr_pages, got - 1, pages + 1);
    return 0;
}

/* What processes of other groups freed, which this one has to fault in: after all of its own. */
static int take_others(vm_thread *t, uint64_t nr_pages, uint64_t align_pages, vm_range *out, vm_level *level)
{
    uint64_t page;
    if (!vm__is_pooled(t->region, nr_pages))
        return -ENOSPC;
    if (t->fast_pages)
        return vm__magazine_refill(t, nr_pages, align_pages, false, out, level);
    if (!vm__pool_take(t, nr_pages, align_pages, 1, false, &page, level))
        return -ENOSPC;
    vm__hand_out(t, page, nr_pages, false, out);
    return 0;
}

/* Is what lies ready in memory, as far as one can tell? */
static bool is_resident(const vm_thread *t, uint64_t nr_pages, uint64_t peak)
{
    vm_region *r = t->region;
    return vm__magazines_are_resident(t) || (vm__pages_resident_bytes(r) >> r->map.page_shift) + nr_pages > peak;
}

/* Of a region whose peak would rise: is it much that lies ready for requests of one size only, and in memory? What lies in
 * magazines of others is not counted, which would take long: they are asked each time the peak has risen by a part of
 * itself. To ask takes longer than to take from space: who asked in vain lets as much be used before the next time as is
 * left alone in any case. */
static bool is_much_ready(vm_thread *t, uint64_t nr_pages, uint64_t live, bool *of_all)
{
    vm_region *r = t->region;
    uint64_t peak = VM_RELAXED(&r->map.h->used_peak), drained = VM_RELAXED(&r->map.h->drained_peak);
    uint64_t step = drained >> VM_WARM_ROOM_SHIFT, least = VM_DRAIN_BYTES >> r->map.page_shift;
    if (live - t->absent_live < least)
        return false;
    *of_all = r->design->has_magazines && live > drained + (step > least ? step : least);
    uint64_t much = peak >> VM_WARM_ROOM_SHIFT, ready = *of_all ? 0 : vm__pooled_pages(r) + vm__magazine_pages(t);
    if (!*of_all && (ready < nr_pages || ready < least || ready < much))
        return false;
    bool is_there = is_resident(t, nr_pages, peak);
    t->absent_live = is_there ? 0 : live;
    return is_there;
}

/* Before more is used than ever: what only requests of exactly its size could have becomes warm, if it is much and lies
 * in memory: where few pages were ever touched there is nothing to save. */
static bool loosen(vm_thread *t, uint64_t nr_pages)
{
    vm_region *r = t->region;
    uint64_t live = vm__live_pages(r) + nr_pages;
    bool of_all;
    if (!r->map.data || !r->design->kept->give || live <= VM_RELAXED(&r->map.h->used_peak)
        || !is_much_ready(t, nr_pages, live, &of_all))
        return false;
    if (of_all) {
        VM_PUT(&r->map.h->drained_peak, live);
        vm__drain_all(t);
    } else {
        vm__magazine_flush_all(t);
    }
    return vm__pools_to_warm(t);
}

/* From space, where pages are cold: while more is idle than may be, as much is given back as is taken. */
static int take_cold(vm_thread *t, uint64_t nr_pages, uint64_t align_pages, unsigned flags, vm_range *out)
{
    if (vm_unlikely(vm__lazy_is_due(t->region)) && !(flags & VM_NO_PURGE))
        vm__purge_step(t, 2 * nr_pages > VM_PURGE_STEP_PAGES ? 2 * nr_pages : VM_PURGE_STEP_PAGES, VM_PURGE_STEP_RANGES,
                       0);
    int rc = -ENOSPC;
    if (nr_pages <= t->fast_pages && align_pages == 1)
        rc = vm__magazine_stock(t, nr_pages, flags & VM_NO_WAIT, out);
    return rc ? vm__space_take(t, nr_pages, align_pages, flags, out) : 0;
}

/* One pass through the stations below the hit; ENOSPC if none has it. */
static int try_stations(vm_thread *t, uint64_t nr_pages, uint64_t align_pages, unsigned flags, vm_range *out)
{
    bool has_others = vm__groups_used(t->region) > 1;
    vm_level level;
    if (vm__is_pooled(t->region, nr_pages) && take_ready(t, nr_pages, align_pages, out, &level) == 0) {
        vm__count_served(t, level);
        return 0;
    }
    if (has_others && take_warm(t, nr_pages, align_pages, true, out) == 0) {
        vm__count_served(t, VM_LEVEL_LAZY);
        return 0;
    }
    if (has_others && take_others(t, nr_pages, align_pages, out, &level) == 0) {
        vm__count_served(t, level);
        return 0;
    }
    if (take_warm(t, nr_pages, align_pages, false, out) == 0
        || (loosen(t, nr_pages) && take_warm(t, nr_pages, align_pages, false, out) == 0)) {
        vm__count_served(t, VM_LEVEL_LAZY);
        return 0;
    }
    int rc = take_cold(t, nr_pages, align_pages, flags, out);
    if (rc == 0)
        vm__count_served(t, VM_LEVEL_SPACE);
    return rc;
}

/* Cut to a rounded size, whole, so that what is freed later serves others. */
static int cut_whole(vm_thread *t, uint64_t whole, unsigned flags, vm_range *out)
{
    if (take_warm(t, whole, 1, false, out) == 0) {
        vm__count_served(t, VM_LEVEL_LAZY);
        return 0;
    }
    int rc = take_cold(t, whole, 1, flags, out);
    if (rc == 0)
        vm__count_served(t, VM_LEVEL_SPACE);
    return rc;
}

/* A ready range of a rounded size. The magazine is asked for what the hit leaves to us. */
static bool take_whole(vm_thread *t, uint64_t whole, vm_range *out, vm_level *level)
{
    *level = VM_LEVEL_MAGAZINE;
    if (vm__magazine_count(VM_RELAXED(&t->hit.magazine[whole].header)) && vm__magazine_take(t, whole, 1, out))
        return true;
    return vm__magazine_refill(t, whole, 1, true, out, level) == 0;
}

/* While space is short, but not very: a large request gets a range of a rounded size. */
static int try_whole(vm_thread *t, uint64_t nr_pages, unsigned flags, vm_range *out)
{
    uint64_t whole = vm__whole_pages(nr_pages), most = vm__longest_whole_for(t->region, nr_pages);
    vm_level level;
    if (nr_pages <= VM_FLOW_PAGES)
        return -ENOSPC;
    for (uint64_t n = whole; n <= most; n = vm__whole_pages(n + 1))
        if (take_whole(t, n, out, &level)) {
            vm__count_served(t, level);
            return 0;
        }
    return whole != nr_pages && whole <= most && vm__cuts_whole(t) ? cut_whole(t, whole, flags, out) : -ENOSPC;
}

/* A long range lies for huge pages if that is asked for and there is such a place. */
static int try_all(vm_thread *t, uint64_t nr_pages, uint64_t align_pages, unsigned flags, vm_range *out)
{
    if (vm__gets_whole(t) && align_pages == 1 && try_whole(t, nr_pages, flags, out) == 0)
        return 0;
    uint64_t huge_pages = (uint64_t)VM_MAP_ALIGN >> t->region->map.page_shift;
    if (t->region->map.flags & VM_FLAG_HUGE && nr_pages >= huge_pages && align_pages < huge_pages) {
        int rc = try_stations(t, nr_pages, huge_pages, flags, out);
        if (rc != -ENOSPC)
            return rc;
    }
    return try_stations(t, nr_pages, align_pages, flags, out);
}

/* What the system said of the owners that a walk met: a question to it costs more than all the rest of the look. */
typedef struct asked {
    uint32_t inc[VM_PROCESSES]; /* and one; 0: not asked yet */
    bool is_dead[VM_PROCESSES];
} asked;

static bool owner_died(const vm_thread *t, vm_word w, asked *a)
{
    uint32_t process = vm__owner(w), inc = vm__inc(w) + 1;
    if (vm__is_like(w, t->busy) || process >= VM_PROCESSES)
        return false;
    if (a->inc[process] != inc) {
        a->inc[process] = inc;
        a->is_dead[process] = vm__incarnation_is_dead(t->region, process, vm__inc(w));
    }
    return a->is_dead[process];
}

/* The id of a range that no purge, drain or recovery gives back: in use, and its process lives. 0: it is none. */
static uint64_t id_in_use(const vm_thread *t, uint64_t page, vm_word w, asked *a)
{
    vm_region *r = t->region;
    if (vm__state(w) != VM_BUSY || vm__is_shared(w) || owner_died(t, w, a))
        return 0;
    uint64_t id = VM_ACQUIRE(&r->map.heads[page].aux);
    return VM_ACQUIRE(&r->map.heads[page].word) == w ? id : 0;
}

/* A sum over the ids of ranges in use that lie in each place where the request, or its longest part, could begin, or that leave
 * less of the limit than all of it wants; 0: neither. */
static uint64_t what_bars(const vm_thread *t, uint64_t nr_pages, uint64_t all_pages, uint64_t align_pages,
                          uint64_t limit)
{
    const vm_region *r = t->region;
    uint64_t last = r->map.nr_pages - nr_pages, place = 0, page = 0, sum = 1, in_use = 0;
    bool has_place = false;
    asked a = {0};
    for (vm_word w; (w = vm__word_at(r, page)) && (has_place || place <= last); page += vm__len(w)) {
        has_place = has_place || page >= place + nr_pages;
        if (in_use > limit - all_pages || (has_place && limit >= r->map.nr_pages && all_pages == nr_pages))
            break;
        uint64_t end = page + vm__len(w), id = end > place ? id_in_use(t, page, w, &a) : 0;
        if (!id)
            continue;
        in_use += vm__len(w);
        sum = (sum ^ id) * 0x9e3779b97f4a7c15ull;
        place = (end + align_pages - 1) & ~(align_pages - 1);
    }
    return in_use > limit - all_pages || (!has_place && place > last) ? sum : 0;
}

/* Is it worth a walk? Where an aligned request could begin in few places; and for one that no magazine could serve, before
 * more is given back for it than what is lazy, or anything if that cannot be enough. */
static bool may_be_barred(const vm_thread *t, uint64_t nr_pages, uint64_t all_pages, uint64_t align_pages,
                          uint64_t limit, int attempt)
{
    if (all_pages > VM_POOL_PAGES_MAX
        && (attempt == 2 || (attempt == VM_AT_FIRST && vm__live_pages(t->region) + all_pages > limit)))
        return true;
    return attempt != VM_AT_FIRST && vm__has_few_places(t->region, nr_pages, align_pages);
}

/* Can nobody but who is using it give back what this request lacks? By the words, without a lock; true of one moment, since
 * no id comes twice: what was found twice was in use between. In between, who is just dying is waited for: of one who was
 * gone by then the second look finds nothing in use. */
bool vm__is_barred(const vm_thread *t, uint64_t nr_pages, uint64_t all_pages, uint64_t align_pages, int attempt,
                   unsigned flags)
{
    vm_region *r = t->region;
    uint64_t set = VM_RELAXED(&r->map.h->limit_pages), limit = set && set < r->map.nr_pages ? set : r->map.nr_pages;
    if (all_pages > limit)
        return true;
    if (!may_be_barred(t, nr_pages, all_pages, align_pages, limit, attempt))
        return false;
    uint64_t sum = what_bars(t, nr_pages, all_pages, align_pages, limit);
    if (!sum || (!(flags & VM_LOCK_FLAGS) && vm__await_gone(r)))
        return false;
    return sum == what_bars(t, nr_pages, all_pages, align_pages, limit);
}

/* Some keep what they free a little longer than others lack it: where even emptying all magazines did not help, none keeps
 * any for a while. */
static void note_shortage(vm_region *r, bool is_emptied)
{
    uint64_t now = vm__now_s(), until = vm__is_very_tight(r) ? VM_RELAXED(&r->map.h->tight_s) : now;
    VM_PUT(&r->map.h->tight_s, is_emptied ? now + VM_TIGHT_CLOSED_S : until);
}

/* No more than is needed, and cheap things first. For a request of a pooled size space is short and memory need not be: the
 * oldest of what is lazy goes there with its pages, then all of it, then what is ready too. Then, and for a large one,
 * pages are given back. */
int vm__make_room(vm_thread *t, uint64_t nr_pages, int attempt, unsigned flags)
{
    uint64_t pages = 0;
    unsigned keeping = nr_pages <= VM_POOL_PAGES_MAX ? VM_PURGE_UNPUNCHED : 0;
    if (attempt == 0 && keeping) {
        vm__purge_step(t, VM_ROOM_PAGES_FACTOR * nr_pages, VM_PURGE_STEP_RANGES, keeping);
        return 0;
    }
    note_shortage(t->region, attempt > 3);
    if (attempt <= 1) /* many look for room at once: what one purge brings serves all that waited for it */
        return vm__purge(t, flags | keeping | VM_PURGE_IF_NOBODY_DID, &pages);
    if (attempt == 2) {
        vm__magazine_tighten(t, true);
        vm__magazine_flush_all(t);
        return vm__purge(t, flags | keeping | VM_PURGE_FULL, &pages); /* another's may have been of less */
    }
    if (attempt == VM_ROOM_ATTEMPTS - 1 && !(flags & VM_LOCK_FLAGS))
        vm__await_gone(t->region);
    vm__drain_all(t); /* again each time: neighbours who run fill theirs again, and one who is at work keeps his */
    int rc = attempt == 3 ? 0 : vm__recover_dead(t, flags, &pages);
    return rc ? rc : vm__purge(t, flags | VM_PURGE_FULL, &pages);
}

static void record_request(vm_thread *t, int rc, uint64_t nr_pages, uint64_t align_pages, const vm_range *out)
{
    uint64_t align = (uint64_t)__builtin_ctzll(align_pages) << VM_EVENT_ALIGN_SHIFT;
    if (rc == 0)
        vm__event_slow(t, VM_EVENT_ALLOC, out->page, out->nr_pages, align | (uint64_t)t->level << VM_EVENT_LEVEL_SHIFT);
    else
        vm__event_slow(t, VM_EVENT_FAILED, 0, nr_pages, align);
}

int vm__alloc_slow(vm_thread *t, uint64_t nr_pages, uint64_t align_pages, unsigned flags, vm_range *out)
{
    vm_region *r = t->region;
    int health = vm__health(r);
    if (vm_unlikely(health))
        return health;
    vm__expect_flow(t, nr_pages);
    vm__helpers_resume_if_missing();
    vm__enter(t);
    vm__count(&t->slot->nr_alloc);
    vm__magazine_tighten(t, vm__is_tight(r));
    int rc = vm__quota_fits(t, nr_pages);
    bool may_try = rc == 0 && !vm__is_barred(t, nr_pages, nr_pages, align_pages, VM_AT_FIRST, flags);
    if (rc == 0)
        rc = may_try ? try_all(t, nr_pages, align_pages, flags, out) : -ENOSPC;
    for (int attempt = 0; may_try && rc == -ENOSPC && attempt < VM_ROOM_ATTEMPTS && !(flags & VM_NO_PURGE); attempt++) {
        if (vm__is_barred(t, nr_pages, nr_pages, align_pages, attempt, flags))
            break;
        rc = vm__make_room(t, nr_pages, attempt, flags);
        if (rc == 0)
            rc = try_all(t, nr_pages, align_pages, flags, out);
    }
    if (rc == -ENOSPC || rc == -EDQUOT)
        vm__count(&t->slot->nr_failed);
    if (rc == 0)
        vm__charge(r, out->nr_pages);
    if (vm_unlikely(t->ring))
        record_request(t, rc, nr_pages, align_pages, out);
    vm__leave(t);
    return rc;
}

static bool injected_failure(vm_region *r)
{
    return vm_unlikely(r->fail_every) && __atomic_add_fetch(&r->nr_requests, 1, __ATOMIC_RELAXED) % r->fail_every == 0;
}

/* The hit of a design that keeps ranges for a CPU. A quota wants to be asked first. */
static inline bool take_here(vm_thread *t, vm_region *r, uint64_t nr_pages, uint64_t align_pages, vm_range *out)
{
    uint64_t page;
    vm__ring_look(t);
    if (VM_RELAXED(&r->map.h->quota_pages) || vm__health(r)
        || !r->design->kept->take_here(t, nr_pages, align_pages, &page))
        return false;
    VM_PUT(&t->slot->nr_alloc, VM_RELAXED(&t->slot->nr_alloc) + 1);
    VM_PUT(&t->slot->nr_slab_hit, VM_RELAXED(&t->slot->nr_slab_hit) + 1);
    t->level = VM_LEVEL_SLAB;
    vm__hand_out(t, page, nr_pages, false, out);
    if (vm_unlikely(t->ring))
        record_request(t, 0, nr_pages, align_pages, out);
    return true;
}

/* As the hit, of a rounded size; who records takes it the slow way. */
static __attribute__((noinline, cold)) bool hit_whole(vm_thread *t, const vm_region *r, uint64_t nr_pages,
                                                      vm_range *out)
{
    if (t->hit.key != r->hit_key || nr_pages <= VM_FLOW_PAGES)
        return false;
    uint64_t most = vm__longest_whole_for(r, nr_pages);
    vm_taken got;
    for (uint64_t n = vm__whole_pages(nr_pages); n <= most; n = vm__whole_pages(n + 1))
        if (vm__magazine_count(VM_RELAXED(&t->hit.magazine[n].header))
            && vm__hit_take(&t->hit, &r->hit, n, NULL, &got)) {
            *out = (vm_range){got.page, n, got.id, false};
            return true;
        }
    return false;
}

/* As the hit, where the range on top lies as asked. Between the look and the hit nobody else changes the entries. */
static __attribute__((noinline)) bool hit_aligned(vm_thread *t, const vm_region *r, uint64_t nr_pages,
                                                  uint64_t align_pages, vm_range *out)
{
    if (t->hit.key != r->hit_key || nr_pages > VM_POOL_PAGES_MAX)
        return false;
    const vm_magazine *m = &t->hit.magazine[nr_pages];
    uint32_t count = vm__magazine_count(VM_RELAXED(&m->header));
    vm_taken got;
    if (count == 0 || count > VM_MAGAZINE_CAP || VM_RELAXED(&m->page[count - 1]) & (align_pages - 1)
        || !vm__hit_take(&t->hit, &r->hit, nr_pages, NULL, &got))
        return false;
    *out = (vm_range){got.page, nr_pages, got.id, false};
    return true;
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
    if (!vm__is_power_of_two(align_pages) || nr_pages == 0)
        return -EINVAL;
    if (injected_failure(r) || nr_pages > r->map.nr_pages || align_pages > r->map.nr_pages)
        return -ENOSPC;
    if (vm_unlikely(vm__gets_whole(t)) && align_pages == 1 && hit_whole(t, r, nr_pages, out))
        return 0;
    if (align_pages > 1 && hit_aligned(t, r, nr_pages, align_pages, out))
        return 0;
    return vm__alloc_slow(t, nr_pages, align_pages, flags, out);
}

static inline __attribute__((always_inline)) int alloc_told(vm_thread *t, vm_region *r, uint64_t nr_pages,
                                                            unsigned flags, vm_range *out, uint64_t since)
{
    vm_taken got;
    if (vm_unlikely(!vm__hit_take(&t->hit, &r->hit, nr_pages, &t->quiet, &got)))
        return alloc_checked(r, nr_pages, 1, flags, out);
    *out = (vm_range){got.page, nr_pages, got.id, false};
    return vm__event_hit(t, VM_EVENT_ALLOC, got.page, nr_pages, since);
}

/* Of a design that keeps ranges for a CPU. Or this thread used another region last. */
static __attribute__((noinline)) int alloc_here(vm_region *r, uint64_t nr_pages, uint64_t align_pages, unsigned flags,
                                                vm_range *out)
{
    vm_thread *t = vm__current;
    if (t->here_key == r->hit_key && nr_pages - 1 < VM_POOL_PAGES_MAX && vm__is_power_of_two(align_pages)
        && align_pages <= r->map.nr_pages && !(flags & VM_HIT_ONLY) && take_here(t, r, nr_pages, align_pages, out))
        return 0;
    if (vm__thread_switch(r))
        return vm_alloc(r, nr_pages, align_pages, flags, out);
    return alloc_checked(r, nr_pages, align_pages, flags, out);
}

static __attribute__((noinline)) int alloc_exact(vm_region *r, uint64_t nr_pages, uint64_t align_pages, unsigned flags,
                                                 vm_range *out, vm_thread *t)
{
    if (vm_unlikely(t->recorded_key != r->hit_key))
        return alloc_here(r, nr_pages, align_pages, flags, out);
    VM_ANOTHER_FROM_HERE(flags);
    return alloc_told(t, r, nr_pages, flags, out, vm__event_since(t));
}

/* Where hits are closed. While this thread records a hit is written down, by functions that save few registers: in one that
 * could do everything, saving them took half of the time that a recording adds to a pair. */
static __attribute__((noinline)) int alloc_otherwise(vm_region *r, uint64_t nr_pages, uint64_t align_pages,
                                                     unsigned flags, vm_range *out, vm_thread *t)
{
    if (vm_unlikely(t->coarse_key != r->hit_key))
        return alloc_exact(r, nr_pages, align_pages, flags, out, t);
    if (nr_pages > VM_POOL_PAGES_MAX)
        __builtin_unreachable();
    VM_ANOTHER_FROM_HERE(flags);
    return alloc_told(t, r, nr_pages, flags, out, 0);
}

/* Larger alignments go the checked way. */
VM_HIT_ENTRY int vm_alloc(vm_region *r, uint64_t nr_pages, uint64_t align_pages, unsigned flags, vm_range *out)
{
    vm_thread *t = vm__current;
    vm_taken got;
    if (vm_unlikely(nr_pages > VM_POOL_PAGES_MAX || align_pages != 1))
        return alloc_here(r, nr_pages, align_pages, flags, out);
    if (vm_unlikely(t->hit.key != r->hit_key))
        return alloc_otherwise(r, nr_pages, align_pages, flags, out, t);
    VM_ANOTHER_FROM_HERE(flags);
    if (vm_unlikely(!vm__hit_take(&t->hit, &r->hit, nr_pages, NULL, &got)))
        return alloc_checked(r, nr_pages, 1, flags, out);
    *out = (vm_range){got.page, nr_pages, got.id, false};
    return 0;
}

static __attribute__((noinline, cold)) vm_taken take_checked(vm_region *r, uint64_t nr_pages)
{
    vm_range got;
    int rc = nr_pages > VM_POOL_PAGES_MAX ? alloc_here(r, nr_pages, 1, 0, &got)
                                          : alloc_otherwise(r, nr_pages, 1, 0, &got, vm__current);
    return rc ? (vm_taken){(uint64_t)-rc, 0} : (vm_taken){got.page, got.id};
}

VM_HIT_ENTRY vm_taken vm_take(vm_region *r, uint64_t nr_pages)
{
    const vm_hit_thread *t = &vm__current->hit;
    vm_taken got;
    if (vm_unlikely(t->key != r->hit_key || nr_pages > VM_POOL_PAGES_MAX)
        || vm_unlikely(!vm__hit_take(t, &r->hit, nr_pages, NULL, &got)))
        return take_checked(r, nr_pages);
    return got;
}

int vm_lookup(vm_region *r, uint64_t page, vm_range *out) { return vm__lookup(r, page, out); }

void vm_fail_every(vm_region *r, uint64_t nth)
{
    r->fail_every = nth;
    r->nr_requests = 0;
    vm__set_hit_keys(r);
}
