/* SPDX-License-Identifier: MIT */
/*
 * Space: all free ranges in address order; lowest-address first fit, split and merge.
 *
 * The words are the truth, index.c is how they are found. Every split and merge commits by one
 * store on a head word, ordered so that a death before it changes nothing and after it only leaves
 * hints to rebuild:
 *   split   the remainder's head (invisible inside the free range), the new range's head (the same),
 *           then the free range shrinks: that store makes both visible;
 *   merge   our head grows over the right neighbour, then the left neighbour grows over us.
 *
 * All of it under space_lock. After: Linux mm/vmalloc.c, __alloc_vmap_area() and merge_or_add.
 */
#include "store.h"

#define GRANT_BYTES (64ull << 20) /* headroom is asked for once per this much growth */

int vm__space_lock(vm_thread *t, unsigned flags)
{
    vm_region *r = t->region;
    int rc = vm__lock(t, &r->map.h->space_lock, flags);
    if (rc || vm_likely(!VM_RELAXED(&r->map.h->space_lock.needs_mending)))
        return rc;
    rc = vm__space_rebuild(t);
    if (rc) {
        vm__unlock(t, &r->map.h->space_lock);
        return rc;
    }
    VM_STORE(&r->map.h->space_lock.needs_mending, 0);
    return 0;
}

void vm__space_unlock(vm_thread *t) { vm__unlock(t, &t->region->map.h->space_lock); }

/* The free range at `page` and its free neighbours become one. Returns its length. */
static uint64_t join_free(vm_region *r, uint64_t page, vm_word w)
{
    VM_ASSERT_RANK_HELD(r, VM_RANK_SPACE);
    uint64_t len = vm__len(w), merged = len, dirty = w & VM_WORD_DIRTY;
    for (vm_word next; (next = vm__word_at(r, page + merged)) && vm__state(next) == VM_FREE; merged += vm__len(next))
        dirty |= next & VM_WORD_DIRTY;
    if (merged != len)
        VM_STORE(&r->map.heads[page].word, vm__word(VM_FREE, dirty, merged, 0, 0));
    return merged;
}

/* Make index and counters agree with the words; neighbours that are free become one. Idempotent. */
int vm__space_rebuild(vm_thread *t)
{
    vm_region *r = t->region;
    VM_ASSERT_HELD(t, &r->map.h->space_lock);
    uint64_t free_pages = 0, dirty_pages = 0, known = VM_RELAXED(&r->map.h->high_pages),
             high = known > r->map.nr_pages ? 0 : known, len;
    for (uint64_t page = 0; page < r->map.nr_pages; page += len) {
        vm_word w = vm__word_at(r, page);
        if (!w)
            return VM_CORRUPT(r);
        bool is_free = vm__state(w) == VM_FREE;
        len = is_free ? join_free(r, page, w) : vm__len(w);
        free_pages += is_free ? len : 0;
        dirty_pages += is_free && VM_RELAXED(&r->map.heads[page].word) & VM_WORD_DIRTY ? len : 0;
        __builtin_prefetch(
            &r->map.heads[page + 32 * len < r->map.nr_pages ? page + 32 * len : page]); /* if they are alike */
        uint64_t end = page + len;
        if (is_free && end == r->map.nr_pages) /* the last one: nothing was ever touched beyond */
            end = high > page ? high : page;
        else if (end > high)
            high = end;
        vm__index_write_bits(&r->map, page, end - page, !is_free);
    }
    if (high != known)
        VM_PUT(&r->map.h->high_pages, high);
    vm__index_summarise_all(&r->map);
    VM_PUT(&r->map.h->free_pages, free_pages);
    VM_PUT(&r->map.h->dirty_pages, dirty_pages);
    return 0;
}

#ifdef VM_HOOKS
/* What the index must find, from the words alone. */
static uint64_t linear_find(const vm_region *r, uint64_t nr_pages, uint64_t align_pages)
{
    for (uint64_t page = 0; page < r->map.nr_pages;) {
        vm_word w = vm__word_at(r, page);
        if (!w)
            return VM_NONE;
        uint64_t first = (page + align_pages - 1) & ~(align_pages - 1);
        if (vm__state(w) == VM_FREE && first + nr_pages <= page + vm__len(w))
            return first;
        page += vm__len(w);
    }
    return VM_NONE;
}
#define LINEAR_CHECK_PAGES 8192
#endif

