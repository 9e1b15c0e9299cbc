/* SPDX-License-Identifier: MIT */
/* Release: where a range goes that nobody references any more. magazine -> pool -over its cap-> lazy */
#include "cache.h"

/* Where a range goes that nobody references any more; its word is MOVING(t). The length is from a word that a
 * neighbour may have scribbled over: what is no range is left to the words, which do not parse then. */
void vm__release(vm_thread *t, uint64_t page, uint64_t nr_pages)
{
    vm_region *r = t->region;
    if (vm_unlikely(!vm__is_within(r, page, nr_pages))) {
        VM_CORRUPT(r);
        return;
    }
    if (!vm__is_pooled(r, nr_pages)) {
        vm__lazy_put(t, page, nr_pages);
        return;
    }
    if (t->fast_pages && vm__magazine_put_slow(t, page, nr_pages))
        return;
    vm__pool_give(t, nr_pages, 1, &page);
}

void vm__release_or_keep(vm_thread *t, uint64_t page, uint64_t nr_pages, vm_range *kept)
{
    if (kept && vm__is_within(t->region, page, nr_pages))
        vm__hand_out(t, page, nr_pages, false, kept);
    else
        vm__release(t, page, nr_pages);
}
