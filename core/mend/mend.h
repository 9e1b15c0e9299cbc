/* SPDX-License-Identifier: MIT */
/*
 * Layer 5, mend: what deaths and pressure make necessary. The scan of the words, the purge, the recovery of the dead.
 */
#ifndef VM_MEND_H
#define VM_MEND_H

#include "../share/share.h"

/* ---- scan.c [purge_lock] ---- */

int vm__scan(vm_thread *t, unsigned flags, vm_batch *out);
int vm__mend_lazy_pages(vm_thread *t, unsigned flags);

/* ---- purge.c ---- */

enum {
    VM_PURGE_FULL = 1 << 8,    /* empty the pools too                                             */
    VM_PURGE_IF_IDLE = 1 << 9, /* leave it to whoever purges already                              */
    VM_PURGE_UNPUNCHED = 1 << 10, /* ranges go to space with their pages: it is short, memory is not */
    VM_PURGE_IF_NOBODY_DID = 1 << 13, /* not if another purge ended while this one waited for it  */
};
int vm__purge(vm_thread *t, unsigned flags, uint64_t *pages_returned);
/* A bounded part of a purge: waits for nobody. Returns the pages. */
uint64_t vm__purge_step(vm_thread *t, uint64_t most_pages, uint32_t most_ranges, unsigned flags);
/* A decay of one node's pools and nothing else: by `quota`, a number for each size. Returns the pages. */
uint64_t vm__purge_pools(vm_thread *t, uint32_t node, const uint32_t *quota);
/* What is kept for CPUs that nobody uses, and nothing else. Returns the pages. */
uint64_t vm__purge_unused_cpus(vm_thread *t, const vm_cpus *online, const vm_cpus *may_run);
bool vm__pools_to_warm(vm_thread *t); /* false: somebody purges just now */
/* Of what is free and may be resident, from *from on, which is where to go on; *pages: more by what went. False: at the
 * end, or not now. */
bool vm__purge_dirty(vm_thread *t, uint64_t *from, uint64_t *pages);
bool vm__purge_is_behind(vm_region *r); /* a death may have hidden something from the lists */
void vm__count_tick(vm_thread *t, uint64_t decayed_pages);
/* A purge in scan mode; `then` runs after a complete one, still under purge_lock. */
int vm__purge_scan(vm_thread *t, unsigned flags, void (*then)(vm_region *, const void *), const void *arg);
int vm__purge_count(vm_thread *t, unsigned flags); /* what is lazy, anew, where a scan could not tell */

/* ---- recover.c ---- */

int vm__recover_dead(vm_thread *t, unsigned flags, uint64_t *pages);
int vm__mend_tables(vm_thread *t, unsigned flags); /* the locks of names, warm lists and leases, where they need it */

/* ---- decay.c: a tick ---- */

/* What a watch saw of one slot when it last turned. */
typedef struct vm_slot_seen {
    uint64_t state, headers; /* a sum over all magazines: any take changes one */
    bool is_drained;
} vm_slot_seen;

/* What a process that ticks remembers, from one turn to the next. */
struct vm_watch {
    uint64_t ticked_ns; /* when the last round was; 0: never */
    uint32_t nr_ticks;
    vm_pressure pressure; /* as it was looked at last */
    uint64_t lazy_low; /* of the turn before this one, as the next two */
    uint64_t live_high;
    uint32_t *low; /* of each pool of each node */
    vm_slot_seen *slot;
    uint32_t slot_at; /* where a turn that was broken off goes on: the others had theirs */
    uint64_t dirty_at; /* the same, of free ranges that may be resident */
};

int vm__tick(vm_thread *t, bool (*go_on)(vm_thread *)); /* [tick_mutex] */
void vm__clear_backlog(vm_thread *t, bool (*go_on)(vm_thread *));
void vm__watch_free(vm_region *r);

#endif