/* Lowest aligned run. */
static uint64_t find_aligned(const vm_region *r, uint64_t nr_pages, uint64_t align_pages)
{
    uint64_t found = vm__index_find_aligned(&r->map, 0, nr_pages, align_pages);
#ifdef VM_HOOKS
    if (r->map.nr_pages <= LINEAR_CHECK_PAGES)
        VM_ASSERT(found == linear_find(r, nr_pages, align_pages));
#endif
    return found;
}

/* Pages outside space by the counter, which is a hint. */
static uint64_t used_pages(const vm_region *r)
{
    uint64_t free_pages = VM_RELAXED(&r->map.h->free_pages);
    return free_pages < r->map.nr_pages ? r->map.nr_pages - free_pages : 0;
}

/* Let `used` pages and some more leave space without asking the system again. */
void vm__space_grant(vm_thread *t, uint64_t used, uint64_t most)
{
    vm_region *r = t->region;
    VM_ASSERT_HELD(t, &r->map.h->space_lock);
    uint64_t slack = GRANT_BYTES >> r->map.page_shift;
    VM_PUT(&r->map.h->granted_pages, used + slack < most ? used + slack : most);
}

/* May nr_pages more leave space, by the limit and by what the machine has left? Free pages that may be resident still take
 * memory: they count beside what is used, since what is taken need not be they. */
int vm__space_fits(vm_thread *t, uint64_t nr_pages)
{
    vm_region *r = t->region;
    VM_ASSERT_HELD(t, &r->map.h->space_lock);
    vm_header *h = r->map.h;
    uint64_t used = used_pages(r), limit = VM_RELAXED(&h->limit_pages);
    if (limit && used + nr_pages > limit)
        return -ENOSPC;
    uint64_t dirty = VM_RELAXED(&h->dirty_pages);
    uint64_t resident = used + nr_pages + (dirty < r->map.nr_pages ? dirty : 0);
    if (r->map.flags & VM_FLAG_NO_DATA || resident <= VM_RELAXED(&h->granted_pages))
        return 0;
    vm__space_grant(t, resident, vm__headroom_pages(r));
    return resident <= VM_RELAXED(&h->granted_pages) ? 0 : -ENOSPC;
}

/* Pages outside space that are not lazy: what sets the threshold must not count what the threshold allows. */
uint64_t vm__live_pages(const vm_region *r)
{
    uint64_t used = used_pages(r);
    int64_t lazy = (int64_t)VM_RELAXED(&r->map.h->lazy_pages);
    return lazy > 0 && (uint64_t)lazy <= used ? used - (uint64_t)lazy : used;
}

uint64_t vm__idle_beyond_reserve(const vm_region *r, uint64_t ready_pages)
{
    uint64_t limit = VM_RELAXED(&r->map.h->limit_pages),
             most = limit && limit < r->map.nr_pages ? limit : r->map.nr_pages;
    uint64_t busy = vm__live_pages(r) + (most >> VM_TIGHT_RESERVE_SHIFT);
    return most + ready_pages > busy ? most + ready_pages - busy : 0;
}

static void count_taken(vm_region *r, uint64_t nr_pages, bool is_dirty)
{
    uint64_t dirty = VM_RELAXED(&r->map.h->dirty_pages);
    if (is_dirty)
        VM_PUT(&r->map.h->dirty_pages, dirty > nr_pages ? dirty - nr_pages : 0);
    VM_PUT(&r->map.h->free_pages, VM_RELAXED(&r->map.h->free_pages) - nr_pages);
    uint64_t live = vm__live_pages(r);
    if (live > VM_RELAXED(&r->map.h->used_peak))
        VM_PUT(&r->map.h->used_peak, live);
    vm__note_use(r);
}

/* The recent peak sinks towards `pages`, and with it the peak at which magazines were last drained: what rises again is a
 * rise again. */
void vm__space_sink_peak(vm_thread *t, uint64_t pages)
{
    vm_header *h = t->region->map.h;
    VM_ASSERT_HELD(t, &h->space_lock);
    uint64_t peak = VM_RELAXED(&h->used_peak), over = peak > pages ? peak - pages : 0;
    peak = over ? peak - over * VM_PEAK_SINK_PERCENT / 100 : pages;
    VM_PUT(&h->used_peak, peak);
    if (VM_RELAXED(&h->drained_peak) > peak)
        VM_PUT(&h->drained_peak, peak);
}

/* For a watch (mend/decay.c): what is lazy never was less, what is in use never more, since it turned. Hints: where two
 * write at once, one is lost. */
