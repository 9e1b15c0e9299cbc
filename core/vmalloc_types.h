/* SPDX-License-Identifier: MIT */
/* The types and flags of vmalloc.h, without its functions: what the layers below the face may know of it. */
#ifndef VMALLOC_TYPES_H
#define VMALLOC_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmalloc_facts.h"

#define VM_API __attribute__((visibility("default")))

typedef struct vm_region vm_region;
typedef struct vm_window vm_window;
typedef struct vm_recorder vm_recorder;

/* A busy range as its holder knows it. `id` is never used twice in a region's life. */
typedef struct vm_range {
    uint64_t page;
    uint64_t nr_pages;
    uint64_t id;
    bool zeroed; /* the pages read as zeros (never touched, or discarded) */
} vm_range;

/* What names a busy range: small enough for two registers. */
typedef struct vm_taken {
    uint64_t page, id;
} vm_taken;

typedef struct vm_options {
    uint64_t nr_pages;       /* allocatable; metadata comes on top                          */
    uint64_t granule_bytes;  /* 0: memory; else an address space of nr_pages such granules  */
    uint64_t base;           /* address space: value of its first granule                   */
    uint64_t limit_pages;    /* 0: no limit but nr_pages                                    */
    uint64_t lazy_pages_max; /* 0: chosen by machine and recent peak, see docs/design.md    */
    uint32_t nr_nodes;       /* for each group of processes; 0: one per CPU, at most VM_NODES_MAX */
    uint32_t nr_threads;     /* 0: 1024 thread slots                                        */
    uint32_t nr_processes;   /* rounded up to 64 n - 1, at most VM_PROCESSES_MAX; 0: by nr_pages */
    vm_pools pools;
    bool keep_on_death;      /* ranges of dead processes stay allocated                     */
    bool huge;               /* huge pages where the system allows; long ranges lie for them */
    bool hardened;           /* of two frees of a range at once, by a mistake, one fails: slower */
    double lease_ttl_s;      /* an unclaimed lease outlives its owner so long; 0: 60 s      */
    const char *name;        /* memfd:vmalloc:NAME in /proc/PID/maps, or NULL; VM_REGION_NAME_BYTES_MAX */
} vm_options;

typedef struct vm_info {
    uint8_t id[16];
    uint64_t nr_pages, page_bytes, granule_bytes, base, total_bytes, limit_pages, lazy_pages_max, floor_pages;
    int huge_error; /* 0, or the errno with which the system refused huge pages */
    bool huge, hardened;
    uint32_t nr_nodes, nr_processes, nr_threads, process_slot, format, flags;
    vm_pools pools;
} vm_info;

enum {
    VM_NO_WAIT = 1,   /* EAGAIN instead of waiting for a lock; a pool's may still take some milliseconds */
    VM_NO_PURGE = 2,  /* ENOSPC instead of purging (the kernel's GFP_NOWAIT) */
    VM_HIT_ONLY = 4,  /* EAGAIN unless this thread's magazine serves it: takes no lock, calls nothing */
    VM_INHERITED = 8, /* vm_free: what this process has from fork, see vm_drop_inherited() */
};

/* A call's way of waiting, zeroed by the caller but for the first two. */
typedef struct vm_wait {
    uint64_t timeout_ns; /* 0: the region's lock timeout */
    bool in_slices; /* EINTR after waiting about 20 ms, so that the caller can look at its signals and call again;
                          * nothing was done then */
    uint64_t since_ns;   /* the core's: of the first wait; who was in the way last, and since when always the same */
    uint64_t owner, owner_since_ns;
} vm_wait;

typedef struct vm_lease_name { /* as a message tells it */
    uint64_t page, id, lease;
} vm_lease_name;

typedef enum vm_move { VM_MOVE_SENDING, VM_MOVE_SENT, VM_MOVE_RECEIVED, VM_MOVE_LOST } vm_move;

