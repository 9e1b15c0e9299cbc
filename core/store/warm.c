/* SPDX-License-Identifier: MIT */
/*
 * Warm: freed ranges that still have their pages, found again by size, the oldest first to go.
 *
 * lazy.c is the way in: anybody pushes a range to a node's list without waiting. Here the ranges are sorted into lists by
 * size, exact up to VM_POOL_PAGES_MAX pages, VM_WARM_STEPS to a doubling above. A request takes one of its size; a large one also
 * takes a slightly longer one whole; otherwise a longer one is split, and what is split off stays warm. If none is long
 * enough but enough was freed since, neighbours become one, in one walk over the words.
 *
 * The words are the truth: LAZY with an age, and VM_WORD_LISTED once sorted. Lists are hints under warm_lock; who steals
 * it from a dead owner makes them anew from the words. Boundaries change only under space_lock too.
 * After: the segregated fits of two-level allocators; ages as in jemalloc's decay.
 */
#include "store.h"

#include <stdio.h>

#define AGE_MASK VM_INC_MASK

static vm_warm *warm_of(const vm_region *r) { return &r->map.h->warm; }

static uint32_t group_of(const vm_region *r, vm_word w) { return vm__group_of_node(r, vm__owner(w)); }

/* The shelf that a listed range stands on. */
static vm_shelf *shelf_of(const vm_region *r, vm_word w) { return &r->map.shelves[group_of(r, w)]; }

static uint32_t class_of(uint64_t nr_pages)
{
    if (nr_pages <= VM_POOL_PAGES_MAX)
        return (uint32_t)nr_pages - 1;
    uint32_t log = 63 - (uint32_t)__builtin_clzll(nr_pages);
    return VM_POOL_PAGES_MAX + (log - VM_POOL_PAGES_LOG) * VM_WARM_STEPS
           + ((uint32_t)(nr_pages >> (log - VM_WARM_STEPS_LOG)) & (VM_WARM_STEPS - 1));
}

/* ---- lists [warm_lock] ---- */

static bool is_listed(vm_word w) { return vm__state(w) == VM_LAZY && w & VM_WORD_LISTED; }

/* An entry's links may be written; those of a range that is something else by now are its id. */
static bool is_entry(vm_region *r, uint32_t link)
{
    if (!link)
        return false;
    if (link <= r->map.nr_pages && is_listed(vm__word_at(r, link - 1)))
        return true;
    VM_PUT(&warm_of(r)->lock.needs_mending, 1);
    return false;
}
static uint32_t next_of(const vm_region *r, uint32_t link) { return (uint32_t)VM_RELAXED(&r->map.heads[link - 1].aux); }
static uint32_t prev_of(const vm_region *r, uint32_t link)
{
    return (uint32_t)(VM_RELAXED(&r->map.heads[link - 1].aux) >> 32);
}
static void set_links(vm_region *r, uint32_t link, uint32_t prev, uint32_t next)
{
    VM_PUT(&r->map.heads[link - 1].aux, (uint64_t)prev << 32 | next);
}

static void note_used(vm_shelf *s, uint32_t class, bool is_used)
{
    uint64_t *word = &s->used[class / 64], bit = 1ull << class % 64, old = VM_RELAXED(word);
    uint64_t new = is_used ? old | bit : old & ~bit;
    if (new != old)
        VM_PUT(word, new);
}

/* The youngest stands in front. */
static void add(vm_region *r, uint64_t page, vm_word w)
{
    VM_ASSERT_RANK_HELD(r, VM_RANK_WARM);
    uint32_t class = class_of(vm__len(w)), link = (uint32_t)page + 1;
    vm_list *list = &shelf_of(r, w)->list[class];
    uint32_t head = VM_RELAXED(&list->head);
    head = is_entry(r, head) ? head : 0;
    set_links(r, link, 0, head);
    if (head)
        set_links(r, head, link, next_of(r, head));
    else
        VM_PUT(&list->tail, link);
    VM_PUT(&list->head, link);
    note_used(shelf_of(r, w), class, true);
}

