/* SPDX-License-Identifier: MIT */
/*
 * Leases: references inside messages, held by nobody yet.
 *
 * Who pickles a reference makes a lease before it may let go of the range; who loads it claims the
 * lease: it makes itself the entry's owner, adopts the range, then ends the lease. An entry is
 * committed by its id, and a range's count is raised before that and lowered after its end, so a death
 * in between leaves it too high and never too low.
 *
 * When an entry's owner is found dead, it gets a deadline, and what is past it ends at the next purge: but for
 * those of messages (VM_LEASE_KEPT), which may still be in a queue. They end when nobody can load them any more
 * (channel.c) and when somebody asks for it: vm_expire_leases(), or vm_end_oldest() when the alternative is to go without
 * pages.
 *
 * lease_lock, stolen from a dead owner, is mended before use: the counts and the chain of unused entries are made
 * anew from the entries.
 */
#include "share.h"

#include <stdlib.h>

static vm_lease_entry *entry_of(vm_region *r, uint64_t lease)
{
    vm_lease_entry *e = &r->map.leases[lease % VM_LEASES_MAX];
    return lease && VM_ACQUIRE(&e->id) == lease ? e : NULL;
}

uint32_t vm__leases_used(const vm_region *r)
{
    uint32_t high = VM_RELAXED(&r->map.h->lease_high);
    return high < VM_LEASES_MAX ? high : VM_LEASES_MAX;
}

/* ---- mending ---- */

/* Of each page, how many entries name its range. Entries that name none end here. */
static uint32_t *count_entries(vm_region *r, size_t bytes)
{
    VM_ASSERT_RANK_HELD(r, VM_RANK_LEASE);
    uint32_t *count = vm__private_pages(bytes, false);
    uint64_t nr = 0;
    if (!count)
        return NULL;
    for (uint32_t i = 0; i < vm__leases_used(r); i++) {
        vm_lease_entry *e = &r->map.leases[i];
        uint64_t id = VM_ACQUIRE(&e->id), page = VM_RELAXED(&e->page);
        if (!id)
            continue;
        bool is_good = id % VM_LEASES_MAX == i && page < r->map.nr_pages
                       && vm__is_shared(VM_ACQUIRE(&r->map.heads[page].word))
                       && VM_ACQUIRE(&r->map.heads[page].aux) == VM_RELAXED(&e->range_id);
        if (is_good) {
            count[page]++;
            nr++;
        } else
            VM_STORE(&e->id, 0);
    }
    VM_PUT(&r->map.h->nr_leases, nr);
    return count;
}

static int write_counts(vm_thread *t, const uint32_t *count, unsigned flags)
{
    vm_region *r = t->region;
    VM_ASSERT_RANK_HELD(r, VM_RANK_LEASE);
    uint64_t page = 0;
    int rc = vm__space_lock(t, flags & VM_LOCK_FLAGS);
    if (rc)
        return rc;
    for (vm_word w; (w = vm__word_at(r, page)); page += vm__len(w))
        if (vm__is_shared(w) && VM_ACQUIRE(&r->map.sharings[page].nr_leases) != count[page])
            VM_STORE(&r->map.sharings[page].nr_leases, count[page]);
    vm__space_unlock(t);
    return page == r->map.nr_pages ? 0 : VM_CORRUPT(r);
}

static void chain_unused(vm_region *r)
{
    VM_ASSERT_RANK_HELD(r, VM_RANK_LEASE);
    uint32_t next = 0;
    for (uint32_t i = vm__leases_used(r); i-- > 0;)
        if (!VM_ACQUIRE(&r->map.leases[i].id)) {
            VM_PUT(&r->map.leases[i].next, next);
            next = i + 1;
        }
    VM_PUT(&r->map.h->lease_unused, next);
}

/* What somebody who died with the lock left: counts that are too high, a torn chain. */
static int mend(vm_thread *t, unsigned flags)
{
    vm_region *r = t->region;
    VM_ASSERT_HELD(t, &r->map.h->lease_lock);
    size_t bytes = r->map.nr_pages * sizeof(uint32_t);
    uint32_t *count = count_entries(r, bytes);
    if (!count)
        return -ENOMEM;
    int rc = write_counts(t, count, flags);
    vm__private_free(count, bytes);
    chain_unused(r);
    VM_PUT(&r->map.h->lease_due_ns, 1);     /* look at all of them */
    VM_PUT(&r->map.h->purge_needs_scan, 1); /* it takes what nobody holds now */
    return rc;
}

