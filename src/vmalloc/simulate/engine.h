/* SPDX-License-Identifier: MIT */
/*
 * Engine: discrete events. Threads run the kernel's test suite on virtual CPUs, against a twin.
 *
 * An event is a thread that arrives at a shared thing: a lock, or a line that everybody writes. Events are
 * served in the order of time, equal ones in the order of threads, so a lock serves its arrivals in order and
 * the time at which one of them leaves is known at once. The decision is taken at the arrival. Between two
 * arrivals a thread's own work goes by. A purge is a thread too, woken by a free.
 *
 * Time is in picoseconds. The only source of chance is the seed.
 */
#ifndef VMALLOC_SIMULATE_ENGINE_H
#define VMALLOC_SIMULATE_ENGINE_H

#include "costs.h"
#include "twin.h"

enum { SIM_TESTS = 8, SIM_HISTOGRAM = 64 * 16, SIM_LOCKS = 7 };
/* Kinds of shared things, for the statistics. */
enum sim_kind { SIM_SPACE_LOCK, SIM_BUSY_LOCK, SIM_LAZY_LOCK, SIM_POOL_LOCK, SIM_ZONE_LOCK, SIM_COUNTER, SIM_UPKEEP };

typedef struct sim_topology {
    uint32_t sockets, clusters, cores, smt; /* clusters a socket, cores a cluster, threads a core */
} sim_topology;

typedef struct sim_plan {
    sim_design design;
    sim_topology topology;
    int64_t cost[SIM_NR_COSTS];
    uint32_t threads;
    uint32_t mask;          /* tests, by their bit in run_test_mask                                      */
    uint32_t loops;         /* of a test                                                                 */
    uint32_t nr_pages;      /* of fix_size                                                               */
    uint32_t lookups;       /* of a request of the eighth test: areas looked up, each at a node by chance   */
    uint32_t looked_at;     /* areas that there are                                                         */
    int64_t request_ps;     /* own work of such a request                                                   */
    uint32_t full_fit;      /* L                                                                         */
    uint32_t long_busy;     /* areas held                                                                */
    uint32_t shrunk;        /* loops and held areas are so many times fewer than meant: the busy tree     */
                            /* and the free tree are priced as so many times larger                       */
    uint32_t in_order;      /* tests in the order of their bits                                          */
    uint32_t guard_pages;   /* of each area                                                              */
    uint32_t setup_twice;   /* the busy lock is visited twice by an allocation                            */
    uint32_t atomic_per_area; /* a purge settles the counter once for each area                           */
    uint32_t shrink_every_us; /* memory pressure: a scan of the pools; 0: never                          */
    uint32_t shrink_nodes;    /* nodes that a scan empties, in index order; 0: all of them               */
    uint32_t shrink_rotates;  /* a scan begins where the last one stopped, else with the first node      */
    uint32_t purge_is_full; /* a threshold purge takes all, as a shrink does                              */
    uint32_t log_calls;
    uint32_t warm_purges;
    uint64_t seed;
} sim_plan;

typedef struct sim_lock_stats {
    uint64_t visits, contended;
    int64_t wait_ps, hold_ps;
} sim_lock_stats;

typedef struct sim_result {
    int64_t end_ps;              /* the last thread's end                                        */
    int64_t warm_ps;             /* where the statistics begin                                   */
    uint64_t pairs, warm_pairs;  /* allocations that were freed; those after warm_ps             */
    int64_t thread_ps;           /* all threads' time after warm_ps                              */
    int64_t thread_end_min_ps;
    sim_lock_stats lock[SIM_LOCKS]; /* after warm_ps                                             */
    uint64_t alloc_ps[SIM_HISTOGRAM], free_ps[SIM_HISTOGRAM]; /* after warm_ps                   */
    uint64_t served[SIM_LEVELS];
    uint64_t quarter_calls[4], quarter_hits[4]; /* allocations by quarters of the nodes, and from pools, warm */
    uint64_t purges, purged, helped;
    int64_t node_purge_ps, node_purge_max_ps; /* time in the filling of one node, all together   */
    uint64_t node_purges;
    int64_t test_ps[SIM_TESTS];  /* time of all threads in each test                              */
    uint64_t calls[SIM_TESTS];   /* allocations of each test                                      */
    uint64_t lazy_max, pooled_max, top_pages, live_max, ranges_max;
    double pooled_mean, lazy_mean;
    uint64_t events;
    int error;                   /* 1: the window was used up                                     */
} sim_result;

/* A call of the twin, as a log has them. An allocation's cpu is shifted by 3 for the level; of ours, `align` is
 * the thread, and the alignment's logarithm stands above bit 24 of `pages`. */
enum sim_call {
    SIM_CALL_ALLOC,
    SIM_CALL_FREE,
    SIM_CALL_BEGIN,
    SIM_CALL_DECAY,
    SIM_CALL_RECLAIM,
    SIM_CALL_DETACH,
    SIM_CALL_FILL,
    SIM_CALL_SETTLE,
    SIM_CALL_GIVE,
    SIM_CALL_SHRINK,
    SIM_CALL_POOL
};

typedef struct sim_sim sim_sim;

sim_sim *sim_new(const sim_plan *plan);
/* Serve up to so many events; false when all is done. */
bool sim_run(sim_sim *s, uint64_t events);
double sim_progress(const sim_sim *s);
const sim_result *sim_results(sim_sim *s);
const uint32_t *sim_log(const sim_sim *s, uint32_t *nr); /* 5 words a call: call, cpu, pages, align, start */
void sim_delete(sim_sim *s);

#endif
