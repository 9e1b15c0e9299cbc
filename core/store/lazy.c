/* SPDX-License-Identifier: MIT */
/*
 * Lazy: freed ranges, still backed by pages, waiting for a purge.
 *
 * Per node a list that anybody pushes to with one CAS and only the purger detaches, whole; no pop,
 * so no ABA. Large ranges (over VM_POOL_PAGES_MAX) stand on a small shelf instead, where a request
 * of nearly the same size finds them warm. The words are the truth: LAZY, and MOVING(owner) for the
 * moment between word and link. lazy_pages is raised before a range is visible, as in the kernel.
 *
 * After: Linux mm/vmalloc.c, free_vmap_area_noflush().
 */
#include "store.h"

/* Link a page in front of a list. */
void vm__list_push(vm_region *r, uint32_t *head, uint64_t page)
{
    uint32_t old;
    do {
        old = VM_ACQUIRE(head);
        VM_PUT(&r->map.heads[page].aux, old);
    } while (!VM_CAS(head, old, (uint32_t)page + 1));
}

static uint32_t bits_of(uint64_t n) { return n ? 64 - (uint32_t)__builtin_clzll(n) : 0; }

uint64_t vm__lazy_threshold(const vm_region *r, uint64_t peak, uint32_t cpus, uint64_t memory_bytes)
{
    bool is_memory = !(r->map.flags & VM_FLAG_NO_DATA);
    uint32_t shift = is_memory ? r->map.page_shift : 12; /* granules count as pages */
    uint64_t fixed = bits_of(cpus) * ((uint64_t)VM_LAZY_BYTES_PER_CPU_BIT >> shift);
    uint64_t share = peak * VM_LAZY_PEAK_PERCENT / 100;
    uint64_t warm_bytes = memory_bytes / VM_WARM_MEMORY_SHARE;
    warm_bytes = warm_bytes < VM_WARM_BYTES_MAX ? warm_bytes : VM_WARM_BYTES_MAX;
    uint64_t warm = is_memory ? warm_bytes >> shift : 0;
    warm = warm < peak ? warm : peak;
    uint64_t most = warm > share ? warm : share;
    return most > fixed ? most : fixed;
}

/* Pages that may be lazy before the freeing thread purges: as the kernel's, fls(online CPUs) * 32 MiB, but
 * also, because our lazy ranges hold memory that is dear to fault in again (docs/decisions/0013), a share of
 * the recent peak, and all of a small peak. */
uint64_t vm__lazy_pages_max(const vm_region *r)
{
    uint64_t chosen = VM_RELAXED(&r->map.h->lazy_pages_fixed);
    return chosen ? chosen
                  : vm__lazy_threshold(r, VM_RELAXED(&r->map.h->used_peak), vm__online_cpus(), vm__memory_bytes());
}

static bool put_on_shelf(vm_region *r, uint64_t page, uint64_t nr_pages)
{
    for (uint32_t i = 0; i < VM_SHELF_RANGES; i++)
        if (VM_RELAXED(&r->map.h->shelf[i]) == 0 && VM_CAS(&r->map.h->shelf[i], 0, page << 32 | nr_pages))
            return true;
    return false;
}

void vm__lazy_put(vm_thread *t, uint64_t page, uint64_t nr_pages)
{
    vm_region *r = t->region;
    uint32_t node = vm__node_here(r);
    vm_word moving = vm__moving(t, nr_pages);
    VM_ASSERT(VM_ACQUIRE(&r->map.heads[page].word) == moving);
    VM_ADD(&r->map.h->lazy_pages, nr_pages);
    if (nr_pages <= VM_POOL_PAGES_MAX || !put_on_shelf(r, page, nr_pages))
        vm__list_push(r, &r->map.nodes[node].lazy_head, page);
    VM_CAS(&r->map.heads[page].word, moving, vm__word(VM_LAZY, VM_WORD_DIRTY, nr_pages, node, 0));
}
static uint64_t shelf_page(uint64_t entry) { return entry >> 32; }
static uint64_t shelf_pages(uint64_t entry) { return (uint32_t)entry; }

/* The tightest fit on the shelf, or VM_SHELF_RANGES. */
static uint32_t best_on_shelf(const vm_region *r, uint64_t nr_pages, uint64_t align_pages, uint64_t *entry)
{
    uint32_t best = VM_SHELF_RANGES;
    *entry = 0;
    for (uint32_t i = 0; i < VM_SHELF_RANGES; i++) {
        uint64_t e = VM_ACQUIRE(&r->map.h->shelf[i]), len = shelf_pages(e);
        if (len < nr_pages || len - nr_pages > nr_pages >> VM_SHELF_SLACK_SHIFT || shelf_page(e) & (align_pages - 1)
            || !vm__is_within(r, shelf_page(e), len))
            continue;
        if (best == VM_SHELF_RANGES || len < shelf_pages(*entry)) {
            best = i;
            *entry = e;
        }
    }
    return best;
}

/* Whoever clears a shelf cell owns the entry, as with a detached chain. False: it was stale. */
static bool claim_shelved(vm_region *r, uint32_t i, uint64_t entry, vm_word mine)
{
    uint64_t page = shelf_page(entry), len = shelf_pages(entry);
    if (!VM_CAS(&r->map.h->shelf[i], entry, 0) || !vm__is_within(r, page, len))
        return false;
    for (;;) {
        vm_word w = VM_ACQUIRE(&r->map.heads[page].word);
        if ((vm__state(w) != VM_LAZY && vm__state(w) != VM_MOVING) || vm__len(w) != len)
            return false;
        if (VM_CAS(&r->map.heads[page].word, w, vm__with_len(mine, len)))
            break;
    }
    VM_ADD(&r->map.h->lazy_pages, (uint64_t)0 - len);
    return true;
}