int vm__lease_lock(vm_thread *t, unsigned flags)
{
    vm_region *r = t->region;
    vm_lock *lock = &r->map.h->lease_lock;
    int rc = vm__lock(t, lock, flags);
    if (rc || vm_likely(!VM_RELAXED(&lock->needs_mending)))
        return rc;
    rc = mend(t, flags);
    if (rc == 0)
        VM_STORE(&lock->needs_mending, 0);
    else
        vm__unlock(t, lock);
    return rc;
}

/* ---- one entry ---- */

static bool has_unused(const vm_region *r)
{
    return VM_RELAXED(&r->map.h->lease_unused) || vm__leases_used(r) < VM_LEASES_MAX;
}

/* An unused entry, or NULL. */
static vm_lease_entry *take_entry(vm_region *r, uint32_t *index)
{
    VM_ASSERT_RANK_HELD(r, VM_RANK_LEASE);
    uint32_t first = VM_RELAXED(&r->map.h->lease_unused), high = vm__leases_used(r);
    if (first && first <= high && !VM_ACQUIRE(&r->map.leases[first - 1].id)) {
        *index = first - 1;
        VM_PUT(&r->map.h->lease_unused, VM_RELAXED(&r->map.leases[*index].next));
    } else if (high < VM_LEASES_MAX) {
        *index = high;
        VM_PUT(&r->map.h->lease_high, high + 1);
    } else
        return NULL;
    return &r->map.leases[*index];
}

static int make(vm_thread *t, uint64_t page, uint64_t id, bool kept, uint64_t channel, uint64_t *lease)
{
    vm_region *r = t->region;
    VM_ASSERT_HELD(t, &r->map.h->lease_lock);
    uint32_t index;
    vm_lease_entry *e = take_entry(r, &index);
    if (!e)
        return -EXFULL;
    uint64_t number = r->map.h->lease_number + 1;
    VM_PUT(&r->map.h->lease_number, number);
    VM_ADD(&r->map.sharings[page].nr_leases, 1);
    VM_PUT(&e->page, page);
    VM_PUT(&e->range_id, id);
    VM_PUT(&e->made_ns, vm__now_ns());
    VM_PUT(&e->deadline_ns, 0);
    VM_PUT(&e->channel, channel ? channel | VM_CHANNEL_SENDING : 0);
    VM_PUT(&e->owner, vm__lease_owner(r->process, r->process_inc) | (kept ? VM_LEASE_KEPT : 0));
    *lease = number << VM_LEASE_BITS | index;
    VM_STORE(&e->id, *lease);
    VM_PUT(&r->map.h->nr_leases, r->map.h->nr_leases + 1);
    return 0;
}

/* The range may be unheld now. */
static void end(vm_thread *t, vm_lease_entry *e)
{
    vm_region *r = t->region;
    uint64_t page = VM_RELAXED(&e->page);
    VM_ASSERT_HELD(t, &r->map.h->lease_lock);
    VM_STORE(&e->id, 0);
    VM_PUT(&e->next, VM_RELAXED(&r->map.h->lease_unused));
    VM_PUT(&r->map.h->lease_unused, (uint32_t)(e - r->map.leases) + 1);
    VM_PUT(&r->map.h->nr_leases, r->map.h->nr_leases - 1);
    if (page >= r->map.nr_pages || VM_ACQUIRE(&r->map.heads[page].aux) != VM_RELAXED(&e->range_id)
        || !VM_ACQUIRE(&r->map.sharings[page].nr_leases))
        return; /* scribbled over */
    VM_ADD(&r->map.sharings[page].nr_leases, (uint64_t)0 - 1);
    vm__release_if_unheld(t, page);
}

/* ---- what is over ---- */

