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

#include "vmalloc_types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Errors a caller should tell apart (others: EINVAL, ENOMEM of the process, errors of the system):
 * ENOSPC    no free range of that size after shrink and drain   EDQUOT  this process's quota (vm_limits)
 * ENOENT    not the start of a live range      ESTALE  the range's id is another one
 * EBUSY     a lock's owner is alive but stopped: lock_timeout_s passed (vm_busy_pid)
 * EAGAIN    VM_NO_WAIT was given and a lock was taken   EINTR  in_slices, and a slice is over
 * EUCLEAN   the region is corrupt                       ENOLCK no process slot left
 * EXFULL    no lease left (vm_lease)                    EROFS  attached read-only
 * EACCES    the region is another user's (vm_attach; root may)
 * EEXIST    several regions fit (vm_attach_named)
 * EOWNERDEAD this mapping was inherited by a raw clone  EPROTO another format or page size */

/* ---- regions ---- */
VM_API int vm_create(const vm_options *options, vm_region **out);
VM_API int vm_attach(int fd, vm_region **out); /* fd: the region's memfd; it stays the caller's */
/* To look only: describe, stats, walk, check, lookup, names; all else is EROFS. The mapping is read-only, no slot
 * is taken and no lock: what is seen may be torn where others work. `fd` may be open for reading only. */
VM_API int vm_attach_readonly(int fd, vm_region **out);
/* Either, of whatever user: the descriptor comes from whom the caller trusts. docs/security.md: what such a user can do. */
VM_API int vm_attach_given(int fd, bool readonly, vm_region **out);
/* The region that a process of this user made with the name `which`, or, if there is none, the only one that process
 * `which` has. As `vmalloc ps` lists them. ENOENT: none; EEXIST: several. */
VM_API int vm_attach_named(const char *which, vm_region **out);
/* The region that a process serves at the socket `path`, as Region.serve(path) does, between containers too. That process is
 * this user's or root's, or of one of `uids` (NULL, 0: of no other). ENOENT, ECONNREFUSED: nobody serves there;
 * EPERM: one of both sides does not trust the other's user; ETIMEDOUT: no answer in VM_SERVE_WAIT_S. */
VM_API int vm_attach_served(const char *path, const uint32_t *uids, size_t nr_uids, vm_region **out);
VM_API int vm_detach(vm_region *r);            /* busy ranges held only here are freed */
VM_API int vm_fd(const vm_region *r);
VM_API const char *vm_pools_name(vm_pools pools); /* of a pool design; NULL: there is none of that number */
VM_API void *vm_pointer(const vm_region *r, uint64_t page); /* NULL for an address space */

VM_API void vm_describe(const vm_region *r, vm_info *out);

/* What a result means, in a line: of the errors above, or else what the system says. Never NULL. */
VM_API const char *vm_strerror(int result);

/* ---- ranges ---- */
/* align_pages: a power of two. Lowest address first for what comes from space. *out may be up to a quarter longer than
 * nr_pages, of any size: all of it is the caller's. Never under a quota. */
VM_API int vm_alloc(vm_region *r, uint64_t nr_pages, uint64_t align_pages, unsigned flags, vm_range *out);
/* As vm_alloc() of plain pages, but returned in registers, which saves a hit the way through memory. id is 0 where there was
 * none, and page the errno then. vm_lookup() tells how long the range is. From version 12 on gcc copies such a pair by way
 * of the stack if both halves go to memory side by side, which costs more than is saved: an empty asm on each, or
 * -fno-tree-slp-vectorize, prevents that. */
VM_API vm_taken vm_take(vm_region *r, uint64_t nr_pages);
VM_API int vm_free(vm_region *r, uint64_t page, uint64_t id, unsigned flags);
/* As vm_free(); but who drops the last reference has the range for itself then, under a new id: *out. Others hold it
 * still: out->nr_pages is 0. */
