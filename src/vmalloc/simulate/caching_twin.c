/* SPDX-License-Identifier: MIT */
/*
 * Ours: model/caching.py, magazine.py, slab.py and warm.py, compiled. Every number is of vmalloc/facts.py, as theirs.
 * Not here: full purges and what makes room, for the window is never used up.
 */
#include "twin.h"

#include <stdlib.h>
#include <string.h>

#include "vmalloc_facts.h"

enum { NR_LISTS = 512, LIST_WORDS = NR_LISTS / 64 };

typedef struct magazines {
    sim_pool *size[SIM_POOL_SIZES];
    uint32_t cap[SIM_POOL_SIZES], stock[SIM_POOL_SIZES];
    uint64_t grown_pages, budget_pages;
    bool is_crowd;
} magazines;

typedef struct ends {
    uint32_t front, back; /* the youngest, the oldest */
} ends;

/* What one CPU keeps of one size. An entry is there if `slab_of` says so; else it is stale. */
typedef struct slab {
    sim_vector entries; /* the newest last */
    uint32_t id, cpu, pages;
    uint32_t nr_named; /* entries that were there when it was counted last; one may be named twice */
    bool is_changed;
} slab;

typedef struct sim_caching {
    magazines **kept; /* by thread */
    slab **slab;      /* [cpu * SIM_POOL_SIZES + pages], made when first asked for */
    sim_vector changed; /* slabs that are to be counted again */
    uint32_t *slab_of;  /* by first page: the id of the slab it is in, plus one */
    uint64_t nr_slabbed, slab_pages;
    uint32_t threads;
    uint32_t *age, *next, *prev; /* by first page: `next` is the one added before */
    uint8_t *is_clean;
    uint32_t known;
    ends list[NR_LISTS];
    uint64_t used[LIST_WORDS];
    sim_vector unsorted; /* the youngest last */
    uint64_t nr_sorted, nr_walked;
    uint64_t used_pages, used_peak_pages, drained_peak_pages;
    sim_vector order; /* threads in the order in which they came */
    uint64_t nr_busy, nr_kept, nr_listed, nr_punched_steps;
    uint32_t now_s;
    sim_work *work;
} sim_caching;

void sim_caching_init(sim_twin *t, uint32_t threads)
{
    sim_caching *c = sim_grow(NULL, sizeof *c);
    memset(c, 0, sizeof *c);
    c->threads = threads;
    if (t->design.has_slabs) {
        c->slab = sim_grow(NULL, (uint64_t)t->design.cpus * SIM_POOL_SIZES * sizeof *c->slab);
        memset(c->slab, 0, (uint64_t)t->design.cpus * SIM_POOL_SIZES * sizeof *c->slab);
    }
    c->kept = sim_grow(NULL, threads * sizeof *c->kept);
    memset(c->kept, 0, threads * sizeof *c->kept);
    for (uint32_t i = 0; i < NR_LISTS; i++)
        c->list[i] = (ends){SIM_NONE, SIM_NONE};
    t->caching = c;
}

void sim_caching_free(sim_twin *t)
{
    sim_caching *c = t->caching;
    if (!c)
        return;
    for (uint32_t i = 0; i < c->threads; i++) {
        for (uint32_t pages = 0; c->kept[i] && pages < SIM_POOL_SIZES; pages++)
            if (c->kept[i]->size[pages]) {
                free(c->kept[i]->size[pages]->at);
                free(c->kept[i]->size[pages]);
            }
        free(c->kept[i]);
    }
    free(c->kept);
    for (uint32_t id = 0; c->slab && id < t->design.cpus * SIM_POOL_SIZES; id++)
        if (c->slab[id]) {
            free(c->slab[id]->entries.at);
            free(c->slab[id]);
        }
    free(c->slab);
    free(c->changed.at);
    free(c->slab_of);
    free(c->age);
    free(c->next);
    free(c->prev);
    free(c->is_clean);
    free(c->unsorted.at);
    free(c->order.at);
    free(c);
    t->caching = NULL;
}

void sim_caching_time(sim_twin *t, uint32_t now_s) { t->caching->now_s = now_s; }

static void know(sim_twin *t, uint32_t end)
{
    sim_caching *c = t->caching;
    sim_know(t, end);
    if (c->known >= t->known)
        return;
    c->age = sim_grow(c->age, (uint64_t)t->known * sizeof *c->age);
    c->next = sim_grow(c->next, (uint64_t)t->known * sizeof *c->next);
    c->prev = sim_grow(c->prev, (uint64_t)t->known * sizeof *c->prev);
    c->is_clean = sim_grow(c->is_clean, t->known);
    memset(c->is_clean + c->known, 0, t->known - c->known);
    if (t->design.has_slabs) {
        c->slab_of = sim_grow(c->slab_of, (uint64_t)t->known * sizeof *c->slab_of);
        memset(c->slab_of + c->known, 0, (uint64_t)(t->known - c->known) * sizeof *c->slab_of);
    }
    c->known = t->known;
}

