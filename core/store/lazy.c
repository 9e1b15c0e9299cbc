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

/* Link what begins at one page and ends at another in front of a list. */
static void push(vm_region *r, uint32_t *head, uint64_t first, uint64_t last)
{
    uint32_t old;
    do {
        old = VM_ACQUIRE(head);
        VM_PUT(&r->map.heads[last].aux, old);
    } while (!VM_CAS(head, old, (uint32_t)first + 1));
}

static uint32_t bits_of(uint64_t n) { return n ? 64 - (uint32_t)__builtin_clzll(n) : 0; }

/* What may be lazy beside `live` pages so that both together are little more than the recent peak. */
static uint64_t room_in_peak(const vm_region *r, uint64_t peak, uint64_t live, uint64_t memory_bytes)
{
    uint64_t most = peak + (peak >> VM_WARM_ROOM_SHIFT), share = memory_bytes / VM_WARM_MEMORY_SHARE;
    most = most < share >> r->map.page_shift ? most : share >> r->map.page_shift;
    return most > live ? most - live : 0;
}

uint64_t vm__lazy_threshold(const vm_region *r, uint64_t peak, uint64_t live, uint32_t cpus, uint64_t memory_bytes)
{
    bool is_memory = !(r->map.flags & VM_FLAG_NO_DATA);
    uint32_t shift = is_memory ? r->map.page_shift : 12; /* granules count as pages */
    uint64_t fixed = bits_of(cpus) * ((uint64_t)VM_LAZY_BYTES_PER_CPU_BIT >> shift);
    uint64_t most = is_memory ? room_in_peak(r, peak, live, memory_bytes) : peak * VM_LAZY_PEAK_PERCENT / 100;
    return most > fixed ? most : fixed;
}

/* Pages that may be lazy before a free gives back a step: as the kernel's, fls(online CPUs) * 32 MiB, but also, because
 * our lazy ranges hold memory that is dear to fault in again, what the recent peak has room for
 * (docs/decisions/0020); and in any case what prefault.c asked to keep. */
uint64_t vm__lazy_pages_max(const vm_region *r)
{
    uint64_t chosen = VM_RELAXED(&r->map.h->lazy_pages_fixed), peak = VM_RELAXED(&r->map.h->used_peak);
    uint64_t most = chosen ? chosen
                           : vm__lazy_threshold(r, peak, vm__live_pages(r), vm__online_cpus(), vm__memory_bytes());
    uint64_t floor = VM_RELAXED(&r->map.h->floor_pages);
    return most > floor ? most : floor;
}

/* By how many pages more is lazy than may be; 0: it is not. The counter is read as signed: a death may leave it a little
 * off. What went to space with its pages counts too. */
uint64_t vm__lazy_excess(const vm_region *r)
{
    int64_t lazy = (int64_t)VM_RELAXED(&r->map.h->lazy_pages), dirty = (int64_t)VM_RELAXED(&r->map.h->dirty_pages);
    int64_t excess = lazy > 0 ? lazy + dirty - (int64_t)vm__lazy_pages_max(r) : 0;
    return excess > 0 ? (uint64_t)excess : 0;
}

bool vm__lazy_is_due(const vm_region *r) { return vm__lazy_excess(r) != 0; }

vm_word vm__lazy_word(uint64_t nr_pages, uint32_t node)
{
    return vm__word(VM_LAZY, VM_WORD_DIRTY, nr_pages, node, (uint32_t)vm__now_s());
}

void vm__lazy_put(vm_thread *t, uint64_t page, uint64_t nr_pages)
{
    vm__lazy_put_for(t, page, nr_pages, vm__node_here(t->region));
}

void vm__lazy_put_for(vm_thread *t, uint64_t page, uint64_t nr_pages, uint32_t node)
{
    vm__lazy_put_many(t, nr_pages, 1, &page, node);
}

/* The last one comes first, as if they had been put one by one. */
void vm__lazy_put_many(vm_thread *t, uint64_t nr_pages, uint32_t nr, const uint64_t *pages, uint32_t node)
{
    vm_region *r = t->region;
    vm_word moving = vm__moving(t, nr_pages), lazy = vm__lazy_word(nr_pages, node);
    VM_ASSERT(nr);
    VM_ADD(&r->map.h->lazy_pages, nr * nr_pages);
    for (uint32_t i = 0; i < nr; i++) {
        VM_ASSERT(VM_ACQUIRE(&r->map.heads[pages[i]].word) == moving);
        if (i)
            VM_PUT(&r->map.heads[pages[i]].aux, pages[i - 1] + 1);
    }
    push(r, &r->map.nodes[vm__owner(lazy)].lazy_head, pages[nr - 1], pages[0]);
    for (uint32_t i = 0; i < nr; i++) /* fails if somebody sorted it already */
        VM_CAS(&r->map.heads[pages[i]].word, moving, lazy);
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
