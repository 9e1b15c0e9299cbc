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

static void summarise_group(ranges *r, uint32_t group)
{
    uint64_t most = 0;
    for (uint32_t l = group * RANGES_GROUP; l < (group + 1) * RANGES_GROUP && l < r->nr_leaves; l++)
        most = r->longest[l] > most ? r->longest[l] : most;
    r->group[group] = most;
}

static void summarise_leaf(ranges *r, uint32_t l)
{
    r->first[l] = r->leaf[l]->nr ? r->leaf[l]->start[0] : 0;
    r->longest[l] = longest_of(r->leaf[l]);
}

/* A leaf was changed. */
static void summarise(ranges *r, uint32_t l)
{
    summarise_leaf(r, l);
    summarise_group(r, l / RANGES_GROUP);
}

/* Leaves from here on have moved. */
static void summarise_from(ranges *r, uint32_t l)
{
    for (uint32_t group = l / RANGES_GROUP; group * RANGES_GROUP < r->nr_leaves; group++)
        summarise_group(r, group);
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
    void *group = realloc(r->group, (room / RANGES_GROUP + 1) * sizeof *r->group);
    r->group = group ? group : r->group;
    if (!leaf || !first || !longest || !group)
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
    summarise_from(r, l);
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
    summarise_leaf(r, l);
    summarise_leaf(r, l + 1);
    summarise_from(r, l);
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
    free(r->group);
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
    summarise_from(to, 0);
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
        if (r->group[l / RANGES_GROUP] < length)
            l |= RANGES_GROUP - 1; /* to the end of the group */
        if (l >= r->nr_leaves || r->longest[l] < length)
            continue;
        const ranges_leaf *leaf = r->leaf[l];
        for (uint32_t i = l == place.leaf ? place.at : 0; i < leaf->nr; i++)
            if (leaf->size[i] >= length && fits(leaf->start[i], leaf->size[i], size, align, low, fit))
                return true;
    }
    return false;
}

static int insert_at(ranges *r, ranges_place place, uint64_t start, uint64_t size)
{
    if (r->leaf[place.leaf]->nr == RANGES_LEAF) {
        if (split_leaf(r, place.leaf) < 0)
            return -1;
        if (place.at > r->leaf[place.leaf]->nr)
            place.at -= r->leaf[place.leaf++]->nr;
    }
    ranges_leaf *leaf = r->leaf[place.leaf];
    memmove(leaf->start + place.at + 1, leaf->start + place.at, (leaf->nr - place.at) * sizeof *leaf->start);
    memmove(leaf->size + place.at + 1, leaf->size + place.at, (leaf->nr - place.at) * sizeof *leaf->size);
    leaf->start[place.at] = start;
    leaf->size[place.at] = size;
    leaf->nr++;
    r->nr++;
    summarise(r, place.leaf);
    return 0;
}

static void remove_at(ranges *r, ranges_place place)
{
    ranges_leaf *leaf = r->leaf[place.leaf];
    leaf->nr--;
    r->nr--;
    memmove(leaf->start + place.at, leaf->start + place.at + 1, (leaf->nr - place.at) * sizeof *leaf->start);
    memmove(leaf->size + place.at, leaf->size + place.at + 1, (leaf->nr - place.at) * sizeof *leaf->size);
    if (leaf->nr == 0 && r->nr_leaves > 1)
        drop_leaf(r, place.leaf);
    else
        summarise(r, place.leaf);
}

/* The place before this one, which is not the first. */
static ranges_place step_back(const ranges *r, ranges_place place)
{
    return place.at ? (ranges_place){place.leaf, place.at - 1}
                    : (ranges_place){place.leaf - 1, r->leaf[place.leaf - 1]->nr - 1};
}

int ranges_cut(ranges *r, uint64_t start, uint64_t size)
{
    ranges_place place = ranges_from(r, start);
    uint64_t low = 0, have = 0;
    if (!ranges_at(r, place, &low, &have) || low != start) {
        if (!ranges_before(r, place, &low, &have) || start - low >= have)
            return RANGES_WRONG;
        place = step_back(r, place);
    }
    uint64_t before = start - low;
    if (have - before < size)
        return RANGES_WRONG;
    uint64_t behind = have - before - size;
    ranges_leaf *leaf = r->leaf[place.leaf];
    int error = 0;
    if (!before && !behind) {
        remove_at(r, place);
        return 0;
    }
    if (!before) {
        leaf->start[place.at] = start + size;
        leaf->size[place.at] = behind;
    } else {
        leaf->size[place.at] = before;
        if (behind)
            error = insert_at(r, (ranges_place){place.leaf, place.at + 1}, start + size, behind);
    }
    summarise(r, place.leaf); /* the insertion may have split this leaf */
    return error;
}

int ranges_join(ranges *r, uint64_t start, uint64_t size)
{
    ranges_place place = ranges_from(r, start);
    uint64_t next = 0, next_size = 0, low = 0, have = 0;
    bool has_next = ranges_at(r, place, &next, &next_size), has_last = ranges_before(r, place, &low, &have);
    if ((has_next && next - start < size) || (has_last && start - low < have))
        return RANGES_WRONG;
    bool touches_next = has_next && next - start == size, touches_last = has_last && start - low == have;
    if (!touches_last && !touches_next)
        return insert_at(r, place, start, size);
    if (!touches_last) {
        r->leaf[place.leaf]->start[place.at] = start;
        r->leaf[place.leaf]->size[place.at] = size + next_size;
        summarise(r, place.leaf);
        return 0;
    }
    ranges_place last = step_back(r, place);
    r->leaf[last.leaf]->size[last.at] = have + size + next_size * touches_next;
    if (touches_next)
        remove_at(r, place);
    summarise(r, last.leaf);
    return 0;
}

int ranges_set(ranges *r, uint64_t start, uint64_t size)
{
    ranges_place place = ranges_from(r, start);
    ranges_leaf *leaf = r->leaf[place.leaf];
    if (place.at == leaf->nr || leaf->start[place.at] != start)
        return insert_at(r, place, start, size);
    leaf->size[place.at] = size;
    summarise(r, place.leaf);
    return 0;
}

uint64_t ranges_pop(ranges *r, uint64_t start)
{
    ranges_place place = ranges_from(r, start);
    const ranges_leaf *leaf = r->leaf[place.leaf];
    if (place.at >= leaf->nr || leaf->start[place.at] != start)
        return 0;
    uint64_t size = leaf->size[place.at];
    remove_at(r, place);
    return size;
}
