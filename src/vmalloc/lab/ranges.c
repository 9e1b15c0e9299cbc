/* SPDX-License-Identifier: MIT */
#include "ranges.h"

#include <stdlib.h>
#include <string.h>

static uint64_t longest_of(const ranges_leaf *leaf)
{
    uint64_t most = 0;
    for (uint32_t i = 0; i < leaf->nr; i++)
        most = leaf->size[i] > most ? leaf->size[i] : most;
    return most;
}

static void summarise(ranges *r, uint32_t l)
{
    r->first[l] = r->leaf[l]->nr ? r->leaf[l]->start[0] : 0;
    r->longest[l] = longest_of(r->leaf[l]);
}

static int make_room(ranges *r, uint32_t nr_leaves)
{
    if (nr_leaves <= r->room)
        return 0;
    uint32_t room = nr_leaves + nr_leaves / 2 + 8;
    void *leaf = realloc(r->leaf, room * sizeof *r->leaf);
    r->leaf = leaf ? leaf : r->leaf;
    void *first = realloc(r->first, room * sizeof *r->first);
    r->first = first ? first : r->first;
    void *longest = realloc(r->longest, room * sizeof *r->longest);
    r->longest = longest ? longest : r->longest;
    if (!leaf || !first || !longest)
        return -1;
    r->room = room;
    return 0;
}

static int insert_leaf(ranges *r, uint32_t l)
{
    ranges_leaf *leaf = malloc(sizeof *leaf);
    if (!leaf || make_room(r, r->nr_leaves + 1) < 0) {
        free(leaf);
        return -1;
    }
    uint32_t behind = r->nr_leaves - l;
    memmove(r->leaf + l + 1, r->leaf + l, behind * sizeof *r->leaf);
    memmove(r->first + l + 1, r->first + l, behind * sizeof *r->first);
    memmove(r->longest + l + 1, r->longest + l, behind * sizeof *r->longest);
    leaf->nr = 0;
    r->leaf[l] = leaf;
    r->nr_leaves++;
    return 0;
}

static void drop_leaf(ranges *r, uint32_t l)
{
    free(r->leaf[l]);
    uint32_t behind = --r->nr_leaves - l;
    memmove(r->leaf + l, r->leaf + l + 1, behind * sizeof *r->leaf);
    memmove(r->first + l, r->first + l + 1, behind * sizeof *r->first);
    memmove(r->longest + l, r->longest + l + 1, behind * sizeof *r->longest);
}

static int split_leaf(ranges *r, uint32_t l)
{
    if (insert_leaf(r, l + 1) < 0)
        return -1;
    ranges_leaf *from = r->leaf[l], *to = r->leaf[l + 1];
    uint32_t half = from->nr / 2;
    to->nr = from->nr - half;
    memcpy(to->start, from->start + half, to->nr * sizeof *to->start);
    memcpy(to->size, from->size + half, to->nr * sizeof *to->size);
    from->nr = half;
    summarise(r, l);
    summarise(r, l + 1);
    return 0;
}

int ranges_init(ranges *r)
{
    memset(r, 0, sizeof *r);
    if (insert_leaf(r, 0) < 0)
        return -1;
    summarise(r, 0);
    return 0;
}

void ranges_free(ranges *r)
{
    for (uint32_t l = 0; l < r->nr_leaves; l++)
        free(r->leaf[l]);
    free(r->leaf);
    free(r->first);
    free(r->longest);
    memset(r, 0, sizeof *r);
}

int ranges_copy(ranges *to, const ranges *from)
{
    memset(to, 0, sizeof *to);
    for (uint32_t l = 0; l < from->nr_leaves; l++) {
        if (insert_leaf(to, l) < 0)
            return -1;
        const ranges_leaf *leaf = from->leaf[l];
        to->leaf[l]->nr = leaf->nr;
        memcpy(to->leaf[l]->start, leaf->start, leaf->nr * sizeof *leaf->start);
        memcpy(to->leaf[l]->size, leaf->size, leaf->nr * sizeof *leaf->size);
        to->first[l] = from->first[l];
        to->longest[l] = from->longest[l];
    }
    to->nr = from->nr;
    return 0;
}