static int take_shelved(vm_thread *t, uint64_t nr_pages, uint64_t align_pages, vm_range *out)
{
    vm_region *r = t->region;
    VM_ASSERT_HELD(t, &r->map.h->purge_lock);
    for (uint32_t tries = 0; tries < VM_SHELF_RANGES; tries++) {
        uint64_t entry;
        uint32_t i = best_on_shelf(r, nr_pages, align_pages, &entry);
        if (i == VM_SHELF_RANGES)
            break;
        if (claim_shelved(r, i, entry, t->moving)) {
            vm__hand_out(t, shelf_page(entry), shelf_pages(entry), false, out);
            return 0;
        }
    }
    return -ENOSPC;
}

/* A warm large range of nearly that size; out->nr_pages may be up to 1/8 more than asked. Under
 * purge_lock, since between the cell and the word a recovery's scan could shelve the range again; while
 * somebody purges, a miss. */
int vm__lazy_take(vm_thread *t, uint64_t nr_pages, uint64_t align_pages, vm_range *out)
{
    vm_region *r = t->region;
    uint64_t entry;
    if (best_on_shelf(r, nr_pages, align_pages, &entry) == VM_SHELF_RANGES || !vm__trylock(t, &r->map.h->purge_lock))
        return -ENOSPC;
    int rc = take_shelved(t, nr_pages, align_pages, out);
    vm__unlock(t, &r->map.h->purge_lock);
    return rc;
}

/* Make a listed range ours. What a recovery's scan collected before is ours already: 0. */
static uint64_t claim(vm_thread *t, uint64_t page, bool *is_wrong)
{
    vm_region *r = t->region;
    for (;;) {
        vm_word w = VM_ACQUIRE(&r->map.heads[page].word);
        vm_state s = vm__state(w);
        uint64_t len = vm__len(w);
        if (w == vm__purging(t, len))
            return 0;
        if ((s != VM_LAZY && s != VM_MOVING && s != VM_POOLED) || len == 0 || len > r->map.nr_pages - page) {
            *is_wrong = true;
            return 0;
        }
        if (VM_CAS(&r->map.heads[page].word, w, vm__purging(t, len)))
            return len;
    }
}

/* Take a detached chain of LAZY, POOLED or still MOVING ranges into `out`. Returns its pages. */
uint64_t vm__chain_take(vm_thread *t, uint64_t link, vm_batch *out)
{
    vm_region *r = t->region;
    uint64_t pages = 0;
    bool is_wrong = false;
    for (uint64_t steps = 0; link && link <= r->map.nr_pages && steps < r->map.nr_pages && !is_wrong; steps++) {
        uint64_t page = link - 1, next = VM_RELAXED(&r->map.heads[page].aux), len = claim(t, page, &is_wrong);
        if (len) {
            pages += len;
            vm__batch_add(t, out, page, len);
        }
        link = next;
    }
    if (is_wrong)
        VM_PUT(&r->map.h->purge_needs_scan, 1); /* a hint was wrong: the words know */
    return pages;
}

void vm__lazy_collect(vm_thread *t, vm_node *node, vm_batch *out)
{
    vm_region *r = t->region;
    VM_ASSERT_HELD(t, &r->map.h->purge_lock);
    if (!VM_RELAXED(&node->lazy_head))
        return;
    uint64_t pages = vm__chain_take(t, VM_SWAP(&node->lazy_head, 0), out);
    VM_ADD(&r->map.h->lazy_pages, (uint64_t)0 - pages);
}

void vm__lazy_collect_shelf(vm_thread *t, vm_batch *out)
{
    vm_region *r = t->region;
    VM_ASSERT_HELD(t, &r->map.h->purge_lock);
    for (uint32_t i = 0; i < VM_SHELF_RANGES; i++) {
        uint64_t entry = VM_ACQUIRE(&r->map.h->shelf[i]);
        if (entry && claim_shelved(r, i, entry, t->purging))
            vm__batch_add(t, out, shelf_page(entry), shelf_pages(entry));
    }
}

uint64_t vm__list_check(const vm_region *r, uint64_t link, vm_state state, uint64_t nr_pages, const char *what,
                        uint32_t *nr, vm_report *report)
{
    uint64_t pages = 0, steps = 0;
    for (*nr = 0; link && steps <= r->map.nr_pages; steps++, ++*nr) {
        vm_word w = link <= r->map.nr_pages ? VM_ACQUIRE(&r->map.heads[link - 1].word) : 0;
        if (vm__state(w) != state || (nr_pages && vm__len(w) != nr_pages)) {
            vm__report(report, "%s: entry %llu is in state %u with %llu pages", what, (unsigned long long)link - 1,
                       (unsigned)vm__state(w), (unsigned long long)vm__len(w));
            break;
        }
        pages += vm__len(w);
        link = VM_RELAXED(&r->map.heads[link - 1].aux);
    }
    if (steps > r->map.nr_pages)
        vm__report(report, "%s: the list is a circle", what);
    return pages;
}
