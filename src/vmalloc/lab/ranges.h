/* SPDX-License-Identifier: MIT */
/*
 * Ranges: disjoint ranges of addresses in order, each with its length; what _predict.pyx keeps its two sets in, and
 * simulate/space.c the free pages of its window. Addresses and lengths are of any unit.
 *
 * They lie in leaves of at most RANGES_LEAF; `longest` has the longest range of each leaf, `group` the longest of so
 * many leaves. A range is a start and a size, never an end: the last one may reach to 2^64.
 */
#ifndef VMALLOC_LAB_RANGES_H
#define VMALLOC_LAB_RANGES_H

#include <stdbool.h>
#include <stdint.h>

enum { RANGES_LEAF = 128, RANGES_GROUP = 64, RANGES_WRONG = 1 };

typedef struct ranges_leaf {
    uint32_t nr;
    uint64_t start[RANGES_LEAF], size[RANGES_LEAF];
} ranges_leaf;

typedef struct ranges {
    ranges_leaf **leaf; /* none of them is empty, but the only one */
    uint64_t *first, *longest, *group;
    uint32_t nr_leaves, room;
    uint64_t nr;
} ranges;

/* Where a range is; `at` may be one past the end of the last leaf only. */
typedef struct ranges_place {
    uint32_t leaf, at;
} ranges_place;

/* 0, or -1 without memory; the same of every function that returns an int. */
int ranges_init(ranges *r);
void ranges_free(ranges *r);
int ranges_copy(ranges *to, const ranges *from);

/* The first range that starts at or behind the address. */
ranges_place ranges_from(const ranges *r, uint64_t address);
/* Whether there is a range at this place; it is in `start` and `size` then. */
bool ranges_at(const ranges *r, ranges_place place, uint64_t *start, uint64_t *size);
/* The range before this place, in the same way. */
bool ranges_before(const ranges *r, ranges_place place, uint64_t *start, uint64_t *size);
/* The range that starts before or at the address and reaches beyond it. */
bool ranges_covering(const ranges *r, uint64_t address, uint64_t *start, uint64_t *size);
/* The lowest aligned address at or behind `low` with `size` bytes in a range of at least `length`. */
bool ranges_fit(const ranges *r, uint64_t size, uint64_t align, uint64_t low, uint64_t length, uint64_t *fit);

/* Of free ranges: cut this one out of the one that it lies in. RANGES_WRONG if it lies in none. */
int ranges_cut(ranges *r, uint64_t start, uint64_t size);
/* Put it back, joined with what it touches. RANGES_WRONG if a part of it is there. */
int ranges_join(ranges *r, uint64_t start, uint64_t size);

/* Put one in; one with the same start is replaced. */
int ranges_set(ranges *r, uint64_t start, uint64_t size);
/* Take the one out that starts here; returns its size, 0 if there is none. */
uint64_t ranges_pop(ranges *r, uint64_t start);

#endif