/* Those past their deadline, those that were read, those as old as that; older_than_ns 0: of any age they stay. */
static uint64_t expire(vm_thread *t, uint64_t older_than_ns, bool kept_too)
{
    vm_region *r = t->region;
    VM_ASSERT_HELD(t, &r->map.h->lease_lock);
    uint64_t nr = 0, now = vm__now_ns(), due = 0;
    VM_STORE(&r->map.h->leases_read, 0); /* before the look: who sets it later is seen next time */
    for (uint32_t i = 0; i < vm__leases_used(r); i++) {
        vm_lease_entry *e = &r->map.leases[i];
        uint64_t deadline = VM_RELAXED(&e->deadline_ns);
        if (!VM_ACQUIRE(&e->id))
            continue;
        bool is_old = older_than_ns && now - VM_RELAXED(&e->made_ns) >= older_than_ns;
        bool is_kept = VM_RELAXED(&e->owner) & VM_LEASE_KEPT && !kept_too;
        bool is_read = VM_ACQUIRE(&e->read_id) == VM_RELAXED(&e->id);
        if (is_old || is_read || (deadline && deadline <= now && !is_kept)) {
            end(t, e);
            nr++;
        } else if (deadline && !is_kept && (!due || deadline < due))
            due = deadline;
    }
    VM_PUT(&r->map.h->lease_due_ns, due);
    return nr;
}

/* ---- make, claim, drop ---- */

int vm__lease(vm_thread *t, uint64_t page, uint64_t id, bool kept, uint64_t channel, uint64_t *lease)
{
    vm_region *r = t->region;
    int rc = vm__share(t, page, id);
    if (rc == 0)
        rc = vm__lease_lock(t, 0);
    if (rc)
        return rc;
    if (vm_unlikely(!has_unused(r)) && VM_ACQUIRE(&r->map.h->leases_read))
        expire(t, 0, false);
    vm__mutex_lock(r, &r->holder_mutex, VM_RANK_HOLDER); /* another thread of ours may have let go of it since */
    rc = vm__holds(r, page, id) ? make(t, page, id, kept, channel, lease) : -ENOENT;
    vm__mutex_unlock(r, &r->holder_mutex, VM_RANK_HOLDER);
    vm__unlock(t, &r->map.h->lease_lock);
    return rc;
}

#define NO_OWNER UINT32_MAX

/* From now on the lease ends with us, if we die before we end it. *owner: whose it was, NO_OWNER if it
 * is none of that range; *channel: where its bytes were. */
static int own(vm_thread *t, uint64_t page, uint64_t id, uint64_t lease, uint32_t *owner, uint64_t *channel)
{
    vm_region *r = t->region;
    int rc = vm__lease_lock(t, 0);
    if (rc)
        return rc;
    vm_lease_entry *e = entry_of(r, lease);
    *owner = NO_OWNER;
    if (e && VM_RELAXED(&e->page) == page && VM_RELAXED(&e->range_id) == id) {
        *owner = VM_RELAXED(&e->owner);
        *channel = VM_RELAXED(&e->channel);
        VM_PUT(&e->owner, vm__lease_owner(r->process, r->process_inc));
        VM_PUT(&e->channel, VM_CHANNEL_RECEIVED);
        VM_PUT(&e->deadline_ns, 0);
    }
    vm__unlock(t, &r->map.h->lease_lock);
    return 0;
}

/* The claim failed; the message may be loaded again. If its sender died, the next scan sees that. */
static void disown(vm_thread *t, uint64_t lease, uint32_t owner, uint64_t channel)
{
    vm_region *r = t->region;
    if (vm__lease_lock(t, 0) != 0)
        return;
    vm_lease_entry *e = entry_of(r, lease);
    if (e && VM_RELAXED(&e->owner) == vm__lease_owner(r->process, r->process_inc)) {
        VM_PUT(&e->channel, channel);
        VM_PUT(&e->owner, owner);
    }
    VM_PUT(&r->map.h->purge_needs_scan, 1);
    vm__unlock(t, &r->map.h->lease_lock);
}

int vm__drop_lease(vm_thread *t, uint64_t lease)
{
    vm_region *r = t->region;
    int rc = vm__lease_lock(t, 0);
    if (rc)
        return rc;
    vm_lease_entry *e = entry_of(r, lease);
    if (e)
        end(t, e);
    vm__unlock(t, &r->map.h->lease_lock);
    return e ? 0 : -ENOENT;
}

int vm__claim(vm_thread *t, uint64_t page, uint64_t id, uint64_t lease, vm_range *out)
{
    uint32_t owner;
    uint64_t channel = 0;
    int rc = own(t, page, id, lease, &owner, &channel);
    if (rc)
        return rc;
    rc = vm__adopt(t, page, id, out);
    if (owner != NO_OWNER && rc == 0)
        while (vm__drop_lease(t, lease) == -EINTR && !vm__time_is_up(t->region))
            ; /* if that fails, it is ours, and ends when we do */
    else if (owner != NO_OWNER)
        disown(t, lease, owner, channel);
    return rc;
}

