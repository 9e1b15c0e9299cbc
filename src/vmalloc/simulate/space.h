/* SPDX-License-Identifier: MIT */
/*
 * Space: the free ranges in address order, lowest-address first fit; the twin of model/space.py.
 *
 * Units are pages from the start of the window, which 32 bits hold. The ranges are those of lab/ranges.c. Without
 * memory nothing returns. The promises are those of the model.
 */
#ifndef VMALLOC_SIMULATE_SPACE_H
#define VMALLOC_SIMULATE_SPACE_H

#include <stdbool.h>
#include <stdint.h>

#include "ranges.h"

#define SIM_NONE UINT32_MAX

typedef struct sim_space {
    ranges free;
} sim_space;

void sim_space_init(sim_space *s, uint32_t nr_pages);
void sim_space_free(sim_space *s);
static inline uint32_t sim_space_nr(const sim_space *s) { return (uint32_t)s->free.nr; }
/* The lowest aligned start with `pages` free pages in a range of at least `length`; SIM_NONE if there is none. */
uint32_t sim_space_find(const sim_space *s, uint32_t pages, uint32_t align, uint32_t length);
/* Cut it out of the one free range that it lies in. */
void sim_space_take(sim_space *s, uint32_t start, uint32_t pages);
/* Put it back, merged with what it touches. */
void sim_space_add(sim_space *s, uint32_t start, uint32_t pages);
/* The end of the free range that covers a page; 0 if none does. */
uint32_t sim_space_end_of(const sim_space *s, uint32_t page);

/* realloc that does not return without memory. */
void *sim_grow(void *old, uint64_t bytes);

#endif