VM_API int vm_free_kept(vm_region *r, uint64_t page, uint64_t id, unsigned flags, vm_range *out);
/* All or nothing. */
VM_API int vm_alloc_bulk(vm_region *r, uint64_t nr_pages, uint64_t align_pages, size_t count, vm_range *out);
VM_API int vm_free_bulk(vm_region *r, size_t count, const vm_range *ranges);
/* Shrink in place (the tail is freed) or move, copying the contents; *range is updated. EBUSY also where others hold it, too. */
VM_API int vm_resize(vm_region *r, vm_range *range, uint64_t nr_pages);
/* `count` ranges at base + offset[i], one base for all: the percpu allocator's need. */
VM_API int vm_alloc_congruent(vm_region *r, size_t count, const uint64_t *offsets, const uint64_t *nr_pages,
                              uint64_t align_pages, vm_range *out);
VM_API int vm_lookup(vm_region *r, uint64_t page, vm_range *out); /* of a live range's first page */
/* The range held by this process that an address lies in, also in its middle; ENOENT. One of more than VM_NOTED_PAGES
 * is surely found only if it was noted, by whoever got it, in this process or the one it was forked from. */
VM_API int vm_find(vm_region *r, const void *address, vm_range *out);
VM_API void vm_note(vm_region *r, const vm_range *range);

/* ---- sharing ---- */
VM_API int vm_share(vm_region *r, uint64_t page, uint64_t id); /* from now on others may adopt it */
VM_API int vm_adopt(vm_region *r, uint64_t page, uint64_t id, vm_range *out); /* one more reference here */
/* A lease keeps a range that a message names until it is claimed or dropped, held by nobody meanwhile; after
 * its owner's death for lease_ttl_s. The caller of vm_lease() holds the range. */
VM_API int vm_lease(vm_region *r, uint64_t page, uint64_t id, uint64_t *lease);
/* The same for a message that may wait in a queue for any time: its maker's death does not end it, vm_expire_leases() does,
 * and vm_end_oldest(): of makers that have been dead for lease_ttl_s, the oldest first, until they named so many pages.
 * `channel`: what it is about to be written to, or 0. If that is known, the lease ends by itself, in seconds, when nobody
 * can load the message any more. */
VM_API int vm_lease_message(vm_region *r, uint64_t page, uint64_t id, uint64_t channel, uint64_t *lease);
VM_API uint64_t
vm_channel_of(int fd); /* a number for the pipe or the socket's other end; 0: neither, or not to be told */
/* Tell where messages' bytes are: about to be written to a channel, written, read by this process, which has them, or lost
 * by it: those that it had read end. */
VM_API int vm_move_leases(vm_region *r, const vm_lease_name *leases, size_t nr, vm_move move, uint64_t channel);
/* Whether a message may hold one at all: if not, none has to be looked into. Waits for nobody. */
VM_API bool vm_has_leases(const vm_region *r);
/* Whether they already are what VM_MOVE_SENDING makes them; waits for nobody. */
VM_API bool vm_are_being_sent(vm_region *r, const vm_lease_name *leases, size_t nr, uint64_t channel);
/* Whether this process tells so of all that it reads; if not, what may be read there is kept as long as it lives. */
VM_API void vm_mark_reads(vm_region *r, bool marks);
VM_API int vm_end_oldest(vm_region *r, uint64_t nr_pages, uint64_t *nr_ended);
/* Adopt and end the lease. One that is gone is no error as long as the range is there. */
VM_API int vm_claim(vm_region *r, uint64_t page, uint64_t id, uint64_t lease, vm_range *out);
VM_API int vm_drop_lease(vm_region *r, uint64_t lease); /* ENOENT: gone */
/* End the leases that are due; if older_than_ns is not 0, also all that were made so long ago, by anybody. */
VM_API int vm_expire_leases(vm_region *r, uint64_t older_than_ns, uint64_t *nr_ended);
/* A forked child holds what its parent held. Let go of it: nothing inherited may be used afterwards. */
VM_API int vm_drop_inherited(vm_region *r, uint64_t *nr_ranges);
/* To receive without a slot and without a mapping: copy `bytes` from `at` of a shared range on, ESTALE if it is another
 * one; then the lease that kept it may end. EACCES as vm_attach(), unless `is_given`: the descriptor comes from whom the
 * caller trusts. */