ranges_place ranges_from(const ranges *r, uint64_t address)
{
    uint32_t low = 0, high = r->nr_leaves;
    while (high - low > 1) { /* the last leaf whose first range starts at or before the address */
        uint32_t middle = low + (high - low) / 2;
        if (r->first[middle] <= address)
            low = middle;
        else
            high = middle;
    }
    const ranges_leaf *leaf = r->leaf[low];
    uint32_t from = 0, to = leaf->nr;
    while (from < to) {
        uint32_t middle = from + (to - from) / 2;
        if (leaf->start[middle] < address)
            from = middle + 1;
        else
            to = middle;
    }
    if (from == leaf->nr && low + 1 < r->nr_leaves)
        return (ranges_place){low + 1, 0};
    return (ranges_place){low, from};
}

bool ranges_at(const ranges *r, ranges_place place, uint64_t *start, uint64_t *size)
{
    const ranges_leaf *leaf = r->leaf[place.leaf];
    if (place.at >= leaf->nr)
        return false;
    *start = leaf->start[place.at];
    *size = leaf->size[place.at];
    return true;
}

bool ranges_before(const ranges *r, ranges_place place, uint64_t *start, uint64_t *size)
{
    if (!place.at && !place.leaf)
        return false;
    if (!place.at)
        place = (ranges_place){place.leaf - 1, r->leaf[place.leaf - 1]->nr};
    place.at--;
    return ranges_at(r, place, start, size);
}

bool ranges_covering(const ranges *r, uint64_t address, uint64_t *start, uint64_t *size)
{
    ranges_place place = ranges_from(r, address);
    if (ranges_at(r, place, start, size) && *start == address)
        return true;
    return ranges_before(r, place, start, size) && address - *start < *size;
}

static bool fits(uint64_t start, uint64_t length, uint64_t size, uint64_t align, uint64_t low, uint64_t *fit)
{
    uint64_t from = start > low ? start : low;
    *fit = (from + (align - 1)) & ~(align - 1);
    return *fit >= from && *fit - start <= length && length - (*fit - start) >= size;
}

bool ranges_fit(const ranges *r, uint64_t size, uint64_t align, uint64_t low, uint64_t length, uint64_t *fit)
{
    ranges_place place = ranges_from(r, low);
    uint64_t start, have;
    if (ranges_before(r, place, &start, &have) && low - start < have && have >= length
        && fits(start, have, size, align, low, fit))
        return true;
    for (uint32_t l = place.leaf; l < r->nr_leaves; l++) {
        const ranges_leaf *leaf = r->leaf[l];
        if (r->longest[l] < length)
            continue;
        for (uint32_t i = l == place.leaf ? place.at : 0; i < leaf->nr; i++)
            if (leaf->size[i] >= length && fits(leaf->start[i], leaf->size[i], size, align, low, fit))
                return true;
    }
    return false;
}

int ranges_set(ranges *r, uint64_t start, uint64_t size)
{
    ranges_place place = ranges_from(r, start);
    ranges_leaf *leaf = r->leaf[place.leaf];
    if (place.at < leaf->nr && leaf->start[place.at] == start) {
        leaf->size[place.at] = size;
        summarise(r, place.leaf);
        return 0;
    }
    if (leaf->nr == RANGES_LEAF) {
        if (split_leaf(r, place.leaf) < 0)
            return -1;
        if (place.at > r->leaf[place.leaf]->nr)
            place.at -= r->leaf[place.leaf++]->nr;
        leaf = r->leaf[place.leaf];
    }
    memmove(leaf->start + place.at + 1, leaf->start + place.at, (leaf->nr - place.at) * sizeof *leaf->start);
    memmove(leaf->size + place.at + 1, leaf->size + place.at, (leaf->nr - place.at) * sizeof *leaf->size);
    leaf->start[place.at] = start;
    leaf->size[place.at] = size;
    leaf->nr++;
    r->nr++;
    summarise(r, place.leaf);
    return 0;
}

uint64_t ranges_pop(ranges *r, uint64_t start)
{
    ranges_place place = ranges_from(r, start);
    ranges_leaf *leaf = r->leaf[place.leaf];
    if (place.at >= leaf->nr || leaf->start[place.at] != start)
        return 0;
    uint64_t size = leaf->size[place.at];
    leaf->nr--;
    r->nr--;
    memmove(leaf->start + place.at, leaf->start + place.at + 1, (leaf->nr - place.at) * sizeof *leaf->start);
    memmove(leaf->size + place.at, leaf->size + place.at + 1, (leaf->nr - place.at) * sizeof *leaf->size);
    if (leaf->nr == 0 && r->nr_leaves > 1)
        drop_leaf(r, place.leaf);
    else
        summarise(r, place.leaf);
    return size;
}
