/* SPDX-License-Identifier: MIT */
/*
 * Check: walk the invariants of docs/design.md, section 8.
 *
 * Words, index, holders, names and leases are checked under the locks that change them and hold at any time;
 * what lists, magazines and counters say is compared only `at_rest`, when nobody else works. A read-only
 * attachment takes no lock: it looks again until it finds nothing, and reports the last look.
 */
#include "face.h"

#include <stdio.h>

#define P(x) ((unsigned long long)(x))

/* ---- words and index [space_lock] ---- */

/* For how many pages of the range do the index's bits say something else than its word? */
uint64_t vm__wrong_bits(const vm_region *r, uint64_t page, uint64_t nr_pages, bool is_free)
{
    uint64_t high = VM_RELAXED(&r->map.h->high_pages), end = page + nr_pages, nr = 0;
    if (is_free && end > high)
        end = page > high ? page : high; /* never touched above */
    for (uint64_t p = page; p < end; p++)
        nr += vm__index_is_free(&r->map, p) != is_free;
    return nr;
}

static void check_index(vm_check_state *c, uint64_t longest)
{
    vm_region *r = c->r;
    uint32_t level = 0;
    uint64_t entry = 0, nr = vm__index_nr_wrong(&r->map, &level, &entry);
    if (nr)
        vm__report(&c->report,
                   "index: %llu summaries differ from what is below them, the first at level %u, entry %llu", P(nr),
                   level, P(entry));
    if (longest != vm__index_largest(&r->map))
        vm__report(&c->report, "longest free run: index %llu, words %llu pages", P(vm__index_largest(&r->map)),
                   P(longest));
    uint64_t counted = VM_RELAXED(&r->map.h->free_pages);
    if (counted != c->pages[VM_FREE])
        vm__report(&c->report, "free pages: counter %llu, words %llu", P(counted), P(c->pages[VM_FREE]));
    uint64_t dirty = VM_RELAXED(&r->map.h->dirty_pages);
    if (dirty != c->dirty_pages)
        vm__report(&c->report, "free pages that may be resident: counter %llu, words %llu", P(dirty),
                   P(c->dirty_pages));
}

/* ---- holders, names, leases [names_lock, lease_lock, space_lock] ---- */

static bool is_used(const vm_region *r, uint32_t process)
{
    return (uint32_t)VM_ACQUIRE(&r->map.processes[process].state) != 0;
}

/* Bits, of those in holders[i], that stand for process slots which nobody uses. */
uint64_t vm__stray_bits(const vm_region *r, uint64_t bits, uint32_t i)
{
    uint64_t stray = 0;
    for (uint64_t left = bits; left; left &= left - 1) {
        uint32_t p = vm__process_of(i * 64 + (uint32_t)__builtin_ctzll(left), r->map.nr_processes);
        if (p != r->map.nr_processes && !is_used(r, p))
            stray |= left & -left;
    }
    return stray;
}

