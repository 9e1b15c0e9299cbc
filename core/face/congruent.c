/* SPDX-License-Identifier: MIT */
/* Congruent: ranges at the same offsets from one base, all or none; the kernel's per-CPU allocator asks so. */
#include "face.h"

/* Lowest base at which every [base + offset[i], + nr_pages[i]) is free: each misfit moves the base
 * to where that member would fit, so it only ever grows. */
static uint64_t find_congruent(const vm_region *r, size_t count_, const uint64_t *offsets, const uint64_t *nr_pages,
                               uint64_t align_pages)
{
    uint64_t base = 0;
    for (size_t i = 0, fitting = 0; fitting < count_; i = (i + 1) % count_) {
        uint64_t found = vm__index_find_aligned(&r->map, base + offsets[i], nr_pages[i], align_pages);
        if (found == VM_NONE)
            return VM_NONE;
        if (found == base + offsets[i]) {
            fitting++;
            continue;
        }
        base = found - offsets[i];
        fitting = 0;
    }
    return base;
}

static int check_congruent(const vm_region *r, size_t n, const uint64_t *offsets, const uint64_t *nr_pages,
                           uint64_t align_pages, uint64_t *total)
{
    if (n == 0 || !vm__is_power_of_two(align_pages))
        return -EINVAL;
    for (size_t i = 0; i < n; i++) {
        if (nr_pages[i] == 0 || offsets[i] & (align_pages - 1) || nr_pages[i] > r->map.nr_pages
            || offsets[i] > r->map.nr_pages)
            return -EINVAL;
        if (i && offsets[i] < offsets[i - 1] + nr_pages[i - 1])
            return -EINVAL; /* must be ascending and disjoint */
        *total += nr_pages[i];
    }
    return 0;
}

static int try_congruent(vm_thread *t, size_t n, const uint64_t *offsets, const uint64_t *nr_pages,
                         uint64_t align_pages, uint64_t total, vm_range *out)
{
    vm_region *r = t->region;
    int rc = vm__space_lock(t, 0);
    if (rc)
        return rc;
    uint64_t base = VM_NONE;
    rc = vm__space_fits(t, total);
    if (rc == 0)
        base = find_congruent(r, n, offsets, nr_pages, align_pages);
    if (base == VM_NONE)
        rc = -ENOSPC;
    for (size_t i = 0; rc == 0 && i < n; i++)
        rc = vm__space_words_agree(r, base + offsets[i], nr_pages[i]) ? 0 : VM_CORRUPT(r);
    for (size_t i = 0; rc == 0 && i < n; i++)
        rc = vm__space_carve(t, base + offsets[i], nr_pages[i], false, &out[i]) ? 0 : VM_CORRUPT(r);
    vm__space_unlock(t);
    return rc;
}

int vm_alloc_congruent(vm_region *r, size_t n, const uint64_t *offsets, const uint64_t *nr_pages, uint64_t align_pages,
                       vm_range *out)
{
    uint64_t total = 0;
    vm_thread *t = vm__thread(r);
    int rc = t ? check_congruent(r, n, offsets, nr_pages, align_pages, &total) : vm__thread_error(r);
    if (rc == 0)
        rc = vm__health(r);
    if (rc)
        return rc;
    vm__enter(t);
    rc = try_congruent(t, n, offsets, nr_pages, align_pages, total, out);
    for (int attempt = 0; rc == -ENOSPC && attempt < VM_ROOM_ATTEMPTS; attempt++) {
        rc = vm__make_room(t, VM_POOL_PAGES_MAX, attempt, 0);
        if (rc == 0)
            rc = try_congruent(t, n, offsets, nr_pages, align_pages, total, out);
    }
    for (size_t i = 0; rc == 0 && i < n; i++)
        vm__event(t, VM_EVENT_ALLOC, out[i].page, out[i].nr_pages);
    vm__leave(t);
    return rc;
}
