/* SPDX-License-Identifier: MIT */
/*
 * Check: walk the invariants of docs/design.md, section 8. Repair: make hints, holders and counts agree with
 * the words again.
 *
 * Words, index, holders, names and leases are checked under the locks that change them and hold at any time;
 * what lists, magazines and counters say is compared only `at_rest`, when nobody else works. A read-only
 * attachment takes no lock: it looks again until it finds nothing, and reports the last look.
 *
 * Nothing is told before every lock is let go: whoever listens may allocate. Repair rebuilds hints from
 * words, never words from hints.
 */
#include "internal.h"

#include <stdarg.h>
#include <stdio.h>

#define TOLD_MOST 1000 /* findings that are kept as text; the others are only counted */

typedef struct finder {
    vm_region *r;
    bool at_rest;
    int nr;
    char *text; /* one after the other, each ended by 0 */
    size_t len, room;
    /* sorted: the pages that entries of the lease table name */
    uint64_t *leased;
    size_t nr_leased;
    uint64_t pages[16]; /* by state */
} finder;

__attribute__((format(printf, 2, 3))) static void find(finder *f, const char *format, ...)
{
    char text[256];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    size_t bytes = n < 0 ? 1 : (size_t)n < sizeof text ? (size_t)n + 1 : sizeof text;
    if (f->nr++ >= TOLD_MOST)
        return;
    if (f->room - f->len < bytes) {
        size_t room = 2 * f->room + sizeof text;
        char *grown = realloc(f->text, room);
        if (!grown)
            return;
        f->text = grown;
        f->room = room;
    }
    memcpy(f->text + f->len, text, bytes);
    f->len += bytes;
}

/* Outside all locks. Returns how many there were. */
static int tell(finder *f, void (*say)(void *, const char *), void *arg)
{
    for (size_t at = 0; say && at < f->len; at += strlen(f->text + at) + 1)
        say(arg, f->text + at);
    if (say && f->nr > TOLD_MOST)
        say(arg, "... and more of these, which are not listed");
    free(f->text);
    free(f->leased);
    return f->nr;
}

int vm__corrupt(vm_region *r, int line)
{
    if (!r->readonly && !VM_LOAD(&r->h->corrupt))
        VM_STORE(&r->h->corrupt, (uint64_t)line);
    return -EUCLEAN;
}

#define P(x) ((unsigned long long)(x))

/* ---- words and index [space_lock] ---- */

/* For how many pages of the range do the index's bits say something else than its word? */
static uint64_t wrong_bits(const vm_region *r, uint64_t page, uint64_t nr_pages, bool is_free)
{
    uint64_t high = VM_PEEK(&r->h->high_pages), end = page + nr_pages, nr = 0;
    if (is_free && end > high)
        end = page > high ? page : high; /* never touched above */
    for (uint64_t p = page; p < end; p++)
        nr += vm__index_is_free(r, p) != is_free;
    return nr;
}

static void check_index(finder *f, uint64_t longest)
{
    vm_region *r = f->r;
    uint32_t level = 0;
    uint64_t entry = 0, nr = vm__index_nr_wrong(r, &level, &entry);
    if (nr)
        find(f, "index: %llu summaries differ from what is below them, the first at level %u, entry %llu", P(nr),
             level, P(entry));
    if (longest != vm__index_largest(r))
        find(f, "longest free run: index %llu, words %llu pages", P(vm__index_largest(r)), P(longest));
    uint64_t counted = VM_PEEK(&r->h->free_pages);
    if (counted != f->pages[VM_FREE])
        find(f, "free pages: counter %llu, words %llu", P(counted), P(f->pages[VM_FREE]));
}

/* ---- holders, names, leases [names_lock, lease_lock, space_lock] ---- */

static bool is_shared(vm_word w)
{
    return w & VM_WORD_SHARED && (vm__state(w) == VM_BUSY || vm__state(w) == VM_FREEING);
}

static bool is_used(const vm_region *r, uint32_t process) { return (uint32_t)VM_LOAD(&r->processes[process].state) != 0; }

