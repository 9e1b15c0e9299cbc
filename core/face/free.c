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

static int drop_shared(vm_thread *t, uint64_t page, uint64_t id, unsigned flags)
{
    bool ask;
    int rc = vm__drop_shared(t, page, id, flags, &ask);
    if (ask)
        vm__recover_dead(t, VM_NO_WAIT, NULL);
    return rc;
}

static int free_slow(vm_thread *t, uint64_t page, uint64_t id, vm_word w, unsigned flags)
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
        return drop_shared(t, page, id, flags);
    if (flags & VM_INHERITED)
        return -ENOENT; /* it could not be shared for us: it is our parent's */
    bool is_ours = vm__is_like(w, t->busy);
    if (!is_ours && t->fast_pages && len < VM_FLOW_PAGES) {
        int rc = vm__magazine_put_foreign(t, page, w);
        if (rc != -EAGAIN)
            return rc;
    }
    vm_word moving = vm__moving(t, len);
    if (!VM_CAS(&r->map.heads[page].word, w, moving))
        return is_ours ? -EAGAIN : -ENOENT; /* a fork shares it just now; or another free won */
    if (is_ours)
        vm__release(t, page, len);
    else
        vm__pass_back(t, page, len);
    return 0;
}

#define FREE_ATTEMPTS 8 /* another thread of ours would have to fork in the middle of each */

/* Over the threshold the freeing thread gives back a little, unless somebody is at it already: at least one step, and for
 * a large range up to twice as much as it adds, if so much is over, so that the threshold is a bound. */
static void purge_if_due(vm_thread *t, uint64_t nr_pages)
{
    uint64_t most = vm__lazy_excess(t->region);
    if (vm_likely(most == 0) || vm__helper_keeps_up(t->region))
        return;
    most = most < 2 * nr_pages ? most : 2 * nr_pages;
    most = most < VM_PURGE_STEP_PAGES_MAX ? most : VM_PURGE_STEP_PAGES_MAX;
    vm__purge_step(t, most > VM_PURGE_STEP_PAGES ? most : VM_PURGE_STEP_PAGES, VM_PURGE_STEP_RANGES, 0);
}

static __attribute__((noinline, cold)) int free_checked(vm_region *r, uint64_t page, uint64_t id, unsigned flags)
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
        rc = free_slow(t, page, id, w, flags);
    }
    if (rc == 0)
        purge_if_due(t, vm__len(w));
    vm__leave(t);
    return rc;
}

/* The hit: a range only this process holds, into this thread's magazine. It needs no mark against a
 * drainer: that one writes to no magazine, and takes only ranges whose words say CACHED already. */
int vm_free(vm_region *r, uint64_t page, uint64_t id, unsigned flags)
{
    vm_thread *t = vm__current;
    uint64_t nr_pages = vm__id_pages(id);
    if (vm_unlikely(t->fast_attachment != r->fast_attachment || page >= r->map.nr_pages
                    || nr_pages > VM_POOL_PAGES_MAX))
        return free_checked(r, page, id, flags);
    vm_head *head = &r->map.heads[page];
    vm_word busy = vm__busy(t, nr_pages);
    if (vm_unlikely(VM_PLAIN(&head->word) != busy || VM_PLAIN(&head->aux) != id))
        return free_checked(r, page, id, flags);
    vm_magazine *m = &t->magazine[nr_pages];
    uint64_t header = VM_RELAXED(&m->header);
    uint32_t count = (uint8_t)header;
    if (vm_unlikely(count >= t->cap[nr_pages]))
        return free_checked(r, page, id, flags);
    VM_STORE(&head->word, busy ^ t->flip);
    VM_PUT(&m->page[count], (uint32_t)page);
    VM_STORE(&m->header, header + 1);
    return 0;
}