VM_API int vm_window_open(int fd, bool is_given, vm_window **out); /* fd stays the caller's */
VM_API int vm_window_fd(const vm_window *w);
VM_API int vm_window_read(const vm_window *w, uint64_t page, uint64_t id, uint64_t at, uint64_t bytes, void *out);
VM_API void vm_window_keep(const vm_window *w, uint64_t lease); /* its message was read, and has no channel now */
VM_API void vm_window_done(const vm_window *w, uint64_t lease);
VM_API void vm_window_close(vm_window *w);
VM_API uint64_t vm_nr_inherited(const vm_region *r); /* ranges that came with the last fork */
VM_API int vm_name_set(vm_region *r, const char *name, uint64_t page, uint64_t id, const void *meta, size_t bytes);
VM_API int vm_name_new(vm_region *r, const char *name, uint64_t page, uint64_t id, const void *meta,
                       size_t bytes); /* EEXIST if the name is taken, where vm_name_set() replaces it */
VM_API int vm_name_get(vm_region *r, const char *name, vm_range *out, void *meta, size_t *bytes); /* adopts */
VM_API int vm_name_delete(vm_region *r, const char *name);
VM_API int vm_name_list(vm_region *r, int (*each)(void *, const char *, uint64_t page), void *arg);

/* ---- warm in advance ---- */
/* Take a range from space only, make its pages resident (any thread, several at once), say that so many pages more may
 * stay warm, free it: requests find it warm. A shrink forgets what was to stay warm. */
VM_API int vm_alloc_cold(vm_region *r, uint64_t nr_pages, uint64_t align_pages, vm_range *out); /* never purges */
VM_API int vm_populate(vm_region *r, uint64_t page, uint64_t nr_pages); /* of a range that the caller holds */
VM_API int vm_keep_warm(vm_region *r, uint64_t nr_pages);
/* Zero the first bytes of a range that the caller holds: written, or, from VM_ZEROS_PUNCH_BYTES on, discarded. */
VM_API int vm_zero(vm_region *r, uint64_t page, uint64_t bytes);

/* ---- upkeep ---- */
VM_API int vm_purge(vm_region *r, uint64_t *pages_returned);
VM_API int vm_shrink(vm_region *r, uint64_t *pages_returned); /* a purge of everything, magazines too */
VM_API int vm_recover(vm_region *r, uint64_t *pages_reclaimed); /* of dead processes */
/* One round of upkeep, if a fifth of a second has passed since this process's last: what nobody used for some seconds
 * goes back, the dead are recovered, leases that are due end. Waits for nobody. A helper does it by itself. */
VM_API int vm_tick(vm_region *r);
/* A thread of this process that ticks as long as it is elected among all processes' helpers. It takes no signals; it is
 * stopped before a fork, and started again in parent and child by vm_helpers_resume() or the next call that takes a slow
 * path. 0 also where it runs already; an errno where no thread can be had. */
VM_API int vm_helper_start(vm_region *r);
VM_API void vm_helper_stop(vm_region *r);
VM_API void vm_helpers_resume(void); /* of all regions of this process */

VM_API int vm_get_limits(vm_region *r, vm_limits *out);
VM_API int vm_set_limit(vm_region *r, vm_limit which, uint64_t nr_pages); /* 0: none. EINVAL: which? */
/* What each process holds, the most first; at most `room` of them. Returns how many, or a negative errno. */
VM_API int vm_holdings(vm_region *r, size_t room, vm_holding *out);
VM_API int vm_processes(vm_region *r, size_t room, vm_holding *out); /* those that hold nothing too */
/* Bytes that this process's memory cgroup and those above it allow; UINT64_MAX: no limit. */
VM_API uint64_t vm_cgroup_limit(void);
VM_API int vm_explain(vm_region *r, uint64_t nr_pages, int error, vm_shortage *out);

