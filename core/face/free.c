/* SPDX-License-Identifier: MIT */
/*
 * Free: the way back.
 *
 *   last reference -> magazine -overflow, in batches-> pool -over its cap-> lazy -threshold-> purge
 *
 * A range only this process holds is freed with plain stores; another process's with one CAS, so of
 * two racing foreign frees exactly one wins; a shared one goes through holder.c. Freed pages stay resident
 * and are reused hot: there is no reason here to quarantine them as the kernel's TLB has.
 */
#include "face.h"

static int drop_shared(vm_thread *t, uint64_t page, uint64_t id, unsigned flags, vm_range *kept)
{
    bool ask;
    int rc = vm__drop_shared(t, page, id, flags, kept, &ask);
    if (ask && !vm__helper_pid(t->region)) /* a walk over all words: a helper does it within a second */
        vm__recover_dead(t, VM_NO_WAIT, NULL);
    return rc;
}

/* Make the word MOVING(t), by one CAS. The word has no id: what was freed by another thread of ours and handed out again
 * since the caller looked has the same word. */
static bool take_out(vm_thread *t, uint64_t page, vm_word w)
{
    return VM_CAS(&t->region->map.heads[page].word, w, vm__moving(t, vm__len(w)));
}

/* The same in a hardened region: its frees come one after the other in a process, so that word and id belong together,
 * and of two frees of one range, by a mistake, the second one sees it. */
static int take_out_hardened(vm_thread *t, uint64_t page, uint64_t id, vm_word w)
{
    vm_region *r = t->region;
    vm__mutex_lock(r, &r->holder_mutex, VM_RANK_HOLDER);
    bool is_it = VM_ACQUIRE(&r->map.heads[page].word) == w;
    bool is_taken = is_it && VM_ACQUIRE(&r->map.heads[page].aux) == id && take_out(t, page, w);
    vm__mutex_unlock(r, &r->holder_mutex, VM_RANK_HOLDER);
    return is_taken ? 0 : is_it ? -ESTALE : -EAGAIN;
}

static int free_slow(vm_thread *t, uint64_t page, uint64_t id, vm_word w, unsigned flags, vm_range *kept)
{
    vm_region *r = t->region;
    int health = vm__health(r);
    if (vm_unlikely(health))
        return health;
    if (vm__state(w) == VM_FREEING && !(w & VM_WORD_SHARED)) { /* a fork shares it just now */
        int rc = vm__wait_while_freeing(t, page, &w);
        if (rc)
            return rc;
    }
    vm_state state = vm__state(w);
    uint64_t len = vm__len(w);
    if ((state != VM_BUSY && state != VM_FREEING) || len == 0 || len > r->map.nr_pages - page)
        return -ENOENT;
    if (VM_ACQUIRE(&r->map.heads[page].aux) != id)
        return -ESTALE;
    if (w & VM_WORD_SHARED)
        return drop_shared(t, page, id, flags, kept);
    if (flags & VM_INHERITED)
        return -ENOENT; /* it could not be shared for us: it is our parent's */
    bool is_ours = vm__is_like(w, t->busy), is_hardened = r->map.flags & VM_FLAG_HARDENED;
    if (!is_ours && !is_hardened && !kept && !vm__id_is_apart(id) && vm__magazine_has_foreign(t, len)) {
        int rc = vm__magazine_put_foreign(t, page, w);
        if (rc != -EAGAIN)
            return rc;
    }
    int rc = is_hardened ? take_out_hardened(t, page, id, w) : take_out(t, page, w) ? 0 : -EAGAIN;
    if (rc)
        return rc == -EAGAIN && !is_ours ? -ENOENT : rc; /* a fork shares it just now; or another free won */
    vm__release_or_keep(t, page, len, id, !is_ours, kept);
    return 0;
}

#define FREE_ATTEMPTS 8 /* another thread of ours would have to fork in the middle of each */

/* By how much less than alone a free gives back: the kernel looks at the mapping of each process. */
static uint32_t divisor_of_a_step(const vm_region *r)
{
    uint32_t nr = 0;
    for (uint32_t p = 0; p < vm__high_process(r); p++)
        nr += (uint32_t)VM_RELAXED(&r->map.processes[p].state) != 0;
    return 1 + nr / VM_PURGE_STEP_PROCESSES;
}

static void give_back_a_step(vm_thread *t, uint64_t most_pages)
{
    uint32_t by = divisor_of_a_step(t->region), ranges = VM_PURGE_STEP_RANGES / by;
    vm__purge_step(t, most_pages / by, ranges ? ranges : 1, 0);
}

/* Over the threshold the freeing thread gives back a little, unless somebody is at it already: at least one step, and for
 * a large range up to twice as much as it adds, if so much is over, so that the threshold is a bound. */
static void purge_if_due(vm_thread *t, uint64_t nr_pages)
{
    uint64_t most = vm__lazy_excess(t->region);
    if (vm_likely(most == 0) || vm__helper_keeps_up(t->region))
        return;
    most = most < 2 * nr_pages ? most : 2 * nr_pages;
    most = most < VM_PURGE_STEP_PAGES_MAX ? most : VM_PURGE_STEP_PAGES_MAX;
    give_back_a_step(t, most > VM_PURGE_STEP_PAGES ? most : VM_PURGE_STEP_PAGES);
}

