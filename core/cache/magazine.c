/* SPDX-License-Identifier: MIT */
/*
 * Magazines: ready ranges of one exact size, owned by one thread slot.
 *
 * alloc.c and free.c hold the hit paths. Here is the rest: refill from the pools in batches, overflow of the older half
 * to the pools, flush at thread exit. A magazine is a hint: an entry counts only while the range's word says CACHED by
 * this very slot and incarnation.
 *
 * The owner marks whatever takes ranges out of a magazine with plain stores, the hit in the magazine's header, the rest
 * in in_operation, and then looks at `drain`; drain.c is the other side.
 * After: Bonwick & Adams, "Magazines and Vmem" (USENIX 2001).
 */
#include "cache.h"

/* Caps are 0 until the size is first used, so that its first range, too, goes the slow way, which opens the magazine. Then
 * they are one range, and double when a magazine overflows, as long as the growth of all caps stays
 * within the thread's budget: what a thread may hoard is bounded, and the hot path need not count it. The first
 * range is never counted, so that one that was closed and opens again costs nothing. */
void vm__magazine_init(vm_thread *t)
{
    memset(t->hit.cap, 0, sizeof t->hit.cap);
    t->cap_pages = t->cold_pages = t->absent_live = 0;
    t->is_tight = t->has_waited = false;
}

/* Fewer of a large size: the pools behind are quick beside what such a range is filled with, and hot first. */
static uint32_t cap_most(uint64_t nr_pages)
{
    uint64_t most = VM_MAGAZINE_CAP_PAGES / nr_pages;
    return most < 2 ? 2 : most < VM_MAGAZINE_CAP ? (uint32_t)most : VM_MAGAZINE_CAP;
}

/* Did no other thread ever have a slot? A helper's does not count while it works: it allocates nothing. A look at another's
 * slot takes a line from it. */
static bool is_alone(const vm_region *r)
{
    uint64_t first = vm__first_thread(r), high = VM_RELAXED(&r->map.h->high_slot), nr = 0;
    if (high > first + 2)
        return false;
    for (uint64_t i = first; i < high && i < r->map.nr_threads; i++)
        nr += !(VM_RELAXED(&r->map.slots[i].state) & VM_SLOT_HELPER);
    return nr <= 1;
}

/* By how much all caps of a thread may grow: a share of what is free, for what lies in magazines serves one size and one
 * thread only. Where there is one thread it may be more: what its magazines do not keep, pools keep for it. */
static uint64_t budget_of(const vm_region *r, uint64_t times)
{
    uint64_t least = (uint64_t)VM_MAGAZINE_BUDGET_BYTES >> r->map.page_shift;
    uint64_t most = (uint64_t)VM_MAGAZINE_BUDGET_BYTES_MAX >> r->map.page_shift;
    uint64_t share = VM_RELAXED(&r->map.h->free_pages) / VM_MAGAZINE_BUDGET_SHARE;
    share = (share < most ? share : most) * times;
    least = least > VM_POOL_PAGES_MAX ? least : VM_POOL_PAGES_MAX;
    return share < least ? least : share;
}

uint64_t vm__magazine_budget(const vm_region *r) { return budget_of(r, is_alone(r) ? VM_MAGAZINE_BUDGET_ALONE : 1); }

static bool is_within_budget(const vm_region *r, uint64_t pages)
{
    return pages <= budget_of(r, 1) || pages <= vm__magazine_budget(r);
}

static uint64_t growth_pages(uint32_t cap, uint64_t nr_pages) { return cap > 1 ? (cap - 1) * nr_pages : 0; }

static bool is_open(const vm_thread *t, uint64_t nr_pages)
{
    return VM_RELAXED(&t->slot->opened[vm__pool_index(nr_pages) / 64]) >> vm__pool_index(nr_pages) % 64 & 1;
}

