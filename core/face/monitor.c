/* SPDX-License-Identifier: MIT */
/*
 * Monitor: what goes on in a region, for whoever looks again and again from outside.
 *
 * Takes no lock and no slot and writes nothing to the region, also in an attachment that may. What it tells is right within
 * what happens during the look.
 *
 * Magazine hits are counted nowhere: a hit takes the next number of its magazine's block of ids. So a look compares the
 * numbers with those of the look before. A magazine that has another block by now used up the one before; blocks between
 * these two show in the header's counter only, among those that threads took for requests that missed.
 */
#include "face.h"

#define LOOKS 3 /* at words that do not parse, because they changed under the look */
#define IDS (VM_ID_BLOCK - 1) /* of a block */

typedef struct seen_slot {
    uint64_t state, nr_alloc;
    bool has_missed; /* so it took a block of ids for misses */
    uint64_t number[VM_POOL_PAGES_MAX + 1];
} seen_slot;

struct vm_monitor {
    const vm_region *r;
    bool is_begun;
    uint64_t next_id, nr_alloc;
    uint64_t ids_of_misses; /* since a block of them was last full */
    int64_t blocks_early;   /* were seen in magazines before the counter was read */
    seen_slot slots[];
};

int vm_monitor_open(vm_region *r, vm_monitor **out)
{
    vm_monitor *w = calloc(1, sizeof *w + r->map.nr_threads * sizeof *w->slots); /* untouched but for slots in use */
    if (!w)
        return -ENOMEM;
    w->r = r;
    *out = w;
    return 0;
}

void vm_monitor_close(vm_monitor *w) { free(w); }

/* ---- hits ---- */

/* Block and ids given out of it, of a number that is the next one; all of no block for 0. */
static uint64_t block_of(uint64_t number) { return number ? (number - 1) / VM_ID_BLOCK + 1 : 0; }
static uint64_t given_of(uint64_t number) { return number ? (number - 1) % VM_ID_BLOCK : IDS; }

static uint64_t hits_between(uint64_t before, uint64_t now, int64_t *nr_blocks)
{
    if (!now || now == before)
        return 0;
    if (block_of(now) == block_of(before))
        return given_of(now) > given_of(before) ? given_of(now) - given_of(before) : 0;
    ++*nr_blocks;
    return given_of(now) + IDS - given_of(before);
}

static uint64_t look_at_slot(const vm_slot *s, seen_slot *seen, vm_monitored *out, int64_t *nr_blocks)
{
    uint64_t hits = 0, state = VM_ACQUIRE(&s->state);
    if (!(state & 1))
        return 0;
    if (state != seen->state) /* another thread's than at the look before: its blocks are new */
        *seen = (seen_slot){.state = state, .nr_alloc = seen->nr_alloc};
    if (VM_RELAXED(&s->nr_alloc) != seen->nr_alloc && !seen->has_missed) {
        seen->has_missed = true;
        ++*nr_blocks;
    }
    seen->nr_alloc = VM_RELAXED(&s->nr_alloc);
    for (uint32_t i = 1; i <= VM_POOL_PAGES_MAX; i++) {
        uint64_t header = VM_RELAXED(&s->magazine[i].header);
        hits += hits_between(seen->number[i], header >> 8, nr_blocks);
        seen->number[i] = header >> 8;
        out->in_magazines[i - 1] += vm__magazine_count(header);
    }
    return hits;
}

/* Ids of whole blocks that magazines took and used up since the look before. */
static uint64_t hits_of_whole_blocks(vm_monitor *w, uint64_t next_id, uint64_t nr_alloc, int64_t nr_seen)
{
    w->ids_of_misses += nr_alloc - w->nr_alloc;
    int64_t taken = (int64_t)((next_id - w->next_id) / VM_ID_BLOCK), for_misses = (int64_t)(w->ids_of_misses / IDS);
    w->ids_of_misses %= IDS;
    int64_t others = taken - nr_seen - for_misses - w->blocks_early;
    w->blocks_early = others < 0 ? -others : 0;
    return others > 0 ? (uint64_t)others * IDS : 0;
}

void vm_monitor_look(vm_monitor *w, vm_monitored *out)
{
    const vm_region *r = w->r;
    uint64_t hits = 0, next_id = VM_ACQUIRE(&r->map.h->next_id);
    int64_t nr_blocks = 0;
    *out = (vm_monitored){0};
    vm__add_counters(r, &out->counters);
    out->counters.nr_pages = r->map.nr_pages;
    out->counters.free_pages = VM_RELAXED(&r->map.h->free_pages);
    out->counters.lazy_pages = VM_RELAXED(&r->map.h->lazy_pages);
    for (uint32_t i = 0; i < r->map.nr_threads; i++)
        if (vm__slot_was_used(r, i))
            hits += look_at_slot(&r->map.slots[i], &w->slots[i], out, &nr_blocks);
    if (w->is_begun)
        out->nr_hits = hits + hits_of_whole_blocks(w, next_id, out->counters.nr_alloc, nr_blocks);
    w->is_begun = true;
    w->next_id = next_id;
    w->nr_alloc = out->counters.nr_alloc;
}

void vm_monitor_pools(const vm_region *r, uint32_t node, uint32_t nr_ranges[VM_POOL_PAGES_MAX])
{
    for (uint32_t i = 0; i < VM_POOL_PAGES_MAX; i++)
        nr_ranges[i] = 0;
    for (uint32_t n = node; node < r->map.nodes_each && n < vm__nodes_used(r); n += r->map.nodes_each)
        for (uint32_t i = 0; i < VM_POOL_PAGES_MAX; i++)
            nr_ranges[i] += VM_RELAXED(&r->map.nodes[n].pool[i].nr_ranges);
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