static void drop(vm_region *r, uint64_t page, vm_word w)
{
    VM_ASSERT_RANK_HELD(r, VM_RANK_WARM);
    uint32_t class = class_of(vm__len(w)), link = (uint32_t)page + 1, prev = prev_of(r, link), next = next_of(r, link);
    vm_list *list = &shelf_of(r, w)->list[class];
    if (is_entry(r, prev))
        set_links(r, prev, prev_of(r, prev), next);
    else
        VM_PUT(&list->head, next);
    if (is_entry(r, next))
        set_links(r, next, prev, next_of(r, next));
    else
        VM_PUT(&list->tail, prev);
    if (!VM_RELAXED(&list->head) || !VM_RELAXED(&list->tail)) {
        VM_PUT(&list->head, 0);
        VM_PUT(&list->tail, 0);
        note_used(shelf_of(r, w), class, false);
    }
}

/* The word of a listed range. 0: the hint was wrong; the lists are made anew before anybody uses them again. */
static vm_word listed_word(vm_region *r, uint32_t link) { return is_entry(r, link) ? vm__word_at(r, link - 1) : 0; }

/* ---- the lock ---- */

static void forget_lists(vm_region *r)
{
    for (uint32_t g = 0; g < vm__groups_used(r); g++) {
        vm_shelf *s = &r->map.shelves[g];
        for (uint32_t i = 0; i < VM_WARM_CLASSES; i++)
            if (VM_RELAXED(&s->list[i].head) || VM_RELAXED(&s->list[i].tail)) {
                VM_PUT(&s->list[i].head, 0);
                VM_PUT(&s->list[i].tail, 0);
            }
        for (uint32_t i = 0; i < VM_WARM_CLASSES / 64 + 1; i++)
            VM_PUT(&s->used[i], 0);
    }
    VM_PUT(&warm_of(r)->unsorted, 0);
}

/* All lists from the words. What is pushed meanwhile may be lost to them: the next purge's scan finds it. */
static int rebuild(vm_thread *t, unsigned flags)
{
    vm_region *r = t->region;
    int rc = vm__space_lock(t, flags);
    if (rc)
        return rc;
    forget_lists(r);
    uint64_t page = 0;
    for (vm_word w; (w = vm__word_at(r, page)); page += vm__len(w)) {
        if (vm__state(w) == VM_LAZY && VM_CAS(&r->map.heads[page].word, w, w | VM_WORD_LISTED))
            add(r, page, w);
    }
    vm__space_unlock(t);
    for (uint32_t i = 0; i < vm__nodes_used(r); i++)
        VM_SWAP(&r->map.nodes[i].lazy_head, 0);
    VM_PUT(&r->map.h->purge_needs_scan, 1);
    return page == r->map.nr_pages ? 0 : VM_CORRUPT(r);
}

static int mended(vm_thread *t, unsigned flags)
{
    vm_lock *lock = &warm_of(t->region)->lock;
    if (vm_likely(!VM_RELAXED(&lock->needs_mending)))
        return 0;
    int rc = rebuild(t, flags);
    if (rc == 0)
        VM_STORE(&lock->needs_mending, 0);
    return rc;
}

int vm__warm_lock(vm_thread *t, unsigned flags)
{
    vm_lock *lock = &warm_of(t->region)->lock;
    int rc = vm__lock(t, lock, flags);
    if (rc)
        return rc;
    rc = mended(t, flags);
    if (rc)
        vm__unlock(t, lock);
    return rc;
}

void vm__warm_unlock(vm_thread *t) { vm__unlock(t, &warm_of(t->region)->lock); }

/* Before a scan of the words: nobody takes, sorts or collects until vm__warm_collect_all(), which takes apart what the
 * scan left of the lists. */
int vm__warm_close(vm_thread *t, unsigned flags)
{
    int rc = vm__warm_lock(t, flags);
    if (rc)
        return rc;
    VM_STORE(&warm_of(t->region)->closed, t->token);
    vm__warm_unlock(t);
    return 0;
}

/* Closed by somebody who lives. */
static bool is_closed(vm_region *r)
{
    vm_token by = VM_ACQUIRE(&warm_of(r)->closed);
    return by && !vm__owner_is_dead(r, by);
}

/* Who closed the lists died before they were taken apart: they are made anew, and the words are looked at again. */
static int reopen(vm_thread *t, unsigned flags)
{
    vm_region *r = t->region;
    VM_PUT(&r->map.h->purge_needs_scan, 1);
    VM_PUT(&warm_of(r)->lock.needs_mending, 1);
    int rc = mended(t, flags);
    if (rc == 0)
        VM_STORE(&warm_of(r)->closed, 0);
    return rc;
}

