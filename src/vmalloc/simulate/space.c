/* SPDX-License-Identifier: MIT */
#include "space.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void *sim_grow(void *old, uint64_t bytes)
{
    void *grown = realloc(old, bytes);
    if (!grown) {
        fprintf(stderr, "vmalloc simulate: no memory for %llu bytes\n", (unsigned long long)bytes);
        abort();
    }
    return grown;
}

/* ---- the summary ------------------------------------------------------------------------------ */

static uint32_t longest_of(const sim_leaf *leaf)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < leaf->nr; i++)
        most = leaf->pages[i] > most ? leaf->pages[i] : most;
    return most;
}

static void summarise_group(sim_space *s, uint32_t group)
{
    uint32_t most = 0, end = (group + 1) * SIM_GROUP;
    for (uint32_t l = group * SIM_GROUP; l < end && l < s->nr_leaves; l++)
        most = s->longest[l] > most ? s->longest[l] : most;
    s->group[group] = most;
}

/* A leaf was changed, its number of ranges is within bounds. */
static void summarise(sim_space *s, uint32_t l)
{
    if (s->leaf[l]->nr)
        s->first[l] = s->leaf[l]->start[0];
    s->longest[l] = longest_of(s->leaf[l]);
    summarise_group(s, l / SIM_GROUP);
}

static void summarise_from(sim_space *s, uint32_t l)
{
    for (uint32_t group = l / SIM_GROUP; group * SIM_GROUP < s->nr_leaves; group++)
        summarise_group(s, group);
}

static void make_room(sim_space *s)
{
    if (s->nr_leaves < s->room)
        return;
    s->room = s->room ? 2 * s->room : 16;
    s->leaf = sim_grow(s->leaf, s->room * sizeof *s->leaf);
    s->first = sim_grow(s->first, s->room * sizeof *s->first);
    s->longest = sim_grow(s->longest, s->room * sizeof *s->longest);
    s->group = sim_grow(s->group, (s->room / SIM_GROUP + 2) * sizeof *s->group);
}

static void insert_leaf(sim_space *s, uint32_t l)
{
    make_room(s);
    uint32_t behind = s->nr_leaves - l;
    memmove(s->leaf + l + 1, s->leaf + l, behind * sizeof *s->leaf);
    memmove(s->first + l + 1, s->first + l, behind * sizeof *s->first);
    memmove(s->longest + l + 1, s->longest + l, behind * sizeof *s->longest);
    s->leaf[l] = sim_grow(NULL, sizeof(sim_leaf));
    s->leaf[l]->nr = 0;
    s->first[l] = s->longest[l] = 0;
    s->nr_leaves++;
}

static void split_leaf(sim_space *s, uint32_t l)
{
    insert_leaf(s, l + 1);
    sim_leaf *from = s->leaf[l], *to = s->leaf[l + 1];
    uint32_t half = from->nr / 2;
    to->nr = from->nr - half;
    memcpy(to->start, from->start + half, to->nr * sizeof *to->start);
    memcpy(to->pages, from->pages + half, to->nr * sizeof *to->pages);
    from->nr = half;
    s->longest[l] = longest_of(from);
    s->longest[l + 1] = longest_of(to);
    s->first[l + 1] = to->start[0];
    summarise_from(s, l);
}

static void drop_leaf(sim_space *s, uint32_t l)
{
    free(s->leaf[l]);
    uint32_t behind = --s->nr_leaves - l;
    memmove(s->leaf + l, s->leaf + l + 1, behind * sizeof *s->leaf);
    memmove(s->first + l, s->first + l + 1, behind * sizeof *s->first);
    memmove(s->longest + l, s->longest + l + 1, behind * sizeof *s->longest);
    summarise_from(s, l);
}

/* ---- places ----------------------------------------------------------------------------------- */

