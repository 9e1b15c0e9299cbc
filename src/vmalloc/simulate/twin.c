/* SPDX-License-Identifier: MIT */
#include "twin.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { KNOWN_MIN = 1 << 16, ZONE_PAGES = 16 };

sim_twin *sim_twin_new(const sim_design *design)
{
    sim_twin *t = sim_grow(NULL, sizeof *t);
    memset(t, 0, sizeof *t);
    t->design = *design;
    uint32_t nodes = design->nr_nodes;
    sim_space_init(&t->space, design->window_pages);
    t->pool = calloc((size_t)nodes * SIM_POOL_SIZES, sizeof *t->pool);
    t->lazy = calloc(nodes, sizeof *t->lazy);
    t->purge_list = calloc(nodes, sizeof *t->purge_list);
    t->aside = calloc(nodes, sizeof *t->aside);
    t->filled = calloc(nodes, sizeof *t->filled);
    t->list_pages = calloc(nodes, sizeof *t->list_pages);
    if (!t->pool || !t->lazy || !t->purge_list || !t->aside || !t->filled || !t->list_pages) {
        sim_twin_free(t);
        return NULL;
    }
    return t;
}

void sim_twin_free(sim_twin *t)
{
    sim_caching_free(t);
    for (size_t i = 0; t->pool && i < (size_t)t->design.nr_nodes * SIM_POOL_SIZES; i++)
        if (t->pool[i]) {
            free(t->pool[i]->at);
            free(t->pool[i]);
        }
    for (uint32_t n = 0; t->lazy && t->purge_list && t->aside && n < t->design.nr_nodes; n++) {
        free(t->lazy[n].at);
        free(t->purge_list[n].at);
        free(t->aside[n].at);
    }
    free(t->pool);
    free(t->lazy);
    free(t->purge_list);
    free(t->aside);
    free(t->filled);
    free(t->list_pages);
    free(t->decayed.at);
    free(t->pages);
    free(t->stamp);
    free(t->is_busy);
    sim_space_free(&t->space);
    free(t);
}

void sim_push(sim_vector *v, uint32_t page)
{
    if (v->nr == v->room) {
        v->room = v->room ? 2 * v->room : 16;
        v->at = sim_grow(v->at, v->room * sizeof *v->at);
    }
    v->at[v->nr++] = page;
}