/* ---- warm: lists by size ---------------------------------------------------------------------- */

static uint32_t list_of(uint32_t pages)
{
    if (pages <= VM_POOL_PAGES_MAX)
        return pages - 1;
    uint32_t log = 31 - (uint32_t)__builtin_clz(pages), small = 32 - (uint32_t)__builtin_clz(VM_POOL_PAGES_MAX);
    uint32_t first = VM_POOL_PAGES_MAX + ((log + 1 - small) << VM_WARM_STEPS_LOG);
    return first + (pages >> (log - VM_WARM_STEPS_LOG)) - (1u << VM_WARM_STEPS_LOG);
}

static uint32_t used_from(const sim_caching *c, uint32_t at)
{
    for (uint32_t word = at / 64; word < LIST_WORDS; word++) {
        uint64_t bits = c->used[word];
        if (word == at / 64)
            bits &= ~0ull << (at % 64);
        if (bits)
            return word * 64 + (uint32_t)__builtin_ctzll(bits);
    }
    return NR_LISTS;
}

static void list_add(sim_twin *t, uint32_t start, uint32_t pages, uint32_t age)
{
    sim_caching *c = t->caching;
    uint32_t at = list_of(pages);
    ends *l = &c->list[at];
    t->pages[start] = pages;
    c->age[start] = age;
    c->prev[start] = SIM_NONE;
    c->next[start] = l->front;
    if (l->front != SIM_NONE)
        c->prev[l->front] = start;
    else
        l->back = start;
    l->front = start;
    c->used[at / 64] |= 1ull << at % 64;
    c->nr_listed++;
}

static uint32_t list_drop(sim_twin *t, uint32_t start)
{
    sim_caching *c = t->caching;
    uint32_t at = list_of(t->pages[start]), next = c->next[start], prev = c->prev[start];
    ends *l = &c->list[at];
    if (prev != SIM_NONE)
        c->next[prev] = next;
    else
        l->front = next;
    if (next != SIM_NONE)
        c->prev[next] = prev;
    else
        l->back = prev;
    if (l->front == SIM_NONE)
        c->used[at / 64] &= ~(1ull << at % 64);
    c->nr_listed--;
    return c->age[start];
}

static bool sort_some(sim_twin *t)
{
    sim_caching *c = t->caching;
    if (!c->unsorted.nr) {
        uint32_t node = 0;
        while (node < t->design.nr_nodes && !t->lazy[node].nr)
            node++;
        if (node == t->design.nr_nodes)
            return false;
        sim_vector empty = c->unsorted;
        c->unsorted = t->lazy[node];
        t->lazy[node] = empty;
    }
    uint32_t nr = c->unsorted.nr < VM_WARM_SORT_RANGES ? c->unsorted.nr : VM_WARM_SORT_RANGES;
    c->unsorted.nr -= nr;
    for (uint32_t i = 0; i < nr; i++) {
        uint32_t start = c->unsorted.at[c->unsorted.nr + i];
        list_add(t, start, t->pages[start], c->age[start]);
    }
    c->nr_sorted += nr;
    c->work->sorted += nr;
    return true;
}

/* ---- warm: taking ----------------------------------------------------------------------------- */

static uint32_t tightest(const sim_twin *t, uint32_t least, uint32_t most, uint32_t align)
{
    const sim_caching *c = t->caching;
    if (least > most)
        return SIM_NONE;
    uint32_t last = list_of(most);
    for (uint32_t at = used_from(c, list_of(least)); at <= last && at < NR_LISTS; at = used_from(c, at + 1)) {
        uint32_t best = SIM_NONE, start = c->list[at].front;
        uint32_t looks = least > VM_POOL_PAGES_MAX ? VM_WARM_LOOK_LARGE : VM_WARM_LOOK_RANGES;
        for (uint32_t i = 0; i < looks && start != SIM_NONE; i++, start = c->next[start]) {
            uint32_t pages = t->pages[start];
            bool fits = least <= pages && pages <= most && !(start & (align - 1));
            if (fits && (best == SIM_NONE || pages < t->pages[best]))
                best = start;
        }
        if (best != SIM_NONE)
            return best;
    }
    return SIM_NONE;
}

static uint32_t close_one(const sim_twin *t, uint32_t pages, uint32_t align)
{
    uint32_t most = pages + (pages > VM_POOL_PAGES_MAX ? pages >> VM_WARM_SLACK_SHIFT : 0);
    return tightest(t, pages, most < VM_PAGES_MAX ? most : VM_PAGES_MAX, align);
}

/* After sorting as much as it takes; of exactly that size while there is hope. */
static uint32_t sorted_one(sim_twin *t, uint32_t pages, uint32_t align)
{
    uint32_t ahead = pages > VM_POOL_PAGES_MAX ? VM_WARM_SORT_AHEAD : 0, area = tightest(t, pages, pages, align);
    for (bool more = true; area == SIM_NONE && more; ahead -= ahead != 0) {
        more = sort_some(t);
        area = tightest(t, pages, pages, align);
        if (area == SIM_NONE && (!more || ahead == 0))
            area = close_one(t, pages, align);
    }
    return area;
}