/* ---- where the bytes are ---- */

/* Of what this process had read it lost the bytes. A Ref's lease, and a message's that was passed on, stay. */
static void lose_one(vm_thread *t, vm_lease_entry *e)
{
    vm_region *r = t->region;
    if (VM_RELAXED(&e->channel) == VM_CHANNEL_RECEIVED
        && VM_RELAXED(&e->owner) == (vm__lease_owner(r->process, r->process_inc) | VM_LEASE_KEPT))
        end(t, e);
}

/* The same bytes may be written to several channels; which of them were read is not told. */
static bool is_elsewhere_too(uint64_t was, vm_move move, uint64_t channel)
{
    if (was & VM_CHANNEL_SEVERAL)
        return true;
    return move == VM_MOVE_SENDING && was && !(was & VM_CHANNEL_RECEIVED) && (was & ~VM_CHANNEL_SENDING) != channel;
}

/* Owner before channel: who dies in between leaves a message whose channel is looked at. */
static void move_one(vm_region *r, vm_lease_entry *e, vm_move move, uint64_t channel)
{
    uint32_t us = vm__lease_owner(r->process, r->process_inc) | VM_LEASE_KEPT;
    uint64_t was = VM_RELAXED(&e->channel);
    if (move == VM_MOVE_SENT) {
        if (channel && was == (channel | VM_CHANNEL_SENDING) && VM_RELAXED(&e->owner) == us)
            VM_PUT(&e->channel, channel);
        return;
    }
    uint64_t now = move == VM_MOVE_RECEIVED ? VM_CHANNEL_RECEIVED : channel ? channel | VM_CHANNEL_SENDING : 0;
    VM_PUT(&e->owner, us);
    VM_PUT(&e->deadline_ns, 0);
    VM_PUT(&e->channel, is_elsewhere_too(was, move, channel) ? VM_CHANNEL_SEVERAL : now);
}

/* Read without the lock: whoever holds a message made its lease before. Only one that was never sent may be missed: its maker
 * died between its id and the count. */
bool vm__has_leases(const vm_region *r) { return VM_ACQUIRE(&r->map.h->nr_leases); }

/* As they were made, which only their sender changes: read without the lock. */
bool vm__are_being_sent(vm_region *r, const vm_lease_name *leases, size_t nr, uint64_t channel)
{
    uint32_t us = vm__lease_owner(r->process, r->process_inc) | VM_LEASE_KEPT;
    for (size_t i = 0; i < nr; i++) {
        const vm_lease_entry *e = entry_of(r, leases[i].lease);
        if (!e || VM_RELAXED(&e->channel) != (channel | VM_CHANNEL_SENDING) || VM_RELAXED(&e->owner) != us)
            return false;
    }
    return channel;
}

/* Those that are gone, or are no message's, stay as they are. */
int vm__move_leases(vm_thread *t, const vm_lease_name *leases, size_t nr, vm_move move, uint64_t channel)
{
    vm_region *r = t->region;
    int rc = vm__lease_lock(t, 0);
    if (rc)
        return rc;
    for (size_t i = 0; i < nr; i++) {
        vm_lease_entry *e = entry_of(r, leases[i].lease);
        if (e && VM_RELAXED(&e->page) == leases[i].page && VM_RELAXED(&e->range_id) == leases[i].id
            && VM_RELAXED(&e->owner) & VM_LEASE_KEPT) {
            if (move == VM_MOVE_LOST)
                lose_one(t, e);
            else
                move_one(r, e, move, channel);
        }
    }
    vm__unlock(t, &r->map.h->lease_lock);
    return 0;
}

void vm__end_lease_of(vm_thread *t, uint64_t lease, uint64_t channel, uint32_t owner)
{
    VM_ASSERT_HELD(t, &t->region->map.h->lease_lock);
    vm_lease_entry *e = entry_of(t->region, lease);
    if (e && VM_RELAXED(&e->channel) == channel && VM_RELAXED(&e->owner) == owner)
        end(t, e);
}

/* ---- owners that died ---- */