/* As vm__warm_lock(), for who uses the lists; EAGAIN while they are closed. */
static int enter(vm_thread *t, unsigned flags)
{
    vm_region *r = t->region;
    int rc = is_closed(r) ? -EAGAIN : vm__warm_lock(t, flags);
    if (rc || vm_likely(!VM_ACQUIRE(&warm_of(r)->closed)))
        return rc;
    rc = is_closed(r) ? -EAGAIN : reopen(t, flags);
    if (rc)
        vm__warm_unlock(t);
    return rc;
}

bool vm__warm_is_damaged(vm_region *r)
{
    const vm_lock *lock = &warm_of(r)->lock;
    vm_token owner = VM_ACQUIRE(&lock->owner) & VM_TOKEN_MASK, by = VM_ACQUIRE(&warm_of(r)->closed);
    return VM_RELAXED(&lock->needs_mending) || (owner && vm__owner_is_dead(r, owner))
           || (by && vm__owner_is_dead(r, by));
}

/* ---- sorting ---- */

/* One range of a detached list of lazy.c. Its pusher may not have written LAZY yet: then we do. */
static void sort_one(vm_region *r, uint32_t link)
{
    for (;;) {
        vm_word w = vm__word_at(r, link - 1);
        vm_state s = vm__state(w);
        if (!w || (s != VM_LAZY && s != VM_MOVING)) {
            if (s != VM_PURGING) /* else a scan has it already */
                VM_PUT(&r->map.h->purge_needs_scan, 1);
            return;
        }
        vm_word listed = s == VM_LAZY ? w | VM_WORD_LISTED
                                      : vm__lazy_word(vm__len(w), vm__node_here(r)) | VM_WORD_LISTED;
        if (VM_CAS(&r->map.heads[link - 1].word, w, listed)) {
            add(r, link - 1, listed);
            VM_PUT(&warm_of(r)->nr_sorted, VM_RELAXED(&warm_of(r)->nr_sorted) + 1);
            return;
        }
    }
}

static bool detach_some(vm_region *r)
{
    for (uint32_t i = 0; i < vm__nodes_used(r); i++)
        if (VM_RELAXED(&r->map.nodes[i].lazy_head)) {
            VM_PUT(&warm_of(r)->unsorted, VM_SWAP(&r->map.nodes[i].lazy_head, 0));
            return true;
        }
    return false;
}

/* Sort some of the ranges that were pushed: the lists are youngest first, so the last is added first. False: all are. */
static bool sort(vm_region *r)
{
    VM_ASSERT_RANK_HELD(r, VM_RANK_WARM);
    uint32_t some[VM_WARM_SORT_RANGES], nr = 0, link = VM_RELAXED(&warm_of(r)->unsorted);
    if (!link && !detach_some(r))
        return false;
    for (link = VM_RELAXED(&warm_of(r)->unsorted); link && nr < VM_WARM_SORT_RANGES; link = next_of(r, link)) {
        if (link > r->map.nr_pages || is_listed(vm__word_at(r, link - 1))) { /* the hint was wrong: the words know */
            VM_PUT(&r->map.h->purge_needs_scan, 1);
            link = 0;
            break;
        }
        some[nr++] = link;
    }
    VM_PUT(&warm_of(r)->unsorted, link);
    while (nr > 0)
        sort_one(r, some[--nr]);
    return true;
}

/* ---- taking ---- */

/* A listed range, or its first nr_pages, becomes MOVING(t); the rest stays warm. */
static bool cut(vm_thread *t, uint64_t page, vm_word w, uint64_t nr_pages)
{
    vm_region *r = t->region;
    uint64_t len = vm__len(w);
    if (len == nr_pages) {
        drop(r, page, w);
        return VM_CAS(&r->map.heads[page].word, w, vm__moving(t, len));
    }
    if (vm__space_lock(t, VM_NO_WAIT) != 0)
        return false;
    drop(r, page, w);
    VM_STORE(&r->map.heads[page + nr_pages].word, vm__with_len(w, len - nr_pages));
    bool is_ours = VM_CAS(&r->map.heads[page].word, w, vm__moving(t, nr_pages)); /* makes both visible */
    if (is_ours)
        add(r, page + nr_pages, vm__with_len(w, len - nr_pages));
    vm__space_unlock(t);
    return is_ours;
}

