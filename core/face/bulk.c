/* SPDX-License-Identifier: MIT */
/* Bulk: many ranges of one size at once, all or none. */
#include "face.h"

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

int vm_alloc_bulk(vm_region *r, uint64_t nr_pages, uint64_t align_pages, size_t count_, vm_range *out)
{
    for (size_t i = 0; i < count_; i++) {
        int rc = vm_alloc(r, nr_pages, align_pages, 0, &out[i]);
        if (rc) {
            vm_free_bulk(r, i, out);
            return rc;
        }
    }
    return 0;
}
