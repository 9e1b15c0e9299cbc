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
#include "internal.h"

#include <unistd.h>

#define CLOSE_FIT_SHIFT 3 /* a shelf range serves a request that wastes at most 1/8 of it */

/* Link a page in front of a list. */
void vm__list_push(vm_region *r, uint32_t *head, uint64_t page)
{
    uint32_t old;
    do {
        old = VM_LOAD(head);
        VM_PUT(&r->heads[page].aux, old);
    } while (!VM_CAS(head, old, (uint32_t)page + 1));
}

#define WARM_SHARE 32 /* of the machine's memory */
#define WARM_BYTES_MAX (1ull << 30)

static uint32_t bits_of(uint64_t n) { return n ? 64 - (uint32_t)__builtin_clzll(n) : 0; }

static uint32_t online_cpus(void)
{
    static uint32_t cpus;
    uint32_t n = __atomic_load_n(&cpus, __ATOMIC_RELAXED);
    if (!n) {
        long online = sysconf(_SC_NPROCESSORS_ONLN);
        n = online < 1 ? 1 : (uint32_t)online;
        __atomic_store_n(&cpus, n, __ATOMIC_RELAXED);
    }
    return n;
}

/* What may stay warm of a recent peak however small the machine's number of CPUs is. */
static uint64_t warm_bytes(void)
{
    static uint64_t bytes;
    uint64_t n = __atomic_load_n(&bytes, __ATOMIC_RELAXED);
    if (!n) {
        n = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE) / WARM_SHARE;
        n = n < WARM_BYTES_MAX ? n : WARM_BYTES_MAX;
        __atomic_store_n(&bytes, n, __ATOMIC_RELAXED);
    }
    return n;
}

/* Pages that may be lazy before the freeing thread purges: as the kernel's, fls(online CPUs) * 32 MiB, but
 * also, because our lazy ranges hold memory that is dear to fault in again (docs/decisions/0013), a quarter of
 * the recent peak, and all of a small peak. */
uint64_t vm__lazy_pages_max(const vm_region *r)
{
    uint64_t chosen = VM_PEEK(&r->h->lazy_pages_fixed);
    if (chosen)
        return chosen;
    uint32_t shift = r->flags & VM_FLAG_NO_DATA ? 12 : r->page_shift; /* granules count as pages */
    uint64_t fixed = bits_of(online_cpus()) * (32ull << 20 >> shift), peak = VM_PEEK(&r->h->used_peak);
    uint64_t warm = r->flags & VM_FLAG_NO_DATA ? 0 : warm_bytes() >> shift;
    warm = warm < peak ? warm : peak;
    uint64_t most = warm > peak / 4 ? warm : peak / 4;
    return most > fixed ? most : fixed;
}

static bool put_on_shelf(vm_region *r, uint64_t page, uint64_t nr_pages)
{
    for (uint32_t i = 0; i < VM_SHELF; i++)
        if (VM_PEEK(&r->h->shelf[i]) == 0 && VM_CAS(&r->h->shelf[i], 0, page << 32 | nr_pages))
            return true;
    return false;
}

void vm__lazy_put(vm_region *r, vm_thread *t, uint64_t page, uint64_t nr_pages)
{
    uint32_t node = vm__node_here(r);
    vm_word moving = t->moving | nr_pages << VM_WORD_LEN_SHIFT;
    VM_ASSERT(VM_LOAD(&r->heads[page].word) == moving);
    VM_ADD(&r->h->lazy_pages, nr_pages);
    if (nr_pages <= VM_POOL_PAGES_MAX || !put_on_shelf(r, page, nr_pages))
        vm__list_push(r, &r->nodes[node].lazy_head, page);
    VM_CAS(&r->heads[page].word, moving, vm__word(VM_LAZY, VM_WORD_DIRTY, nr_pages, node, 0));
}

static uint64_t shelf_page(uint64_t entry) { return entry >> 32; }
static uint64_t shelf_pages(uint64_t entry) { return (uint32_t)entry; }

