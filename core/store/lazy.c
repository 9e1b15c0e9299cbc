/* SPDX-License-Identifier: MIT */
/*
 * Lazy: freed ranges, still backed by pages, on their way to be found again (warm.c) or to be purged.
 *
 * Per node a list that anybody pushes to with one CAS and that is only detached whole; no pop, so no ABA, and nobody
 * waits. The words are the truth: LAZY, and MOVING(owner) for the moment between word and link. lazy_pages is raised
 * before a range is visible, as in the kernel.
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

/* Pages that may be lazy before a free gives back a step: as the kernel's, fls(online CPUs) * 32 MiB, but
 * also, because our lazy ranges hold memory that is dear to fault in again (docs/decisions/0013), a share of
 * the recent peak, and all of a small peak; and in any case what prefault.c asked to keep. */
uint64_t vm__lazy_pages_max(const vm_region *r)
{
    uint64_t chosen = VM_RELAXED(&r->map.h->lazy_pages_fixed);
    uint64_t most =
        chosen ? chosen
               : vm__lazy_threshold(r, VM_RELAXED(&r->map.h->used_peak), vm__online_cpus(), vm__memory_bytes());
    uint64_t floor = VM_RELAXED(&r->map.h->floor_pages);
    return most > floor ? most : floor;
}

/* The counter is read as signed: a death may leave it a little off. */
bool vm__lazy_is_due(const vm_region *r)
{
    return (int64_t)VM_RELAXED(&r->map.h->lazy_pages) > (int64_t)vm__lazy_pages_max(r);
}

vm_word vm__lazy_word(const vm_region *r, uint64_t nr_pages)
{
    return vm__word(VM_LAZY, VM_WORD_DIRTY, nr_pages, vm__node_here(r), (uint32_t)vm__now_s());
}

void vm__lazy_put(vm_thread *t, uint64_t page, uint64_t nr_pages)
{
    vm_region *r = t->region;
    vm_word moving = vm__moving(t, nr_pages), lazy = vm__lazy_word(r, nr_pages);
    VM_ASSERT(VM_ACQUIRE(&r->map.heads[page].word) == moving);
    VM_ADD(&r->map.h->lazy_pages, nr_pages);
    vm__list_push(r, &r->map.nodes[vm__owner(lazy)].lazy_head, page);
    VM_CAS(&r->map.heads[page].word, moving, lazy); /* fails if somebody sorted it already */
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
        uint64_t page = link - 1, next = (uint32_t)VM_RELAXED(&r->map.heads[page].aux), len = claim(t, page, &is_wrong);
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
        link = (uint32_t)VM_RELAXED(&r->map.heads[link - 1].aux);
    }
    if (steps > r->map.nr_pages)
        vm__report(report, "%s: the list is a circle", what);
    return pages;
}