VM_API int vm_get_stats(vm_region *r, vm_stats *out);
VM_API void vm_get_glance(const vm_region *r, vm_glance *out); /* no words but of slabs: for whoever looks often */

/* For whoever looks at a region again and again, best in a read-only attachment: no lock, no slot, nothing written. What it
 * tells is right within what happens during the look. */
VM_API void vm_monitor_look(const vm_region *r, vm_monitored *out); /* walks no words */
VM_API void vm_monitor_pools(const vm_region *r, uint32_t node, uint32_t nr_ranges[VM_POOL_PAGES_MAX]); /* by size */
VM_API void vm_survey_look(const vm_region *r, vm_survey *out); /* one walk over the words */

/* Record what goes on: alloc, free and the rest (VM_EVENT_*), written by all attached processes, each thread into a ring of
 * its own, and read here while that goes on. EBUSY: somebody records already; `exact`: each event bears its own time. */
VM_API int vm_record_start(vm_region *r, bool exact, vm_recorder **out);
VM_API void vm_record_clock(uint64_t *ns, uint64_t *ticks); /* now: two of these say how long a tick is */
VM_API uint32_t vm_record_slots(const vm_recorder *rec); /* of threads */
VM_API uint32_t vm_record_pid(const vm_recorder *rec, uint32_t slot); /* whose it is now; 0: nobody's */
/* New events of that slot, two words each (vm_event in core/base/layout.h), at most `room`; returns how many. `lost` grows
 * by those that were overwritten before. Full: read again. */
VM_API uint32_t vm_record_read(vm_recorder *rec, uint32_t slot, uint32_t room, uint64_t *out, uint64_t *lost);
VM_API void vm_record_stop(vm_recorder *rec); /* no more events; what was written can still be read */
VM_API void vm_record_end(vm_recorder *rec); /* before vm_detach(); gives the rings' memory back */

/* Read what somebody else records, from now on, also in a read-only attachment. ENODATA: nobody does. It is over when
 * vm_record_is_on() says so; then vm_record_end(). */
VM_API int vm_record_watch(vm_region *r, vm_recorder **out);
VM_API bool vm_record_is_on(const vm_recorder *rec);

/* Every range in address order, a consistent picture of the boundaries. */
VM_API int vm_walk(vm_region *r, int (*each)(void *, const vm_range_info *), void *arg);

/* Invariants of docs/design.md, 8. `at_rest`: nobody else is working. Findings go to `say`;
 * returns their number or a negative errno. */
VM_API int vm_check(vm_region *r, bool at_rest, void (*say)(void *, const char *), void *arg);

/* Make hints agree with the words again: index, lists, counters, magazines; drop holders, names and leases that
 * stand for nothing. `say` is told what was wrong; returns how much that was, or a negative errno. While others
 * work, a counter or a list that was on the move may be told too. */
VM_API int vm_repair(vm_region *r, void (*say)(void *, const char *), void *arg);

/* ---- waiting ---- */
/* How this thread's calls wait until vm_wait_end(): all that bear the same `wait` share one time-out, which runs from
 * their first wait on, also over calls that return EINTR and are made again; then EBUSY. Calls with another one, or with
 * none, may be made in between. Without one each wait has the region's lock timeout of its own. */
VM_API void vm_wait_begin(vm_wait *wait);
VM_API void vm_wait_end(void);
VM_API void vm_set_lock_timeout(vm_region *r, double seconds);
VM_API uint32_t vm_busy_pid(const vm_region *r); /* of the last EBUSY on this thread */
VM_API uint64_t vm_lock_wait_ns(vm_region *r); /* spent waiting by this thread so far */
VM_API uint64_t vm_lock_waits(vm_region *r); /* how often this thread found a lock taken */
VM_API uint64_t vm_pages_of(const vm_region *r, uint64_t bytes);
/* Fail every nth request with ENOSPC, 0: never (after vmem's vm_mtbf). Per process. */
VM_API void vm_fail_every(vm_region *r, uint64_t nth);

#ifdef __cplusplus
}
#endif
#endif
