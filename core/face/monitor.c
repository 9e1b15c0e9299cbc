/* SPDX-License-Identifier: MIT */
/*
 * Monitor: what goes on in a region, for whoever looks again and again from outside.
 *
 * Takes no lock and no slot and writes nothing to the region, also in an attachment that may. What it tells is right within
 * what happens during the look.
 */
#include "face.h"

#define LOOKS 3 /* at words that do not parse, because they changed under the look */

static void add_magazines(const vm_slot *s, vm_monitored *out)
{
    if (!(VM_ACQUIRE(&s->state) & 1))
        return;
    for (uint32_t n = vm__next_opened(s, 1); n <= VM_POOL_PAGES_MAX; n = vm__next_opened(s, n + 1))
        out->in_magazines[n - 1] += vm__magazine_count(VM_RELAXED(&s->magazine[n].header));
}

void vm_monitor_look(const vm_region *r, vm_monitored *out)
{
    *out = (vm_monitored){0};
    vm__add_counters(r, &out->counters);
    out->counters.nr_pages = r->map.nr_pages;
    out->counters.free_pages = VM_RELAXED(&r->map.h->free_pages);
    out->counters.lazy_pages = VM_RELAXED(&r->map.h->lazy_pages);
    for (uint32_t i = 0; i < r->map.nr_threads; i++)
        if (vm__slot_was_used(r, i))
            add_magazines(&r->map.slots[i], out);
}

void vm_monitor_pools(const vm_region *r, uint32_t node, uint32_t nr_ranges[VM_POOL_PAGES_MAX])
{
    for (uint32_t i = 0; i < VM_POOL_PAGES_MAX; i++)
        nr_ranges[i] = 0;
    for (uint32_t n = node; node < r->map.nodes_each && n < vm__nodes_used(r); n += r->map.nodes_each)
        for (uint32_t i = 0; i < VM_POOL_PAGES_MAX; i++)
            nr_ranges[i] += vm__pool_count(r, &r->map.nodes[n].pool[i]);
}

/* ---- survey ---- */

static void keep_if_large(vm_survey *s, const vm_region *r, uint64_t page, vm_word w)
{
    bool is_full = s->nr_largest == VM_SURVEY_LARGEST_MAX;
    if (is_full && vm__len(w) <= s->largest[s->nr_largest - 1].nr_pages)
        return;
    uint32_t at = is_full ? s->nr_largest - 1 : s->nr_largest++;
    for (; at && s->largest[at - 1].nr_pages < vm__len(w); at--)
        s->largest[at] = s->largest[at - 1];
    s->largest[at] = vm__range_info(r, page, w);
}

/* Whether the words parsed to the end. */
static bool survey_words(const vm_region *r, vm_survey *s, uint64_t held[VM_PROCESSES], uint64_t once[VM_PROCESSES])
{
    uint64_t page = 0;
    memset(held, 0, VM_PROCESSES * sizeof *held);
    memset(once, 0, VM_PROCESSES * sizeof *once);
    *s = (vm_survey){.stats.nr_pages = r->map.nr_pages};
    for (vm_word w; (w = vm__word_at(r, page)); page += vm__len(w)) {
        vm__add_range(&s->stats, w);
        vm__add_held(r, page, w, false, held);
        vm__add_held(r, page, w, true, once);
        if (vm__state(w) == VM_BUSY)
            keep_if_large(s, r, page, w);
    }
    return page == r->map.nr_pages;
}

void vm_survey_look(const vm_region *r, vm_survey *out)
{
    uint64_t held[VM_PROCESSES], once[VM_PROCESSES];
    bool is_whole = false;
    for (int i = 0; i < LOOKS && !is_whole; i++)
        is_whole = survey_words(r, out, held, once);
    out->is_whole = is_whole;
    vm__add_counters(r, &out->stats);
    out->nr_holdings = (uint32_t)vm__list_held(r, held, once, true, VM_PROCESSES, out->holdings);
}