static bool join(sim_twin *t, uint32_t pages, uint32_t moving)
{
    sim_caching *c = t->caching;
    bool is_dear = pages <= VM_POOL_PAGES_MAX || c->nr_walked > pages;
    if (c->nr_sorted < (is_dear ? c->nr_walked / VM_WARM_JOIN_SHARE + 1 : 1))
        return false;
    sim_vector listed = {0};
    for (uint32_t at = used_from(c, 0); at < NR_LISTS; at = used_from(c, at + 1))
        for (uint32_t start = c->list[at].front; start != SIM_NONE; start = c->next[start])
            sim_push(&listed, start);
    sim_sort(&listed);
    c->nr_sorted = 0;
    c->nr_walked = listed.nr + sim_space_nr(&t->space) + c->nr_busy + t->nr_pooled + c->nr_kept + c->nr_slabbed
                   + moving;
    c->work->sorted += listed.nr;
    bool joined = false;
    uint32_t run = SIM_NONE;
    for (uint32_t i = 0; i < listed.nr; i++) {
        uint32_t start = listed.at[i];
        if (run == SIM_NONE || run + t->pages[run] != start || t->pages[run] + t->pages[start] > VM_PAGES_MAX) {
            run = start;
            continue;
        }
        uint32_t age = list_drop(t, run);
        list_drop(t, start);
        list_add(t, run, t->pages[run] + t->pages[start], age);
        joined = true;
    }
    free(listed.at);
    return joined;
}

static uint32_t find_warm(sim_twin *t, uint32_t pages, uint32_t align, uint32_t moving)
{
    bool is_large = pages > VM_POOL_PAGES_MAX;
    uint32_t area = sorted_one(t, pages, align);
    if (area == SIM_NONE && is_large && join(t, pages, moving))
        area = close_one(t, pages, align);
    uint32_t least = is_large ? pages + 1 : 2 * pages;
    if (area == SIM_NONE)
        area = tightest(t, least, VM_PAGES_MAX, align);
    if (area == SIM_NONE && !is_large && join(t, pages, moving)) {
        area = close_one(t, pages, align);
        if (area == SIM_NONE)
            area = tightest(t, least, VM_PAGES_MAX, align);
    }
    return area != SIM_NONE ? area : tightest(t, pages + 1, VM_PAGES_MAX, align);
}

/* Up to `count` ranges; `taken` has room for them. */
static uint32_t take_warm(sim_twin *t, uint32_t pages, uint32_t align, uint32_t count, uint32_t *taken)
{
    uint32_t nr = 0, close = pages + (pages >> VM_WARM_SLACK_SHIFT);
    uint64_t sum = 0;
    while (t->lazy_pages >= pages && nr < count) {
        uint32_t area = find_warm(t, pages, align, nr);
        if (area == SIM_NONE)
            break;
        uint32_t length = t->pages[area];
        uint32_t given = pages > VM_POOL_PAGES_MAX && length <= close ? length : pages;
        uint32_t age = list_drop(t, area);
        if (given < length)
            list_add(t, area + given, length - given, age);
        t->pages[area] = given;
        taken[nr++] = area;
        sum += given;
    }
    t->lazy_pages -= sum;
    return nr;
}

/* ---- warm: giving up -------------------------------------------------------------------------- */

static uint32_t oldest_list(const sim_caching *c)
{
    uint32_t best = NR_LISTS;
    for (uint32_t at = used_from(c, 0); at < NR_LISTS; at = used_from(c, at + 1))
        if (best == NR_LISTS || c->age[c->list[at].back] < c->age[c->list[best].back])
            best = at;
    return best;
}

static uint32_t collect_one(sim_twin *t, uint32_t at, uint32_t most)
{
    uint32_t start = t->caching->list[at].back, pages = t->pages[start], age = list_drop(t, start);
    if (pages <= most)
        return start;
    list_add(t, start, pages - most, age);
    t->pages[start + pages - most] = most;
    return start + pages - most;
}

static void give(sim_twin *t, uint32_t start)
{
    uint32_t pages = t->pages[start];
    sim_space_add(&t->space, start, pages);
    t->caching->used_pages -= pages;
    t->lazy_pages -= pages;
    t->nr_purged++;
    t->caching->work->given++;
    t->caching->work->given_pages += pages;
}

static void sink_peak(sim_twin *t)
{
    sim_caching *c = t->caching;
    uint64_t used = c->used_pages - t->lazy_pages;
    if (c->used_peak_pages < used)
        c->used_peak_pages = used;
    c->used_peak_pages -= (c->used_peak_pages - used) * VM_PEAK_SINK_PERCENT / 100;
    if (c->drained_peak_pages > c->used_peak_pages)
        c->drained_peak_pages = c->used_peak_pages;
}