/* While space is short large sizes have the caps that look_at_budget() gives them. */
static bool is_closed(const vm_thread *t, uint64_t nr_pages) { return t->is_tight && nr_pages > VM_FLOW_PAGES; }

/* Before a magazine's first entry or id, so that whoever looks at all of a slot's finds it. What a death in the middle of
 * the last owner's first try left in it goes. */
static void open_magazine(vm_thread *t, uint64_t nr_pages)
{
    uint64_t *opened = &t->slot->opened[vm__pool_index(nr_pages) / 64], *header = &t->slot->magazine[nr_pages].header;
    if (vm_likely(is_open(t, nr_pages)))
        return;
    if (VM_RELAXED(header))
        VM_STORE(header, 0);
    VM_STORE(opened, VM_RELAXED(opened) | 1ull << vm__pool_index(nr_pages) % 64);
    if (!is_closed(t, nr_pages))
        t->hit.cap[nr_pages] = 1;
}

bool vm__magazine_grow(vm_thread *t, uint64_t nr_pages)
{
    vm_region *r = t->region;
    uint8_t *cap = &t->hit.cap[nr_pages];
    uint32_t most = cap_most(nr_pages), wanted = *cap ? *cap * 2u : 1;
    wanted = wanted < most ? wanted : most;
    uint64_t more = growth_pages(wanted, nr_pages) - growth_pages(*cap, nr_pages);
    if (*cap == wanted)
        return false;
    if (!is_open(t, nr_pages) || is_closed(t, nr_pages) || !is_within_budget(r, t->cap_pages + more))
        return false;
    t->cap_pages += more;
    *cap = (uint8_t)wanted;
    return true;
}

static bool entry_is_ours(const vm_region *r, const vm_thread *t, uint64_t page, uint64_t nr_pages)
{
    return vm__is_within(r, page, nr_pages) && VM_RELAXED(&r->map.heads[page].word) == (vm__cached(t, nr_pages));
}

/* A new block of ids for a magazine. Hits are counted by the ids they took; those of the last block are added up here. */
static uint64_t next_block(vm_thread *t, uint64_t number)
{
    vm_slot *s = t->slot;
    VM_STORE(&s->nr_magazine_hit, VM_RELAXED(&s->nr_magazine_hit) + vm__ids_given(number));
    return vm__new_ids(t->region);
}

/* Change the count only; ids go on, in a new block if need be. Between enter and leave. */
static void set_count(vm_thread *t, uint64_t nr_pages, uint32_t count)
{
    vm_magazine *m = &t->slot->magazine[nr_pages];
    uint64_t number = VM_RELAXED(&m->header) >> 8;
    VM_ASSERT(is_open(t, nr_pages));
    if (vm__number_is_spent(number))
        number = next_block(t, number);
    VM_STORE(&m->header, number << 8 | count);
}

/* Ids that were taken of the blocks in use. */
static uint64_t hits_of_blocks(const vm_slot *s)
{
    uint64_t hits = 0;
    for (uint32_t n = vm__next_opened(s, 1); n <= VM_POOL_PAGES_MAX; n = vm__next_opened(s, n + 1))
        hits += vm__ids_given(VM_ACQUIRE(&s->magazine[n].header) >> 8);
    return hits;
}

#define LOOKS 4 /* at a slot that changes */

/* Requests that a slot's magazines served. While its owner goes over to another block a look may count one twice; so
 * look again, unless it is stopped there or always at it. */
uint64_t vm__magazine_hits(const vm_slot *s)
{
    uint64_t before = VM_ACQUIRE(&s->nr_magazine_hit), hits = 0;
    for (int i = 0; i < LOOKS; i++) {
        uint32_t is_changing = VM_ACQUIRE(&s->in_operation);
        hits = before + hits_of_blocks(s);
        uint64_t now = VM_ACQUIRE(&s->nr_magazine_hit);
        if (now == before && !is_changing && !VM_ACQUIRE(&s->in_operation))
            break;
        before = now;
    }
    return hits;
}

