/* SPDX-License-Identifier: MIT */
/*
 * Layer 3, cache: ready ranges in front of space. Nodes and their pools, the threads' magazines, and where a range goes
 * that nobody references any more.
 */
#ifndef VM_CACHE_H
#define VM_CACHE_H

#include "../store/store.h"

/* ---- pools.c chooses, pool_*.c do ---- */

/* How ready ranges of exact sizes are kept in a node: one file each. */
typedef struct vm_pools_kept {
    /* Ready ranges of exactly nr_pages: up to `max` of them into pages[], their words MOVING(t).
     * Returns how many. */
    uint32_t (*take)(vm_thread *, vm_node *, uint64_t nr_pages, uint64_t align_pages, uint32_t max, uint64_t *pages);
    /* Keep ranges whose words are MOVING(t). Returns how many, from the front. */
    uint32_t (*give)(vm_thread *, vm_node *, uint64_t nr_pages, uint32_t count, const uint64_t *pages);
    /* Take the decay's share of each pool, coldest first; all if full. Words become PURGING(t). [purge_lock] */
    int (*decay)(vm_thread *, vm_node *, bool full, unsigned flags, vm_batch *out);
    /* Around a mending scan of the words: before it keep takers out, after it take what is still listed, so that
     * afterwards no list holds a range the scan collected. [purge_lock] */
    int (*before_scan)(vm_thread *, vm_node *, unsigned flags);
    void (*after_scan)(vm_thread *, vm_node *, vm_batch *out);
    /* Whether such a scan takes every POOLED range: a death may have lost a whole chain of them. */
    bool scan_takes_all;
    /* Keep others out, let `look` compare the pools with the words, and see to it that they are rebuilt before anybody
     * uses them; NULL: the scan does that anyway. */
    int (*doubt)(vm_thread *, vm_node *, void (*look)(const vm_region *, uint32_t node, void *), void *arg);
    /* Findings about pools that nobody uses just now; returns the pages listed. */
    uint64_t (*check)(const vm_region *, uint32_t node, vm_report *report);
} vm_pools_kept;

/* What stands in front of space: a row of POOL_DESIGNS in src/vmalloc/facts.py. */
struct vm_pool_design {
    const char *name;
    const vm_pools_kept *kept; /* all functions NULL: none */
    bool has_magazines;
};
const vm_pool_design *vm__pool_design(uint32_t pools); /* NULL: there is none of that number */

/* May ready ranges of that size be kept? */
static inline bool vm__is_pooled(const vm_region *r, uint64_t nr_pages)
{
    return nr_pages <= VM_POOL_PAGES_MAX && r->design->kept->give;
}
uint32_t vm__pool_take(vm_thread *t, uint64_t nr_pages, uint64_t align_pages, uint32_t max, uint64_t *pages);
void vm__pool_give(vm_thread *t, uint64_t nr_pages, uint32_t count, const uint64_t *pages);

/* ---- node.c: what the designs have in common ---- */

static inline uint32_t vm__pool_index(uint64_t nr_pages) { return (uint32_t)nr_pages - 1; }
static inline uint32_t vm__node_index(const vm_region *r, const vm_node *n) { return (uint32_t)(n - r->map.nodes); }
uint32_t vm__pool_cap(uint64_t nr_pages);    /* most ranges of a size a pool keeps */
uint32_t vm__decay_quota(uint32_t nr_ranges); /* how many of them an ordinary purge gives back */
uint64_t vm__check_lists_of_pools(const vm_region *r, uint32_t node, vm_report *report);

/* ---- magazine.c ---- */

int vm__magazine_refill(vm_thread *t, uint64_t nr_pages, uint64_t align_pages, vm_range *out);
bool vm__magazine_take(vm_thread *t, uint64_t nr_pages, uint64_t align_pages, vm_range *out);
bool vm__magazine_put_slow(vm_thread *t, uint64_t page, uint64_t nr_pages);
int vm__magazine_put_foreign(vm_thread *t, uint64_t page, vm_word w);
uint32_t vm__magazine_want(const vm_thread *t, uint64_t nr_pages);
bool vm__magazine_grow(vm_thread *t, uint64_t nr_pages); /* false: the budget is spent */
void vm__magazine_keep(vm_thread *t, uint64_t nr_pages, uint32_t nr, const uint64_t *pages);
int vm__magazine_stock(vm_thread *t, uint64_t nr_pages, unsigned flags, vm_range *out);
bool vm__magazine_flush_all(vm_thread *t);
void vm__magazine_init(vm_thread *t);
/* Between these two the slot's magazines are ours alone. False: somebody drains; keep off. */
bool vm__magazines_enter(vm_thread *t);
void vm__magazines_leave(vm_thread *t);

/* ---- drain.c: magazines of others ---- */

int vm__magazine_drain(vm_thread *t, uint32_t slot);
void vm__drain_all(vm_thread *t);
uint64_t vm__magazines_reclaim(vm_thread *t);

/* ---- thread.c: thread slots ---- */

extern _Thread_local vm_thread *vm__current __attribute__((tls_model("initial-exec")));
vm_thread *vm__thread_slow(vm_region *r); /* NULL: the region is not usable here */
static inline vm_thread *vm__thread(vm_region *r)
{
    vm_thread *t = vm__current;
    return vm_likely(t->attachment == r->attachment) ? t : vm__thread_slow(r);
}
int vm__thread_error(vm_region *r); /* why vm__thread() gave NULL */
vm_thread *vm__thread_find(vm_region *r, bool may_forget); /* `may_forget`: the registry is not ours yet */
void vm__enter(vm_thread *t); /* around every operation that may use the slot beyond the fast path */
void vm__leave(vm_thread *t);
void vm__give_up_slot(vm_thread *t);
void vm__forget_threads(void);

/* ---- release.c ---- */

void vm__release(vm_thread *t, uint64_t page, uint64_t nr_pages); /* its word is MOVING(t) */
/* The same, or, if `kept` is not NULL, hand it out anew. */
void vm__release_or_keep(vm_thread *t, uint64_t page, uint64_t nr_pages, vm_range *kept);

#endif