typedef struct vm_stats {
    uint64_t nr_pages, free_pages, busy_pages, cached_pages, pooled_pages, lazy_pages, moving_pages;
    uint64_t nr_ranges, nr_busy, nr_shared, nr_free_ranges, largest_free_pages;
    uint64_t resident_bytes; /* of the whole memfd, metadata included */
    uint64_t nr_processes, nr_thread_slots;
    uint64_t nr_alloc; /* requests that the hit path of a magazine did not serve */
    /* Requests by the level that served: the thread's magazine, its CPU's slab, its node's pool, another node's, warm
     * ranges, space. */
    uint64_t nr_magazine_hit, nr_slab_hit, nr_pool_hit, nr_neighbour_hit, nr_lazy_hit, nr_space_hit;
    uint64_t nr_failed, lock_wait_ns;
    uint64_t nr_purges, nr_purged_pages, nr_discards, nr_splits, nr_merges, nr_recovered;
    uint64_t nr_leases;
    uint64_t nr_ticks, nr_decayed_pages;
    uint32_t helper_pid; /* of the elected; 0: none lives */
    int32_t per_cpu; /* 0: another design; 1: this thread uses its CPU's slabs; -1: it has no restartable sequences */
    uint32_t pressure, pressure_sources; /* 0 none, 1 some, 2 high; bits: stalls (PSI), cgroup v2, v1, meminfo */
} vm_stats;

/* Counters that are read without a lock: each is right, but not all of one moment. */
typedef struct vm_glance {
    uint64_t free_pages, lazy_pages, pooled_pages, nr_leases, nr_processes;
} vm_glance;

/* What bounds a region; pages, 0: no bound. All may be changed while others work. */
typedef struct vm_limits {
    uint64_t limit_pages; /* outside space at once, for all: more is ENOSPC                      */
    uint64_t soft_limit_pages; /* the same; what is warm above it goes back at the next tick           */
    uint64_t quota_pages; /* busy or in magazines, for each process: more is EDQUOT               */
    uint64_t floor_pages; /* so many warm pages stay, however idle, unless memory is short        */
} vm_limits;
typedef enum vm_limit { VM_LIMIT, VM_SOFT_LIMIT, VM_QUOTA, VM_FLOOR } vm_limit; /* each of them */

typedef struct vm_holding {
    uint32_t process, pid; /* slot; pid as its own pid namespace has it */
    uint64_t nr_pages; /* what several share counts for each        */
    uint64_t nr_pages_once; /* ... and here for the first of them only   */
} vm_holding;

typedef enum vm_cause { VM_CAUSE_SPACE, VM_CAUSE_LIMIT, VM_CAUSE_QUOTA, VM_CAUSE_MEMORY, VM_CAUSE_CGROUP } vm_cause;

/* Why a request of so many pages finds no room, at this moment. */
typedef struct vm_shortage {
    uint64_t free_pages, largest_free_pages, busy_pages, lazy_pages;
    uint64_t headroom_pages; /* that may be outside space at once, by the memory of machine and cgroup */
    vm_limits limits;
    vm_cause cause;
} vm_shortage;

typedef struct vm_range_info {
    uint64_t page, nr_pages, id;
    uint32_t state, owner; /* vm_state of layout.h; process, thread slot or node */
    bool shared, dirty;
} vm_range_info;

/* What a monitor sees. */
typedef struct vm_monitored {
    vm_stats counters; /* all but what is counted by a walk; pages free and lazy as the header has them */
    uint32_t in_magazines[VM_POOL_PAGES_MAX]; /* ranges, by size */
} vm_monitored;

typedef struct vm_survey {
    vm_stats stats;
    vm_holding holdings[VM_PROCESSES_MAX + 1]; /* of processes with a slot, the most first */
    vm_range_info largest[VM_SURVEY_LARGEST_MAX]; /* that are busy, the largest first         */
    uint32_t nr_holdings, nr_largest;
    bool is_whole; /* the words parsed to the end */
} vm_survey;

#endif
