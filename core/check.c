/* SPDX-License-Identifier: MIT */
/*
 * Check: walk the invariants of docs/design.md, section 8.
 *
 * Boundaries and the index are checked under space_lock and hold at any time; what lists and
 * counters say is compared with the words only `at_rest`, when nobody else works. Repair rebuilds
 * hints from words, never words from hints.
 */
#include "internal.h"

#include <stdarg.h>
#include <stdio.h>

typedef struct finder {
    vm_region *r;
    void (*say)(void *, const char *);
    void *arg;
    int nr;
} finder;

__attribute__((format(printf, 2, 3))) static void find(finder *f, const char *format, ...)
{
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    f->nr++;
    if (f->say)
        f->say(f->arg, text);
}

int vm__corrupt(vm_region *r, int line)
{
    if (!VM_LOAD(&r->h->corrupt))
        VM_STORE(&r->h->corrupt, (uint64_t)line);
    return -EUCLEAN;
}

#define P(x) ((unsigned long long)(x))

/* Do the index's bits say the same as the word for every page of the range? */
static void check_bits(finder *f, uint64_t page, uint64_t nr_pages, bool is_free)
{
    uint64_t high = f->r->h->high_pages, end = page + nr_pages;
    if (is_free && end > high)
        end = page > high ? page : high; /* never touched above */
    for (uint64_t p = page; p < end; p++)
        if (vm__index_is_free(f->r, p) != is_free) {
            find(f, "page %llu: the index says %s, the word of page %llu says %s", P(p), is_free ? "taken" : "free",
                 P(page), is_free ? "free" : "taken");
            return;
        }
}

static void check_words(finder *f, uint64_t pages[8])
{
    vm_region *r = f->r;
    uint64_t page = 0, longest = 0;
    bool was_free = false;
    for (vm_word w; (w = vm__scan(r, page)); page += vm__len(w)) {
        bool is_free = vm__state(w) == VM_FREE;
        if (vm__state(w) > VM_FREEING)
            find(f, "page %llu: state %u does not exist", P(page), (unsigned)vm__state(w));
        else
            pages[vm__state(w)] += vm__len(w);
        if (is_free && was_free)
            find(f, "page %llu: two free ranges side by side", P(page));
        if (is_free && vm__len(w) > longest)
            longest = vm__len(w);
        check_bits(f, page, vm__len(w), is_free);
        was_free = is_free;
    }
    if (page != r->nr_pages)
        find(f, "the words stop parsing at page %llu of %llu", P(page), P(r->nr_pages));
    if (longest != vm__index_largest(r))
        find(f, "longest free run: index %llu, words %llu pages", P(vm__index_largest(r)), P(longest));
    if (pages[VM_FREE] != r->h->free_pages)
        find(f, "free pages: counter %llu, words %llu", P(r->h->free_pages), P(pages[VM_FREE]));
}

/* Pages a list reaches, each in the state it should be. */
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

static void check_pools(finder *f, uint64_t pooled)
{
    uint64_t listed = 0;
    uint32_t nr;
    char what[64];
    for (uint32_t i = 0; i < f->r->nr_nodes; i++)
        for (uint32_t k = 0; k < VM_POOL_PAGES_MAX; k++) {
            vm_pool *p = &f->r->nodes[i].pool[k];
            snprintf(what, sizeof what, "node %u, pool of %u pages", i, k + 1);
            listed += list_pages(f, p->head, VM_POOLED, k + 1, what, &nr);
            if (nr != p->nr_ranges)
                find(f, "%s: counter %u, list %u", what, p->nr_ranges, nr);
            if (p->in_use)
                find(f, "%s: still in use by slot %u", what, vm__token_slot(p->in_use));
        }
    if (listed != pooled)
        find(f, "pooled pages: lists %llu, words %llu", P(listed), P(pooled));
}