void vm__note_use(vm_region *r)
{
    vm_header *h = r->map.h;
    int64_t lazy = (int64_t)VM_RELAXED(&h->lazy_pages);
    uint64_t low = lazy > 0 ? (uint64_t)lazy : 0, used = r->map.nr_pages - VM_RELAXED(&h->free_pages);
    if (low < VM_RELAXED(&h->lazy_low))
        VM_PUT(&h->lazy_low, low);
    if (used - low > VM_RELAXED(&h->live_high) && low <= used)
        VM_PUT(&h->live_high, used - low);
}

/* A free range as its word said at one moment. */
typedef struct free_range {
    uint64_t start, end, dirty;
} free_range;

/* The free range around [page, page + nr_pages), by the words: the index is a hint, and so what is cut must
 * be what was looked at. */
static bool find_around(const vm_region *r, uint64_t page, uint64_t nr_pages, free_range *out)
{
    uint64_t start = vm__index_run_start(&r->map, page);
    vm_word w = vm__word_at(r, start);
    *out = (free_range){start, start + vm__len(w), w & VM_WORD_DIRTY};
    return w && vm__state(w) == VM_FREE && out->end >= page + nr_pages;
}

/* Cut [page, page + nr_pages) out of the free range around it: BUSY, ours, with a new id. `is_apart`: one that says so in place
 * of the size. False: there is none. */
bool vm__space_carve(vm_thread *t, uint64_t page, uint64_t nr_pages, bool is_apart, vm_range *out)
{
    vm_region *r = t->region;
    VM_ASSERT_HELD(t, &r->map.h->space_lock);
    free_range f;
    if (!find_around(r, page, nr_pages, &f))
        return false;
    uint64_t id = is_apart ? vm__new_id(t, 0) | VM_ID_APART : vm__new_id(t, nr_pages), end = page + nr_pages;
    if (f.end > end) {
        VM_STORE(&r->map.heads[end].word, vm__word(VM_FREE, f.dirty, f.end - end, 0, 0));
        VM_PUT(&r->map.h->nr_splits, VM_RELAXED(&r->map.h->nr_splits) + 1);
    }
    VM_PUT(&r->map.heads[page].aux, id);
    VM_STORE(&r->map.heads[page].word, (t->busy & ~VM_WORD_DIRTY) | f.dirty | nr_pages << VM_WORD_LEN_SHIFT);
    if (f.start != page)
        VM_STORE(&r->map.heads[f.start].word, vm__word(VM_FREE, f.dirty, page - f.start, 0, 0));
    vm__index_set(&r->map, page, nr_pages, true);
    count_taken(r, nr_pages, f.dirty);
    *out = (vm_range){page, nr_pages, id, !f.dirty && !(r->map.flags & VM_FLAG_NO_DATA)};
    return true;
}

/* Does the free range of the words really hold [page, page + nr_pages)? */
bool vm__space_words_agree(const vm_region *r, uint64_t page, uint64_t nr_pages)
{
    free_range f;
    return find_around(r, page, nr_pages, &f);
}

int vm__space_take(vm_thread *t, uint64_t nr_pages, uint64_t align_pages, unsigned flags, vm_range *out)
{
    vm_region *r = t->region;
    bool is_apart = vm__goes_apart(r, nr_pages, align_pages);
    int rc = vm__space_lock(t, flags);
    if (rc)
        return rc;
    rc = vm__space_fits(t, nr_pages);
    uint64_t page = rc ? VM_NONE : find_aligned(r, nr_pages, align_pages);
    if (page != VM_NONE && vm_unlikely(!vm__space_carve(t, page, nr_pages, is_apart, out))) {
        rc = vm__space_rebuild(t); /* somebody scribbled over the index */
        page = rc ? VM_NONE : find_aligned(r, nr_pages, align_pages);
        if (page != VM_NONE && !vm__space_carve(t, page, nr_pages, is_apart, out))
            rc = VM_CORRUPT(r);
    }
    if (page == VM_NONE && rc == 0)
        rc = -ENOSPC;
    vm__space_unlock(t);
    return rc;
}

/* Cut nr ranges side by side, MOVING(t), from the front of a free range, and a run behind them. The first one's head is
 * written last: it makes the others visible. */
