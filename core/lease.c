/* SPDX-License-Identifier: MIT */
/*
 * Leases: references inside messages, held by nobody yet.
 *
 * Who pickles a reference makes a lease before it may let go of the range; who loads it claims the
 * lease: it makes itself the entry's owner, adopts the range, then ends the lease. An entry is
 * committed by its id, and a range's count is raised before that and lowered after its end, so a death
 * in between leaves it too high and never too low.
 *
 * Nobody waits for a message that nobody loads: when an entry's owner is found dead, it gets a
 * deadline, and what is past it ends at the next purge. A process that lives keeps its leases, however
 * late the message is, until vm_expire_leases() is told otherwise.
 *
 * Locks: lease_lock. Stolen from a dead owner it is mended before use: the counts and the chain of
 * unused entries are made anew from the entries.
 */
#include "internal.h"

#include <sys/mman.h>

static vm_lease_entry *entry_of(vm_region *r, uint64_t lease)
{
    vm_lease_entry *e = &r->leases[lease % VM_LEASES];
    return lease && VM_LOAD(&e->id) == lease ? e : NULL;
}

static uint32_t entries_used(const vm_region *r)
{
    uint32_t high = VM_PEEK(&r->h->lease_high);
    return high < VM_LEASES ? high : VM_LEASES;
}

static bool is_shared(vm_word w)
{
    return w & VM_WORD_SHARED && (vm__state(w) == VM_BUSY || vm__state(w) == VM_FREEING);
}

/* ---- mending ---- */

/* Of each page, how many entries name its range. Entries that name none end here. [lease_lock] */
static uint32_t *count_entries(vm_region *r, size_t bytes)
{
    uint32_t *count = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    uint64_t nr = 0;
    if (count == MAP_FAILED)
        return NULL;
    for (uint32_t i = 0; i < entries_used(r); i++) {
        vm_lease_entry *e = &r->leases[i];
        uint64_t id = VM_LOAD(&e->id), page = VM_PEEK(&e->page);
        if (!id)
            continue;
        bool is_good = id % VM_LEASES == i && page < r->nr_pages && is_shared(VM_LOAD(&r->heads[page].word))
                       && VM_LOAD(&r->heads[page].aux) == VM_PEEK(&e->range_id);
        if (is_good) {
            count[page]++;
            nr++;
        } else
            VM_STORE(&e->id, 0);
    }
    VM_PUT(&r->h->nr_leases, nr);
    return count;
}

/* [lease_lock] */
static int write_counts(vm_region *r, vm_thread *t, const uint32_t *count, unsigned flags)
{
    uint64_t page = 0;
    int rc = vm__space_lock(r, t, flags & VM_NO_WAIT);
    if (rc)
        return rc;
    for (vm_word w; (w = vm__scan(r, page)); page += vm__len(w))
        if (is_shared(w) && VM_LOAD(&r->sharings[page].nr_leases) != count[page])
            VM_STORE(&r->sharings[page].nr_leases, count[page]);
    vm__space_unlock(r, t);
    return page == r->nr_pages ? 0 : VM_CORRUPT(r);
}

/* [lease_lock] */
static void chain_unused(vm_region *r)
{
    uint32_t next = 0;
    for (uint32_t i = entries_used(r); i-- > 0;)
        if (!VM_LOAD(&r->leases[i].id)) {
            VM_PUT(&r->leases[i].next, next);
            next = i + 1;
        }
    VM_PUT(&r->h->lease_unused, next);
}

/* What somebody who died with the lock left: counts that are too high, a torn chain. [lease_lock] */
static int mend(vm_region *r, vm_thread *t, unsigned flags)
{
    VM_ASSERT_HELD(t, &r->h->lease_lock);
    size_t bytes = r->nr_pages * sizeof(uint32_t);
    uint32_t *count = count_entries(r, bytes);
    if (!count)
        return -ENOMEM;
    int rc = write_counts(r, t, count, flags);
    munmap(count, bytes);
    chain_unused(r);
    VM_PUT(&r->h->lease_due_ns, 1);     /* look at all of them */
    VM_PUT(&r->h->purge_needs_scan, 1); /* it takes what nobody holds now */
    return rc;
}

int vm__lease_lock(vm_region *r, vm_thread *t, unsigned flags)
{
    vm_lock *lock = &r->h->lease_lock;
    int rc = vm__lock(r, t, lock, flags);
    if (rc || vm_likely(!VM_PEEK(&lock->needs_repair)))
        return rc;
    rc = mend(r, t, flags);
    if (rc == 0)
        VM_STORE(&lock->needs_repair, 0);
    else
        vm__unlock(r, t, lock);
    return rc;
}

/* ---- one entry ---- */

