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
#include "internal.h"

/* Where a range goes that nobody references any more; its word is MOVING(t). The length is from a word that a
 * neighbour may have scribbled over: what is no range is left to the words, which do not parse then. */
void vm__release(vm_region *r, vm_thread *t, uint64_t page, uint64_t nr_pages)
{
    if (vm_unlikely(!vm__is_within(r, page, nr_pages))) {
        VM_CORRUPT(r);
        return;
    }
    if (nr_pages > VM_POOL_PAGES_MAX || r->pools == VM_POOLS_OFF) {
        vm__lazy_put(r, t, page, nr_pages);
        return;
    }
    if (t->fast_pages && vm__magazine_put_slow(r, t, page, nr_pages))
        return;
    vm__pool_give(r, t, nr_pages, 1, &page);
}

static int free_slow(vm_region *r, vm_thread *t, uint64_t page, uint64_t id, vm_word w, unsigned flags)
{
    if (VM_LOAD(&r->h->corrupt))
        return -EUCLEAN;
    if (vm__state(w) == VM_FREEING && !(w & VM_WORD_SHARED)) { /* a fork shares it just now */
        int rc = vm__settled_word(r, t, page, &w);
        if (rc)
            return rc;
    }
    vm_state state = vm__state(w);
    uint64_t len = vm__len(w);
    if ((state != VM_BUSY && state != VM_FREEING) || len == 0 || len > r->nr_pages - page)
        return -ENOENT;
    if (VM_LOAD(&r->heads[page].aux) != id)
        return -ESTALE;
    if (w & VM_WORD_SHARED)
        return vm__drop_shared(r, t, page, id, flags);
    if (flags & VM_INHERITED)
        return -ENOENT; /* it could not be shared for us: it is our parent's */
    bool is_ours = ((w ^ t->busy) & ~(VM_WORD_LEN_MASK | VM_WORD_DIRTY)) == 0;
    if (!is_ours && t->fast_pages && len <= VM_POOL_PAGES_MAX) {
        int rc = vm__magazine_put_foreign(r, t, page, w);
        if (rc != -EAGAIN)
            return rc;
    }
    vm_word moving = t->moving | len << VM_WORD_LEN_SHIFT;
    if (!VM_CAS(&r->heads[page].word, w, moving))
        return is_ours ? -EAGAIN : -ENOENT; /* a fork shares it just now; or another free won */
    vm__release(r, t, page, len);
    return 0;
}

#define FREE_ATTEMPTS 8 /* another thread of ours would have to fork in the middle of each */

/* Over the threshold the freeing thread purges, unless somebody does already. */
static void purge_if_due(vm_region *r, vm_thread *t)
{
    int64_t lazy = (int64_t)VM_PEEK(&r->h->lazy_pages); /* a death may leave it a little off, even below 0 */
    if (vm_likely(lazy <= (int64_t)vm__lazy_pages_max(r)))
        return;
    if (vm__purge(r, t, VM_PURGE_IF_IDLE | VM_NO_WAIT, NULL) == 0)
        vm__recover_dead(r, t, VM_NO_WAIT, NULL);
}

static __attribute__((noinline, cold)) int free_checked(vm_region *r, uint64_t page, uint64_t id, unsigned flags)
{
    if (flags & VM_HIT_ONLY)
        return -EAGAIN;
    vm_thread *t = vm__thread(r);
    if (!t)
        return vm__thread_error(r);
    if (page >= r->nr_pages)
        return -ENOENT;
    vm__enter(t);
    int rc = -EAGAIN;
    for (int i = 0; rc == -EAGAIN && i < FREE_ATTEMPTS; i++)
        rc = free_slow(r, t, page, id, VM_LOAD(&r->heads[page].word), flags);
    if (rc == 0)
        purge_if_due(r, t);
    vm__leave(t);
    return rc;
}

/* The hit: a range only this process holds, into this thread's magazine. It needs no mark against a
 * drainer: that one writes to no magazine, and takes only ranges whose words say CACHED already. */