static uint32_t leaf_of(const sim_space *s, uint32_t page)
{
    uint32_t low = 0, high = s->nr_leaves;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (s->first[middle] <= page)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* The first range of the leaf that starts behind the page. */
static uint32_t behind(const sim_leaf *leaf, uint32_t page)
{
    uint32_t low = 0, high = leaf->nr;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (leaf->start[middle] <= page)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void insert_range(sim_space *s, uint32_t l, uint32_t i, uint32_t start, uint32_t pages)
{
    if (s->leaf[l]->nr == SIM_LEAF) {
        split_leaf(s, l);
        if (i > s->leaf[l]->nr)
            i -= s->leaf[l++]->nr;
    }
    sim_leaf *leaf = s->leaf[l];
    memmove(leaf->start + i + 1, leaf->start + i, (leaf->nr - i) * sizeof *leaf->start);
    memmove(leaf->pages + i + 1, leaf->pages + i, (leaf->nr - i) * sizeof *leaf->pages);
    leaf->start[i] = start;
    leaf->pages[i] = pages;
    leaf->nr++;
    s->nr_ranges++;
    summarise(s, l);
}

static void remove_range(sim_space *s, uint32_t l, uint32_t i)
{
    sim_leaf *leaf = s->leaf[l];
    leaf->nr--;
    s->nr_ranges--;
    memmove(leaf->start + i, leaf->start + i + 1, (leaf->nr - i) * sizeof *leaf->start);
    memmove(leaf->pages + i, leaf->pages + i + 1, (leaf->nr - i) * sizeof *leaf->pages);
    if (leaf->nr == 0 && s->nr_leaves > 1)
        drop_leaf(s, l);
    else
        summarise(s, l);
}

/* ---- the face --------------------------------------------------------------------------------- */

void sim_space_init(sim_space *s, uint32_t nr_pages)
{
    memset(s, 0, sizeof *s);
    insert_leaf(s, 0);
    if (nr_pages)
        insert_range(s, 0, 0, 0, nr_pages);
}

void sim_space_free(sim_space *s)
{
    for (uint32_t l = 0; l < s->nr_leaves; l++)
        free(s->leaf[l]);
    free(s->leaf);
    free(s->first);
    free(s->longest);
    free(s->group);
    memset(s, 0, sizeof *s);
}

static uint32_t find_in(const sim_leaf *leaf, uint32_t pages, uint32_t align, uint32_t length)
{
    for (uint32_t i = 0; i < leaf->nr; i++) {
        if (leaf->pages[i] < length)
            continue;
        uint64_t fit = ((uint64_t)leaf->start[i] + align - 1) & ~((uint64_t)align - 1);
        if (fit + pages <= (uint64_t)leaf->start[i] + leaf->pages[i])
            return (uint32_t)fit;
    }
    return SIM_NONE;
}

uint32_t sim_space_find(const sim_space *s, uint32_t pages, uint32_t align, uint32_t length)
{
    for (uint32_t group = 0; group * SIM_GROUP < s->nr_leaves; group++) {
        if (s->group[group] < length)
            continue;
        for (uint32_t l = group * SIM_GROUP; l < (group + 1) * SIM_GROUP && l < s->nr_leaves; l++) {
            uint32_t fit = s->longest[l] < length ? SIM_NONE : find_in(s->leaf[l], pages, align, length);
            if (fit != SIM_NONE)
                return fit;
        }
    }
    return SIM_NONE;
}

void sim_space_take(sim_space *s, uint32_t start, uint32_t pages)
{
    uint32_t l = leaf_of(s, start);
    sim_leaf *leaf = s->leaf[l];
    uint32_t i = behind(leaf, start) - 1;
    uint32_t low = leaf->start[i], high = low + leaf->pages[i], end = start + pages;
    assert(low <= start && end <= high);
    if (low == start && end == high) {
        remove_range(s, l, i);
    } else if (low == start) {
        leaf->start[i] = end;
        leaf->pages[i] = high - end;
        summarise(s, l);
    } else {
        leaf->pages[i] = start - low;
        if (end < high)
            insert_range(s, l, i + 1, end, high - end);
        summarise(s, l); /* the insertion may have split this leaf */
    }
}

void sim_space_add(sim_space *s, uint32_t start, uint32_t pages)
{
    uint32_t l = leaf_of(s, start), i = behind(s->leaf[l], start), end = start + pages;
    uint32_t next = l, at = i; /* the range behind, maybe the first of the next leaf */
    if (at == s->leaf[next]->nr) {
        next++;
        at = 0;
    }
    if (next < s->nr_leaves && at < s->leaf[next]->nr && s->leaf[next]->start[at] == end) {
        pages += s->leaf[next]->pages[at];
        remove_range(s, next, at);
        l = leaf_of(s, start); /* a leaf may be gone */
        i = behind(s->leaf[l], start);
    }
    sim_leaf *leaf = s->leaf[l];
    if (i && leaf->start[i - 1] + leaf->pages[i - 1] == start) {
        leaf->pages[i - 1] += pages;
        summarise(s, l);
    } else {
        insert_range(s, l, i, start, pages);
    }
}

uint32_t sim_space_end_of(const sim_space *s, uint32_t page)
{
    const sim_leaf *leaf = s->leaf[leaf_of(s, page)];
    uint32_t i = behind(leaf, page);
    if (!i || leaf->start[i - 1] + leaf->pages[i - 1] <= page)
        return 0;
    return leaf->start[i - 1] + leaf->pages[i - 1];
}