static void step(sim_twin *t, uint64_t pages)
{
    sim_caching *c = t->caching;
    sim_vector collected = {0}; /* given at the end, as in the model */
    uint64_t left = pages;
    sort_some(t);
    while (used_from(c, 0) < NR_LISTS && left && collected.nr < VM_PURGE_STEP_RANGES) {
        uint32_t at = oldest_list(c), most = VM_PURGE_STEP_RANGES - collected.nr;
        most = most < VM_WARM_LOOK_RANGES ? most : VM_WARM_LOOK_RANGES;
        for (uint32_t i = 0; i < most && left && c->list[at].front != SIM_NONE; i++) {
            uint32_t start = collect_one(t, at, (uint32_t)left);
            sim_push(&collected, start);
            left -= t->pages[start];
        }
    }
    for (uint32_t i = 0; i < collected.nr; i++)
        give(t, collected.at[i]);
    free(collected.at);
    if (++c->nr_punched_steps % VM_PEAK_SINK_STEPS == 0)
        sink_peak(t);
}

uint64_t sim_caching_lazy_max(const sim_twin *t)
{
    const sim_caching *c = t->caching;
    uint64_t fixed = t->design.lazy_pages_max, peak = c->used_peak_pages;
    if (t->design.lazy_is_fixed)
        return fixed;
    if (!t->design.memory_pages) {
        uint64_t share = peak * VM_LAZY_PEAK_PERCENT / 100;
        return share > fixed ? share : fixed;
    }
    uint64_t most = peak + (peak >> VM_WARM_ROOM_SHIFT), share = t->design.memory_pages / VM_WARM_MEMORY_SHARE;
    uint64_t live = c->used_pages - t->lazy_pages, room = most < share ? most : share;
    uint64_t moving = room > live ? room - live : 0;
    return moving > fixed ? moving : fixed;
}

static uint64_t excess(const sim_twin *t)
{
    uint64_t most = t->lazy_pages ? sim_caching_lazy_max(t) : 0;
    return t->lazy_pages > most ? t->lazy_pages - most : 0;
}

/* ---- magazines -------------------------------------------------------------------------------- */

/* A thread's magazines; by how much their caps may grow follows from what is free now. */
static magazines *kept_of(sim_twin *t, uint32_t thread)
{
    sim_caching *c = t->caching;
    magazines *kept = c->kept[thread];
    if (!kept) {
        kept = c->kept[thread] = sim_grow(NULL, sizeof *kept);
        memset(kept, 0, sizeof *kept);
        for (uint32_t pages = 0; pages < SIM_POOL_SIZES; pages++)
            kept->cap[pages] = kept->stock[pages] = 1;
        sim_push(&c->order, thread);
    }
    uint64_t share = (t->design.window_pages - c->used_pages) / VM_MAGAZINE_BUDGET_SHARE;
    uint64_t most = VM_MAGAZINE_BUDGET_BYTES_MAX / 4096, least = VM_MAGAZINE_BUDGET_BYTES / 4096;
    share = (share < most ? share : most) * (c->order.nr <= 1 ? VM_MAGAZINE_BUDGET_ALONE : 1);
    share = share > least ? share : least;
    kept->budget_pages = share > VM_POOL_PAGES_MAX ? share : VM_POOL_PAGES_MAX;
    kept->is_crowd = c->order.nr > (uint64_t)VM_CROWD_THREADS * t->design.nr_nodes;
    return kept;
}

static sim_pool *ranges_of(magazines *kept, uint32_t pages)
{
    if (!kept->size[pages]) {
        kept->size[pages] = sim_grow(NULL, sizeof(sim_pool));
        memset(kept->size[pages], 0, sizeof(sim_pool));
    }
    return kept->size[pages];
}

static uint32_t cap_most(uint32_t pages)
{
    uint32_t most = VM_MAGAZINE_CAP_PAGES / pages;
    most = most > 2 ? most : 2;
    return most < VM_MAGAZINE_CAP ? most : VM_MAGAZINE_CAP;
}

static bool grow(magazines *kept, uint32_t pages)
{
    uint32_t cap = kept->cap[pages], wanted = cap ? 2 * cap : 1;
    wanted = wanted < cap_most(pages) ? wanted : cap_most(pages);
    uint64_t more = (uint64_t)(wanted - cap) * pages;
    if (kept->grown_pages + more > kept->budget_pages)
        return false;
    kept->grown_pages += more;
    kept->cap[pages] = wanted;
    return true;
}

/* So many ranges are at most so many pages, in a crowd few, but one in any case. */
static uint32_t batch_of(const magazines *kept, uint32_t pages, uint32_t most)
{
    uint32_t count = (kept->is_crowd && most > VM_CROWD_BATCH_PAGES ? VM_CROWD_BATCH_PAGES : most) / pages;
    return count > 1 ? count : 1;
}

