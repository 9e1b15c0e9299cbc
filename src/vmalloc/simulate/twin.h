/* SPDX-License-Identifier: MIT */
/*
 * Twin: the decisions of the model (src/vmalloc/model), compiled. No time, no locks; one call is one critical
 * section, as there. tests/equivalence holds both equal on random histories and on whole simulations.
 *
 *     twin.c          what both policies stand on: ranges by page, pools, lazy lists, the purge's steps
 *     kernel_twin.c   the kernel in its versions     (model/kernel.py, design.py)
 *     caching_twin.c  ours, with each pool design    (model/caching.py, magazine.py, slab.py, warm.py)
 *
 * Units are pages from the start of a window that is never used up: a request that finds no room stops the
 * simulation, so what the model does to make room is not here.
 */
#ifndef VMALLOC_SIMULATE_TWIN_H
#define VMALLOC_SIMULATE_TWIN_H

#include "space.h"

/* In the order of LEVELS in facts.py; the last for nobody. */
enum sim_level { SIM_MAGAZINE, SIM_SLAB, SIM_POOL, SIM_NEIGHBOUR, SIM_LAZY, SIM_SPACE, SIM_NOTHING, SIM_LEVELS };
enum sim_discipline { SIM_LIST, SIM_LLIST, SIM_IN_PLACE, SIM_TAGGED }; /* the last is decided as SIM_IN_PLACE */
enum { SIM_POOL_SIZES = 257 }; /* 1 .. 256 pages */

typedef struct sim_design {
    uint32_t is_caching;
    uint32_t cpus, nr_nodes;
    uint32_t window_pages;
    uint32_t discipline;
    uint32_t lazy_pages_max; /* the kernel's; of ours the fixed part, or all of it if lazy_is_fixed */
    /* the kernel's */
    uint32_t pool_pages_max; /* 0: no pools; also the cap of a pool's pages for `pool_ranges_max` */
    uint32_t pool_ranges_max;
    uint32_t decay_shift;
    uint32_t decay_empties_small; /* a quota of nothing takes all */
    uint32_t lazy_merges;
    /* ours */
    uint32_t has_pools, has_magazines, has_slabs, lazy_is_fixed;
    uint64_t memory_pages;
} sim_design;

typedef struct sim_vector {
    uint32_t *at;
    uint32_t nr, room;
} sim_vector;

/* A pool: a ring; the right end is the head. `is_reversed` says that the ends have changed places. */
typedef struct sim_pool {
    uint32_t *at;
    uint32_t nr, room, left;
    bool is_reversed;
} sim_pool;

/* What a request to ours cost, for who prices it. */
typedef struct sim_work {
    uint32_t level;       /* what served it, or took it                       */
    uint32_t nodes_asked; /* pools that were looked at                       */
    uint32_t moved;       /* ranges moved between a magazine and a pool      */
    uint32_t to_lazy;     /* ranges that became lazy                         */
    uint32_t sorted;      /* ranges sorted by the warm store                 */
    uint32_t given;       /* ranges that a step gave to the space            */
    uint32_t given_pages;
    uint32_t space_calls; /* ranges taken from space                         */
} sim_work;

struct sim_caching;

typedef struct sim_twin {
    sim_design design;
    sim_space space;
    uint32_t *pages;   /* by first page: the length                                     */
    int16_t *stamp;    /* by first page: the node, -1 none                              */
    uint8_t *is_busy;  /* by first page                                                 */
    uint32_t known;    /* pages that the three arrays reach                             */
    uint32_t top;      /* no page at or above it was ever used: the footprint           */
    sim_pool **pool;   /* [node * SIM_POOL_SIZES + pages], made when first asked for    */
    sim_vector *lazy;  /* by node                                                       */
    uint64_t lazy_pages, live_pages, pooled_pages;
    uint32_t nr_pooled;
    uint64_t nr_purges, nr_purged, served[SIM_LEVELS];
    /* the purge in flight */
    bool is_full;
    sim_vector decayed;
    sim_vector *purge_list, *aside; /* by node */
    uint32_t *filled;               /* by node: so many of its purge list                                   */
    uint64_t *list_pages;
    struct sim_caching *caching;
} sim_twin;

sim_twin *sim_twin_new(const sim_design *design);
void sim_twin_free(sim_twin *t);

void sim_push(sim_vector *v, uint32_t page);
void sim_know(sim_twin *t, uint32_t end);
sim_pool *sim_pool_of(sim_twin *t, uint32_t node, uint32_t pages);
void sim_pool_push(sim_pool *p, uint32_t page);
uint32_t sim_pool_pop(sim_pool *p, bool from_head);
uint32_t sim_pool_take(sim_pool *p, uint32_t align, uint32_t discipline);
void sim_now_busy(sim_twin *t, uint32_t start, uint32_t pages, int stamp, enum sim_level level);
void sim_sort(sim_vector *v);

/* ---- the kernel ------------------------------------------------------------------------------- */

/* From the pool of this CPU's node; SIM_NONE on a miss. */
uint32_t sim_kernel_pool(sim_twin *t, uint32_t cpu, uint32_t pages, uint32_t align);
uint32_t sim_kernel_pooled(const sim_twin *t, uint32_t cpu, uint32_t pages);
uint32_t sim_kernel_space(sim_twin *t, uint32_t cpu, uint32_t pages, uint32_t align);
/* The node of the area freed, where it is lazy now; -1 if nothing busy starts here. */
int sim_kernel_free(sim_twin *t, uint32_t start);
uint32_t sim_busy_node(const sim_twin *t, uint32_t start);

/* ---- the purge, step by step; the order is the caller's, as the model's docstring allows it ---- */

void sim_purge_begin(sim_twin *t, bool is_full);
uint32_t sim_purge_decay(sim_twin *t, uint32_t node);  /* ranges cut                     */
uint32_t sim_purge_reclaim(sim_twin *t);               /* runs given to the space        */
uint32_t sim_purge_detach(sim_twin *t, uint32_t node); /* ranges taken                   */
uint32_t sim_purge_helpers(const sim_twin *t, uint32_t nodes_with_work);
uint32_t sim_purge_fill(sim_twin *t, uint32_t node, uint32_t most); /* ranges handed out  */
uint32_t sim_purge_settle(sim_twin *t, uint32_t node);
uint32_t sim_purge_give_back(sim_twin *t, uint32_t node); /* ranges given to the space    */
void sim_purge_end(sim_twin *t, uint64_t purged);
uint64_t sim_purge(sim_twin *t, bool is_full); /* all of them; ranges purged     */
uint64_t sim_shrink_node(sim_twin *t, uint32_t node); /* its pools to the space; ranges moved */
uint64_t sim_shrink(sim_twin *t);

/* ---- ours ------------------------------------------------------------------------------------- */

void sim_caching_init(sim_twin *t, uint32_t threads);
void sim_caching_free(sim_twin *t);
uint32_t sim_caching_alloc(sim_twin *t, uint32_t cpu, uint32_t thread, uint32_t pages, uint32_t align, sim_work *work);
bool sim_caching_release(sim_twin *t, uint32_t cpu, uint32_t thread, uint32_t start, sim_work *work);
void sim_caching_time(sim_twin *t, uint32_t now_s);
uint64_t sim_caching_lazy_max(const sim_twin *t);

#endif
