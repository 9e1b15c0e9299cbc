/* SPDX-License-Identifier: MIT */
/*
 * Context: memory for what a thread knows of a region.
 *
 * It is memory that the kernel wipes in a child, so it comes from mmap. One mapping for each thread is dear where many
 * threads start and end: a change of the mappings keeps out everybody who faults in a page, or whose stack the C library
 * gives back. So a mapping is for CONTEXTS of them and stays; who begins gets the first unused place, which the one before
 * touched already. Places beyond the first mapping give their memory back.
 */
#include "cache.h"

#define CONTEXTS 64 /* in a mapping: a bit each */
#define MAPPINGS 64 /* beyond as many, or where there is no room for one, a context has a mapping of its own */

static struct {
    vm_thread *first; /* NULL: not made yet */
    uint64_t used;
} mapping[MAPPINGS];

#define MAPPING_BYTES (CONTEXTS * sizeof(vm_thread))

/* Make the next mapping, unless another thread did. */
static vm_thread *mapping_of(int i)
{
    vm_thread *first = __atomic_load_n(&mapping[i].first, __ATOMIC_ACQUIRE), *none = NULL;
    if (first || !(first = vm__private_pages(MAPPING_BYTES, true)))
        return first;
    if (__atomic_compare_exchange_n(&mapping[i].first, &none, first, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        return first;
    vm__private_free(first, MAPPING_BYTES);
    return none;
}

/* A place in it that nobody uses; NULL: there is none. */
static vm_thread *place_in(vm_thread *first, uint64_t *used)
{
    uint64_t now = __atomic_load_n(used, __ATOMIC_RELAXED);
    while (~now) {
        uint64_t bit = ~now & (now + 1);
        if (__atomic_compare_exchange_n(used, &now, now | bit, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
            return first + __builtin_ctzll(bit);
    }
    return NULL;
}

vm_thread *vm__context_new(void)
{
    for (int i = 0; i < MAPPINGS; i++) {
        vm_thread *first = mapping_of(i), *t = first ? place_in(first, &mapping[i].used) : NULL;
        if (!first)
            break;
        if (t) {
            memset(t, 0, sizeof *t);
            return t;
        }
    }
    return vm__private_pages(sizeof(vm_thread), true);
}

void vm__context_drop(vm_thread *t)
{
    for (int i = 0; i < MAPPINGS; i++) {
        vm_thread *first = __atomic_load_n(&mapping[i].first, __ATOMIC_ACQUIRE);
        if (!first || t < first || t >= first + CONTEXTS)
            continue;
        if (i > 0)
            vm__private_forget(t, sizeof *t);
        __atomic_fetch_and(&mapping[i].used, ~(1ull << (t - first)), __ATOMIC_RELEASE);
        return;
    }
    vm__private_free(t, sizeof *t);
}

/* In a child, which has none of its parent's threads. */
void vm__contexts_forget(void)
{
    for (int i = 0; i < MAPPINGS; i++)
        mapping[i].used = 0;
}