static void carve_many(vm_thread *t, const free_range *f, uint64_t nr_pages, uint32_t nr, uint64_t *pages,
                       const vm_run *run)
{
    vm_region *r = t->region;
    VM_ASSERT_HELD(t, &r->map.h->space_lock);
    uint64_t page = f->start, end = page + nr * nr_pages + run->nr_pages;
    if (f->end > end) {
        VM_STORE(&r->map.heads[end].word, vm__word(VM_FREE, f->dirty, f->end - end, 0, 0));
        VM_PUT(&r->map.h->nr_splits, VM_RELAXED(&r->map.h->nr_splits) + 1);
    }
    if (run->nr_pages)
        VM_STORE(&r->map.heads[run->page].word, (vm__cached(t, run->nr_pages) & ~VM_WORD_DIRTY) | f->dirty);
    for (uint32_t i = nr; i-- > 0;) {
        pages[i] = page + i * nr_pages;
        VM_STORE(&r->map.heads[pages[i]].word, vm__moving(t, nr_pages));
    }
    vm__index_set(&r->map, page, end - page, true);
    count_taken(r, end - page, f->dirty);
}

/* Pages that may leave space by the counter and the limit: a hint. */
static uint64_t room_pages(const vm_region *r)
{
    uint64_t room = VM_RELAXED(&r->map.h->free_pages), limit = VM_RELAXED(&r->map.h->limit_pages), used = used_pages(r);
    uint64_t left = limit > used ? limit - used : 0;
    return limit && left < room ? left : room;
}

/* A run behind the first `asked` pages of a free range: little of what there is, for it serves one thread only. */
static void choose_run(vm_thread *t, const free_range *f, uint64_t asked, vm_run *run)
{
    uint64_t most = room_pages(t->region) / VM_RUN_FREE_SHARE;
    most = most < run->most ? most : run->most;
    run->page = f->start + asked;
    most = most < f->end - run->page ? most : f->end - run->page;
    run->nr_pages = most && vm__may_be_run(f->dirty, most) && vm__space_fits(t, asked + most) == 0 ? most : 0;
}

/* Up to `max` ranges side by side at the lowest place where one fits: what as many single requests
 * would get, for one turn at the lock. Their words are MOVING(t). Returns how many; 0: take one. `run`: and a run behind
 * them. */
uint32_t vm__space_take_many(vm_thread *t, uint64_t nr_pages, uint32_t max, unsigned flags, uint64_t *pages,
                             vm_run *run)
{
    vm_region *r = t->region;
    uint32_t got = 0;
    run->nr_pages = 0;
    if (vm__space_lock(t, flags) != 0)
        return 0;
    uint64_t page = vm__space_fits(t, nr_pages * max) == 0 ? find_aligned(r, nr_pages, 1) : VM_NONE;
    free_range f;
    if (page != VM_NONE && find_around(r, page, nr_pages, &f) && f.start == page) {
        uint64_t room = (f.end - f.start) / nr_pages;
        got = room < max ? (uint32_t)room : max;
        if (got == max)
            choose_run(t, &f, got * nr_pages, run);
        carve_many(t, &f, nr_pages, got, pages, run);
    }
    vm__space_unlock(t);
    return got;
}

/* What a free range counts for in dirty_pages. */
static uint64_t dirty_of(vm_word w) { return w & VM_WORD_DIRTY ? vm__len(w) : 0; }

/* The free range that ends where `page` begins, by its word; 0: there is none, or the index lied. */
static vm_word free_before(vm_region *r, uint64_t page, uint64_t *start)
{
    if (!page || !vm__index_is_free(&r->map, page - 1))
        return 0;
    *start = vm__index_run_start(&r->map, page - 1);
    vm_word w = vm__word_at(r, *start);
    if (w && vm__state(w) == VM_FREE && *start + vm__len(w) == page)
        return w;
    VM_PUT(&r->map.h->space_lock.needs_mending, 1);
    return 0;
}

static vm_word free_at(const vm_region *r, uint64_t page)
{
    vm_word w = vm__index_is_free(&r->map, page) ? vm__word_at(r, page) : 0;
    return w && vm__state(w) == VM_FREE ? w : 0;
}

/* A word says of a whole free range whether it may be resident. Where a few pages would make a long clean range so, they are
 * given back instead: words of what is about to be one range. Others wait for the lock meanwhile: *most_pages in one turn
 * at it, the rest of which is left there. True: all of it is clean now. */
static bool clean_what_is_little(vm_region *r, uint64_t start, const vm_word parts[3], uint64_t *most_pages)
{
    uint64_t dirty = 0, all = 0;
    for (int i = 0; i < 3; i++) {
        dirty += dirty_of(parts[i]);
        all += vm__len(parts[i]);
    }
    if (dirty == 0 || dirty > *most_pages || all - dirty <= VM_MUCH_CLEAN_FACTOR * dirty)
        return dirty == 0;
    *most_pages -= dirty;
    for (int i = 0; i < 3; start += vm__len(parts[i++]))
        if (dirty_of(parts[i]) && vm__pages_discard(r, start, vm__len(parts[i])) != 0)
            return false;
    return true;
}