/* A range of that size and alignment from the magazine, wherever it stands there: what the hit path
 * leaves to us, also when its ids were spent or stale entries lay on top. */
bool vm__magazine_take(vm_thread *t, uint64_t nr_pages, uint64_t align_pages, vm_range *out)
{
    vm_region *r = t->region;
    if (!t->fast_pages || !vm__magazines_enter(t))
        return false;
    open_magazine(t, nr_pages);
    vm_magazine *m = &t->slot->magazine[nr_pages];
    uint32_t count = vm__magazine_count(VM_RELAXED(&m->header)), i = count;
    bool is_found = false;
    while (i > 0 && !is_found) {
        uint64_t page = VM_RELAXED(&m->page[--i]);
        if (!entry_is_ours(r, t, page, nr_pages)) {
            count = i + 1 == count ? i : count; /* stale and on top */
        } else if ((page & (align_pages - 1)) == 0) {
            vm__hand_out(t, page, nr_pages, false, out);
            is_found = true;
            count--;
            for (; i < count; i++)
                VM_PUT(&m->page[i], VM_RELAXED(&m->page[i + 1]));
        }
    }
    set_count(t, nr_pages, count);
    vm__magazines_leave(t);
    return is_found;
}

/* Move the older `nr` entries of a magazine to the pools. Returns how many stay. */
static uint32_t flush_oldest(vm_thread *t, uint64_t nr_pages, uint32_t nr)
{
    vm_region *r = t->region;
    vm_magazine *m = &t->slot->magazine[nr_pages];
    uint32_t count = vm__magazine_count(VM_RELAXED(&m->header)), moved = 0;
    uint64_t pages[VM_MAGAZINE_CAP];
    vm__expect_pool(&r->map.nodes[vm__node_here(r)], nr_pages);
    if (nr > count)
        nr = count;
    for (uint32_t i = 0; i < nr; i++) {
        uint64_t page = VM_RELAXED(&m->page[i]);
        if (entry_is_ours(r, t, page, nr_pages)) {
            VM_STORE(&r->map.heads[page].word, vm__moving(t, nr_pages));
            pages[moved++] = page;
        }
    }
    for (uint32_t i = nr; i < count; i++)
        VM_PUT(&m->page[i - nr], VM_RELAXED(&m->page[i]));
    set_count(t, nr_pages, count - nr);
    if (moved)
        vm__event(t, VM_EVENT_OVERFLOW, moved, nr_pages);
    vm__pool_give(t, nr_pages, moved, pages);
    return count - nr;
}

/* So many ranges of that size a flow brings together. */
static uint32_t flow_batch(uint64_t nr_pages)
{
    return nr_pages >= VM_FLOW_PAGES ? (uint32_t)(vm__flow_pages(nr_pages) / nr_pages) : UINT32_MAX;
}

/* So many of the oldest, up to `most`, are whole lots, if `page` comes next; `most` if none is. */
static uint32_t in_whole_lots(const vm_magazine *m, uint64_t nr_pages, uint32_t count, uint32_t most, uint64_t page)
{
    uint64_t lot_pages = vm__lot_pages(nr_pages);
    most = most < count ? most : count;
    for (uint32_t n = most; n > 0; n--)
        if (!vm__is_of_one_lot(VM_RELAXED(&m->page[n - 1]), n < count ? VM_RELAXED(&m->page[n]) : page, lot_pages))
            return n;
    return most;
}

/* Between enter and leave: room for one more, `page`, where the cap is not 0; returns how many there are. What a flow brings
 * goes on to who allocates it, few at a time, in whole lots. */