static uint32_t refill_of(const magazines *kept, uint32_t pages)
{
    uint32_t most = batch_of(kept, pages, VM_MAGAZINE_REFILL_PAGES), half = kept->cap[pages] / 2 + 1;
    most = most < VM_MAGAZINE_REFILL_MAX ? most : VM_MAGAZINE_REFILL_MAX;
    return half < most ? half : most;
}

/* The newest aligned one. */
static uint32_t take_kept(sim_caching *c, magazines *kept, uint32_t pages, uint32_t align)
{
    sim_pool *ranges = kept->size[pages];
    uint32_t aside[VM_MAGAZINE_CAP], nr = 0, found = SIM_NONE;
    while (ranges && ranges->nr && found == SIM_NONE) {
        uint32_t start = sim_pool_pop(ranges, true);
        if (start & (align - 1))
            aside[nr++] = start;
        else
            found = start;
    }
    while (nr)
        sim_pool_push(ranges, aside[--nr]);
    c->nr_kept -= found != SIM_NONE;
    return found;
}

/* ---- pools and lazy --------------------------------------------------------------------------- */

static void to_lazy(sim_twin *t, uint32_t start, uint32_t cpu)
{
    t->lazy_pages += t->pages[start];
    sim_push(&t->lazy[cpu % t->design.nr_nodes], start);
    t->caching->age[start] = t->caching->now_s;
    t->caching->work->to_lazy++;
}

static void to_node(sim_twin *t, const uint32_t *areas, uint32_t nr, uint32_t cpu)
{
    for (uint32_t i = 0; i < nr; i++) {
        uint32_t pages = t->pages[areas[i]], most = VM_POOL_CAP_PAGES / pages;
        sim_pool *p = sim_pool_of(t, cpu % t->design.nr_nodes, pages);
        if (p->nr >= (most > VM_POOL_CAP_RANGES_MIN ? most : VM_POOL_CAP_RANGES_MIN)) {
            to_lazy(t, areas[i], cpu);
            continue;
        }
        sim_pool_push(p, areas[i]);
        t->nr_pooled++;
        t->pooled_pages += pages;
        t->caching->work->moved++;
    }
}

/* ---- slabs: model/slab.py --------------------------------------------------------------------- */

static uint32_t slab_cap(uint32_t pages)
{
    uint32_t cap = VM_SLAB_CAP_PAGES / pages;
    cap = cap > VM_SLAB_CAP_MIN ? cap : VM_SLAB_CAP_MIN;
    return cap < VM_SLAB_CAP ? cap : VM_SLAB_CAP;
}

static slab *slab_of(sim_twin *t, uint32_t cpu, uint32_t pages)
{
    slab **at = &t->caching->slab[cpu * SIM_POOL_SIZES + pages];
    if (!*at) {
        *at = sim_grow(NULL, sizeof **at);
        memset(*at, 0, sizeof **at);
        (*at)->id = cpu * SIM_POOL_SIZES + pages;
        (*at)->cpu = cpu;
        (*at)->pages = pages;
    }
    return *at;
}

static void slab_changes(sim_caching *c, slab *l)
{
    if (!l->is_changed)
        sim_push(&c->changed, l->id);
    l->is_changed = true;
}

static bool is_there(const sim_caching *c, const slab *l, uint32_t start) { return c->slab_of[start] == l->id + 1; }

static void leave_slab(sim_caching *c, uint32_t start)
{
    c->slab_of[start] = 0;
    c->nr_slabbed--;
}

/* Pages of all slabs, a range that is named twice counted twice, as the core and the model count. */
static uint64_t slab_pages(sim_caching *c)
{
    while (c->changed.nr) {
        slab *l = c->slab[c->changed.at[--c->changed.nr]];
        c->slab_pages -= (uint64_t)l->nr_named * l->pages;
        l->nr_named = 0;
        for (uint32_t i = 0; i < l->entries.nr; i++)
            l->nr_named += is_there(c, l, l->entries.at[i]);
        c->slab_pages += (uint64_t)l->nr_named * l->pages;
        l->is_changed = false;
    }
    return c->slab_pages;
}

static uint32_t slab_take(sim_caching *c, slab *l, uint32_t align)
{
    sim_vector *e = &l->entries;
    slab_changes(c, l);
    while (e->nr && !(e->at[e->nr - 1] & (align - 1))) {
        uint32_t start = e->at[--e->nr];
        if (!is_there(c, l, start))
            continue;
        leave_slab(c, start);
        return start;
    }
    return SIM_NONE;
}

/* Put one on top; what has to make room goes to the pool behind, the oldest first. */
static void slab_put(sim_twin *t, uint32_t start, uint32_t cpu)
{
    sim_caching *c = t->caching;
    slab *l = slab_of(t, cpu, t->pages[start]);
    sim_vector *e = &l->entries;
    uint32_t left[VM_SLAB_CAP], nr = 0, cap = slab_cap(l->pages), older = 0;
    slab_changes(c, l);
    if (e->nr >= cap)
        older = e->nr - cap / 2;
    for (uint32_t i = 0; i < older; i++)
        if (is_there(c, l, e->at[i])) {
            leave_slab(c, e->at[i]);
            left[nr++] = e->at[i];
        }
    e->nr -= older;
    if (older)
        memmove(e->at, e->at + older, e->nr * sizeof *e->at);
    sim_push(e, start);
    c->slab_of[start] = l->id + 1;
    c->nr_slabbed++;
    to_node(t, left, nr, cpu);
}