/* An unused entry, or NULL. [lease_lock] */
static vm_lease_entry *take_entry(vm_region *r, uint32_t *index)
{
    uint32_t first = VM_PEEK(&r->h->lease_unused), high = entries_used(r);
    if (first && first <= high && !VM_LOAD(&r->leases[first - 1].id)) {
        *index = first - 1;
        VM_PUT(&r->h->lease_unused, VM_PEEK(&r->leases[*index].next));
    } else if (high < VM_LEASES) {
        *index = high;
        VM_PUT(&r->h->lease_high, high + 1);
    } else
        return NULL;
    return &r->leases[*index];
}

/* [lease_lock] */
static int make(vm_region *r, vm_thread *t, uint64_t page, uint64_t id, uint64_t *lease)
{
    VM_ASSERT_HELD(t, &r->h->lease_lock);
    (void)t;
    uint32_t index;
    vm_lease_entry *e = take_entry(r, &index);
    if (!e)
        return -EXFULL;
    uint64_t serial = r->h->lease_serial + 1;
    VM_PUT(&r->h->lease_serial, serial);
    VM_ADD(&r->sharings[page].nr_leases, 1);
    VM_PUT(&e->page, page);
    VM_PUT(&e->range_id, id);
    VM_PUT(&e->made_ns, vm__now_ns());
    VM_PUT(&e->deadline_ns, 0);
    VM_PUT(&e->owner, vm__lease_owner(r->process, r->process_inc));
    *lease = serial << VM_LEASE_BITS | index;
    VM_STORE(&e->id, *lease);
    VM_PUT(&r->h->nr_leases, r->h->nr_leases + 1);
    return 0;
}

/* The range may be unheld now. [lease_lock] */
static void end(vm_region *r, vm_thread *t, vm_lease_entry *e)
{
    uint64_t page = VM_PEEK(&e->page);
    VM_ASSERT_HELD(t, &r->h->lease_lock);
    VM_STORE(&e->id, 0);
    VM_PUT(&e->next, VM_PEEK(&r->h->lease_unused));
    VM_PUT(&r->h->lease_unused, (uint32_t)(e - r->leases) + 1);
    VM_PUT(&r->h->nr_leases, r->h->nr_leases - 1);
    if (page >= r->nr_pages || VM_LOAD(&r->heads[page].aux) != VM_PEEK(&e->range_id)
        || !VM_LOAD(&r->sharings[page].nr_leases))
        return; /* scribbled over */
    VM_ADD(&r->sharings[page].nr_leases, (uint64_t)0 - 1);
    vm__release_if_unheld(r, t, page);
}

/* ---- make, claim, drop ---- */

static int lease_range(vm_region *r, vm_thread *t, uint64_t page, uint64_t id, uint64_t *lease)
{
    int rc = vm__share(r, t, page, id);
    if (rc == 0)
        rc = vm__lease_lock(r, t, 0);
    if (rc)
        return rc;
    pthread_mutex_lock(&r->holder_mutex); /* another thread of ours may have let go of it since */
    rc = vm__holds(r, page, id) ? make(r, t, page, id, lease) : -ENOENT;
    pthread_mutex_unlock(&r->holder_mutex);
    vm__unlock(r, t, &r->h->lease_lock);
    return rc;
}

int vm_lease(vm_region *r, uint64_t page, uint64_t id, uint64_t *lease)
{
    vm_thread *t = vm__thread(r);
    if (!t)
        return vm__thread_error(r);
    vm__enter(t);
    int rc = lease_range(r, t, page, id, lease);
    vm__leave(t);
    return rc;
}

#define NO_OWNER UINT32_MAX

/* From now on the lease ends with us, if we die before we end it. *owner: whose it was, NO_OWNER if it
 * is none of that range. */
static int own(vm_region *r, vm_thread *t, uint64_t page, uint64_t id, uint64_t lease, uint32_t *owner)
{
    int rc = vm__lease_lock(r, t, 0);
    if (rc)
        return rc;
    vm_lease_entry *e = entry_of(r, lease);
    *owner = NO_OWNER;
    if (e && VM_PEEK(&e->page) == page && VM_PEEK(&e->range_id) == id) {
        *owner = VM_PEEK(&e->owner);
        VM_PUT(&e->owner, vm__lease_owner(r->process, r->process_inc));
        VM_PUT(&e->deadline_ns, 0);
    }
    vm__unlock(r, t, &r->h->lease_lock);
    return 0;
}

/* The claim failed; the message may be loaded again. If its sender died, the next scan sees that. */
static void disown(vm_region *r, vm_thread *t, uint64_t lease, uint32_t owner)
{
    if (vm__lease_lock(r, t, 0) != 0)
        return;
    vm_lease_entry *e = entry_of(r, lease);
    if (e && VM_PEEK(&e->owner) == vm__lease_owner(r->process, r->process_inc))
        VM_PUT(&e->owner, owner);
    VM_PUT(&r->h->purge_needs_scan, 1);
    vm__unlock(r, t, &r->h->lease_lock);
}