static uint32_t make_room(vm_thread *t, vm_magazine *m, uint64_t nr_pages, uint64_t page, bool is_foreign)
{
    uint32_t count = vm__magazine_count(VM_RELAXED(&m->header));
    uint32_t batch = is_foreign ? flow_batch(nr_pages) : UINT32_MAX;
    if (count >= batch)
        return flush_oldest(t, nr_pages, in_whole_lots(m, nr_pages, count, batch, page));
    if (count < t->hit.cap[nr_pages])
        return count;
    vm__magazine_grow(t, nr_pages);
    uint32_t cap = t->hit.cap[nr_pages];
    if (count < cap)
        return count;
    uint32_t older = count - cap / 2;
    return flush_oldest(t, nr_pages, is_foreign ? in_whole_lots(m, nr_pages, count, older + 1, page) : older);
}

/* Is its cap not 0, or will it be once it is opened? */
static bool may_keep(const vm_thread *t, uint64_t nr_pages)
{
    return t->hit.cap[nr_pages] || (!is_closed(t, nr_pages) && !is_open(t, nr_pages));
}

/* Does a magazine keep a range of that size that another process allocated? One for which a batch is one range goes to a
 * pool at once. */
bool vm__magazine_has_foreign(const vm_thread *t, uint64_t nr_pages)
{
    return nr_pages <= t->fast_pages && may_keep(t, nr_pages)
           && (nr_pages < VM_FLOW_PAGES || 2 * nr_pages <= VM_FLOW_BATCH_PAGES);
}

/* Without making room so many ranges of others may lie in a magazine. */
static uint32_t foreign_cap(const vm_thread *t, uint64_t nr_pages)
{
    uint32_t cap = vm__magazine_has_foreign(t, nr_pages) ? t->hit.cap[nr_pages] : 0, batch = flow_batch(nr_pages);
    return cap < batch ? cap : batch;
}

/* Keep a range whose word is MOVING(t), making room if needed. False: it has none, or the slot is being drained. */
bool vm__magazine_put_slow(vm_thread *t, uint64_t page, uint64_t nr_pages, bool is_foreign)
{
    vm_region *r = t->region;
    if (!may_keep(t, nr_pages) || !vm__magazines_enter(t))
        return false;
    open_magazine(t, nr_pages);
    vm_magazine *m = &t->slot->magazine[nr_pages];
    uint32_t count = make_room(t, m, nr_pages, page, is_foreign);
    VM_STORE(&r->map.heads[page].word, vm__cached(t, nr_pages));
    VM_PUT(&m->page[count], (uint32_t)page);
    set_count(t, nr_pages, count + 1);
    vm__magazines_leave(t);
    return true;
}

/* Held by another process alone. */
static bool is_busy_elsewhere(const vm_thread *t, vm_word w, uint64_t nr_pages)
{
    const vm_word who = ~(vm_word)0 << VM_WORD_OWNER_SHIFT, differs = w ^ vm__busy(t, nr_pages);
    return differs & who && (differs & ~(who | VM_WORD_DIRTY)) == 0;
}

/* Keep a range another process holds, with the one CAS by which a free of it wins. ENOENT: another
 * free did. EAGAIN: the slot is being drained. */
int vm__magazine_put_foreign(vm_thread *t, uint64_t page, vm_word w)
{
    vm_region *r = t->region;
    uint64_t nr_pages = vm__len(w);
    VM_ASSERT(may_keep(t, nr_pages));
    if (!vm__magazines_enter(t))
        return -EAGAIN;
    open_magazine(t, nr_pages);
    vm_magazine *m = &t->slot->magazine[nr_pages];
    uint32_t count = make_room(t, m, nr_pages, page, true);
    bool is_ours = VM_CAS(&r->map.heads[page].word, w, vm__cached(t, nr_pages));
    if (is_ours) {
        VM_PUT(&m->page[count], (uint32_t)page);
        set_count(t, nr_pages, count + 1);
        vm__event(t, VM_EVENT_FREE, page, nr_pages);
        vm__charge(r, nr_pages);
    }
    vm__magazines_leave(t);
    return is_ours ? 0 : -ENOENT;
}