/* The tightest of the first few in a list that is aligned and has `least` to `most` pages; 0: none. Of large ones more are
 * looked at: to fault in the pages of another takes longer. */
static vm_word best_of(vm_region *r, const vm_list *list, uint64_t align_pages, uint64_t least, uint64_t most,
                       uint64_t *page)
{
    vm_word best = 0;
    uint32_t link = VM_RELAXED(&list->head);
    int looks = least > VM_POOL_PAGES_MAX ? VM_WARM_LOOK_LARGE : VM_WARM_LOOK_RANGES;
    for (int i = 0; i < looks && link && (!best || vm__len(best) != least); i++) {
        vm_word w = listed_word(r, link);
        if (!w)
            return 0;
        uint64_t len = vm__len(w);
        if (len >= least && len <= most && !((link - 1) & (align_pages - 1)) && (!best || len < vm__len(best))) {
            best = w;
            *page = link - 1;
        }
        link = next_of(r, link);
    }
    return best;
}

static uint32_t next_used(const vm_shelf *s, uint32_t class)
{
    for (uint32_t i = class / 64; i <= VM_WARM_CLASSES / 64; i++) {
        uint64_t used = VM_RELAXED(&s->used[i]);
        if (i == class / 64)
            used &= ~0ull << class % 64;
        if (used)
            return i * 64 + (uint32_t)__builtin_ctzll(used);
    }
    return VM_WARM_CLASSES;
}

/* Whose shelves are looked at: that of the caller's group, or all, this one first. */
typedef struct vm_reach {
    uint32_t first, nr;
} vm_reach;

static vm_reach reach_of(const vm_region *r, bool is_own)
{
    return (vm_reach){vm__group_here(r), is_own ? 1 : vm__groups_used(r)};
}

/* Of `least` to `most` pages, from the shortest list that has one. */
static vm_word find_within(vm_region *r, vm_reach reach, uint64_t align_pages, uint64_t least, uint64_t most,
                           uint64_t *page)
{
    vm_word w = 0;
    for (uint32_t i = 0; i < reach.nr && !w && least <= VM_PAGES_MAX; i++) {
        const vm_shelf *s = &r->map.shelves[reach.nr == 1 ? reach.first : (reach.first + i) % reach.nr];
        for (uint32_t class = next_used(s, class_of(least)); !w && class <= class_of(most);
             class = next_used(s, class + 1))
            w = best_of(r, &s->list[class], align_pages, least, most, page);
    }
    return w;
}

/* The longest that a request gets whole: of its own size, or, for a large one, a little longer. */
static uint64_t longest_close(const vm_region *r, uint64_t nr_pages)
{
    uint64_t most = nr_pages <= VM_POOL_PAGES_MAX ? nr_pages : vm__longest_for(r, nr_pages);
    return most < VM_PAGES_MAX ? most : VM_PAGES_MAX;
}

static vm_word find_close(vm_region *r, vm_reach reach, uint64_t nr_pages, uint64_t align_pages, uint64_t *page)
{
    return find_within(r, reach, align_pages, nr_pages, longest_close(r, nr_pages), page);
}

/* A longer one to split. */
static vm_word find_longer(vm_region *r, vm_reach reach, uint64_t least, uint64_t align_pages, uint64_t *page)
{
    return find_within(r, reach, align_pages, least, VM_PAGES_MAX, page);
}

/* Neighbours become one, all at once: a walk over the words, so only after a part of as many were freed as it looks at, or
 * for a request of no fewer pages than that, which are dear to fault in. True: there may be longer ones now. */
static bool join_neighbours(vm_thread *t, uint64_t nr_pages)
{
    vm_region *r = t->region;
    vm_warm *warm = warm_of(r);
    uint64_t nr_sorted = VM_RELAXED(&warm->nr_sorted), nr_walked = VM_RELAXED(&warm->nr_walked);
    bool is_dear = nr_pages <= VM_POOL_PAGES_MAX || nr_walked > nr_pages;
    bool is_early = nr_sorted < (is_dear ? nr_walked / VM_WARM_JOIN_SHARE + 1 : 1);
    if (is_early || vm__space_lock(t, VM_NO_WAIT) != 0)
        return false;
    uint64_t page = 0, nr = 0, run = 0, run_pages = 0;
    vm_word head = 0;
    bool joined = false;
    for (vm_word w; (w = vm__word_at(r, page)); nr++) {
        uint64_t len = vm__len(w);
        if (!is_listed(w)) {
            run_pages = 0;
        } else if (!run_pages || run_pages + len > VM_PAGES_MAX) {
            run = page, run_pages = len, head = w;
        } else {
            drop(r, run, head);
            drop(r, page, w);
            run_pages += len;
            head = vm__with_len(head, run_pages);
            VM_STORE(&r->map.heads[run].word, head);
            add(r, run, head);
            joined = true;
        }
        page += len;
    }
    VM_PUT(&warm->nr_sorted, 0);
    VM_PUT(&warm->nr_walked, nr);
    vm__space_unlock(t);
    return joined;
}

