/* SPDX-License-Identifier: MIT */
/*
 * vm_take() and vm_free() without a call, where this thread's magazine serves them; else they call the library.
 *
 * Everything that holds of vm_take() and vm_free() holds of these: a program may mix them, may be killed in any of
 * them, and shows in vm_get_stats() alike. The library that the program runs with need not be the one that it was
 * compiled with: where the two do not fit, each of these is a call. For C and C++ by gcc or clang.
 */
#ifndef VMALLOC_INLINE_H
#define VMALLOC_INLINE_H

#include "vmalloc.h"
#include "vmalloc_hit.h"

#ifndef VM_STORE /* in a program: as core/base/fault.h has them, without its hooks */
#define VM_INLINE_IN_A_PROGRAM
#define vm_unlikely(x) __builtin_expect(!!(x), 0)
#define VM_RELAXED(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define VM_STORE(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define VM_PUT(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#ifdef __SANITIZE_THREAD__
#define VM_PLAIN(p) VM_RELAXED(p)
#else
#define VM_PLAIN(p) (*(p))
#endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- the hits: with these the core's vm_alloc(), vm_take() and vm_free() begin ---- */

/* A ready range, of at most VM_POOL_PAGES_MAX pages; `quiet` has what the slot says while there is nothing to look at, NULL: 0.
 * False: none, or none that can be had so; nothing happened. */
static inline __attribute__((always_inline)) bool vm__hit_take(const vm_hit_thread *t, const vm_hit_region *r,
                                                               uint64_t nr_pages, const uint64_t *quiet, vm_taken *got)
{
    vm_magazine *all = t->magazine, *m = &all[nr_pages];
    uint64_t header = VM_RELAXED(&m->header);
    VM_PUT(&m->mark, VM_MAGAZINE_TAKING);
    __atomic_signal_fence(__ATOMIC_SEQ_CST); /* the drainer's membarrier is the other half */
    uint64_t page = VM_RELAXED(vm__magazine_top(m, header));
    if (vm_unlikely(VM_PLAIN(vm__disturbed_of(all)) != (quiet ? *quiet : 0) || page + nr_pages > r->nr_pages
                    || vm__number_is_spent(header >> 8))) {
        VM_STORE(&m->header, header);
        return false;
    }
    vm_head *head = &r->heads[page];
    uint64_t cached = t->cached | nr_pages << VM_WORD_LEN_SHIFT;
    if (vm_unlikely(VM_PLAIN(&head->word) != cached)) {
        VM_STORE(&m->header, header);
        return false;
    }
    uint64_t id = header >> 8 << VM_ID_SIZE_BITS | nr_pages;
    VM_PUT(&head->aux, id);
    VM_STORE(&head->word, cached ^ t->flip);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    VM_STORE(&m->header, header + (1 << 8) - 1); /* the next number, one range less */
    got->page = page;
    got->id = id;
    return true;
}

/* A range only this process holds, into this thread's magazine. It needs no mark against a drainer: that one writes
 * to no magazine, and takes only ranges whose words say CACHED already. False: it is none, or there is no room. */
static inline __attribute__((always_inline)) bool vm__hit_free(const vm_hit_thread *t, const vm_hit_region *r,
                                                               uint64_t page, uint64_t id)
{
    uint64_t nr_pages = vm__id_pages(id);
    if (vm_unlikely(page >= r->nr_pages || nr_pages > VM_POOL_PAGES_MAX))
        return false;
    vm_head *head = &r->heads[page];
    uint64_t busy = t->busy | nr_pages << VM_WORD_LEN_SHIFT;
    if (vm_unlikely(VM_PLAIN(&head->word) != busy || VM_PLAIN(&head->aux) != id))
        return false;
    vm_magazine *m = &t->magazine[nr_pages];
    uint64_t header = VM_RELAXED(&m->header);
    uint32_t count = (uint8_t)header;
    if (vm_unlikely(count >= t->cap[nr_pages]))
        return false;
    VM_STORE(&head->word, busy ^ t->flip);
    VM_PUT(&m->page[count], (uint32_t)page);
    VM_STORE(&m->header, header + 1);
    return true;
}

/* ---- for programs ---- */

/* What this thread used last; the library's. */
extern __thread char *vm_inline_thread __attribute__((tls_model("initial-exec")));

static inline vm_taken vm_take_inline(vm_region *r, uint64_t nr_pages)
{
    const vm_hit_thread *t = (const vm_hit_thread *)(const void *)(vm_inline_thread + VM_HIT_THREAD_AT);
    const vm_hit_region *here = (const vm_hit_region *)(const void *)r;
    vm_taken got;
    if (vm_unlikely(nr_pages > VM_POOL_PAGES_MAX || !vm__hits_are_open(t, here))
        || vm_unlikely(!vm__hit_take(t, here, nr_pages, NULL, &got)))
        return vm_take(r, nr_pages);
    return got;
}

static inline int vm_free_inline(vm_region *r, uint64_t page, uint64_t id, unsigned flags)
{
    const vm_hit_thread *t = (const vm_hit_thread *)(const void *)(vm_inline_thread + VM_HIT_THREAD_AT);
    const vm_hit_region *here = (const vm_hit_region *)(const void *)r;
    if (vm_unlikely(!vm__hits_are_open(t, here) || !vm__hit_free(t, here, page, id)))
        return vm_free(r, page, id, flags);
    return 0;
}

#ifdef __cplusplus
}
#endif

#ifdef VM_INLINE_IN_A_PROGRAM
#undef VM_INLINE_IN_A_PROGRAM
#undef vm_unlikely
#undef VM_RELAXED
#undef VM_STORE
#undef VM_PUT
#undef VM_PLAIN
#endif

#endif
