/* SPDX-License-Identifier: MIT */
/*
 * Layer 4, share: who references a range. Holders, which are processes; leases, which are messages; names, which are the
 * region itself.
 */
#ifndef VM_SHARE_H
#define VM_SHARE_H

#include "../cache/cache.h"

/* ---- holder.c ---- */

int vm__share(vm_thread *t, uint64_t page, uint64_t id);
int vm__adopt(vm_thread *t, uint64_t page, uint64_t id, vm_range *out);
/* *ask: do only the dead hold it still? Then the caller recovers them. */
int vm__drop_shared(vm_thread *t, uint64_t page, uint64_t id, unsigned flags, vm_range *kept, bool *ask);
bool vm__take_if_unheld(vm_thread *t, uint64_t page, vm_word taken);
void vm__release_if_unheld(vm_thread *t, uint64_t page);
int vm__wait_while_freeing(vm_thread *t, uint64_t page, vm_word *out);
uint64_t vm__drop_inherited(vm_thread *t);
/* The rest: [holder_mutex] */
bool vm__holds(const vm_region *r, uint64_t page, uint64_t id);
int vm__share_for(vm_thread *t, uint64_t page, uint64_t id, uint32_t heir);
int vm__hold_for(vm_thread *t, uint64_t page, uint64_t id, uint32_t heir, bool may_wait);
int vm__inherit(vm_region *r, const vm_inherited *range);

/* ---- lease.c ---- */

int vm__lease_lock(vm_thread *t, unsigned flags); /* mended if it was stolen */
/* kept: a message's, which its sender's death does not end */
int vm__lease(vm_thread *t, uint64_t page, uint64_t id, bool kept, uint64_t channel, uint64_t *lease);
int vm__claim(vm_thread *t, uint64_t page, uint64_t id, uint64_t lease, vm_range *out);
int vm__drop_lease(vm_thread *t, uint64_t lease);
int vm__lease_deaths(vm_thread *t, unsigned flags);
enum { VM_EXPIRE_KEPT = 1 << 12 }; /* also the messages of those who have been dead for their time */
int vm__end_oldest(vm_thread *t, uint64_t nr_pages, uint64_t *nr_ended); /* of these, oldest first */
int vm__expire_leases(vm_thread *t, unsigned flags, uint64_t older_than_ns, uint64_t *nr);
uint32_t vm__leases_used(const vm_region *r); /* entries from here up were never used */
/* End it if it is still that message's, and its bytes are where they were. */
void vm__end_lease_of(vm_thread *t, uint64_t lease, uint64_t channel, uint32_t owner); /* [lease_lock] */
bool vm__are_being_sent(vm_region *r, const vm_lease_name *leases, size_t nr, uint64_t channel);
int vm__move_leases(vm_thread *t, const vm_lease_name *leases, size_t nr, vm_move move, uint64_t channel);

/* ---- channel.c ---- */

typedef struct vm_lost vm_lost; /* leases of messages that nobody can load any more */
vm_lost *vm__look_at_channels(vm_thread *t, bool (*go_on)(vm_thread *)); /* [tick_mutex], not entered; NULL: none */
void vm__end_lost(vm_thread *t, vm_lost *lost); /* frees it */
void vm__doubts_free(vm_region *r);

/* ---- names.c ---- */

int vm__names_lock(vm_thread *t, unsigned flags); /* mended if it was stolen */
int vm__name_set(vm_thread *t, const char *name, uint64_t page, uint64_t id, const void *meta, size_t bytes,
                 bool must_be_new);
int vm__name_get(vm_thread *t, const char *name, vm_range *out, void *meta, size_t *bytes);
int vm__name_delete(vm_thread *t, const char *name);
int vm__name_list(vm_region *r, int (*each)(void *, const char *, uint64_t page), void *arg);
/* Of a shared range, as all of these: */
bool vm__is_named(const vm_region *r, uint64_t page, uint64_t id);
bool vm__names_hold(const vm_region *r, uint64_t page);
void vm__hold_for_name(vm_region *r, uint64_t page);
bool vm__unhold_unnamed(vm_region *r, uint64_t page); /* [names_lock] */

#endif