/* All that a slab has becomes lazy, the oldest first; the entries stay. */
static void slab_to_lazy(sim_twin *t, slab *l, uint32_t cpu)
{
    sim_caching *c = t->caching;
    slab_changes(c, l);
    for (uint32_t i = 0; i < l->entries.nr; i++) {
        uint32_t start = l->entries.at[i];
        if (!is_there(c, l, start))
            continue;
        leave_slab(c, start);
        to_lazy(t, start, cpu);
    }
}

static void to_pool(sim_twin *t, const uint32_t *areas, uint32_t nr, uint32_t cpu)
{
    if (!t->design.has_slabs)
        to_node(t, areas, nr, cpu);
    for (uint32_t i = 0; t->design.has_slabs && i < nr; i++)
        slab_put(t, areas[i], cpu);
}

/* Keep them as far as there is room, the others go to the pool. */
static void fill(sim_twin *t, magazines *kept, const uint32_t *areas, uint32_t nr, uint32_t cpu)
{
    if (!nr)
        return;
    uint32_t pages = t->pages[areas[0]], i = 0;
    sim_pool *ranges = ranges_of(kept, pages);
    for (uint32_t room = kept->cap[pages] > ranges->nr ? kept->cap[pages] - ranges->nr : 0; i < nr && i < room; i++)
        sim_pool_push(ranges, areas[i]);
    t->caching->nr_kept += i;
    t->caching->work->moved += i;
    to_pool(t, areas + i, nr - i, cpu);
}

static uint32_t take_pooled(sim_twin *t, sim_pool *p, uint32_t pages, uint32_t align)
{
    uint32_t start = sim_pool_take(p, align, SIM_IN_PLACE);
    if (start != SIM_NONE) {
        t->nr_pooled--;
        t->pooled_pages -= pages;
    }
    return start;
}

/* The rest of a batch goes to the CPU's slab, the pool's head on top again. */
static void refill_slab(sim_twin *t, sim_pool *p, uint32_t pages, uint32_t cpu)
{
    uint32_t half = slab_cap(pages) / 2, batch[VM_MAGAZINE_REFILL_MAX], nr = 0;
    uint32_t want = (half < VM_MAGAZINE_REFILL_MAX ? half : VM_MAGAZINE_REFILL_MAX) - 1;
    while (nr < want && p->nr)
        batch[nr++] = take_pooled(t, p, pages, 1);
    t->caching->work->moved += nr;
    while (nr)
        slab_put(t, batch[--nr], cpu);
}

static uint32_t from_pool(sim_twin *t, uint32_t pages, uint32_t align, uint32_t cpu, magazines *kept)
{
    uint32_t nodes = t->design.nr_nodes;
    slab *l = t->design.has_slabs ? t->caching->slab[cpu * SIM_POOL_SIZES + pages] : NULL;
    uint32_t hit = l ? slab_take(t->caching, l, align) : SIM_NONE;
    if (hit != SIM_NONE) {
        t->caching->work->level = SIM_SLAB;
        return hit;
    }
    for (uint32_t offset = 0; offset < nodes && t->design.has_pools; offset++) {
        sim_pool *p = t->pool[(cpu + offset) % nodes * SIM_POOL_SIZES + pages];
        t->caching->work->nodes_asked++;
        t->caching->work->level = offset ? SIM_NEIGHBOUR : SIM_POOL;
        uint32_t start = p ? take_pooled(t, p, pages, align) : SIM_NONE;
        if (start == SIM_NONE)
            continue;
        uint32_t batch[VM_MAGAZINE_REFILL_MAX], nr = 0, want = kept ? refill_of(kept, pages) - 1 : 0, next;
        while (nr < want && (next = take_pooled(t, p, pages, align)) != SIM_NONE)
            batch[nr++] = next;
        if (kept && nr == want)
            grow(kept, pages);
        if (kept)
            fill(t, kept, batch, nr, cpu);
        else if (t->design.has_slabs && align <= 1)
            refill_slab(t, p, pages, cpu);
        return start;
    }
    return SIM_NONE;
}

static uint32_t from_warm(sim_twin *t, uint32_t pages, uint32_t align, uint32_t cpu, magazines *kept)
{
    uint32_t taken[VM_MAGAZINE_REFILL_MAX], want = kept ? refill_of(kept, pages) : 1;
    uint32_t nr = take_warm(t, pages, align, want, taken);
    if (kept && nr == want && kept->cap[pages])
        grow(kept, pages);
    if (kept && nr)
        fill(t, kept, taken + 1, nr - 1, cpu);
    return nr ? taken[0] : SIM_NONE;
}