/* As put_here(), where this CPU keeps no more. */
static __attribute__((noinline, cold)) void put_behind(vm_thread *t, uint64_t page, uint64_t nr_pages)
{
    vm__helpers_resume_if_missing();
    vm__enter(t);
    vm__release(t, page, nr_pages);
    purge_if_due(t, nr_pages);
    vm__leave(t);
}

/* The hit of a design that keeps ranges for a CPU: of a range that only this process holds. */
static inline bool put_here(vm_thread *t, vm_region *r, uint64_t page, uint64_t id)
{
    vm__ring_look(t);
    const vm_head *head = &r->map.heads[page];
    uint64_t nr_pages = vm__id_pages(id);
    if (nr_pages - 1 >= VM_POOL_PAGES_MAX || r->map.flags & VM_FLAG_HARDENED || vm__health(r)
        || VM_RELAXED(&head->word) != vm__busy(t, nr_pages) || VM_RELAXED(&head->aux) != id
        || !vm__is_within(r, page, nr_pages))
        return false;
    if (r->design->kept->put_here(t, nr_pages, page))
        vm__event(t, VM_EVENT_FREE, page, nr_pages);
    else
        put_behind(t, page, nr_pages);
    return true;
}

static int free_checked_or_keep(vm_region *r, uint64_t page, uint64_t id, unsigned flags, vm_range *kept)
{
    if (flags & VM_HIT_ONLY)
        return -EAGAIN;
    vm_thread *t = vm__thread(r);
    if (!t)
        return vm__thread_error(r);
    if (page >= r->map.nr_pages)
        return -ENOENT;
    vm__helpers_resume_if_missing();
    vm__enter(t);
    vm__magazine_tighten(t, vm__is_tight(r));
    int rc = -EAGAIN;
    vm_word w = 0;
    for (int i = 0; rc == -EAGAIN && i < FREE_ATTEMPTS; i++) {
        w = VM_ACQUIRE(&r->map.heads[page].word);
        rc = free_slow(t, page, id, w, flags, kept);
    }
    if (rc == 0)
        purge_if_due(t, vm__len(w));
    vm__leave(t);
    return rc;
}

static __attribute__((noinline, cold)) int free_checked(vm_region *r, uint64_t page, uint64_t id, unsigned flags)
{
    return free_checked_or_keep(r, page, id, flags, NULL);
}

int vm_free_kept(vm_region *r, uint64_t page, uint64_t id, unsigned flags, vm_range *out)
{
    vm_range kept = {0};
    int rc = free_checked_or_keep(r, page, id, flags, &kept);
    if (rc == 0)
        *out = kept;
    return rc;
}

/* Whether it is still recorded, a look at each batch tells (vm__event_of_batch()). */
static inline __attribute__((always_inline)) int free_told(vm_thread *t, vm_region *r, uint64_t page, uint64_t id,
                                                           unsigned flags, uint64_t since)
{
    if (vm_unlikely(!vm__hit_free(&t->hit, &r->hit, page, id)))
        return free_checked(r, page, id, flags);
    return vm__event_hit(t, VM_EVENT_FREE, page, vm__id_pages(id), since);
}

/* Of a design that keeps ranges for a CPU. Or this thread used another region last. */
static __attribute__((noinline)) int free_here(vm_region *r, uint64_t page, uint64_t id, unsigned flags)
{
    vm_thread *t = vm__current;
    if (t->here_key == r->hit_key && page < r->map.nr_pages && !flags && put_here(t, r, page, id))
        return 0;
    if (vm__thread_switch(r))
        return vm_free(r, page, id, flags);
    return free_checked(r, page, id, flags);
}

static __attribute__((noinline)) int free_exact(vm_region *r, uint64_t page, uint64_t id, unsigned flags, vm_thread *t)
{
    if (vm_unlikely(t->recorded_key != r->hit_key))
        return free_here(r, page, id, flags);
    return free_told(t, r, page, id, flags, vm__event_since(t));
}

/* As in alloc.c. */
static __attribute__((noinline)) int free_otherwise(vm_region *r, uint64_t page, uint64_t id, unsigned flags,
                                                    vm_thread *t)
{
    if (vm_unlikely(t->coarse_key != r->hit_key))
        return free_exact(r, page, id, flags, t);
    return free_told(t, r, page, id, flags, 0);
}

/* No hit, where hits are open. */
static __attribute__((noinline)) int free_missed(vm_region *r, uint64_t page, uint64_t id, unsigned flags)
{
    if (!flags && vm__magazine_hit_foreign(vm__current, page, id))
        return 0;
    return free_checked(r, page, id, flags);
}

VM_HIT_ENTRY int vm_free(vm_region *r, uint64_t page, uint64_t id, unsigned flags)
{
    vm_thread *t = vm__current;
    if (vm_unlikely(t->hit.key != r->hit_key))
        return free_otherwise(r, page, id, flags, t);
    return vm_likely(vm__hit_free(&t->hit, &r->hit, page, id)) ? 0 : free_missed(r, page, id, flags);
}