static int by_page(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

void vm__collect_leases(vm_check_state *c)
{
    vm_region *r = c->r;
    uint32_t high = VM_RELAXED(&r->map.h->lease_high);
    high = high < VM_LEASES_MAX ? high : VM_LEASES_MAX;
    c->nr_leased = 0;
    if (!c->leased)
        c->leased = malloc(VM_LEASES_MAX * sizeof *c->leased); /* the next look may find more */
    for (uint32_t i = 0; c->leased && i < high; i++) {
        uint64_t id = VM_ACQUIRE(&r->map.leases[i].id), page = VM_RELAXED(&r->map.leases[i].page);
        if (!id)
            continue;
        vm_word w = page < r->map.nr_pages ? VM_ACQUIRE(&r->map.heads[page].word) : 0;
        if (!vm__is_shared(w) || VM_ACQUIRE(&r->map.heads[page].aux) != VM_RELAXED(&r->map.leases[i].range_id))
            vm__report(&c->report, "lease %u: the range it names, page %llu, is gone", i, P(page));
        c->leased[c->nr_leased++] = page;
    }
    if (c->leased)
        qsort(c->leased, c->nr_leased, sizeof *c->leased, by_page);
    uint64_t counted = VM_RELAXED(&r->map.h->nr_leases);
    if (counted != c->nr_leased)
        vm__report(&c->report, "leases: counter %llu, entries %zu", P(counted), c->nr_leased);
}

/* Of the next page of the walk, how many leases name it; `at` goes on. */
uint64_t vm__leases_of(const vm_check_state *c, uint64_t page, size_t *at)
{
    uint64_t nr = 0;
    while (*at < c->nr_leased && c->leased[*at] < page)
        ++*at;
    for (; *at < c->nr_leased && c->leased[*at] == page; ++*at)
        nr++;
    return nr;
}

static void check_names(vm_check_state *c)
{
    vm_region *r = c->r;
    for (uint32_t i = 0; i < VM_NAMES_MAX; i++) {
        uint64_t id = VM_ACQUIRE(&r->map.names[i].state), page = VM_RELAXED(&r->map.names[i].page);
        if (!id)
            continue;
        vm_word w = page < r->map.nr_pages ? VM_ACQUIRE(&r->map.heads[page].word) : 0;
        if (!vm__is_shared(w) || VM_ACQUIRE(&r->map.heads[page].aux) != id)
            vm__report(&c->report, "name %u: the range it names, page %llu, is gone", i, P(page));
        else if (!vm__names_hold(r, page))
            vm__report(&c->report, "name %u: page %llu is not held for it", i, P(page));
    }
}

static void check_shared(vm_check_state *c, uint64_t page, vm_word w, uint64_t nr_entries)
{
    vm_region *r = c->r;
    uint64_t held = 0, leases = VM_ACQUIRE(&r->map.sharings[page].nr_leases);
    for (uint32_t i = 0; i < vm__nr_holders(r); i++) {
        uint64_t bits = VM_ACQUIRE(vm__holders(r, page, i)), stray = vm__stray_bits(r, bits, i);
        held |= bits;
        if (stray)
            vm__report(&c->report, "page %llu: held by process slot %u, which nobody uses", P(page),
                       vm__process_of(i * 64 + (uint32_t)__builtin_ctzll(stray), r->map.nr_processes));
    }
    if (vm__names_hold(r, page) && !vm__is_named(r, page, VM_ACQUIRE(&r->map.heads[page].aux)))
        vm__report(&c->report, "page %llu: held for a name, but no name stands for it", P(page));
    if (leases != nr_entries)
        vm__report(&c->report, "page %llu: %llu leases counted, %llu there", P(page), P(leases), P(nr_entries));
    if (c->at_rest && vm__state(w) == VM_BUSY && !held && !leases)
        vm__report(&c->report, "page %llu: busy and shared, but nobody holds it", P(page));
}

/* Is `id` the range's, and not what its head had while it was ready in between? An id is written before the word. */
bool vm__is_id_of(const vm_region *r, uint64_t page, vm_word w, uint64_t id)
{
    return VM_ACQUIRE(&r->map.heads[page].word) == w && VM_ACQUIRE(&r->map.heads[page].aux) == id;
}

static void check_busy(vm_check_state *c, uint64_t page, vm_word w)
{
    vm_region *r = c->r;
    uint64_t id = VM_ACQUIRE(&r->map.heads[page].aux), next = VM_ACQUIRE(&r->map.h->next_id);
    if (id >> VM_ID_SIZE_BITS >= next && vm__is_id_of(r, page, w, id))
        vm__report(&c->report, "page %llu: its id %llx is not given out yet", P(page), P(id));
    uint32_t p = vm__owner(w);
    uint64_t state = p < r->map.nr_processes ? VM_ACQUIRE(&r->map.processes[p].state) : 0;
    bool is_its = (uint32_t)state == VM_PROCESS_DYING /* what its last owner left is reclaimed next */
                  || ((uint32_t)state && (state >> 32 & VM_INC_MASK) == vm__inc(w));
    if (!(w & VM_WORD_SHARED) && !(r->map.flags & VM_FLAG_KEEP) && !is_its)
        vm__report(&c->report, "page %llu: busy for process slot %u, which is another's or nobody's", P(page), p);
}

/* Of process slots that are used and said never to have been, the last one; nr_processes: there is none. Their bits of
 * holders would not be looked at. */
uint32_t vm__beyond_high(const vm_region *r)
{
    for (uint32_t p = r->map.nr_processes; p-- > 0;)
        if (is_used(r, p) && p >= vm__high_process(r))
            return p;
    return r->map.nr_processes;
}

static void check_processes(vm_check_state *c)
{
    uint32_t last = vm__beyond_high(c->r);
    if (last < c->r->map.nr_processes)
        vm__report(&c->report, "process slot %u: it is used, and said never to have been", last);
}

/* ---- the walk ---- */

static int check_words(vm_region *r, void *arg)
{
    vm_check_state *c = arg;
    uint64_t page = 0, longest = 0;
    size_t lease = 0;
    bool was_free = false;
    vm__report_clear(&c->report);
    memset(c->pages, 0, sizeof c->pages);
    c->dirty_pages = 0;
    vm__collect_leases(c);
    check_names(c);
    for (vm_word w; (w = vm__word_at(r, page)); page += vm__len(w)) {
        vm_state state = vm__state(w);
        uint64_t nr_wrong = vm__wrong_bits(r, page, vm__len(w), state == VM_FREE);
        c->pages[state] += vm__len(w);
        c->dirty_pages += state == VM_FREE && w & VM_WORD_DIRTY ? vm__len(w) : 0;
        if (state > VM_FREEING)
            vm__report(&c->report, "page %llu: state %u does not exist", P(page), (unsigned)state);
        if (state == VM_FREE && was_free)
            vm__report(&c->report, "page %llu: two free ranges side by side", P(page));
        if (nr_wrong)
            vm__report(&c->report, "page %llu: the word says %s, the index's bits say otherwise for %llu of %llu pages",
                       P(page), state == VM_FREE ? "free" : "taken", P(nr_wrong), P(vm__len(w)));
        if (vm__is_shared(w))
            check_shared(c, page, w, vm__leases_of(c, page, &lease));
        if (state == VM_BUSY)
            check_busy(c, page, w);
        if (state == VM_FREE && vm__len(w) > longest)
            longest = vm__len(w);
        was_free = state == VM_FREE;
    }
    if (page != r->map.nr_pages) {
        vm__report(&c->report, "the words stop parsing at page %llu of %llu", P(page), P(r->map.nr_pages));
        return r->readonly ? -EUCLEAN : 0;
    }
    check_index(c, longest);
    return r->readonly && c->report.nr ? -EAGAIN : 0; /* look again */
}

static int lock_tables(vm_thread *t)
{
    vm_region *r = t->region;
    int rc = vm__names_lock(t, 0);
    if (rc)
        return rc;
    rc = vm__lease_lock(t, 0);
    if (rc)
        vm__unlock(t, &r->map.h->names_lock);
    return rc;
}
static void unlock_tables(vm_thread *t)
{
    vm_region *r = t->region;
    vm__unlock(t, &r->map.h->lease_lock);
    vm__unlock(t, &r->map.h->names_lock);
}

/* `t` is NULL in a read-only attachment. */
static int walk(vm_check_state *c, vm_thread *t)
{
    vm_region *r = c->r;
    int rc = t ? lock_tables(t) : 0;
    if (rc == -EUCLEAN) { /* their repair walks the words too: look without them, and say what is wrong there */
        rc = vm__look(r, t, check_words, c);
    } else if (rc == 0) {
        rc = vm__look(r, t, check_words, c);
        if (t)
            unlock_tables(t);
    }
    return rc == -EAGAIN && !t ? 0 : rc; /* what the last look found is told */
}

/* ---- lists, magazines, counters: at rest only ---- */

static void check_pools(vm_check_state *c)
{
    const vm_pools_kept *kept = c->r->design->kept;
    uint64_t listed = 0;
    for (uint32_t i = 0; kept->check && i < vm__nodes_used(c->r); i++)
        listed += kept->check(c->r, i, &c->report);
    if (listed != c->pages[VM_POOLED])
        vm__report(&c->report, "pooled pages: lists %llu, words %llu", P(listed), P(c->pages[VM_POOLED]));
}

static void check_lazy(vm_check_state *c)
{
    uint64_t lazy = c->pages[VM_LAZY], counted = VM_RELAXED(&c->r->map.h->lazy_pages);
    uint64_t listed = vm__warm_check(c->r, &c->report);
    if (listed != lazy)
        vm__report(&c->report, "lazy pages: lists %llu, words %llu", P(listed), P(lazy));
    if (counted != lazy && !VM_RELAXED(&c->r->map.h->lazy_is_off)) /* else that is known, and the next scan's to mend */
        vm__report(&c->report, "lazy pages: counter %llu, words %llu", P(counted), P(lazy));
}

/* Every CACHED word is in the magazine of its owner, whose slot is in use, or is that slot's run. */
static void check_cached(vm_check_state *c)
{
    vm_region *r = c->r;
    uint64_t page = 0;
    for (vm_word w; (w = vm__word_at(r, page)); page += vm__len(w)) {
        if (vm__state(w) != VM_CACHED)
            continue;
        uint32_t slot = vm__owner(w), k = 0;
        bool is_used = slot < r->map.nr_threads && VM_ACQUIRE(&r->map.slots[slot].state) & 1;
        if (is_used && VM_ACQUIRE(&r->map.slots[slot].run) == page + 1)
            continue;
        if (!is_used || vm__len(w) > VM_POOL_PAGES_MAX) {
            vm__report(&c->report, "page %llu: cached by slot %u, which nobody uses", P(page), slot);
            continue;
        }
        vm_magazine *m = &r->map.slots[slot].magazine[vm__len(w)];
        uint32_t n = vm__magazine_count(VM_ACQUIRE(&m->header));
        while (k < n && VM_RELAXED(&m->page[k]) != page)
            k++;
        if (k == n)
            vm__report(&c->report, "page %llu: cached by slot %u but not in its magazine", P(page), slot);
    }
}

static void check_lock(vm_check_state *c, const vm_lock *lock, const char *what)
{
    vm_token owner = VM_RELAXED(&lock->owner) & VM_TOKEN_MASK;
    if (owner)
        vm__report(&c->report, "%s held by slot %u", what, vm__token_slot(owner));
}

static void check_locks(vm_check_state *c)
{
    vm_region *r = c->r;
    char what[32];
    for (uint32_t i = 0; i < vm__nodes_used(r); i++) {
        snprintf(what, sizeof what, "node %u: pool_lock", i);
        check_lock(c, &r->map.nodes[i].pool_lock, what);
    }
    check_lock(c, &r->map.h->warm.lock, "warm_lock");
    check_lock(c, &r->map.h->purge_lock, "purge_lock");
    check_lock(c, &r->map.h->names_lock, "names_lock");
    check_lock(c, &r->map.h->lease_lock, "lease_lock");
    check_lock(c, &r->map.h->space_lock, "space_lock");
}

/* Slots that threads of nobody have. The processes' own are taken before their process is. */
bool vm__is_stray_thread(const vm_region *r, uint32_t i)
{
    uint64_t state = VM_ACQUIRE(&r->map.slots[i].state);
    return state & 1 && !is_used(r, vm__slot_process(r, state));
}

static void check_threads(vm_check_state *c)
{
    for (uint32_t i = vm__first_thread(c->r); i < c->r->map.nr_threads && vm__slot_was_used(c->r, i); i++)
        if (vm__is_stray_thread(c->r, i))
            vm__report(&c->report, "thread slot %u: its process slot is nobody's", i);
}

static void check_rest(vm_check_state *c)
{
    check_pools(c);
    check_lazy(c);
    check_cached(c);
    check_locks(c);
    check_threads(c);
    uint64_t moving = c->pages[VM_MOVING] + c->pages[VM_PURGING] + c->pages[VM_FREEING];
    if (moving)
        vm__report(&c->report, "at rest, yet %llu pages are moving", P(moving));
}

int vm_check(vm_region *r, bool at_rest, void (*say)(void *, const char *), void *arg)
{
    int rc;
    vm_check_state c = {.r = r, .at_rest = at_rest};
    vm_thread *t = vm__look_enter(r, &rc);
    if (rc)
        return rc;
    rc = walk(&c, t);
    vm__look_leave(t);
    check_processes(&c);
    if (rc == 0 && at_rest)
        check_rest(&c);
    uint64_t line = VM_ACQUIRE(&r->map.h->corrupt);
    if (line)
        vm__report(&c.report, "marked corrupt by line %llu", P(line));
    free(c.leased);
    int nr = vm__report_end(&c.report, say, arg);
    return rc && rc != -EUCLEAN ? rc : nr ? nr : rc;
}