static int by_page(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

void sim_sort(sim_vector *v)
{
    if (v->nr > 1)
        qsort(v->at, v->nr, sizeof *v->at, by_page);
}

/* The arrays by first page reach this far. */
void sim_know(sim_twin *t, uint32_t end)
{
    if (end > t->top)
        t->top = end;
    if (end <= t->known)
        return;
    uint64_t known = t->known ? t->known : KNOWN_MIN;
    while (known < end)
        known *= 2;
    t->pages = sim_grow(t->pages, known * sizeof *t->pages);
    t->stamp = sim_grow(t->stamp, known * sizeof *t->stamp);
    t->is_busy = sim_grow(t->is_busy, known);
    memset(t->is_busy + t->known, 0, known - t->known);
    t->known = (uint32_t)(known > UINT32_MAX ? UINT32_MAX : known);
}

void sim_now_busy(sim_twin *t, uint32_t start, uint32_t pages, int stamp, enum sim_level level)
{
    sim_know(t, start + pages);
    assert(!t->is_busy[start]);
    t->pages[start] = pages;
    t->stamp[start] = (int16_t)stamp;
    t->is_busy[start] = 1;
    t->live_pages += pages;
    t->served[level]++;
}

/* ---- pools ------------------------------------------------------------------------------------ */

sim_pool *sim_pool_of(sim_twin *t, uint32_t node, uint32_t pages)
{
    sim_pool **p = &t->pool[node * SIM_POOL_SIZES + pages];
    if (!*p) {
        *p = sim_grow(NULL, sizeof **p);
        memset(*p, 0, sizeof **p);
    }
    return *p;
}

static void put_right(sim_pool *p, uint32_t page) { p->at[(p->left + p->nr++) & (p->room - 1)] = page; }
static void put_left(sim_pool *p, uint32_t page)
{
    p->left = (p->left - 1) & (p->room - 1);
    p->at[p->left] = page;
    p->nr++;
}
static uint32_t get_right(sim_pool *p) { return p->at[(p->left + --p->nr) & (p->room - 1)]; }
static uint32_t get_left(sim_pool *p)
{
    uint32_t page = p->at[p->left];
    p->left = (p->left + 1) & (p->room - 1);
    p->nr--;
    return page;
}

static void pool_room(sim_pool *p)
{
    if (p->nr < p->room)
        return;
    uint32_t room = p->room ? 2 * p->room : 8;
    uint32_t *at = sim_grow(NULL, room * sizeof *at);
    for (uint32_t i = 0; i < p->nr; i++)
        at[i] = p->at[(p->left + i) & (p->room - 1)];
    free(p->at);
    p->at = at;
    p->room = room;
    p->left = 0;
}

static void put(sim_pool *p, uint32_t page, bool at_head)
{
    pool_room(p);
    if (at_head != p->is_reversed)
        put_right(p, page);
    else
        put_left(p, page);
}

void sim_pool_push(sim_pool *p, uint32_t page) { put(p, page, true); }

uint32_t sim_pool_pop(sim_pool *p, bool from_head) { return from_head != p->is_reversed ? get_right(p) : get_left(p); }

uint32_t sim_pool_take(sim_pool *p, uint32_t align, uint32_t discipline)
{
    if (!p->nr)
        return SIM_NONE;
    uint32_t page = sim_pool_pop(p, true);
    bool is_aligned = (page & (align - 1)) == 0;
    if (!is_aligned)
        put(p, page, discipline != SIM_LIST); /* list: to the tail */
    if (discipline == SIM_LLIST)
        p->is_reversed = !p->is_reversed;
    return is_aligned ? page : SIM_NONE;
}

/* ---- purge ------------------------------------------------------------------------------------ */

static void to_space(sim_twin *t, sim_vector *v)
{
    for (uint32_t i = 0; i < v->nr; i++)
        sim_space_add(&t->space, v->at[i], t->pages[v->at[i]]);
    v->nr = 0;
}

void sim_purge_begin(sim_twin *t, bool is_full)
{
    t->is_full = is_full;
    t->decayed.nr = 0;
}

static uint32_t quota_of(const sim_twin *t, uint32_t length)
{
    if (t->is_full)
        return length;
    uint32_t quota = length >> t->design.decay_shift;
    return quota == 0 && t->design.decay_empties_small ? length : quota;
}

uint32_t sim_purge_decay(sim_twin *t, uint32_t node)
{
    for (uint32_t pages = 1; pages < SIM_POOL_SIZES; pages++) {
        sim_pool *p = t->pool[node * SIM_POOL_SIZES + pages];
        uint32_t quota = p && p->nr ? quota_of(t, p->nr) : 0;
        t->nr_pooled -= quota;
        t->pooled_pages -= (uint64_t)quota * pages;
        for (; quota; quota--)
            sim_push(&t->decayed, sim_pool_pop(p, true));
    }
    return t->decayed.nr;
}

uint32_t sim_purge_reclaim(sim_twin *t)
{
    uint32_t runs = 0; /* neighbours were joined in a tree of the worker's own */
    sim_sort(&t->decayed);
    for (uint32_t i = 0; i < t->decayed.nr; i++) {
        uint32_t before = i ? t->decayed.at[i - 1] : 0;
        runs += !i || before + t->pages[before] != t->decayed.at[i];
    }
    to_space(t, &t->decayed);
    return runs;
}

/* One global lazy tree keeps no neighbours apart. */
static void merge(sim_twin *t, sim_vector *v)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < v->nr; i++) {
        uint32_t start = v->at[i], last = kept ? v->at[kept - 1] : 0;
        t->stamp[start] = -1;
        if (kept && last + t->pages[last] == start)
            t->pages[last] += t->pages[start];
        else
            v->at[kept++] = start;
    }
    v->nr = kept;
}