int vm_free(vm_region *r, uint64_t page, uint64_t id, unsigned flags)
{
    vm_thread *t = vm__current;
    uint64_t nr_pages = vm__id_pages(id);
    if (vm_unlikely(t->fast_serial != r->fast_serial || page >= r->nr_pages || nr_pages > VM_POOL_PAGES_MAX))
        return free_checked(r, page, id, flags);
    vm_head *head = &r->heads[page];
    vm_word busy = t->busy | nr_pages << VM_WORD_LEN_SHIFT;
    if (vm_unlikely(VM_LOOK(&head->word) != busy || VM_LOOK(&head->aux) != id))
        return free_checked(r, page, id, flags);
    vm_magazine *m = &t->magazine[nr_pages];
    uint64_t header = VM_PEEK(&m->header);
    uint32_t count = (uint8_t)header;
    if (vm_unlikely(count >= t->cap[nr_pages]))
        return free_checked(r, page, id, flags);
    VM_STORE(&head->word, busy ^ t->flip);
    VM_PUT(&m->page[count], (uint32_t)page);
    VM_STORE(&m->header, header + 1);
    return 0;
}

/* Frees what it can; the first error is returned. */
int vm_free_bulk(vm_region *r, size_t count, const vm_range *ranges)
{
    int first = 0;
    for (size_t i = 0; i < count; i++) {
        int rc = vm_free(r, ranges[i].page, ranges[i].id, 0);
        if (rc && !first)
            first = rc;
    }
    return first;
}

/* Cut the tail off: its head is written first, invisible; shortening ours makes it visible. */
static int shrink_in_place(vm_region *r, vm_thread *t, const vm_range *range, uint64_t nr_pages)
{
    uint64_t tail = range->page + nr_pages, tail_pages = range->nr_pages - nr_pages;
    vm_word *word = &r->heads[range->page].word;
    int rc = vm__space_lock(r, t, 0); /* boundaries change only under it */
    if (rc)
        return rc;
    vm_word w = VM_LOAD(word);
    if (w & VM_WORD_SHARED || vm__len(w) != range->nr_pages) {
        vm__space_unlock(r, t);
        return -EBUSY; /* shared meanwhile */
    }
    VM_STORE(&r->heads[tail].word, t->moving | tail_pages << VM_WORD_LEN_SHIFT);
    if (!VM_CAS(word, w, (w & ~VM_WORD_LEN_MASK) | nr_pages << VM_WORD_LEN_SHIFT))
        rc = -EBUSY; /* shared just now */
    vm__space_unlock(r, t);
    if (rc == 0)
        vm__release(r, t, tail, tail_pages);
    return rc;
}

static int move_to_larger(vm_region *r, vm_range *range, const vm_range *now, uint64_t nr_pages)
{
    vm_range grown;
    int rc = vm_alloc(r, nr_pages, 1, 0, &grown);
    if (rc)
        return rc;
    if (r->data) /* memmove: a neighbour that forges words can make them overlap */
        memmove(vm_pointer(r, grown.page), vm_pointer(r, range->page), now->nr_pages << r->page_shift);
    rc = vm_free(r, range->page, range->id, 0);
    if (rc) {
        vm_free(r, grown.page, grown.id, 0);
        return rc;
    }
    *range = grown;
    return 0;
}

int vm_resize(vm_region *r, vm_range *range, uint64_t nr_pages)
{
    vm_range now;
    vm_thread *t = vm__thread(r);
    if (!t)
        return vm__thread_error(r);
    if (nr_pages == 0)
        return -EINVAL;
    int rc = vm_lookup(r, range->page, &now);
    if (rc || now.id != range->id)
        return rc ? rc : -ESTALE;
    if (VM_LOAD(&r->heads[range->page].word) & VM_WORD_SHARED)
        return -EBUSY;
    if (nr_pages == now.nr_pages)
        return 0;
    if (nr_pages > now.nr_pages)
        return move_to_larger(r, range, &now, nr_pages);
    vm__enter(t);
    rc = shrink_in_place(r, t, &now, nr_pages);
    vm__leave(t);
    if (rc == 0)
        range->nr_pages = nr_pages;
    return rc;
}