/* For a small request one to split is at least twice as long, so that what is split off is of use, unless all others are
 * cold; odd ends of large ones are of use once their neighbours are free too. */
static vm_word find(vm_thread *t, vm_reach reach, uint64_t nr_pages, uint64_t align_pages, uint64_t *page)
{
    vm_region *r = t->region;
    vm_word w = find_close(r, reach, nr_pages, align_pages, page);
    bool may_join = !w && VM_ACQUIRE(&r->map.h->lazy_pages) >= nr_pages;
    if (may_join && nr_pages > VM_POOL_PAGES_MAX && join_neighbours(t, nr_pages)) /* before one of them is split */
        w = find_close(r, reach, nr_pages, align_pages, page);
    uint64_t least = nr_pages <= VM_POOL_PAGES_MAX ? 2 * nr_pages : nr_pages + 1;
    w = w ? w : find_longer(r, reach, least, align_pages, page);
    if (!w && may_join && nr_pages <= VM_POOL_PAGES_MAX && join_neighbours(t, nr_pages)) {
        w = find_close(r, reach, nr_pages, align_pages, page);
        w = w ? w : find_longer(r, reach, least, align_pages, page);
    }
    return w || !may_join ? w : find_longer(r, reach, nr_pages + 1, align_pages, page);
}

/* One of the size that this process freed, after sorting as much as it takes. A large request may get a longer one, but not
 * before its own size was looked for among what is not sorted yet: else it takes what is another's, who does the same. */
static vm_word find_own(vm_region *r, uint64_t nr_pages, uint64_t align_pages, uint64_t *page)
{
    vm_reach own = reach_of(r, true);
    uint64_t left = r->map.nr_pages / VM_WARM_SORT_RANGES + vm__nodes_used(r) + 1; /* scribbled links may go round */
    uint64_t exactly = nr_pages > VM_POOL_PAGES_MAX ? VM_WARM_SORT_AHEAD : 0, nr = 0;
    vm_word w = find_within(r, own, align_pages, nr_pages, nr_pages, page);
    for (bool more = true; !w && more && nr < left; nr++) {
        more = sort(r);
        w = find_within(r, own, align_pages, nr_pages, nr_pages, page);
        if (!w && (!more || nr >= exactly))
            w = find_close(r, own, nr_pages, align_pages, page);
    }
    return w;
}

/* Without the lock: is there anything that this process freed, of that size or not sorted yet? */
static bool may_have_own(const vm_region *r, uint64_t nr_pages)
{
    const vm_shelf *s = &r->map.shelves[vm__group_here(r)];
    const vm_node *n = &r->map.nodes[vm__group_here(r) * r->map.nodes_each];
    bool may = VM_RELAXED(&warm_of(r)->unsorted) != 0;
    for (uint32_t i = 0; i < r->map.nodes_each && !may; i++)
        may = VM_RELAXED(&n[i].lazy_head) != 0;
    return may || next_used(s, class_of(nr_pages)) <= class_of(longest_close(r, nr_pages));
}

/* Up to `max` warm ranges of nr_pages, MOVING(t), into pages[]; of more than VM_POOL_PAGES_MAX pages one, which may be a
 * little longer: *len. `is_own`: only of its size and of what processes of our group freed. Returns how many. */