uint32_t sim_purge_detach(sim_twin *t, uint32_t node)
{
    sim_vector *list = &t->purge_list[node];
    sim_vector empty = *list;
    empty.nr = 0;
    *list = t->lazy[node];
    t->lazy[node] = empty;
    sim_sort(list);
    if (t->design.lazy_merges)
        merge(t, list);
    t->filled[node] = 0;
    t->list_pages[node] = 0;
    for (uint32_t i = 0; i < list->nr; i++)
        t->list_pages[node] += t->pages[list->at[i]];
    return list->nr;
}

uint32_t sim_purge_helpers(const sim_twin *t, uint32_t nodes_with_work)
{
    if (!nodes_with_work)
        return 0;
    uint64_t most = t->lazy_pages / t->design.lazy_pages_max;
    most = most < nodes_with_work ? most : nodes_with_work;
    return (uint32_t)(most > 1 ? most - 1 : 0);
}

uint32_t sim_purge_fill(sim_twin *t, uint32_t node, uint32_t most)
{
    sim_vector *list = &t->purge_list[node];
    uint32_t largest = t->is_full ? 0 : t->design.pool_pages_max, nr = 0;
    for (; nr < most && t->filled[node] < list->nr; nr++) {
        uint32_t start = list->at[t->filled[node]++], pages = t->pages[start];
        sim_pool *p = t->stamp[start] >= 0 && pages <= largest ? sim_pool_of(t, node, pages) : NULL;
        if (!p || (t->design.pool_ranges_max && p->nr >= t->design.pool_ranges_max)) {
            sim_push(&t->aside[node], start);
            continue;
        }
        sim_pool_push(p, start);
        t->nr_pooled++;
        t->pooled_pages += pages;
    }
    return nr;
}

uint32_t sim_purge_settle(sim_twin *t, uint32_t node)
{
    t->lazy_pages -= t->list_pages[node];
    t->list_pages[node] = 0;
    return t->purge_list[node].nr;
}

uint32_t sim_purge_give_back(sim_twin *t, uint32_t node)
{
    uint32_t nr = t->aside[node].nr;
    to_space(t, &t->aside[node]);
    t->purge_list[node].nr = 0;
    return nr;
}

void sim_purge_end(sim_twin *t, uint64_t purged)
{
    t->nr_purges++;
    t->nr_purged += purged;
}

uint64_t sim_purge(sim_twin *t, bool is_full)
{
    uint64_t purged = 0;
    sim_purge_begin(t, is_full);
    for (uint32_t n = 0; n < t->design.nr_nodes; n++) {
        sim_purge_decay(t, n);
        sim_purge_reclaim(t);
        purged += sim_purge_detach(t, n);
    }
    for (uint32_t n = 0; n < t->design.nr_nodes; n++) {
        sim_purge_fill(t, n, UINT32_MAX);
        sim_purge_settle(t, n);
        sim_purge_give_back(t, n);
    }
    sim_purge_end(t, purged);
    return purged;
}

uint64_t sim_shrink_node(sim_twin *t, uint32_t node)
{
    sim_purge_begin(t, true);
    uint64_t moved = sim_purge_decay(t, node);
    sim_purge_reclaim(t);
    return moved;
}

uint64_t sim_shrink(sim_twin *t)
{
    uint64_t moved = 0;
    for (uint32_t n = 0; n < t->design.nr_nodes; n++)
        moved += sim_shrink_node(t, n);
    return moved;
}

uint32_t sim_busy_node(const sim_twin *t, uint32_t start) { return start / ZONE_PAGES % t->design.nr_nodes; }