/* A range of a lot is freed and one of another lot was before: the heads of the others come next, all at the same time. */
static void look_ahead(vm_thread *t, uint64_t page, uint64_t nr_pages)
{
    const vm_region *r = t->region;
    uint64_t lot_pages = vm__lot_pages(nr_pages), was = t->flow_page;
    t->flow_page = page;
    if (vm__is_of_one_lot(page, was, lot_pages))
        return;
    uint64_t step = nr_pages < VM_HEADS_PER_LINE ? VM_HEADS_PER_LINE : nr_pages, start = page & ~(lot_pages - 1);
    uint64_t end = start + lot_pages < r->map.nr_pages ? start + lot_pages : r->map.nr_pages;
    for (uint64_t at = start + (page - start) % step; at < end; at += step)
        vm__expect_write(&r->map.heads[at]);
}

/* The same as a hit, where there is room and no quota. As vm__hit_free() it needs no mark against a drainer: he takes only
 * what words say is CACHED, and writes to no magazine. False: nothing happened. */
bool vm__magazine_hit_foreign(vm_thread *t, uint64_t page, uint64_t id)
{
    vm_region *r = t->region;
    uint64_t nr_pages = vm__id_pages(id);
    if (nr_pages - 1 >= VM_POOL_PAGES_MAX || page >= r->map.nr_pages)
        return false;
    vm_head *head = &r->map.heads[page];
    vm_magazine *m = &t->hit.magazine[nr_pages];
    uint64_t header = VM_RELAXED(&m->header);
    uint32_t count = (uint8_t)header;
    vm_word w = VM_RELAXED(&head->word);
    if (!is_busy_elsewhere(t, w, nr_pages))
        return false;
    look_ahead(t, page, nr_pages);
    if (VM_RELAXED(&head->aux) != id || count >= foreign_cap(t, nr_pages) || VM_RELAXED(&r->map.h->quota_pages)
        || vm__health(r) || !VM_CAS(&head->word, w, vm__cached(t, nr_pages)))
        return false;
    VM_PUT(&m->page[count], (uint32_t)page);
    VM_STORE(&m->header, header + 1);
    return true;
}

/* Put ranges, MOVING(t), as far as there is room without overflow. Returns how many. */
static uint32_t put_many(vm_thread *t, uint64_t nr_pages, uint32_t nr, const uint64_t *pages)
{
    vm_region *r = t->region;
    uint32_t put = 0;
    if (!nr || !vm__magazines_enter(t))
        return 0;
    open_magazine(t, nr_pages);
    vm_magazine *m = &t->slot->magazine[nr_pages];
    uint32_t count = vm__magazine_count(VM_RELAXED(&m->header));
    for (; put < nr && count < t->hit.cap[nr_pages]; put++, count++) {
        VM_STORE(&r->map.heads[pages[put]].word, vm__cached(t, nr_pages));
        VM_PUT(&m->page[count], (uint32_t)pages[put]);
    }
    set_count(t, nr_pages, count);
    vm__magazines_leave(t);
    return put;
}

/* Keep what was taken beyond the one to hand out: in the magazine as far as it goes, then in a pool. */
void vm__magazine_keep(vm_thread *t, uint64_t nr_pages, uint32_t nr, const uint64_t *pages)
{
    uint32_t put = put_many(t, nr_pages, nr, pages);
    if (nr)
        vm__event(t, VM_EVENT_REFILL, nr, nr_pages);
    vm__charge(t->region, put * nr_pages);
    if (put < nr)
        vm__pool_give(t, nr_pages, nr - put, pages + put);
}

/* Of many threads most do not run: what they took beyond their need nobody else gets, who then takes cold pages. */
static bool is_crowd(const vm_region *r)
{
    return VM_RELAXED(&r->map.h->high_slot) > vm__first_thread(r) + (uint64_t)VM_CROWD_THREADS * r->map.nodes_each;
}

/* How many ranges a miss takes at once, who would take so many pages; under a quota no more than was asked for, since what
 * is ready is not checked. */