/* Bits, of those in holders[i], that stand for process slots which nobody uses. */
static uint64_t stray_bits(const vm_region *r, uint64_t bits, uint32_t i)
{
    uint64_t stray = 0;
    for (uint64_t left = bits; left; left &= left - 1) {
        uint32_t p = i * 64 + (uint32_t)__builtin_ctzll(left);
        if (p != VM_PROCESS_NAMES && !is_used(r, p))
            stray |= left & -left;
    }
    return stray;
}

static int by_page(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void collect_leases(finder *f)
{
    vm_region *r = f->r;
    uint32_t high = VM_PEEK(&r->h->lease_high);
    high = high < VM_LEASES ? high : VM_LEASES;
    f->nr_leased = 0;
    if (!f->leased)
        f->leased = malloc(VM_LEASES * sizeof *f->leased); /* the next look may find more */
    for (uint32_t i = 0; f->leased && i < high; i++) {
        uint64_t id = VM_LOAD(&r->leases[i].id), page = VM_PEEK(&r->leases[i].page);
        if (!id)
            continue;
        vm_word w = page < r->nr_pages ? VM_LOAD(&r->heads[page].word) : 0;
        if (!is_shared(w) || VM_LOAD(&r->heads[page].aux) != VM_PEEK(&r->leases[i].range_id))
            find(f, "lease %u: the range it names, page %llu, is gone", i, P(page));
        f->leased[f->nr_leased++] = page;
    }
    if (f->leased)
        qsort(f->leased, f->nr_leased, sizeof *f->leased, by_page);
    uint64_t counted = VM_PEEK(&r->h->nr_leases);
    if (counted != f->nr_leased)
        find(f, "leases: counter %llu, entries %zu", P(counted), f->nr_leased);
}

/* Of the next page of the walk, how many leases name it; `at` goes on. */
static uint64_t leases_of(const finder *f, uint64_t page, size_t *at)
{
    uint64_t nr = 0;
    while (*at < f->nr_leased && f->leased[*at] < page)
        ++*at;
    for (; *at < f->nr_leased && f->leased[*at] == page; ++*at)
        nr++;
    return nr;
}

static void check_names(finder *f)
{
    vm_region *r = f->r;
    for (uint32_t i = 0; i < VM_NAMES; i++) {
        uint64_t id = VM_LOAD(&r->names[i].state), page = VM_PEEK(&r->names[i].page);
        if (!id)
            continue;
        vm_word w = page < r->nr_pages ? VM_LOAD(&r->heads[page].word) : 0;
        if (!is_shared(w) || VM_LOAD(&r->heads[page].aux) != id)
            find(f, "name %u: the range it names, page %llu, is gone", i, P(page));
        else if (!vm__names_hold(r, page))
            find(f, "name %u: page %llu is not held for it", i, P(page));
    }
}

static void check_shared(finder *f, uint64_t page, vm_word w, uint64_t nr_entries)
{
    vm_region *r = f->r;
    uint64_t held = 0, leases = VM_LOAD(&r->sharings[page].nr_leases);
    for (uint32_t i = 0; i < VM_PROCESSES / 64; i++) {
        uint64_t bits = VM_LOAD(&r->sharings[page].holders[i]), stray = stray_bits(r, bits, i);
        held |= bits;
        if (stray)
            find(f, "page %llu: held by process slot %u, which nobody uses", P(page),
                 i * 64 + (uint32_t)__builtin_ctzll(stray));
    }
    if (vm__names_hold(r, page) && !vm__is_named(r, page, VM_LOAD(&r->heads[page].aux)))
        find(f, "page %llu: held for a name, but no name stands for it", P(page));
    if (leases != nr_entries)
        find(f, "page %llu: %llu leases counted, %llu there", P(page), P(leases), P(nr_entries));
    if (f->at_rest && vm__state(w) == VM_BUSY && !held && !leases)
        find(f, "page %llu: busy and shared, but nobody holds it", P(page));
}

static void check_busy(finder *f, uint64_t page, vm_word w)
{
    vm_region *r = f->r;
    uint64_t id = VM_LOAD(&r->heads[page].aux), next = VM_LOAD(&r->h->next_id);
    if (id >> VM_ID_SIZE_BITS >= next)
        find(f, "page %llu: its id %llx is not given out yet", P(page), P(id));
    uint32_t p = vm__owner(w);
    uint64_t state = p < VM_PROCESSES ? VM_LOAD(&r->processes[p].state) : 0;
    bool is_its = (uint32_t)state == VM_PROCESS_DYING /* what its last owner left is reclaimed next */
                  || ((uint32_t)state && (state >> 32 & VM_INC_MASK) == vm__inc(w));
    if (!(w & VM_WORD_SHARED) && !(r->flags & VM_FLAG_KEEP) && !is_its)
        find(f, "page %llu: busy for process slot %u, which is another's or nobody's", P(page), p);
}

/* ---- the walk ---- */

static int check_words(vm_region *r, void *arg)
{
    finder *f = arg;
    uint64_t page = 0, longest = 0;
    size_t lease = 0;
    bool was_free = false;
    f->nr = 0, f->len = 0;
    memset(f->pages, 0, sizeof f->pages);
    collect_leases(f);
    check_names(f);
    for (vm_word w; (w = vm__scan(r, page)); page += vm__len(w)) {
        vm_state state = vm__state(w);
        uint64_t nr_wrong = wrong_bits(r, page, vm__len(w), state == VM_FREE);
        f->pages[state] += vm__len(w);
        if (state > VM_FREEING)
            find(f, "page %llu: state %u does not exist", P(page), (unsigned)state);
        if (state == VM_FREE && was_free)
            find(f, "page %llu: two free ranges side by side", P(page));
        if (nr_wrong)
            find(f, "page %llu: the word says %s, the index's bits say otherwise for %llu of %llu pages", P(page),
                 state == VM_FREE ? "free" : "taken", P(nr_wrong), P(vm__len(w)));
        if (is_shared(w))
            check_shared(f, page, w, leases_of(f, page, &lease));
        if (state == VM_BUSY)
            check_busy(f, page, w);
        if (state == VM_FREE && vm__len(w) > longest)
            longest = vm__len(w);
        was_free = state == VM_FREE;
    }
    if (page != r->nr_pages) {
        find(f, "the words stop parsing at page %llu of %llu", P(page), P(r->nr_pages));
        return r->readonly ? -EUCLEAN : 0;
    }
    check_index(f, longest);
    return r->readonly && f->nr ? -EAGAIN : 0; /* look again */
}

static int lock_tables(vm_region *r, vm_thread *t)
{
    int rc = vm__names_lock(r, t);
    if (rc)
        return rc;
    rc = vm__lease_lock(r, t, 0);
    if (rc)
        vm__unlock(r, t, &r->h->names_lock);
    return rc;
}
static void unlock_tables(vm_region *r, vm_thread *t)
{
    vm__unlock(r, t, &r->h->lease_lock);
    vm__unlock(r, t, &r->h->names_lock);
}

/* `t` is NULL in a read-only attachment. */
static int walk(finder *f, vm_thread *t)
{
    vm_region *r = f->r;
    int rc = t ? lock_tables(r, t) : 0;
    if (rc == -EUCLEAN) { /* their repair walks the words too: look without them, and say what is wrong there */
        rc = vm__look(r, t, check_words, f);
    } else if (rc == 0) {
        rc = vm__look(r, t, check_words, f);
        if (t)
            unlock_tables(r, t);
    }
    return rc == -EAGAIN && !t ? 0 : rc; /* what the last look found is told */
}

/* ---- lists, magazines, counters: at rest only ---- */

/* Walk a list; every entry must be in `state`, and of nr_pages if that is not 0. Returns its pages. */
static uint64_t list_pages(finder *f, uint64_t link, vm_state state, uint64_t nr_pages, const char *what, uint32_t *nr)
{
    vm_region *r = f->r;
    uint64_t pages = 0, steps = 0;
    for (*nr = 0; link && steps <= r->nr_pages; steps++, ++*nr) {
        vm_word w = link <= r->nr_pages ? VM_LOAD(&r->heads[link - 1].word) : 0;
        if (vm__state(w) != state || (nr_pages && vm__len(w) != nr_pages)) {
            find(f, "%s: entry %llu is in state %u with %llu pages", what, P(link - 1), (unsigned)vm__state(w),
                 P(vm__len(w)));
            break;
        }
        pages += vm__len(w);
        link = VM_PEEK(&r->heads[link - 1].aux);
    }
    if (steps > r->nr_pages)
        find(f, "%s: the list is a circle", what);
    return pages;
}

static uint64_t check_pools_of(finder *f, uint32_t node)
{
    uint64_t listed = 0;
    char what[64];
    for (uint32_t k = 0; k < VM_POOL_PAGES_MAX; k++) {
        vm_pool *p = &f->r->nodes[node].pool[k];
        uint32_t nr, counted = VM_PEEK(&p->nr_ranges), in_use = VM_PEEK(&p->in_use);
        snprintf(what, sizeof what, "node %u, pool of %u pages", node, k + 1);
        listed += list_pages(f, VM_PEEK(&p->head), VM_POOLED, k + 1, what, &nr);
        if (nr != counted)
            find(f, "%s: counter %u, list %u", what, counted, nr);
        if (in_use)
            find(f, "%s: still in use by slot %u", what, vm__token_slot(in_use));
    }
    return listed;
}

static void check_pools(finder *f)
{
    uint64_t listed = 0;
    for (uint32_t i = 0; i < f->r->nr_nodes; i++)
        listed += check_pools_of(f, i);
    if (listed != f->pages[VM_POOLED])
        find(f, "pooled pages: lists %llu, words %llu", P(listed), P(f->pages[VM_POOLED]));
}

static void check_lazy(finder *f)
{
    vm_region *r = f->r;
    uint64_t listed = 0, lazy = f->pages[VM_LAZY], counted = VM_PEEK(&r->h->lazy_pages);
    uint32_t nr;
    for (uint32_t i = 0; i < r->nr_nodes; i++)
        listed += list_pages(f, VM_PEEK(&r->nodes[i].lazy_head), VM_LAZY, 0, "lazy list", &nr);
    for (uint32_t i = 0; i < VM_SHELF; i++) {
        uint64_t e = VM_PEEK(&r->h->shelf[i]), page = e >> 32;
        if (e && page < r->nr_pages && vm__state(VM_LOAD(&r->heads[page].word)) == VM_LAZY)
            listed += (uint32_t)e;
    }
    if (listed != lazy)
        find(f, "lazy pages: lists %llu, words %llu", P(listed), P(lazy));
    if (counted != lazy)
        find(f, "lazy pages: counter %llu, words %llu", P(counted), P(lazy));
}

/* Every CACHED word is in the magazine of its owner, whose slot is in use. */
static void check_cached(finder *f)
{
    vm_region *r = f->r;
    uint64_t page = 0;
    for (vm_word w; (w = vm__scan(r, page)); page += vm__len(w)) {
        if (vm__state(w) != VM_CACHED)
            continue;
        uint32_t slot = vm__owner(w), k = 0;
        if (slot >= r->nr_threads || !(VM_LOAD(&r->slots[slot].state) & 1) || vm__len(w) > VM_POOL_PAGES_MAX) {
            find(f, "page %llu: cached by slot %u, which nobody uses", P(page), slot);
            continue;
        }
        vm_magazine *m = &r->slots[slot].magazine[vm__len(w)];
        uint32_t n = vm__magazine_count(VM_LOAD(&m->header));
        while (k < n && VM_PEEK(&m->page[k]) != page)
            k++;
        if (k == n)
            find(f, "page %llu: cached by slot %u but not in its magazine", P(page), slot);
    }
}

static void check_lock(finder *f, const vm_lock *lock, const char *what)
{
    vm_token owner = VM_PEEK(&lock->owner) & VM_TOKEN_MASK;
    if (owner)
        find(f, "%s held by slot %u", what, vm__token_slot(owner));
}

static void check_locks(finder *f)
{
    vm_region *r = f->r;
    char what[32];
    for (uint32_t i = 0; i < r->nr_nodes; i++) {
        snprintf(what, sizeof what, "node %u: pool_lock", i);
        check_lock(f, &r->nodes[i].pool_lock, what);
    }
    check_lock(f, &r->h->purge_lock, "purge_lock");
    check_lock(f, &r->h->names_lock, "names_lock");
    check_lock(f, &r->h->lease_lock, "lease_lock");
    check_lock(f, &r->h->space_lock, "space_lock");
}

/* Slots that threads of nobody have. Those below VM_PROCESSES are taken before their process is. */
static bool is_stray_thread(const vm_region *r, uint32_t i)
{
    uint64_t state = VM_LOAD(&r->slots[i].state);
    return state & 1 && !is_used(r, (uint32_t)(state >> 1) & (VM_PROCESSES - 1));
}

static void check_threads(finder *f)
{
    for (uint32_t i = VM_PROCESSES; i < f->r->nr_threads && vm__slot_was_used(f->r, i); i++)
        if (is_stray_thread(f->r, i))
            find(f, "thread slot %u: its process slot is nobody's", i);
}

static void check_rest(finder *f)
{
    check_pools(f);
    check_lazy(f);
    check_cached(f);
    check_locks(f);
    check_threads(f);
    uint64_t moving = f->pages[VM_MOVING] + f->pages[VM_PURGING] + f->pages[VM_FREEING];
    if (moving)
        find(f, "at rest, yet %llu pages are moving", P(moving));
}

/* ---- repair ---- */

/* Counted before the index is rebuilt. [space_lock] */
static int tell_index(vm_region *r, finder *f)
{
    uint64_t page = 0, free_pages = 0, nr_bits = 0, nr_split = 0, nr_wrong, counted = VM_PEEK(&r->h->free_pages), entry;
    uint32_t level;
    bool was_free = false;
    for (vm_word w; (w = vm__scan(r, page)); page += vm__len(w)) {
        bool is_free = vm__state(w) == VM_FREE;
        nr_bits += wrong_bits(r, page, vm__len(w), is_free);
        nr_split += is_free && was_free;
        free_pages += is_free ? vm__len(w) : 0;
        was_free = is_free;
    }
    if (page != r->nr_pages)
        return -EUCLEAN; /* words are not made from hints */
    if ((nr_wrong = vm__index_nr_wrong(r, &level, &entry)))
        find(f, "index: %llu summaries rewritten", P(nr_wrong));
    if (nr_bits)
        find(f, "index: %llu pages' bits rewritten", P(nr_bits));
    if (nr_split)
        find(f, "space: %llu times two free ranges made one", P(nr_split));
    if (counted != free_pages)
        find(f, "free pages: counter was %llu, is %llu", P(counted), P(free_pages));
    return 0;
}

static int repair_space(vm_region *r, vm_thread *t, finder *f)
{
    int rc = vm__lock(r, t, &r->h->space_lock, 0); /* not vm__space_lock(): it would mend before we looked */
    if (rc)
        return rc;
    rc = tell_index(r, f);
    if (rc == 0) {
        VM_PUT(&r->h->high_pages, r->nr_pages); /* whoever scribbled may have done so anywhere */
        rc = vm__space_rebuild(r, t);
    }
    VM_PUT(&r->h->space_lock.needs_repair, rc != 0);
    vm__unlock(r, t, &r->h->space_lock);
    return rc;
}

static void drop_names_of_nothing(vm_region *r, finder *f)
{
    uint64_t nr = 0;
    for (uint32_t i = 0; i < VM_NAMES; i++) {
        uint64_t id = VM_LOAD(&r->names[i].state), page = VM_PEEK(&r->names[i].page);
        if (!id)
            continue;
        vm_word w = page < r->nr_pages ? VM_LOAD(&r->heads[page].word) : 0;
        bool is_there = is_shared(w) && VM_LOAD(&r->heads[page].aux) == id;
        if (is_there && !vm__names_hold(r, page)) {
            vm__hold_for_name(r, page);
            find(f, "name %u: page %llu is held for it again", i, P(page));
        }
        if (!is_there) {
            VM_STORE(&r->names[i].state, 0);
            nr++;
        }
    }
    if (nr)
        find(f, "names: %llu dropped whose ranges are gone", P(nr));
}

/* [names_lock, lease_lock, space_lock] */
static void drop_stray_holders(vm_region *r, finder *f)
{
    uint64_t page = 0, nr = 0, nr_named = 0;
    for (vm_word w; (w = vm__scan(r, page)); page += vm__len(w)) {
        if (!is_shared(w))
            continue;
        for (uint32_t i = 0; i < VM_PROCESSES / 64; i++) {
            uint64_t *bits = &r->sharings[page].holders[i], stray = stray_bits(r, VM_LOAD(bits), i);
            if (stray) {
                VM_AND(bits, ~stray);
                nr += (uint64_t)__builtin_popcountll(stray);
            }
        }
        nr_named += vm__unhold_unnamed(r, page);
    }
    if (nr)
        find(f, "holders: %llu bits of process slots dropped that nobody uses", P(nr));
    if (nr_named)
        find(f, "names: %llu holder bits dropped that no name stood for", P(nr_named));
}

/* How many pages' counts differ from the lease table. [lease_lock, space_lock] */
static void tell_leases(vm_region *r, finder *f)
{
    finder quiet = {.r = r};
    uint64_t page = 0, nr = 0;
    size_t at = 0;
    collect_leases(&quiet);
    for (vm_word w; (w = vm__scan(r, page)); page += vm__len(w))
        if (is_shared(w))
            nr += VM_LOAD(&r->sharings[page].nr_leases) != leases_of(&quiet, page, &at);
    if (nr || quiet.nr)
        find(f, "leases: counted again; %llu ranges had another count, %d entries or counters were wrong", P(nr),
             quiet.nr);
    tell(&quiet, NULL, NULL);
}

static int repair_tables(vm_region *r, vm_thread *t, finder *f)
{
    int rc = vm__names_lock(r, t);
    if (rc)
        return rc;
    rc = vm__lock(r, t, &r->h->lease_lock, 0);
    if (rc == 0) {
        rc = vm__space_lock(r, t, 0);
        if (rc == 0) {
            drop_names_of_nothing(r, f);
            drop_stray_holders(r, f);
            tell_leases(r, f);
            vm__space_unlock(r, t);
        }
        VM_PUT(&r->h->lease_lock.needs_repair, 1);
        vm__unlock(r, t, &r->h->lease_lock);
    }
    if (rc == 0 && (rc = vm__lease_lock(r, t, 0)) == 0)
        vm__unlock(r, t, &r->h->lease_lock);
    vm__unlock(r, t, &r->h->names_lock);
    return rc;
}

/* Is any list of this node other than its counters and the words say? [pool_lock] */
static void tell_pools(vm_region *r, finder *f, uint32_t node)
{
    finder quiet = {.r = r};
    check_pools_of(&quiet, node);
    if (quiet.nr)
        find(f, "node %u: pools rebuilt; %d lists or counters were wrong", node, quiet.nr);
    tell(&quiet, NULL, NULL);
}

static int repair_pools(vm_region *r, vm_thread *t, finder *f)
{
    bool has_locks = r->pools == VM_POOLS_LOCKED || r->pools == VM_POOLS_MAGAZINE; /* else nobody would steal one */
    for (uint32_t i = 0; i < r->nr_nodes && has_locks; i++) {
        vm_lock *lock = &r->nodes[i].pool_lock;
        int rc = vm__lock(r, t, lock, 0);
        if (rc)
            return rc;
        tell_pools(r, f, i);
        VM_PUT(&lock->needs_repair, 1); /* the scan, or whoever comes first, rebuilds */
        vm__unlock(r, t, lock);
    }
    return 0;
}

static int sum_lazy(vm_region *r, vm_thread *t, uint64_t *sum, uint64_t *largest_serial)
{
    uint64_t page = 0;
    int rc = vm__space_lock(r, t, 0);
    if (rc)
        return rc;
    *sum = *largest_serial = 0;
    for (vm_word w; (w = vm__scan(r, page)); page += vm__len(w)) {
        uint64_t serial = VM_LOAD(&r->heads[page].aux) >> VM_ID_SIZE_BITS;
        *sum += vm__state(w) == VM_LAZY ? vm__len(w) : 0;
        if (vm__state(w) == VM_BUSY && serial > *largest_serial)
            *largest_serial = serial;
    }
    vm__space_unlock(r, t);
    return 0;
}

/* Counters that nobody locks: told if they are off before the scan settles them. */
static int repair_counters(vm_region *r, vm_thread *t, finder *f)
{
    uint64_t lazy, serial, counted = VM_LOAD(&r->h->lazy_pages), next = VM_LOAD(&r->h->next_id);
    int rc = sum_lazy(r, t, &lazy, &serial);
    if (rc)
        return rc;
    if (counted != lazy)
        find(f, "lazy pages: counter was %lld, the words have %llu", (long long)counted, P(lazy));
    if (serial >= next && serial < UINT64_MAX >> VM_ID_SIZE_BITS) {
        uint64_t beyond = (serial / VM_ID_BLOCK + 1) * VM_ID_BLOCK;
        VM_CAS(&r->h->next_id, next, beyond);
        find(f, "ids: the next was %llu, is %llu", P(next), P(beyond));
    }
    for (uint32_t i = VM_PROCESSES; i < r->nr_threads && vm__slot_was_used(r, i); i++) {
        uint64_t state = VM_LOAD(&r->slots[i].state);
        if (is_stray_thread(r, i) && VM_CAS(&r->slots[i].state, state, ((state >> 32) + 1) << 32))
            find(f, "thread slot %u: given back, its process slot is nobody's", i);
    }
    return 0;
}

static int repair(vm_region *r, vm_thread *t, finder *f)
{
    uint64_t line = VM_LOAD(&r->h->corrupt);
    if (line) {
        VM_PUT(&r->h->corrupt, 0);
        find(f, "the mark that line %llu set, by which the region took no more changes, is taken away", P(line));
    }
    int rc = repair_space(r, t, f);
    if (rc == 0)
        rc = repair_counters(r, t, f);
    if (rc == 0)
        rc = repair_tables(r, t, f);
    if (rc == 0)
        rc = repair_pools(r, t, f);
    if (rc == 0) {
        uint64_t pages = vm__magazines_reclaim(r, t);
        if (pages)
            find(f, "magazines: %llu pages that were in none taken back", P(pages));
    }
    VM_PUT(&r->h->purge_needs_scan, 1);
    return rc ? rc : vm__purge_scan(r, t, 0, NULL, NULL);
}

int vm_repair(vm_region *r, void (*say)(void *, const char *), void *arg)
{
    vm_thread *t = vm__thread(r);
    if (!t)
        return vm__thread_error(r);
    finder f = {.r = r};
    vm__enter(t);
    int rc = repair(r, t, &f);
    vm__leave(t);
    int nr = tell(&f, say, arg);
    return rc ? rc : nr;
}

int vm_check(vm_region *r, bool at_rest, bool repair_first, void (*say)(void *, const char *), void *arg)
{
    vm_thread *t = r->readonly ? NULL : vm__thread(r);
    if (!t && !r->readonly)
        return vm__thread_error(r);
    int rc = repair_first ? vm_repair(r, NULL, NULL) : 0;
    if (rc < 0 && rc != -EUCLEAN)
        return rc;
    finder f = {.r = r, .at_rest = at_rest};
    if (t)
        vm__enter(t);
    rc = walk(&f, t);
    if (t)
        vm__leave(t);
    if (rc == 0 && at_rest)
        check_rest(&f);
    uint64_t line = VM_LOAD(&r->h->corrupt);
    if (line)
        find(&f, "marked corrupt by line %llu", P(line));
    int nr = tell(&f, say, arg);
    return rc && rc != -EUCLEAN ? rc : nr ? nr : rc;
}