/* Give a range back: its word is ours (PURGING or MOVING). Merges with both neighbours. *may_clean: so many pages may still
 * be given back to the system in this turn at the lock. */
void vm__space_put(vm_thread *t, uint64_t page, uint64_t nr_pages, bool is_dirty, uint64_t *may_clean)
{
    vm_region *r = t->region;
    VM_ASSERT_HELD(t, &r->map.h->space_lock);
    uint64_t start = page;
    vm_word left = free_before(r, page, &start), right = free_at(r, page + nr_pages);
    start = left ? start : page;
    vm_word own = vm__word(VM_FREE, is_dirty ? VM_WORD_DIRTY : 0, nr_pages, 0, 0), parts[3] = {left, own, right};
    uint64_t was_dirty = dirty_of(left) + dirty_of(right), end = page + nr_pages + vm__len(right);
    uint64_t dirty = clean_what_is_little(r, start, parts, may_clean) ? 0 : VM_WORD_DIRTY;
    VM_STORE(&r->map.heads[page].word, vm__word(VM_FREE, dirty, end - page, 0, 0));
    if (left)
        VM_STORE(&r->map.heads[start].word, vm__word(VM_FREE, dirty, end - start, 0, 0));
    if (left || right)
        VM_PUT(&r->map.h->nr_merges, VM_RELAXED(&r->map.h->nr_merges) + (left != 0) + (right != 0));
    vm__index_set(&r->map, page, nr_pages, false);
    VM_PUT(&r->map.h->free_pages, VM_RELAXED(&r->map.h->free_pages) + nr_pages);
    uint64_t now_dirty = dirty ? end - start : 0;
    if (now_dirty != was_dirty)
        VM_PUT(&r->map.h->dirty_pages, VM_RELAXED(&r->map.h->dirty_pages) + now_dirty - was_dirty);
}

/* The first free range at or after `page`, by its word; nr_pages: there is none. VM_NONE: the index lied. */
static uint64_t next_free(const vm_region *r, uint64_t page, vm_word *w)
{
    uint64_t found = vm__index_find(&r->map, page, 1);
    if (found == VM_NONE)
        return r->map.nr_pages;
    found = found == page ? vm__index_run_start(&r->map, page) : found;
    *w = vm__word_at(r, found);
    return *w && vm__state(*w) == VM_FREE && found + vm__len(*w) > page ? found : VM_NONE;
}

/* Of the free ranges from *from on those that may be resident become PURGING(t), for their pages to be given back. False:
 * the index lied. */
static bool collect_dirty(vm_thread *t, uint64_t *from, uint64_t most_pages, vm_batch *out)
{
    vm_region *r = t->region;
    uint64_t taken = 0, page = 0, dirty = VM_RELAXED(&r->map.h->dirty_pages);
    for (uint32_t nr = 0; nr < VM_DIRTY_LOOK_RANGES && *from < r->map.nr_pages && taken < most_pages; nr++) {
        vm_word w = 0;
        page = next_free(r, *from, &w);
        if (page == VM_NONE)
            break;
        *from = page + vm__len(w);
        if (!(w & VM_WORD_DIRTY))
            continue;
        VM_STORE(&r->map.heads[page].word, vm__purging(t, vm__len(w)));
        vm__index_set(&r->map, page, vm__len(w), true);
        vm__batch_add(t, out, page, vm__len(w));
        taken += vm__len(w);
    }
    VM_PUT(&r->map.h->free_pages, VM_RELAXED(&r->map.h->free_pages) - taken);
    VM_PUT(&r->map.h->dirty_pages, dirty > taken ? dirty - taken : 0);
    return page != VM_NONE;
}

/* A part of the free ranges that may be resident, from *from on, which is where to go on: until they are so many pages, and
 * no more than are looked at in one turn at the lock. Whole ones: a part that comes back clean would be merged with the
 * rest, and dirty again. */
int vm__space_collect_dirty(vm_thread *t, uint64_t *from, uint64_t most_pages, unsigned flags, vm_batch *out)
{
    VM_ASSERT_RANK_HELD(t->region, VM_RANK_PURGE);
    int rc = vm__space_lock(t, flags);
    if (rc)
        return rc;
    if (!collect_dirty(t, from, most_pages, out)) {
        rc = vm__space_rebuild(t);
        rc = rc ? rc : -EAGAIN;
    }
    vm__space_unlock(t);
    return rc;
}