/* ---- space ------------------------------------------------------------------------------------ */

static void take_space(sim_twin *t, uint32_t start, uint32_t pages)
{
    sim_caching *c = t->caching;
    sim_space_take(&t->space, start, pages);
    know(t, start + pages);
    c->used_pages += pages;
    uint64_t used = c->used_pages - t->lazy_pages;
    c->used_peak_pages = used > c->used_peak_pages ? used : c->used_peak_pages;
    c->work->space_calls++;
}

static uint32_t stock_up(sim_twin *t, uint32_t pages, uint32_t cpu, magazines *kept)
{
    uint32_t stock = kept->stock[pages], most_now = batch_of(kept, pages, VM_MAGAZINE_STOCK_PAGES);
    uint32_t want = stock < most_now ? stock : most_now;
    uint32_t start = want > 1 ? sim_space_find(&t->space, pages, 1, pages) : SIM_NONE;
    if (start == SIM_NONE && want > 1)
        kept->stock[pages] = stock / 2;
    else if (2 * stock * pages <= VM_MAGAZINE_STOCK_PAGES)
        kept->stock[pages] = 2 * stock;
    if (start == SIM_NONE)
        return SIM_NONE;
    uint32_t count = (sim_space_end_of(&t->space, start) - start) / pages, areas[VM_MAGAZINE_STOCK_PAGES];
    count = count < want ? count : want;
    take_space(t, start, count * pages);
    for (uint32_t i = 0; i < count; i++) {
        areas[i] = start + i * pages;
        t->pages[areas[i]] = pages;
    }
    uint32_t most = count < cap_most(pages) ? count : cap_most(pages);
    while (count > 1 && kept->cap[pages] < most && grow(kept, pages))
        ;
    fill(t, kept, areas + 1, count - 1, cpu);
    return start;
}

static uint32_t from_space(sim_twin *t, uint32_t pages, uint32_t align, uint32_t cpu, uint32_t thread)
{
    if (excess(t))
        step(t, 2 * pages > VM_PURGE_STEP_PAGES ? 2 * pages : VM_PURGE_STEP_PAGES);
    uint32_t start = SIM_NONE;
    if (t->design.has_magazines && align <= 1 && pages <= VM_POOL_PAGES_MAX)
        start = stock_up(t, pages, cpu, kept_of(t, thread));
    if (start != SIM_NONE)
        return start;
    start = sim_space_find(&t->space, pages, align, pages);
    if (start == SIM_NONE)
        return SIM_NONE;
    take_space(t, start, pages);
    t->pages[start] = pages;
    t->caching->is_clean[start] = 1;
    return start;
}

/* ---- before a new peak ------------------------------------------------------------------------ */

static uint64_t pages_of(const magazines *kept)
{
    uint64_t sum = 0;
    for (uint32_t pages = 1; kept && pages < SIM_POOL_SIZES; pages++)
        sum += kept->size[pages] ? (uint64_t)kept->size[pages]->nr * pages : 0;
    return sum;
}

/* Small sizes first, of each the oldest first: to the pool, or lazy. */
static void drain(sim_twin *t, magazines *kept, uint32_t cpu, bool is_lazy)
{
    for (uint32_t pages = 1; kept && pages < SIM_POOL_SIZES; pages++)
        while (kept->size[pages] && kept->size[pages]->nr) {
            uint32_t start = sim_pool_pop(kept->size[pages], false);
            t->caching->nr_kept--;
            if (is_lazy)
                to_lazy(t, start, cpu);
            else
                to_pool(t, &start, 1, cpu);
        }
}

static void pools_to_warm(sim_twin *t, uint32_t cpu)
{
    slab **slabs = t->caching->slab;
    for (uint32_t node = 0; node < t->design.nr_nodes; node++) {
        for (uint32_t pages = 1; pages < SIM_POOL_SIZES; pages++) {
            sim_pool *p = t->pool[node * SIM_POOL_SIZES + pages];
            while (p && p->nr) {
                t->nr_pooled--;
                t->pooled_pages -= pages;
                to_lazy(t, sim_pool_pop(p, true), cpu);
            }
        }
        for (uint32_t of = node; slabs && of < t->design.cpus; of += t->design.nr_nodes)
            for (uint32_t pages = 1; pages < SIM_POOL_SIZES; pages++)
                if (slabs[of * SIM_POOL_SIZES + pages])
                    slab_to_lazy(t, slabs[of * SIM_POOL_SIZES + pages], cpu);
    }
}