static uint32_t batch_of(const vm_region *r, uint64_t nr_pages, uint64_t pages)
{
    if (VM_RELAXED(&r->map.h->quota_pages))
        return 1;
    uint64_t most = (is_crowd(r) && pages > VM_CROWD_BATCH_PAGES ? VM_CROWD_BATCH_PAGES : pages) / nr_pages;
    return most < 1 ? 1 : (uint32_t)most;
}

/* Of what is ready or warm, where a miss takes up to so many pages. */
static uint32_t want_of(const vm_thread *t, uint64_t nr_pages, uint64_t pages)
{
    uint32_t room = t->hit.cap[nr_pages] / 2 + 1u, most = batch_of(t->region, nr_pages, pages);
    most = most < VM_MAGAZINE_REFILL_MAX ? most : VM_MAGAZINE_REFILL_MAX;
    return room < most ? room : most;
}

uint32_t vm__magazine_want(const vm_thread *t, uint64_t nr_pages)
{
    return want_of(t, nr_pages, VM_MAGAZINE_REFILL_PAGES);
}

/* The last page first. They lie so already, as a rule: a pool shows a lot from its end. */
static void sort_from_the_end(uint64_t *pages, uint32_t nr)
{
    for (uint32_t i = 1; i < nr; i++) {
        uint64_t page = pages[i];
        uint32_t at = i;
        for (; at && pages[at - 1] < page; at--)
            pages[at] = pages[at - 1];
        pages[at] = page;
    }
}

/* Hand out a range and put a few more of its size into the magazine. Called after a miss. Who misses
 * again and again, because others free what it takes, gets larger batches. What another group freed is handed out by
 * address, so that lots stay together. */
int vm__magazine_refill(vm_thread *t, uint64_t nr_pages, uint64_t align_pages, bool is_own, vm_range *out,
                        vm_level *level)
{
    uint64_t pages[VM_MAGAZINE_REFILL_MAX];
    uint32_t want = want_of(t, nr_pages, is_own ? VM_MAGAZINE_REFILL_PAGES : vm__flow_pages(nr_pages));
    uint32_t got = vm__pool_take(t, nr_pages, align_pages, want, is_own, pages, level);
    if (!got)
        return -ENOSPC;
    if (got == want)
        vm__magazine_grow(t, nr_pages);
    if (!is_own)
        sort_from_the_end(pages, got);
    uint32_t first = is_own ? 0 : got - 1;
    vm__hand_out(t, pages[first], nr_pages, false, out);
    vm__magazine_keep(t, nr_pages, got - 1, is_own ? pages + 1 : pages);
    return 0;
}

/* Until the magazine holds as many as came, if it may. */
static void grow_for(vm_thread *t, uint64_t nr_pages, uint32_t got)
{
    while (got > 1 && t->hit.cap[nr_pages] < cap_most(nr_pages) && t->hit.cap[nr_pages] < got
           && vm__magazine_grow(t, nr_pages))
        ;
}

/* From this thread's run: no more than its magazine holds beside the one that is handed out, for the rest is kept as well
 * where it is. */
static uint32_t cut_some(vm_thread *t, uint64_t nr_pages, uint32_t want, uint64_t *pages, bool *is_clean)
{
    if (!VM_RELAXED(&t->slot->run))
        return 0;
    grow_for(t, nr_pages, want);
    uint32_t most = t->hit.cap[nr_pages] + 1u;
    return vm__run_cut(t, nr_pages, want < most ? want : most, pages, is_clean);
}

/* From space, and, if it was asked for much already, a run for the next times. Not a second one: whom somebody drains has
 * the first yet, and a slot can name only one. */