static int drop_lease(vm_region *r, vm_thread *t, uint64_t lease)
{
    int rc = vm__lease_lock(r, t, 0);
    if (rc)
        return rc;
    vm_lease_entry *e = entry_of(r, lease);
    if (e)
        end(r, t, e);
    vm__unlock(r, t, &r->h->lease_lock);
    return e ? 0 : -ENOENT;
}

int vm_claim(vm_region *r, uint64_t page, uint64_t id, uint64_t lease, vm_range *out)
{
    vm_thread *t = vm__thread(r);
    if (!t)
        return vm__thread_error(r);
    vm__enter(t);
    uint32_t owner;
    uint64_t started = vm__now_ns();
    int rc = own(r, t, page, id, lease, &owner);
    if (rc == 0) {
        rc = vm__adopt(r, t, page, id, out);
        if (owner != NO_OWNER && rc == 0)
            while (drop_lease(r, t, lease) == -EINTR && vm__now_ns() - started < r->lock_timeout_ns)
                ; /* if that fails, it is ours, and ends when we do */
        else if (owner != NO_OWNER)
            disown(r, t, lease, owner);
    }
    vm__leave(t);
    return rc;
}

int vm_drop_lease(vm_region *r, uint64_t lease)
{
    vm_thread *t = vm__thread(r);
    if (!t)
        return vm__thread_error(r);
    vm__enter(t);
    int rc = drop_lease(r, t, lease);
    vm__leave(t);
    return rc;
}

/* ---- owners that died ---- */

/* Give the leases of the dead a deadline. Whoever owns one is known to be dead by incarnation. */
int vm__lease_deaths(vm_region *r, vm_thread *t, unsigned flags)
{
    if (!VM_PEEK(&r->h->lease_high))
        return 0;
    int rc = vm__lease_lock(r, t, flags & VM_NO_WAIT);
    if (rc)
        return rc;
    uint64_t deadline = vm__now_ns() + r->h->lease_ttl_ns, due = VM_PEEK(&r->h->lease_due_ns);
    for (uint32_t i = 0; i < entries_used(r); i++) {
        vm_lease_entry *e = &r->leases[i];
        uint32_t owner = VM_PEEK(&e->owner);
        if (!VM_LOAD(&e->id) || VM_PEEK(&e->deadline_ns) || !vm__is_retired_process(r, owner & 0xffff, owner >> 16))
            continue;
        VM_PUT(&e->deadline_ns, deadline);
        if (!due)
            VM_PUT(&r->h->lease_due_ns, due = deadline);
    }
    vm__unlock(r, t, &r->h->lease_lock);
    return 0;
}

/* [lease_lock] */
static uint64_t expire(vm_region *r, vm_thread *t, uint64_t older_than_ns)
{
    VM_ASSERT_HELD(t, &r->h->lease_lock);
    uint64_t nr = 0, now = vm__now_ns(), due = 0;
    for (uint32_t i = 0; i < entries_used(r); i++) {
        vm_lease_entry *e = &r->leases[i];
        uint64_t deadline = VM_PEEK(&e->deadline_ns);
        if (!VM_LOAD(&e->id))
            continue;
        bool is_old = older_than_ns && now - VM_PEEK(&e->made_ns) >= older_than_ns;
        if (is_old || (deadline && deadline <= now)) {
            end(r, t, e);
            nr++;
        } else if (deadline && (!due || deadline < due))
            due = deadline;
    }
    VM_PUT(&r->h->lease_due_ns, due);
    return nr;
}

int vm__expire_leases(vm_region *r, vm_thread *t, unsigned flags, uint64_t older_than_ns, uint64_t *nr)
{
    uint64_t due = VM_LOAD(&r->h->lease_due_ns);
    if (vm_likely(!older_than_ns && (!due || due > vm__now_ns())))
        return 0;
    int rc = vm__lease_lock(r, t, flags & VM_NO_WAIT);
    if (rc)
        return rc;
    uint64_t ended = expire(r, t, older_than_ns);
    vm__unlock(r, t, &r->h->lease_lock);
    if (nr)
        *nr += ended;
    return 0;
}

int vm_expire_leases(vm_region *r, uint64_t older_than_ns, uint64_t *nr_ended)
{
    vm_thread *t = vm__thread(r);
    uint64_t nr = 0;
    if (!t)
        return vm__thread_error(r);
    vm__enter(t);
    int rc = vm__recover_dead(r, t, 0, NULL);
    if (rc == 0)
        rc = vm__expire_leases(r, t, 0, older_than_ns, &nr);
    vm__leave(t);
    if (rc == 0)
        *nr_ended = nr;
    return rc;
}