static bool loosen(sim_twin *t, uint32_t pages, uint32_t cpu, magazines *own)
{
    sim_caching *c = t->caching;
    uint64_t live = c->used_pages - t->lazy_pages + pages, drained = c->drained_peak_pages;
    if (!t->design.memory_pages || !t->design.has_pools || live <= c->used_peak_pages)
        return false;
    uint64_t rise = drained >> VM_WARM_ROOM_SHIFT, least = VM_DRAIN_BYTES / 4096;
    bool of_all = own && live > drained + (rise > least ? rise : least);
    uint64_t share = c->used_peak_pages >> VM_WARM_ROOM_SHIFT, much = share > least ? share : least;
    if (!of_all && pages_of(own) + t->pooled_pages + slab_pages(c) < (much > pages ? much : pages))
        return false;
    drain(t, own, cpu, false);
    if (of_all) {
        c->drained_peak_pages = live;
        for (uint32_t i = 0; i < c->order.nr; i++)
            drain(t, c->kept[c->order.at[i]], cpu, true);
    }
    pools_to_warm(t, cpu);
    return true;
}

/* ---- the face --------------------------------------------------------------------------------- */

uint32_t sim_caching_alloc(sim_twin *t, uint32_t cpu, uint32_t thread, uint32_t pages, uint32_t align, sim_work *did)
{
    sim_caching *c = t->caching;
    memset(did, 0, sizeof *did);
    c->work = did;
    bool is_small = pages <= VM_POOL_PAGES_MAX;
    magazines *own = t->design.has_magazines ? kept_of(t, thread) : NULL, *kept = is_small ? own : NULL;
    uint32_t start = SIM_NONE;
    if (!is_small) {
        uint32_t taken[1];
        start = take_warm(t, pages, align, 1, taken) ? taken[0] : SIM_NONE;
        did->level = SIM_LAZY;
    } else {
        if (kept)
            ranges_of(kept, pages);
        start = kept ? take_kept(c, kept, pages, align) : SIM_NONE;
        did->level = SIM_MAGAZINE;
        if (start == SIM_NONE)
            start = from_pool(t, pages, align, cpu, kept);
        if (start == SIM_NONE && t->design.has_pools) {
            start = from_warm(t, pages, align, cpu, kept);
            did->level = SIM_LAZY;
        }
    }
    if (start == SIM_NONE && loosen(t, pages, cpu, own)) {
        if (is_small) {
            start = from_warm(t, pages, align, cpu, kept);
        } else {
            uint32_t taken[1];
            start = take_warm(t, pages, align, 1, taken) ? taken[0] : SIM_NONE;
        }
        did->level = SIM_LAZY;
    }
    if (start == SIM_NONE) {
        start = from_space(t, pages, align, cpu, thread);
        did->level = SIM_SPACE;
    }
    if (start == SIM_NONE) {
        t->served[SIM_NOTHING]++;
        return SIM_NONE;
    }
    sim_now_busy(t, start, t->pages[start], -1, (enum sim_level)did->level);
    c->nr_busy++;
    return start;
}

bool sim_caching_release(sim_twin *t, uint32_t cpu, uint32_t thread, uint32_t start, sim_work *did)
{
    sim_caching *c = t->caching;
    memset(did, 0, sizeof *did);
    did->level = SIM_NOTHING;
    c->work = did;
    if (start >= t->known || !t->is_busy[start])
        return false;
    uint32_t pages = t->pages[start];
    bool is_small = pages <= VM_POOL_PAGES_MAX;
    magazines *own = t->design.has_magazines ? kept_of(t, thread) : NULL, *kept = is_small ? own : NULL;
    bool is_open = kept && kept->size[pages]; /* the first free of a size does more */
    sim_pool *ranges = kept ? ranges_of(kept, pages) : NULL;
    bool has_room = is_open && ranges->nr < kept->cap[pages];
    if (t->design.has_slabs && is_small)
        has_room = slab_of(t, cpu, pages)->entries.nr < slab_cap(pages);
    bool is_quick = has_room && !c->is_clean[start];
    t->is_busy[start] = 0;
    t->live_pages -= pages;
    c->nr_busy--;
    c->is_clean[start] = 0;
    if (!is_small || !t->design.has_pools) {
        to_lazy(t, start, cpu);
    } else if (!kept) {
        to_pool(t, &start, 1, cpu);
        did->level = t->design.has_slabs ? SIM_SLAB : SIM_POOL;
    } else {
        uint32_t left[VM_MAGAZINE_CAP], nr = 0;
        did->level = SIM_MAGAZINE;
        if (ranges->nr >= kept->cap[pages])
            grow(kept, pages);
        if (ranges->nr >= kept->cap[pages])
            for (uint32_t half = (kept->cap[pages] + 1) / 2; nr < half; nr++)
                left[nr] = sim_pool_pop(ranges, false);
        sim_pool_push(ranges, start);
        c->nr_kept += 1;
        c->nr_kept -= nr;
        to_pool(t, left, nr, cpu);
    }
    uint64_t over = is_quick ? 0 : excess(t);
    if (over) {
        uint64_t most = 2ull * pages < over ? 2ull * pages : over;
        most = most < VM_PURGE_STEP_PAGES_MAX ? most : VM_PURGE_STEP_PAGES_MAX;
        step(t, most > VM_PURGE_STEP_PAGES ? most : VM_PURGE_STEP_PAGES);
    }
    return true;
}
