/* SPDX-License-Identifier: MIT */
/* Ranges: ids, hand-out, lookup, and the mark that a region is corrupt. */
#include "base.h"

/* Ids are unique for the region's life: threads take their numbers in blocks from one counter. */
uint64_t vm__new_ids(vm_region *r) { return VM_ADD(&r->map.h->next_id, VM_ID_BLOCK) + 1; }

/* Make a range whose word is ours (MOVING) busy: the id first, the word commits. */
void vm__hand_out(vm_thread *t, uint64_t page, uint64_t nr_pages, bool zeroed, vm_range *out)
{
    vm_region *r = t->region;
    uint64_t id = vm__new_id(t, nr_pages);
    VM_PUT(&r->map.heads[page].aux, id);
    VM_STORE(&r->map.heads[page].word, vm__busy(t, nr_pages));
    *out = (vm_range){page, nr_pages, id, zeroed};
}

/* One that another thread is just sharing, as a fork does, is there. */
int vm__lookup(const vm_region *r, uint64_t page, vm_range *out)
{
    if (page >= r->map.nr_pages)
        return -ENOENT;
    vm_word w = VM_ACQUIRE(&r->map.heads[page].word);
    if ((vm__state(w) != VM_BUSY && vm__state(w) != VM_FREEING) || vm__len(w) == 0
        || vm__len(w) > r->map.nr_pages - page)
        return -ENOENT;
    *out = (vm_range){page, vm__len(w), VM_ACQUIRE(&r->map.heads[page].aux), false};
    return 0;
}

int vm__corrupt(vm_region *r, int line)
{
    if (!r->readonly && !VM_ACQUIRE(&r->map.h->corrupt))
        VM_STORE(&r->map.h->corrupt, (uint64_t)line);
    return -EUCLEAN;
}
