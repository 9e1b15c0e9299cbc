/* SPDX-License-Identifier: MIT */
/*
 * vmalloc: page ranges in one shared region, for any thread of any attached process.
 *
 * Every function returns 0 or a negative errno; outputs come through the last arguments and are
 * untouched on failure. Sizes are in pages of vm_info.page_bytes (granules for an address space).
 * All functions may be called from any thread. See docs/design.md.
 */
#ifndef VMALLOC_H
#define VMALLOC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define VM_API __attribute__((visibility("default")))

typedef struct vm_region vm_region;

/* A busy range as its holder knows it. `id` is never used twice in a region's life. */
typedef struct vm_range {
    uint64_t page;
    uint64_t nr_pages;
    uint64_t id;
    bool zeroed; /* the pages read as zeros (never touched, or discarded) */
} vm_range;

typedef enum { VM_POOLS_OFF, VM_POOLS_LOCKED, VM_POOLS_LLIST, VM_POOLS_MAGAZINE } vm_pools;

typedef struct vm_options {
    uint64_t nr_pages;       /* allocatable; metadata comes on top                          */
    uint64_t granule_bytes;  /* 0: memory; else an address space of nr_pages such granules  */
    uint64_t base;           /* address space: value of its first granule                   */
    uint64_t limit_pages;    /* 0: no limit but nr_pages                                    */
    uint64_t lazy_pages_max; /* 0: chosen by machine and recent peak, see vm__lazy_pages_max() */
    uint32_t nr_nodes;       /* 0: one per CPU, at most 128                                 */
    uint32_t nr_threads;     /* 0: 1024 thread slots                                        */
    vm_pools pools;
    bool pthread_locks;      /* plain process-shared mutexes, for comparison                */
    bool keep_on_death;      /* ranges of dead processes stay allocated                     */
    double lease_ttl_s;      /* an unclaimed lease outlives its owner so long; 0: 60 s      */
    const char *name;        /* shown in /proc/PID/maps as memfd:vmalloc:NAME; may be NULL  */
} vm_options;

/* Errors a caller should tell apart (others: EINVAL, ENOMEM of the process, errors of the system):
 * ENOSPC    no free range of that size after shrink and drain
 * ENOENT    not the start of a live range      ESTALE  the range's id is another one
 * EBUSY     a lock's owner is alive but stopped: lock_timeout_s passed (vm_busy_pid)
 * EAGAIN    VM_NO_WAIT was given and a lock was taken   EINTR  vm_wait_in_slices() and a slice is over
 * EUCLEAN   the region is corrupt                       ENOLCK no process slot left
 * EXFULL    no lease left (vm_lease)                    EROFS  attached read-only
 * EACCES    the region is another user's (vm_attach; root may)
 * EOWNERDEAD this mapping was inherited by a raw clone  EPROTO another format or page size */

/* ---- regions ---- */
VM_API int vm_create(const vm_options *options, vm_region **out);
VM_API int vm_attach(int fd, vm_region **out); /* fd: the region's memfd; it stays the caller's */
/* To look only: describe, stats, walk, check, lookup, names; all else is EROFS. The mapping is read-only, no slot
 * is taken and no lock: what is seen may be torn where others work. `fd` may be open for reading only. */
VM_API int vm_attach_readonly(int fd, vm_region **out);
VM_API int vm_detach(vm_region *r);            /* busy ranges held only here are freed */
VM_API int vm_fd(const vm_region *r);
VM_API void *vm_pointer(const vm_region *r, uint64_t page); /* NULL for an address space */

typedef struct vm_info {
    uint8_t id[16];
    uint64_t nr_pages, page_bytes, granule_bytes, base, total_bytes, limit_pages, lazy_pages_max;
    uint32_t nr_nodes, nr_threads, process_slot, format, flags;
    vm_pools pools;
} vm_info;
VM_API void vm_describe(const vm_region *r, vm_info *out);

/* ---- ranges ---- */
enum {
    VM_NO_WAIT = 1,  /* EAGAIN instead of waiting for a lock; a pool's may still take some milliseconds */
    VM_NO_PURGE = 2, /* ENOSPC instead of purging (the kernel's GFP_NOWAIT) */
    VM_INHERITED = 8, /* vm_free: what this process has from fork, see vm_drop_inherited() */
    VM_HIT_ONLY = 4, /* EAGAIN unless this thread's magazine serves it: takes no lock, calls nothing */
};
/* align_pages: a power of two. Lowest address first for what comes from space. */
VM_API int vm_alloc(vm_region *r, uint64_t nr_pages, uint64_t align_pages, unsigned flags, vm_range *out);
VM_API int vm_free(vm_region *r, uint64_t page, uint64_t id, unsigned flags);
/* All or nothing. */
VM_API int vm_alloc_bulk(vm_region *r, uint64_t nr_pages, uint64_t align_pages, size_t count, vm_range *out);
VM_API int vm_free_bulk(vm_region *r, size_t count, const vm_range *ranges);
/* Shrink in place (the tail is freed) or move, copying the contents; *range is updated. */
VM_API int vm_resize(vm_region *r, vm_range *range, uint64_t nr_pages);
/* `count` ranges at base + offset[i], one base for all: the percpu allocator's need. */
VM_API int vm_alloc_congruent(vm_region *r, size_t count, const uint64_t *offsets, const uint64_t *nr_pages,
                              uint64_t align_pages, vm_range *out);