/* The tightest fit on the shelf, or VM_SHELF. */
static uint32_t best_on_shelf(const vm_region *r, uint64_t nr_pages, uint64_t align_pages, uint64_t *entry)
{
    uint32_t best = VM_SHELF;
    *entry = 0;
    for (uint32_t i = 0; i < VM_SHELF; i++) {
        uint64_t e = VM_LOAD(&r->h->shelf[i]), len = shelf_pages(e);
        if (len < nr_pages || len - nr_pages > nr_pages >> CLOSE_FIT_SHIFT || shelf_page(e) & (align_pages - 1)
            || !vm__is_within(r, shelf_page(e), len))
            continue;
        if (best == VM_SHELF || len < shelf_pages(*entry)) {
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
    if (!VM_CAS(&r->h->shelf[i], entry, 0) || !vm__is_within(r, page, len))
        return false;
    for (;;) {
        vm_word w = VM_LOAD(&r->heads[page].word);
        if ((vm__state(w) != VM_LAZY && vm__state(w) != VM_MOVING) || vm__len(w) != len)
            return false;
        if (VM_CAS(&r->heads[page].word, w, mine | len << VM_WORD_LEN_SHIFT))
            break;
    }
    VM_ADD(&r->h->lazy_pages, (uint64_t)0 - len);
    return true;
}

/* [purge_lock] */
static int take_shelved(vm_region *r, vm_thread *t, uint64_t nr_pages, uint64_t align_pages, vm_range *out)
{
    VM_ASSERT_HELD(t, &r->h->purge_lock);
    for (uint32_t tries = 0; tries < VM_SHELF; tries++) {
        uint64_t entry;
        uint32_t i = best_on_shelf(r, nr_pages, align_pages, &entry);
        if (i == VM_SHELF)
            break;
        if (claim_shelved(r, i, entry, t->moving)) {
            vm__hand_out(r, t, shelf_page(entry), shelf_pages(entry), false, out);
            return 0;
        }
    }
    return -ENOSPC;
}

/* A warm large range of nearly that size; out->nr_pages may be up to 1/8 more than asked. Under
 * purge_lock, since between the cell and the word a recovery's scan could shelve the range again; while
 * somebody purges, a miss. */
int vm__lazy_take(vm_region *r, vm_thread *t, uint64_t nr_pages, uint64_t align_pages, vm_range *out)
{
    uint64_t entry;
    if (best_on_shelf(r, nr_pages, align_pages, &entry) == VM_SHELF || !vm__trylock(r, t, &r->h->purge_lock))
        return -ENOSPC;
    int rc = take_shelved(r, t, nr_pages, align_pages, out);
    vm__unlock(r, t, &r->h->purge_lock);
    return rc;
}

/* Make a listed range ours. What a recovery's scan collected before is ours already: 0. */
static uint64_t claim(vm_region *r, vm_thread *t, uint64_t page, bool *is_wrong)
{
    for (;;) {
        vm_word w = VM_LOAD(&r->heads[page].word);
        vm_state s = vm__state(w);
        uint64_t len = vm__len(w);
        if (w == (t->purging | len << VM_WORD_LEN_SHIFT))
            return 0;
        if ((s != VM_LAZY && s != VM_MOVING && s != VM_POOLED) || len == 0 || len > r->nr_pages - page) {
            *is_wrong = true;
            return 0;
        }
        if (VM_CAS(&r->heads[page].word, w, t->purging | len << VM_WORD_LEN_SHIFT))
            return len;
    }
}

/* Take a detached chain of LAZY, POOLED or still MOVING ranges into `out`. Returns its pages. */
uint64_t vm__chain_take(vm_region *r, vm_thread *t, uint64_t link, vm_batch *out)
{
    uint64_t pages = 0;
    bool is_wrong = false;
    for (uint64_t steps = 0; link && link <= r->nr_pages && steps < r->nr_pages && !is_wrong; steps++) {
        uint64_t page = link - 1, next = VM_PEEK(&r->heads[page].aux), len = claim(r, t, page, &is_wrong);
        if (len) {
            pages += len;
            vm__batch_add(r, t, out, page, len);
        }
        link = next;
    }
    if (is_wrong)
        VM_PUT(&r->h->purge_needs_scan, 1); /* a hint was wrong: the words know */
    return pages;
}

void vm__lazy_collect(vm_region *r, vm_thread *t, vm_node *node, vm_batch *out)
{
    VM_ASSERT_HELD(t, &r->h->purge_lock);
    if (!VM_PEEK(&node->lazy_head))
        return;
    uint64_t pages = vm__chain_take(r, t, VM_SWAP(&node->lazy_head, 0), out);
    VM_ADD(&r->h->lazy_pages, (uint64_t)0 - pages);
}

void vm__lazy_collect_shelf(vm_region *r, vm_thread *t, vm_batch *out)
{
    VM_ASSERT_HELD(t, &r->h->purge_lock);
    for (uint32_t i = 0; i < VM_SHELF; i++) {
        uint64_t entry = VM_LOAD(&r->h->shelf[i]);
        if (entry && claim_shelved(r, i, entry, t->purging))
            vm__batch_add(r, t, out, shelf_page(entry), shelf_pages(entry));
    }
}
