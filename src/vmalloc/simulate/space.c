/* SPDX-License-Identifier: MIT */
#include "space.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

static void stop(uint64_t bytes)
{
    fprintf(stderr, "vmalloc simulate: no memory for %llu bytes\n", (unsigned long long)bytes);
    abort();
}

void *sim_grow(void *old, uint64_t bytes)
{
    void *grown = realloc(old, bytes);
    if (!grown)
        stop(bytes);
    return grown;
}

/* What a change of the ranges returned. */
static void check(int error)
{
    assert(error != RANGES_WRONG);
    if (error < 0)
        stop(sizeof(ranges_leaf));
}

void sim_space_init(sim_space *s, uint32_t nr_pages)
{
    check(ranges_init(&s->free));
    if (nr_pages)
        check(ranges_set(&s->free, 0, nr_pages));
}

void sim_space_free(sim_space *s) { ranges_free(&s->free); }

uint32_t sim_space_find(const sim_space *s, uint32_t pages, uint32_t align, uint32_t length)
{
    uint64_t fit;
    return ranges_fit(&s->free, pages, align, 0, length, &fit) ? (uint32_t)fit : SIM_NONE;
}

void sim_space_take(sim_space *s, uint32_t start, uint32_t pages) { check(ranges_cut(&s->free, start, pages)); }

void sim_space_add(sim_space *s, uint32_t start, uint32_t pages) { check(ranges_join(&s->free, start, pages)); }

uint32_t sim_space_end_of(const sim_space *s, uint32_t page)
{
    uint64_t start, pages;
    return ranges_covering(&s->free, page, &start, &pages) ? (uint32_t)(start + pages) : 0;
}