VM_API int vm_lookup(vm_region *r, uint64_t page, vm_range *out); /* of a live range's first page */

/* ---- sharing ---- */
VM_API int vm_share(vm_region *r, uint64_t page, uint64_t id); /* from now on others may adopt it */
VM_API int vm_adopt(vm_region *r, uint64_t page, uint64_t id, vm_range *out); /* one more reference here */
/* A lease keeps a range that a message names until it is claimed or dropped, held by nobody meanwhile; after
 * its owner's death for lease_ttl_s. The caller of vm_lease() holds the range. */
VM_API int vm_lease(vm_region *r, uint64_t page, uint64_t id, uint64_t *lease);
/* Adopt and end the lease. One that is gone is no error as long as the range is there. */
VM_API int vm_claim(vm_region *r, uint64_t page, uint64_t id, uint64_t lease, vm_range *out);
VM_API int vm_drop_lease(vm_region *r, uint64_t lease);                  /* ENOENT: gone */
/* End the leases that are due; if older_than_ns is not 0, also all that were made so long ago, by anybody. */
VM_API int vm_expire_leases(vm_region *r, uint64_t older_than_ns, uint64_t *nr_ended);
/* A forked child holds what its parent held. Let go of it: nothing inherited may be used afterwards. */
VM_API int vm_drop_inherited(vm_region *r, uint64_t *nr_ranges);
VM_API int vm_name_set(vm_region *r, const char *name, uint64_t page, uint64_t id, const void *meta, size_t bytes);
VM_API int vm_name_new(vm_region *r, const char *name, uint64_t page, uint64_t id, const void *meta,
                       size_t bytes); /* EEXIST if the name is taken, where vm_name_set() replaces it */
VM_API int vm_name_get(vm_region *r, const char *name, vm_range *out, void *meta, size_t *bytes); /* adopts */
VM_API int vm_name_delete(vm_region *r, const char *name);
VM_API int vm_name_list(vm_region *r, int (*each)(void *, const char *, uint64_t page), void *arg);

/* ---- upkeep ---- */
VM_API int vm_purge(vm_region *r, uint64_t *pages_returned);
VM_API int vm_shrink(vm_region *r, uint64_t *pages_returned); /* a purge of everything, magazines too */
VM_API int vm_recover(vm_region *r, uint64_t *pages_reclaimed); /* of dead processes */

typedef struct vm_stats {
    uint64_t nr_pages, free_pages, busy_pages, cached_pages, pooled_pages, lazy_pages, moving_pages;
    uint64_t nr_ranges, nr_busy, nr_shared, nr_free_ranges, largest_free_pages;
    uint64_t resident_bytes;   /* of the whole memfd, metadata included */
    uint64_t nr_processes, nr_thread_slots;
    uint64_t nr_alloc, nr_pool_hit, nr_lazy_hit, nr_space_hit, nr_failed, lock_wait_ns;
    uint64_t nr_purges, nr_purged_pages, nr_discards, nr_splits, nr_merges, nr_recovered;
    uint64_t nr_leases;
} vm_stats;
VM_API int vm_get_stats(vm_region *r, vm_stats *out);

typedef struct vm_range_info {
    uint64_t page, nr_pages, id;
    uint32_t state, owner; /* vm_state of layout.h; process, thread slot or node */
    bool shared, dirty;
} vm_range_info;
/* Every range in address order, a consistent picture of the boundaries. */
VM_API int vm_walk(vm_region *r, int (*each)(void *, const vm_range_info *), void *arg);

/* Invariants of docs/design.md, 8. `at_rest`: nobody else is working. Findings go to `say`;
 * returns their number or a negative errno. */
VM_API int vm_check(vm_region *r, bool at_rest, bool repair, void (*say)(void *, const char *), void *arg);

/* Make hints agree with the words again: index, lists, counters, magazines; drop holders, names and leases that
 * stand for nothing. `say` is told what was wrong; returns how much that was, or a negative errno. While others
 * work, a counter or a list that was on the move may be told too. */
VM_API int vm_repair(vm_region *r, void (*say)(void *, const char *), void *arg);

/* ---- waiting ---- */
/* For this thread: return EINTR after waiting about 20 ms for a lock, so that the caller can look at
 * its signals and call again; nothing was done yet. */
VM_API void vm_wait_in_slices(bool on);
VM_API void vm_set_lock_timeout(vm_region *r, double seconds);
VM_API uint32_t vm_busy_pid(const vm_region *r); /* of the last EBUSY on this thread */
VM_API uint64_t vm_lock_wait_ns(vm_region *r);   /* spent waiting by this thread so far */
VM_API uint64_t vm_pages_of(const vm_region *r, uint64_t bytes);
/* Fail every nth request with ENOSPC, 0: never (after vmem's vm_mtbf). Per process. */
VM_API void vm_fail_every(vm_region *r, uint64_t nth);

#ifdef __cplusplus
}
#endif
#endif
