/* SPDX-License-Identifier: MIT */
/*
 * Layer 3, cache: ready ranges in front of space. Nodes and their pools, the threads' magazines, and where a range goes
 * that nobody references any more.
 */
#ifndef VM_CACHE_H
#define VM_CACHE_H

#include "../store/store.h"

/* Who served a request, nearest first. */
typedef enum vm_level {
    VM_LEVEL_MAGAZINE,
    VM_LEVEL_SLAB, /* this CPU's */
    VM_LEVEL_POOL, /* of this CPU's node */
    VM_LEVEL_NEIGHBOUR, /* another node's pool */
    VM_LEVEL_LAZY, /* warm ranges */
    VM_LEVEL_SPACE,
} vm_level;
void vm__count(uint64_t *counter); /* of this thread's slot: one more */
void vm__count_served(vm_thread *t, vm_level level);

/* ---- pools.c chooses, pool_*.c do ---- */

/* How ready ranges of exact sizes are kept in a node: one file each. */
typedef struct vm_pools_kept {
    /* One that this CPU keeps for itself, in front of all nodes; NULL: nothing is kept so. */
    uint32_t (*take_here)(vm_thread *, uint64_t nr_pages, uint64_t align_pages, uint64_t *pages);
    /* Keep one so; its word is this process's BUSY or MOVING(t). False: not, and its word is MOVING(t). */
    bool (*put_here)(vm_thread *, uint64_t nr_pages, uint64_t page);
    /* Ready ranges of exactly nr_pages: up to `max` of them into pages[], their words MOVING(t).
     * Returns how many. */
    uint32_t (*take)(vm_thread *, vm_node *, uint64_t nr_pages, uint64_t align_pages, uint32_t max, uint64_t *pages);
    /* Keep ranges whose words are MOVING(t). Returns how many, from the front. */
    uint32_t (*give)(vm_thread *, vm_node *, uint64_t nr_pages, uint32_t count, const uint64_t *pages);
    /* Take so many of each pool as vm__decay_quota() says, coldest first. Words become PURGING(t). [purge_lock] */
    int (*decay)(vm_thread *, vm_node *, const uint32_t *quota, unsigned flags, vm_batch *out);
    /* What is kept for CPUs on which no process may run: all of one that is not on-line, of the others what lay unused since
     * a watch turned. Words become PURGING(t). NULL: nothing is kept for a CPU. [purge_lock] */
    void (*decay_unused_cpus)(vm_thread *, const vm_cpus *online, const vm_cpus *may_run, vm_batch *out);
    /* How many ranges a pool has, where `nr_ranges` does not say so; NULL: it does. */
    uint32_t (*count)(const vm_region *, const vm_pool *);
    /* A watch turns (mend/decay.c): what this design notes itself of the fewest; NULL: `low` of the nodes is all. */
    void (*turn)(vm_region *, uint32_t node);
    uint64_t (*pages_here)(const vm_region *, uint32_t node); /* what no pool of the node counts; or NULL */
    /* Around a mending scan of the words: before it keep takers out, after it take what is still listed, so that
     * afterwards no list holds a range the scan collected. [purge_lock] */
    int (*before_scan)(vm_thread *, vm_node *, unsigned flags);
    void (*after_scan)(vm_thread *, vm_node *, vm_batch *out);
    /* Such a scan takes every POOLED range whose owner is this or more: a death may have lost it, or a whole chain. */
    uint32_t scan_takes_from;
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
/* `is_own`: what processes of our group freed, else what those of others did. */
uint32_t vm__pool_take(vm_thread *t, uint64_t nr_pages, uint64_t align_pages, uint32_t max, bool is_own,
                       uint64_t *pages, vm_level *level);
uint64_t vm__pool_take_longer(vm_thread *t, uint64_t nr_pages, uint64_t align_pages, uint64_t *page, vm_level *level);
void vm__pool_give(vm_thread *t, uint64_t nr_pages, uint32_t count, const uint64_t *pages);
uint64_t vm__pooled_pages(const vm_region *r); /* by counters: a hint */

/* As long a ready range as a request may get whole while space is short. */
static inline uint64_t vm__longest_ready_for(const vm_region *r, uint64_t nr_pages)
{
    uint64_t most = vm__longest_for(r, nr_pages);
    return most < VM_POOL_PAGES_MAX ? most : VM_POOL_PAGES_MAX;
}

/* ---- lots: what processes hand over to each other ---- */

/* So many pages one process takes at once of what another one freed. */
static inline uint64_t vm__flow_pages(uint64_t nr_pages)
{
    return nr_pages > VM_FLOW_PAGES ? VM_FLOW_BATCH_PAGES : nr_pages * VM_FLOW_LOT_RANGES;
}
/* Ranges of one size that begin in one aligned stretch of so many pages are a lot. What one process allocates and another frees
 * goes to and fro in whole lots, so that its heads stay together: a line of four heads then travels once for all of them, and
 * who sees one range of a lot knows which heads it needs next. */
static inline uint64_t vm__lot_pages(uint64_t nr_pages)
{
    return 1ull << (63 - (uint32_t)__builtin_clzll(vm__flow_pages(nr_pages)));
}
static inline bool vm__is_of_one_lot(uint64_t page, uint64_t other, uint64_t lot_pages)
{
    return (page ^ other) < lot_pages;
}

/* ---- node.c: what the designs have in common ---- */

static inline uint32_t vm__pool_index(uint64_t nr_pages) { return (uint32_t)nr_pages - 1; }
static inline uint32_t vm__node_index(const vm_region *r, const vm_node *n) { return (uint32_t)(n - r->map.nodes); }
/* A pool will be used, which another process may have used last: ask for all of its lines at once. */
static inline void vm__expect_pool(const vm_node *n, uint64_t nr_pages)
{
    vm__expect_write(&n->pool_lock);
    vm__expect_write(&n->pool[vm__pool_index(nr_pages)]);
    vm__expect_write(&n->next[vm__pool_index(nr_pages)]);
}
/* At a miss: the one that served the last, if it was another group's. */
static inline void vm__expect_flow(const vm_thread *t, uint64_t nr_pages)
{
    if (t->flow_node && nr_pages <= VM_POOL_PAGES_MAX)
        vm__expect_pool(t->flow_node, nr_pages);
}
uint32_t vm__pool_count(const vm_region *r, const vm_pool *p); /* ranges in it; a hint while others use it */
uint32_t vm__pool_cap(uint64_t nr_pages);    /* most ranges of a size a pool keeps */
/* How many of a pool's ranges a decay gives back: as `quota` says for its size, or, without one, its share. */
uint32_t vm__decay_quota(const uint32_t *quota, uint64_t nr_pages, uint32_t nr_ranges);
extern const uint32_t vm__decay_all[VM_POOL_PAGES_MAX];
uint64_t vm__check_lists_of_pools(const vm_region *r, uint32_t node, vm_report *report);

/* ---- magazine.c ---- */

/* The least size from `nr_pages` on whose magazine the slot's owner opened; above VM_POOL_PAGES_MAX: none. Only those have
 * entries or ids, so whoever looks at all of a slot's magazines looks at these. */
static inline uint32_t vm__next_opened(const vm_slot *s, uint32_t nr_pages)
{
    for (uint32_t first = (nr_pages - 1) / 64, i = first; i < VM_POOL_PAGES_MAX / 64; i++) {
        uint64_t bits = VM_ACQUIRE(&s->opened[i]);
        if (i == first)
            bits &= ~0ull << (nr_pages - 1) % 64;
        if (bits)
            return i * 64 + (uint32_t)__builtin_ctzll(bits) + 1;
    }
    return VM_POOL_PAGES_MAX + 1;
}

/* While space is short, but not very, a thread's magazines keep large ranges of few sizes, and large requests get those. */
static inline bool vm__gets_whole(const vm_thread *t)
{
    return t->is_tight && t->hit.cap[VM_POOL_PAGES_MAX] && t->fast_pages;
}

/* As long a range of such a size as a request may get. */
static inline uint64_t vm__longest_whole_for(const vm_region *r, uint64_t nr_pages)
{
    uint64_t slack = VM_RELAXED(&r->map.h->quota_pages) ? 0 : nr_pages >> VM_TIGHT_SLACK_SHIFT, most = nr_pages + slack;
    return most < VM_POOL_PAGES_MAX ? most : VM_POOL_PAGES_MAX;
}

/* Is there so much room, ready or not, that a rounded size may also be cut from a longer range? */
static inline bool vm__cuts_whole(const vm_thread *t)
{
    return t->hit.cap[VM_POOL_PAGES_MAX] >= VM_TIGHT_CUT_CAP || vm__idle_beyond_reserve(t->region, 0);
}

/* The least of those sizes for a request: as many a doubling as keep what is added below 1 / (1 << VM_WARM_SLACK_SHIFT). */
static inline uint64_t vm__whole_pages(uint64_t nr_pages)
{
    if (nr_pages <= VM_FLOW_PAGES || nr_pages > VM_POOL_PAGES_MAX)
        return nr_pages;
    uint32_t log = 63 - (uint32_t)__builtin_clzll(nr_pages - 1);
    uint64_t step = 1ull << (log - VM_WARM_SLACK_SHIFT);
    return (nr_pages + step - 1) & ~(step - 1);
}
_Static_assert(VM_FLOW_PAGES >= 1 << VM_WARM_SLACK_SHIFT, "a step is a page or more");
_Static_assert(VM_TIGHT_SLACK_SHIFT <= VM_WARM_SLACK_SHIFT, "a request may get the least rounded size for it");

int vm__magazine_refill(vm_thread *t, uint64_t nr_pages, uint64_t align_pages, bool is_own, vm_range *out,
                        vm_level *level);
uint64_t vm__magazine_hits(const vm_slot *s);
bool vm__magazine_take(vm_thread *t, uint64_t nr_pages, uint64_t align_pages, vm_range *out);
bool vm__magazine_put_slow(vm_thread *t, uint64_t page, uint64_t nr_pages, bool is_foreign);
bool vm__magazine_has_foreign(const vm_thread *t, uint64_t nr_pages);
int vm__magazine_put_foreign(vm_thread *t, uint64_t page, vm_word w);
bool vm__magazine_hit_foreign(vm_thread *t, uint64_t page, uint64_t id);
uint32_t vm__magazine_want(const vm_thread *t, uint64_t nr_pages);
uint64_t vm__magazine_budget(const vm_region *r);
bool vm__magazine_grow(vm_thread *t, uint64_t nr_pages); /* false: the budget or space is short */
void vm__magazine_keep(vm_thread *t, uint64_t nr_pages, uint32_t nr, const uint64_t *pages);
int vm__magazine_stock(vm_thread *t, uint64_t nr_pages, unsigned flags, vm_range *out);
bool vm__magazine_flush_all(vm_thread *t);
void vm__magazine_tighten(vm_thread *t, bool is_tight);
uint64_t vm__magazine_pages(const vm_thread *t); /* in ours */
bool vm__magazines_are_resident(const vm_thread *t); /* by a sample of ours */
void vm__magazine_init(vm_thread *t);

/* ---- slot.c ---- */

/* Between these two the slot's magazines and run are ours alone. False: somebody drains; keep off. */
bool vm__magazines_enter(vm_thread *t);
void vm__magazines_leave(vm_thread *t);

/* ---- run.c: pages of one thread to cut ranges from ---- */

uint64_t vm__run_most(const vm_thread *t); /* pages the next one may have; 0: none */
uint32_t vm__run_cut(vm_thread *t, uint64_t nr_pages, uint32_t max, uint64_t *pages, bool *is_clean);
void vm__run_keep(vm_thread *t, const vm_run *run);
void vm__run_return(vm_thread *t);
void vm__run_drain(vm_thread *t, const vm_slot *slot, vm_word cached); /* of a neighbour's slot, whose word that is */

/* ---- charge.c: what a process holds, where there is a quota ---- */

void vm__charge_slow(vm_region *r, uint64_t nr_pages);
static inline void vm__charge(vm_region *r, uint64_t nr_pages) /* it took so many pages from its neighbours' reach */
{
    if (vm_unlikely(VM_RELAXED(&r->map.h->quota_pages)))
        vm__charge_slow(r, nr_pages);
}
void vm__charge_all(vm_region *r); /* for what they hold already */
/* Pages that each process holds, busy and in its threads' magazines; what several share counts for each. By the words,
 * without a lock: a hint where others work. */
void vm__count_held(const vm_region *r, bool once, uint64_t held[VM_PROCESSES]);
void vm__add_held(const vm_region *r, uint64_t page, vm_word w, bool once,
                  uint64_t held[VM_PROCESSES]); /* the range there */
int vm__quota_fits(vm_thread *t, uint64_t nr_pages); /* may this process hold so many more? else EDQUOT */

/* ---- drain.c: magazines of others ---- */

int vm__magazine_drain(vm_thread *t, uint32_t slot);
void vm__drain_all(vm_thread *t);
uint64_t vm__magazines_reclaim(vm_thread *t);

/* ---- ring.c: recordings ---- */

vm_ring *vm__ring_map(const vm_region *r, uint32_t slot);
void vm__ring_unmap(vm_ring *ring);
void vm__ring_close(vm_thread *t);
void vm__ring_follow(vm_thread *t);
/* At the beginning of what is no hit, where the slot is ours alone. */
static inline void vm__ring_look(vm_thread *t)
{
    if (vm_unlikely(VM_RELAXED(&t->slot->recording) != t->quiet >> VM_DISTURBED_SHIFT))
        vm__ring_follow(t);
}
uint32_t vm__recording_note(vm_region *r, uint32_t slot);
void vm__recording_spread(vm_region *r, uint32_t recording);
void vm__recording_withdraw(vm_region *r, uint64_t recording);
void vm__recording_end(vm_region *r, uint64_t recording);
bool vm__recorder_is_dead(vm_region *r, uint64_t recording);
void vm__recording_end_of_dead(vm_region *r, bool ours_too);

/* ---- context.c: memory for vm_thread ---- */

vm_thread *vm__context_new(void); /* zeros; NULL: there is no memory */
void vm__context_drop(vm_thread *t);
void vm__contexts_forget(void);

/* ---- thread.c: thread slots ---- */

extern _Thread_local vm_thread *vm__current __attribute__((tls_model("initial-exec")));
vm_thread *vm__thread_slow(vm_region *r); /* NULL: the region is not usable here */
static inline vm_thread *vm__thread(vm_region *r)
{
    vm_thread *t = vm__current;
    return vm_likely(t->attachment == r->attachment) ? t : vm__thread_slow(r);
}
bool vm__thread_switch(vm_region *r); /* this thread used another region last, and this one before: go over to it */
int vm__thread_error(vm_region *r); /* why vm__thread() gave NULL */
vm_thread *vm__thread_find(vm_region *r, bool may_forget); /* `may_forget`: the registry is not ours yet */
void vm__enter(vm_thread *t); /* around every operation that may use the slot beyond the fast path */
void vm__leave(vm_thread *t);
void vm__give_up_slot(vm_thread *t);
void vm__forget_threads(void);
/* A slot for a thread of ours that no program knows of; `t` is the caller's. */
void vm__thread_borrow(vm_region *r, vm_thread *t);
void vm__thread_return(vm_thread *t);

/* ---- release.c ---- */

void vm__release(vm_thread *t, uint64_t page, uint64_t nr_pages);   /* its word is MOVING(t) */
void vm__pass_back(vm_thread *t, uint64_t page, uint64_t nr_pages); /* as this; another process may have allocated it */
/* If `kept` is not NULL, hand it out anew; else back to space if its id says so; else vm__pass_back() if `is_foreign`, or
 * vm__release(). */
void vm__release_or_keep(vm_thread *t, uint64_t page, uint64_t nr_pages, uint64_t id, bool is_foreign, vm_range *kept);

#endif
