/* SPDX-License-Identifier: MIT */
/*
 * Costs: what the engine charges, by name. Values and their sources are in costs/NAME.toml, one file a machine.
 *
 * COST(name, unit): ns are kept as picoseconds, numbers as they are.
 */
#ifndef VMALLOC_SIMULATE_COSTS_H
#define VMALLOC_SIMULATE_COSTS_H

#include <stdint.h>

#define SIM_COSTS(COST)                                                                                      \
    COST(locked_instruction, "ns")   /* an atomic on a line that this CPU has                             */ \
    COST(line_core, "ns")            /* a line comes from the sibling on this core                        */ \
    COST(line_cluster, "ns")         /* from another core on the same last-level cache                    */ \
    COST(line_socket, "ns")          /* from elsewhere in the socket                                      */ \
    COST(line_remote, "ns")          /* from another socket                                               */ \
    COST(handover_floor, "ns")       /* a queued lock goes to the next waiter, the queue endlessly long   */ \
    COST(handover_queue, "ns")       /* and so much divided by the waiters more, ...                      */ \
    COST(handover_few, "number")     /* ... of which there are taken to be at least so many               */ \
    COST(level_cached, "ns")         /* one level of a tree, cached                                       */ \
    COST(level_missed, "ns")         /* one level that comes from memory                                  */ \
    COST(cached_areas, "number")     /* so many areas of a tree stay in the cache                         */ \
    COST(tree_change, "ns")          /* insert or erase: neighbours, rebalancing, all of it cached        */ \
    COST(change_lines, "number")     /* lines beside the way down that may have to come from memory       */ \
    COST(alloc_work, "ns")           /* the rest of an allocation, by nobody disturbed                    */ \
    COST(free_work, "ns")            /* the rest of a free                                                */ \
    COST(pool_hold, "ns")            /* pool_lock: one list operation                                     */ \
    COST(setup_hold, "ns")           /* the second, short visit to the busy lock                          */ \
    COST(page_alloc, "ns")           /* per page: taken from this CPU's list, cleared, mapped             */ \
    COST(page_free, "ns")            /* per page: unmapped, put on this CPU's list                        */ \
    COST(zone_page, "ns")            /* per page of a batch, under the zone's lock                        */ \
    COST(zone_batch, "number")       /* pages that a CPU's list takes from the zone at once               */ \
    COST(zone_high, "number")        /* pages above which it gives a batch back                           */ \
    COST(purge_wake, "ns")           /* from the request to the first step of the worker                  */ \
    COST(purge_area, "ns")           /* per area: unlinked, put into its pool                             */ \
    COST(purge_node, "ns")           /* per node: looked at                                               */ \
    COST(flush, "ns")                /* a TLB flush everywhere, by itself                                 */ \
    COST(flush_cpu, "ns")            /* and for each CPU                                                  */ \
    COST(busy_percent, "number")     /* own work while the sibling on the core works, of that alone       */ \
    COST(all_core_percent, "number") /* the clock: work when all cores work, of that alone                */ \
    COST(shared_percent, "number")   /* the purge worker when every CPU has a thread                      */ \
    COST(slice, "ns")                /* how long a thread runs when others want its CPU                   */ \
    COST(switch_thread, "ns")        /* to the next one                                                   */ \
    COST(spin_limit, "ns")           /* ours: a waiter spins so long, then sleeps                         */ \
    COST(wake, "ns")                 /* ours: from sleep                                                  */ \
    COST(ours_magazine, "ns")        /* ours: an operation that a magazine serves                         */ \
    COST(ours_locked, "ns")          /* an operation on a locked pool, the lock included                  */ \
    COST(ours_llist, "ns")           /* on a lock-free list with its in-use flag                          */ \
    COST(ours_tagged, "ns")          /* on a list with a version tag, both compare-exchanges included     */ \
    COST(ours_percpu, "ns")          /* on a slab of this CPU: a restartable sequence, a word claimed     */ \
    COST(ours_space, "ns")           /* a range cut out of space, the lock included                       */ \
    COST(ours_lazy, "ns")            /* a range left with its node                                        */ \
    COST(ours_move, "ns")            /* one range more of a batch                                         */ \
    COST(ours_sort, "ns")            /* a range sorted or found by size                                   */ \
    COST(ours_give, "ns")            /* a range joined with its neighbours in space                       */ \
    COST(ours_discard, "ns")         /* its pages given back to the system                                */

#define SIM_COST_ENUM(name, unit) SIM_##name,
enum { SIM_COSTS(SIM_COST_ENUM) SIM_NR_COSTS };
#undef SIM_COST_ENUM

#endif