static uint32_t take_some(vm_thread *t, uint64_t nr_pages, uint32_t want, unsigned flags, uint64_t *pages)
{
    vm_run run = {.most = VM_RELAXED(&t->slot->run) ? 0 : vm__run_most(t)};
    t->cold_pages += want * nr_pages;
    if (want == 1 && !run.most)
        return 0;
    uint32_t got = vm__space_take_many(t, nr_pages, want, flags, pages, &run);
    t->cold_pages += run.nr_pages;
    if (run.nr_pages)
        vm__run_keep(t, &run);
    return got;
}

/* Hand out a range from space and stock up: who keeps asking for a size gets twice as many at a time,
 * up to VM_MAGAZINE_STOCK_PAGES, for one turn at the space lock, and half as many after a failure. ENOSPC: not that
 * many; ask for one. */
int vm__magazine_stock(vm_thread *t, uint64_t nr_pages, unsigned flags, vm_range *out)
{
    uint64_t pages[VM_MAGAZINE_STOCK_PAGES];
    bool is_clean = false, has_quota = VM_RELAXED(&t->region->map.h->quota_pages);
    uint32_t want = 1u << t->stock[nr_pages], most = batch_of(t->region, nr_pages, VM_MAGAZINE_STOCK_PAGES);
    want = want < most ? want : most;
    uint32_t got = has_quota ? 0 : cut_some(t, nr_pages, want, pages, &is_clean);
    got = got ? got : take_some(t, nr_pages, want, flags, pages);
    if (want > 1 && !got)
        t->stock[nr_pages]--;
    else if (nr_pages << (t->stock[nr_pages] + 1) <= VM_MAGAZINE_STOCK_PAGES)
        t->stock[nr_pages]++;
    if (!got)
        return -ENOSPC;
    vm__hand_out(t, pages[0], nr_pages, is_clean && t->region->map.data, out);
    grow_for(t, nr_pages, got);
    vm__magazine_keep(t, nr_pages, got - 1, pages + 1);
    return 0;
}

/* One range of each size that large requests get while space is short, in pages. */
static uint64_t pages_of_each(void)
{
    uint64_t pages = 0;
    for (uint64_t n = vm__whole_pages(VM_FLOW_PAGES + 1); n <= VM_POOL_PAGES_MAX; n = vm__whole_pages(n + 1))
        pages += n;
    return pages;
}

static uint64_t pages_of_large(const vm_thread *t)
{
    uint64_t pages = 0;
    for (uint64_t n = vm__whole_pages(VM_FLOW_PAGES + 1); n <= VM_POOL_PAGES_MAX; n = vm__whole_pages(n + 1))
        pages += vm__magazine_count(VM_RELAXED(&t->hit.magazine[n].header)) * n;
    return pages;
}

/* What a thread's magazines may keep of them: a share of what nobody uses beyond a reserve, as if the others had as much in
 * theirs. Twice that, for they are half full, as a rule. */
static uint64_t tight_budget(const vm_thread *t)
{
    const vm_region *r = t->region;
    uint64_t used = VM_RELAXED(&r->map.h->high_slot) - vm__first_thread(r);
    uint64_t share = used > VM_TIGHT_THREADS ? used : VM_TIGHT_THREADS;
    return 2 * (vm__idle_beyond_reserve(r, vm__pooled_pages(r)) + pages_of_large(t) * used) / share;
}

/* As many of each as the budget has room for, or of none; then one more of the smallest. */
static void open_whole_sizes(vm_thread *t, uint64_t budget)
{
    uint64_t each = pages_of_each(), cap = budget / each, left = budget % each;
    cap = cap < VM_TIGHT_CAP ? cap : VM_TIGHT_CAP;
    for (uint64_t n = vm__whole_pages(VM_FLOW_PAGES + 1); n <= VM_POOL_PAGES_MAX; n = vm__whole_pages(n + 1)) {
        bool has_more = cap && cap < VM_TIGHT_CAP && n <= left;
        left -= has_more ? n : 0;
        if (cap + has_more)
            open_magazine(t, n);
        t->hit.cap[n] = (uint8_t)(cap + has_more);
    }
}