/* Give the leases of the dead a deadline. Whoever owns one is known to be dead by incarnation. */
int vm__lease_deaths(vm_thread *t, unsigned flags)
{
    vm_region *r = t->region;
    if (!VM_RELAXED(&r->map.h->lease_high))
        return 0;
    int rc = vm__lease_lock(t, flags & VM_LOCK_FLAGS);
    if (rc)
        return rc;
    uint64_t deadline = vm__now_ns() + r->map.h->lease_ttl_ns, due = VM_RELAXED(&r->map.h->lease_due_ns);
    for (uint32_t i = 0; i < vm__leases_used(r); i++) {
        vm_lease_entry *e = &r->map.leases[i];
        uint32_t owner = VM_RELAXED(&e->owner);
        if (!VM_ACQUIRE(&e->id) || VM_RELAXED(&e->deadline_ns)
            || !vm__process_is_retired(r, owner & 0xffff, owner >> 16 & VM_INC_MASK))
            continue;
        VM_PUT(&e->deadline_ns, deadline);
        if (!due && !(owner & VM_LEASE_KEPT))
            VM_PUT(&r->map.h->lease_due_ns, due = deadline);
    }
    vm__unlock(t, &r->map.h->lease_lock);
    return 0;
}

int vm__expire_leases(vm_thread *t, unsigned flags, uint64_t older_than_ns, uint64_t *nr)
{
    vm_region *r = t->region;
    uint64_t due = VM_ACQUIRE(&r->map.h->lease_due_ns);
    bool some_are_read = VM_ACQUIRE(&r->map.h->leases_read);
    if (vm_likely(!(flags & VM_EXPIRE_KEPT) && !older_than_ns && !some_are_read && (!due || due > vm__now_ns())))
        return 0;
    int rc = vm__lease_lock(t, flags & VM_LOCK_FLAGS);
    if (rc)
        return rc;
    uint64_t ended = expire(t, older_than_ns, flags & VM_EXPIRE_KEPT);
    vm__unlock(t, &r->map.h->lease_lock);
    if (nr)
        *nr += ended;
    return 0;
}

/* ---- the oldest first ---- */

typedef struct old_lease {
    uint64_t made_ns, id;
} old_lease;

static int compare_ages(const void *a, const void *b)
{
    uint64_t x = ((const old_lease *)a)->made_ns, y = ((const old_lease *)b)->made_ns;
    return (x > y) - (x < y);
}

/* Kept ones whose sender has been dead for its time. */
static size_t collect_old(vm_region *r, old_lease *old, uint32_t nr_entries)
{
    VM_ASSERT_RANK_HELD(r, VM_RANK_LEASE);
    size_t nr = 0;
    uint64_t now = vm__now_ns();
    for (uint32_t i = 0; i < nr_entries; i++) {
        const vm_lease_entry *e = &r->map.leases[i];
        uint64_t deadline = VM_RELAXED(&e->deadline_ns), id = VM_ACQUIRE(&e->id);
        if (id && deadline && deadline <= now && VM_RELAXED(&e->owner) & VM_LEASE_KEPT)
            old[nr++] = (old_lease){VM_RELAXED(&e->made_ns), id};
    }
    qsort(old, nr, sizeof *old, compare_ages);
    return nr;
}

/* Until they named so many pages. */
static uint64_t end_oldest(vm_thread *t, const old_lease *old, size_t nr, uint64_t nr_pages)
{
    vm_region *r = t->region;
    uint64_t nr_ended = 0;
    for (uint64_t pages = 0; nr_ended < nr && pages < nr_pages; nr_ended++) {
        vm_lease_entry *e = entry_of(r, old[nr_ended].id);
        if (!e)
            continue;
        uint64_t page = VM_RELAXED(&e->page);
        pages += page < r->map.nr_pages ? vm__len(VM_ACQUIRE(&r->map.heads[page].word)) : 0;
        end(t, e);
    }
    return nr_ended;
}

int vm__end_oldest(vm_thread *t, uint64_t nr_pages, uint64_t *nr_ended)
{
    vm_region *r = t->region;
    int rc = vm__lease_lock(t, 0);
    if (rc)
        return rc;
    uint32_t nr_entries = vm__leases_used(r); /* once: a neighbour may scribble over it meanwhile */
    size_t bytes = (nr_entries + 1) * sizeof(old_lease);
    old_lease *old = vm__private_pages(bytes, false);
    if (old)
        *nr_ended = end_oldest(t, old, collect_old(r, old, nr_entries), nr_pages);
    vm__unlock(t, &r->map.h->lease_lock);
    if (old)
        vm__private_free(old, bytes);
    return old ? 0 : -ENOMEM;
}