static void check_lazy(finder *f, uint64_t lazy)
{
    vm_region *r = f->r;
    uint64_t listed = 0;
    uint32_t nr;
    for (uint32_t i = 0; i < r->nr_nodes; i++)
        listed += list_pages(f, r->nodes[i].lazy_head, VM_LAZY, 0, "lazy list", &nr);
    for (uint32_t i = 0; i < VM_SHELF; i++) {
        uint64_t e = r->h->shelf[i], page = e >> 32;
        if (e && page < r->nr_pages && vm__state(VM_LOAD(&r->heads[page].word)) == VM_LAZY)
            listed += (uint32_t)e;
    }
    if (listed != lazy)
        find(f, "lazy pages: lists %llu, words %llu", P(listed), P(lazy));
    if (r->h->lazy_pages != lazy)
        find(f, "lazy pages: counter %llu, words %llu", P(r->h->lazy_pages), P(lazy));
}

/* Every CACHED word is in the magazine of its owner, whose slot is in use. */
static void check_cached(finder *f)
{
    vm_region *r = f->r;
    uint64_t page = 0;
    for (vm_word w; (w = vm__scan(r, page)); page += vm__len(w)) {
        if (vm__state(w) != VM_CACHED)
            continue;
        uint32_t slot = vm__owner(w), n = 0, k = 0;
        if (slot >= r->nr_threads || !(r->slots[slot].state & 1) || vm__len(w) > VM_POOL_PAGES_MAX) {
            find(f, "page %llu: cached by slot %u, which nobody uses", P(page), slot);
            continue;
        }
        vm_magazine *m = &r->slots[slot].magazine[vm__len(w)];
        n = vm__magazine_count(VM_LOAD(&m->header));
        while (k < n && m->page[k] != page)
            k++;
        if (k == n)
            find(f, "page %llu: cached by slot %u but not in its magazine", P(page), slot);
    }
}

static void check_locks(finder *f, const vm_thread *t)
{
    vm_region *r = f->r;
    for (uint32_t i = 0; i < r->nr_nodes; i++)
        if (r->nodes[i].pool_lock.owner)
            find(f, "node %u: pool_lock held by slot %u", i, vm__token_slot(r->nodes[i].pool_lock.owner));
    if (r->h->names_lock.owner)
        find(f, "names_lock held by slot %u", vm__token_slot(r->h->names_lock.owner));
    (void)t;
}

static int repair_hints(vm_region *r, vm_thread *t)
{
    VM_PUT(&r->h->corrupt, 0);
    VM_PUT(&r->h->high_pages, r->nr_pages); /* whoever scribbled may have done so anywhere */
    VM_PUT(&r->h->space_lock.needs_repair, 1);
    VM_PUT(&r->h->purge_needs_scan, 1);
    for (uint32_t i = 0; i < r->nr_nodes && r->pools != VM_POOLS_LLIST; i++)
        VM_PUT(&r->nodes[i].pool_lock.needs_repair, 1);
    return vm__purge_scan(r, t, 0, NULL, NULL);
}

int vm_check(vm_region *r, bool at_rest, bool repair, void (*say)(void *, const char *), void *arg)
{
    vm_thread *t = vm__thread(r);
    if (!t)
        return vm__thread_error(r);
    finder f = {r, say, arg, 0};
    uint64_t pages[8] = {0};
    vm__enter(t);
    int rc = repair ? repair_hints(r, t) : 0;
    if (VM_LOAD(&r->h->corrupt))
        find(&f, "marked corrupt by line %llu", P(r->h->corrupt));
    if (rc == 0 || rc == -EUCLEAN)
        rc = vm__space_lock(r, t, 0);
    if (rc == 0) {
        check_words(&f, pages);
        vm__space_unlock(r, t);
        if (at_rest) {
            check_pools(&f, pages[VM_POOLED]);
            check_lazy(&f, pages[VM_LAZY]);
            check_cached(&f);
            check_locks(&f, t);
            if (pages[VM_MOVING] || pages[VM_PURGING] || pages[VM_FREEING])
                find(&f, "at rest, yet %llu pages are moving", P(pages[VM_MOVING] + pages[VM_PURGING] + pages[VM_FREEING]));
        }
    }
    vm__leave(t);
    return rc && rc != -EUCLEAN ? rc : f.nr ? f.nr : rc;
}