uint32_t vm__warm_take(vm_thread *t, uint64_t nr_pages, uint64_t align_pages, uint32_t max, bool is_own,
                       uint64_t *pages, uint64_t *len_out)
{
    vm_region *r = t->region;
    uint32_t got = 0;
    uint64_t page, taken = 0;
    if ((int64_t)VM_RELAXED(&r->map.h->lazy_pages) < (int64_t)nr_pages || (is_own && !may_have_own(r, nr_pages))
        || enter(t, VM_LOCK_BRIEF) != 0)
        return 0;
    while (got < max) {
        vm_word w = find_own(r, nr_pages, align_pages, &page);
        w = w || is_own ? w : find(t, reach_of(r, false), nr_pages, align_pages, &page);
        if (!w)
            break;
        uint64_t len = vm__len(w), close = vm__longest_for(r, nr_pages);
        uint64_t want = nr_pages > VM_POOL_PAGES_MAX && len <= close ? len : nr_pages;
        if (!cut(t, page, w, want))
            break;
        pages[got++] = page;
        *len_out = want;
        taken += want;
    }
    VM_ADD(&r->map.h->lazy_pages, (uint64_t)0 - taken);
    vm__note_use(r);
    vm__warm_unlock(t);
    return got;
}

/* ---- giving up ---- */

static uint32_t age_of(vm_word w) { return ((uint32_t)vm__now_s() - vm__inc(w)) & AGE_MASK; }

/* Lists whose last ones are the oldest of all, the oldest first. */
#define OLDEST_LISTS 8
typedef struct oldest {
    const vm_list *list[OLDEST_LISTS];
    uint32_t age[OLDEST_LISTS], nr;
} oldest;

static void keep_if_old(oldest *o, const vm_list *list, uint32_t age)
{
    bool is_full = o->nr == OLDEST_LISTS;
    if (is_full && age <= o->age[OLDEST_LISTS - 1])
        return;
    uint32_t at = is_full ? OLDEST_LISTS - 1 : o->nr++;
    for (; at && o->age[at - 1] < age; at--) {
        o->list[at] = o->list[at - 1];
        o->age[at] = o->age[at - 1];
    }
    o->list[at] = list;
    o->age[at] = age;
}

/* Many processes have many lists, so a walk over all is for several of them. */
static oldest oldest_lists(vm_region *r)
{
    oldest o = {.nr = 0};
    for (uint32_t g = 0; g < vm__groups_used(r); g++) {
        const vm_shelf *s = &r->map.shelves[g];
        for (uint32_t class = next_used(s, 0); class < VM_WARM_CLASSES; class = next_used(s, class + 1)) {
            vm_word w = listed_word(r, VM_RELAXED(&s->list[class].tail));
            if (w)
                keep_if_old(&o, &s->list[class], age_of(w));
        }
    }
    return o;
}

/* The last pages of a long range: the rest stays warm. Under space_lock. */
static bool cut_end(vm_thread *t, uint64_t page, vm_word w, uint64_t nr_pages, vm_batch *out)
{
    vm_region *r = t->region;
    uint64_t len = vm__len(w), rest = len - nr_pages;
    if (vm__space_lock(t, VM_NO_WAIT) != 0)
        return false;
    drop(r, page, w);
    VM_STORE(&r->map.heads[page + rest].word, vm__purging(t, nr_pages));
    bool is_ours = VM_CAS(&r->map.heads[page].word, w, vm__with_len(w, rest)); /* makes both visible */
    if (is_ours)
        add(r, page, vm__with_len(w, rest));
    vm__space_unlock(t);
    if (is_ours)
        vm__batch_add(t, out, page + rest, nr_pages);
    return is_ours;
}

/* The last one of a list, or so much of it. Returns its pages; 0: not now. */
static uint64_t collect_one(vm_thread *t, const vm_list *list, uint64_t most_pages, vm_batch *out)
{
    vm_region *r = t->region;
    uint32_t link = VM_RELAXED(&list->tail);
    vm_word w = link ? listed_word(r, link) : 0;
    uint64_t len = vm__len(w);
    if (!w)
        return 0;
    if (len > most_pages)
        return cut_end(t, link - 1, w, most_pages, out) ? most_pages : 0;
    drop(r, link - 1, w);
    if (!VM_CAS(&r->map.heads[link - 1].word, w, vm__purging(t, len)))
        return 0;
    vm__batch_add(t, out, link - 1, len);
    return len;
}

/* So much of what a step may still collect. */
typedef struct budget {
    uint64_t pages;
    uint32_t ranges;
} budget;

