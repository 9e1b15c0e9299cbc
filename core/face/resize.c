/* SPDX-License-Identifier: MIT */
/* Resize: shorter in place, longer by a move. */
#include "face.h"

/* Cut the tail off: its head is written first, invisible; shortening ours makes it visible. */
static int shrink_in_place(vm_thread *t, const vm_range *range, uint64_t nr_pages)
{
    vm_region *r = t->region;
    uint64_t tail = range->page + nr_pages, tail_pages = range->nr_pages - nr_pages;
    vm_word *word = &r->map.heads[range->page].word;
    int rc = vm__space_lock(t, 0); /* boundaries change only under it */
    if (rc)
        return rc;
    vm_word w = VM_ACQUIRE(word);
    if (vm__state(w) != VM_BUSY || w & VM_WORD_SHARED || vm__len(w) != range->nr_pages) {
        vm__space_unlock(t);
        return -EBUSY; /* shared meanwhile, or just now */
    }
    VM_STORE(&r->map.heads[tail].word, vm__moving(t, tail_pages));
    if (!VM_CAS(word, w, vm__with_len(w, nr_pages)))
        rc = -EBUSY; /* shared just now */
    vm__space_unlock(t);
    if (rc == 0)
        vm__release(t, tail, tail_pages);
    return rc;
}

static int move_to_larger(vm_region *r, vm_range *range, const vm_range *now, uint64_t nr_pages)
{
    vm_range grown;
    int rc = vm_alloc(r, nr_pages, 1, 0, &grown);
    if (rc)
        return rc;
    if (r->map.data) /* memmove: a neighbour that forges words can make them overlap */
        memmove(vm_pointer(r, grown.page), vm_pointer(r, range->page), now->nr_pages << r->map.page_shift);
    rc = vm_free(r, range->page, range->id, 0);
    if (rc) {
        vm_free(r, grown.page, grown.id, 0);
        return rc;
    }
    *range = grown;
    return 0;
}

static int find(const vm_region *r, const vm_range *range, vm_range *now)
{
    int rc = vm__lookup(r, range->page, now);
    if (rc || now->id != range->id)
        return rc ? rc : -ESTALE;
    vm_word w = VM_ACQUIRE(&r->map.heads[range->page].word);
    return w & VM_WORD_SHARED || vm__state(w) != VM_BUSY ? -EBUSY : 0;
}

int vm_resize(vm_region *r, vm_range *range, uint64_t nr_pages)
{
    vm_range now;
    vm_thread *t = vm__thread(r);
    if (!t)
        return vm__thread_error(r);
    if (nr_pages == 0)
        return -EINVAL;
    int rc = find(r, range, &now);
    if (rc)
        return rc;
    if (nr_pages == now.nr_pages)
        return 0;
    if (nr_pages > now.nr_pages)
        return move_to_larger(r, range, &now, nr_pages);
    vm__enter(t);
    rc = shrink_in_place(t, &now, nr_pages);
    vm__leave(t);
    if (rc == 0)
        range->nr_pages = nr_pages;
    return rc;
}