/* How much is idle changes, so it is counted anew now and then. */
static void look_at_budget(vm_thread *t)
{
    bool had_large = vm__gets_whole(t);
    bool may_keep = t->fast_pages && !vm__is_very_tight(t->region);
    open_whole_sizes(t, may_keep ? tight_budget(t) : 0);
    if (had_large && !vm__gets_whole(t))
        vm__magazine_flush_all(t);
}

static void set_large_caps(vm_thread *t, uint8_t cap)
{
    for (uint64_t n = VM_FLOW_PAGES + 1; n <= VM_POOL_PAGES_MAX; n++)
        t->hit.cap[n] = is_open(t, n) ? cap : 0;
}

/* From now on, or from now on not any more. */
static void change_tightness(vm_thread *t, bool is_tight)
{
    t->is_tight = is_tight;
    t->cold_pages = 0;
    if (!is_tight) {
        set_large_caps(t, 1);
        return;
    }
    vm__magazine_flush_all(t); /* or somebody drains it, who empties them as well */
    for (uint64_t n = VM_FLOW_PAGES + 1; n <= VM_POOL_PAGES_MAX; n++)
        t->cap_pages -= growth_pages(t->hit.cap[n], n);
    set_large_caps(t, 0);
    look_at_budget(t);
}

/* While space is short, magazines keep few large ranges, of the sizes that requests get then, and these caps are no growth.
 * After that each keeps one, as at first, and they grow again. */
void vm__magazine_tighten(vm_thread *t, bool is_tight)
{
    if (t->is_tight != is_tight)
        change_tightness(t, is_tight);
    else if (vm_unlikely(is_tight)
             && (++t->nr_tight % VM_TIGHT_LOOK_OPERATIONS == 0 || (vm__gets_whole(t) && vm__is_very_tight(t->region))))
        look_at_budget(t);
}

uint64_t vm__magazine_pages(const vm_thread *t)
{
    uint64_t pages = 0;
    for (uint32_t n = vm__next_opened(t->slot, 1); n <= t->fast_pages; n = vm__next_opened(t->slot, n + 1))
        pages += (uint64_t)vm__magazine_count(VM_RELAXED(&t->slot->magazine[n].header)) * n;
    return pages;
}

/* Is the last page of most of the largest ranges in memory? Who wrote to a range wrote to its end, as a rule. */
bool vm__magazines_are_resident(const vm_thread *t)
{
    const vm_region *r = t->region;
    uint32_t nr = 0, nr_there = 0;
    for (uint64_t n = t->fast_pages; n > 0 && nr < VM_MAGAZINE_SAMPLES; n--) {
        const vm_magazine *m = &t->slot->magazine[n];
        uint32_t count = is_open(t, n) ? vm__magazine_count(VM_RELAXED(&m->header)) : 0;
        uint64_t page = count ? VM_RELAXED(&m->page[count - 1]) : VM_NONE;
        uint8_t is_there = 0;
        if (page == VM_NONE || !entry_is_ours(r, t, page, n))
            continue;
        nr++;
        const uint8_t *last = r->map.data + ((page + n - 1) << r->map.page_shift);
        nr_there += vm__pages_resident(last, 1ull << r->map.page_shift, &is_there) && is_there & 1;
    }
    return 2 * nr_there > nr;
}

/* Everything back to the pools; `slot` is t's own. False: somebody drains it. */
bool vm__magazine_flush_all(vm_thread *t)
{
    if (!t->fast_pages)
        return true;
    if (!vm__magazines_enter(t))
        return false;
    for (uint32_t n = vm__next_opened(t->slot, 1); n <= VM_POOL_PAGES_MAX; n = vm__next_opened(t->slot, n + 1))
        if (vm__magazine_count(VM_RELAXED(&t->slot->magazine[n].header)))
            flush_oldest(t, n, VM_MAGAZINE_CAP);
    vm__run_return(t);
    vm__magazines_leave(t);
    return true;
}