/* A few from the end of a list: the next are about as old. False: it has more, or not now. */
static bool collect_some(vm_thread *t, const vm_list *list, budget *left, vm_batch *out)
{
    for (int i = 0; i < VM_WARM_LOOK_RANGES && left->ranges && left->pages; i++) {
        uint64_t pages = collect_one(t, list, left->pages, out);
        if (!pages)
            break;
        left->pages -= pages;
        left->ranges--;
    }
    return !VM_RELAXED(&list->tail);
}

/* Collect the oldest, up to so many pages and ranges; waits for nobody. [purge_lock] */
int vm__warm_collect(vm_thread *t, uint64_t most_pages, uint32_t most_ranges, vm_batch *out)
{
    vm_region *r = t->region;
    VM_ASSERT_RANK_HELD(r, VM_RANK_PURGE);
    int rc = enter(t, VM_NO_WAIT);
    if (rc)
        return rc;
    budget left = {most_pages, most_ranges};
    uint32_t before = 0;
    sort(r);
    while (left.ranges && left.pages && left.ranges != before) {
        oldest o = oldest_lists(r);
        before = left.ranges;
        for (uint32_t i = 0; i < o.nr && collect_some(t, o.list[i], &left, out); i++)
            ;
    }
    VM_ADD(&r->map.h->lazy_pages, left.pages - most_pages);
    vm__warm_unlock(t);
    return 0;
}

static uint64_t collect_shelf(vm_thread *t, vm_shelf *s, vm_batch *out)
{
    uint64_t pages = 0;
    for (uint32_t class = 0; class < VM_WARM_CLASSES; class++) {
        uint32_t head = VM_RELAXED(&s->list[class].head);
        if (!head)
            continue;
        VM_PUT(&s->list[class].head, 0);
        VM_PUT(&s->list[class].tail, 0);
        note_used(s, class, false);
        pages += vm__chain_take(t, head, out);
    }
    return pages;
}

/* Collect everything, also what a scan does not know of. [purge_lock] */
int vm__warm_collect_all(vm_thread *t, unsigned flags, vm_batch *out)
{
    vm_region *r = t->region;
    vm_warm *w = warm_of(r);
    VM_ASSERT_RANK_HELD(r, VM_RANK_PURGE);
    int rc = vm__warm_lock(t, flags);
    if (rc)
        return rc;
    uint64_t pages = 0;
    for (uint32_t g = 0; g < vm__groups_used(r); g++)
        pages += collect_shelf(t, &r->map.shelves[g], out);
    uint32_t unsorted = VM_RELAXED(&w->unsorted);
    VM_PUT(&w->unsorted, 0);
    pages += vm__chain_take(t, unsorted, out);
    for (uint32_t i = 0; i < vm__nodes_used(r); i++)
        if (VM_RELAXED(&r->map.nodes[i].lazy_head))
            pages += vm__chain_take(t, VM_SWAP(&r->map.nodes[i].lazy_head, 0), out);
    VM_ADD(&r->map.h->lazy_pages, (uint64_t)0 - pages);
    VM_STORE(&w->closed, 0);
    vm__warm_unlock(t);
    return 0;
}

uint64_t vm__warm_check(const vm_region *r, vm_report *report)
{
    uint64_t pages = 0;
    uint32_t nr;
    char what[48];
    for (uint32_t i = 0; i < vm__groups_used(r) * VM_WARM_CLASSES; i++) {
        uint32_t group = i / VM_WARM_CLASSES, class = i % VM_WARM_CLASSES;
        const vm_shelf *s = &r->map.shelves[group];
        bool is_used = VM_RELAXED(&s->used[class / 64]) >> class % 64 & 1;
        if (group)
            snprintf(what, sizeof what, "warm list %u of group %u", class, group);
        else
            snprintf(what, sizeof what, "warm list %u", class);
        pages += vm__list_check(r, VM_RELAXED(&s->list[class].head), VM_LAZY, 0, what, &nr, report);
        if (is_used != (nr != 0))
            vm__report(report, "%s: %u entries, but marked %s", what, nr, is_used ? "used" : "empty");
    }
    pages += vm__list_check(r, VM_RELAXED(&warm_of(r)->unsorted), VM_LAZY, 0, "unsorted list", &nr, report);
    for (uint32_t i = 0; i < vm__nodes_used(r); i++)
        pages += vm__list_check(r, VM_RELAXED(&r->map.nodes[i].lazy_head), VM_LAZY, 0, "lazy list", &nr, report);
    return pages;
}
