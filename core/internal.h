/* SPDX-License-Identifier: MIT */
/*
 * What the stations of core/ share: the process's own state, lock order, cross-file functions.
 *
 * Lock order: common_mutex, recover_mutex (both private to the process), purge_lock, names_lock,
 * lease_lock, one node's pool_lock, space_lock; holder_mutex (private) is a leaf, but for fork.c. Never
 * two nodes at once. A range's
 * boundaries change only under space_lock, so a scan of the words under it is stable.
 */
#ifndef VM_INTERNAL_H
#define VM_INTERNAL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fault.h"
#include "layout.h"
#include "vmalloc.h"

#define vm_likely(x) __builtin_expect(!!(x), 1)
#define vm_unlikely(x) __builtin_expect(!!(x), 0)

/* For what only a mistake of ours can make false, in builds with hooks. What a neighbour could write is compared
 * in every build and answered with an error. Where the two cannot be told apart (is the lock word ours?) the
 * tests that scribble turn assertions off. */
#ifdef VM_HOOKS
#define VM_ASSERT(x)                                                                                        \
    ((x) || !vm__asserts ? (void)0                                                                          \
                         : (void)(fprintf(stderr, "%s:%d: assertion failed: %s\n", __FILE__, __LINE__, #x), abort()))
#include <stdio.h>
#else
#define VM_ASSERT(x) ((void)0)
#endif
#define VM_ASSERT_HELD(t, lock) VM_ASSERT(vm__lock_is_held(t, lock))

typedef struct vm_thread vm_thread;

/* How often this process holds a shared range. `id`: of which one, for the page may be another's by now. */
typedef struct vm_reference {
    uint64_t id;
    uint32_t count;
    uint32_t inherited; /* of these, what came with fork */
} vm_reference;

typedef struct vm_inherited { /* what a child has from its parent */
    uint64_t page, id;
    uint32_t count;
} vm_inherited;

/* What a parent prepares for the child it is about to have (fork.c). */
typedef struct vm_heir {
    int lock_fd; /* its own description, which holds the OFD lock of its process slot; -1: no slot */
    uint32_t process, process_inc;
    vm_inherited *range;
    size_t nr, room;
} vm_heir;

/* What one process knows of a region it attached. */
struct vm_region {
    uint64_t fast_serial; /* serial, or 0 while the fast paths are off (fault injection) */
    vm_head *heads;
    uint64_t nr_pages;
    uint64_t serial; /* of this attachment in this process; a fork's child gets another */
    uint64_t fail_every, nr_requests;
    uint8_t *data; /* NULL for an address space */
    uint32_t pools;
    uint32_t page_shift; /* of the granule */
    vm_header *h;
    volatile uint64_t *wiped; /* a page the kernel wipes in a child, also of a raw clone; else 1 */

    vm_process *processes;
    vm_slot *slots;
    vm_node *nodes;
    vm_name *names;
    vm_lease_entry *leases;
    uint64_t *bits;
    vm_summary *summaries;
    vm_sharing *sharings;
    uint32_t nr_nodes, nr_threads, nr_levels, flags;
    uint64_t level_nr[VM_LEVELS_MAX];
    uint64_t level_offset[VM_LEVELS_MAX];

    int fd, lock_fd;
    bool is_leaving; /* vm_detach() is at it [registry] */
    uint32_t process, process_inc; /* our slot; VM_PROCESSES: none (a fork that found none free) */
    uint64_t mapped_bytes, data_offset;
    uint64_t lock_timeout_ns;
    uint64_t budget_pages; /* by how many pages one thread's magazine caps may grow */
    bool can_drain;        /* membarrier across processes works here */
    bool readonly;         /* mapped to look only: no slot, every change is EROFS */

    vm_reference *references; /* per page, of shared ranges [holder_mutex] */
    vm_heir heir, inheritance; /* for the next child; from our parent [holder_mutex] */
    uint64_t looked_for_deaths_ns; /* [holder_mutex] */
    pthread_mutex_t holder_mutex, recover_mutex, common_mutex;
    struct vm_region *next; /* all regions of the process [slot.c: registry] */
};

/* What one thread knows of a region: its slot and the words it writes, precomputed. Lives in memory
 * that is wiped in a child, so that a raw clone's thread matches no serial. */
struct vm_thread {
    uint64_t serial;      /* equals region->serial while usable                                    */
    vm_region *region;
    vm_thread *next;      /* this thread's other regions */
    uint64_t next_serial; /* of ids that come from no magazine                                     */
    vm_word moving, purging; /* words without length, as busy and cached */
    vm_token token;
    uint32_t index;
    _Alignas(64) uint64_t fast_serial; /* as serial, if this thread may use the hit paths          */
    vm_magazine *magazine;
    vm_slot *slot;
    vm_word busy, cached;
    vm_word flip;        /* busy ^ cached */
    uint64_t fast_pages; /* requests up to here may use the magazines: VM_POOL_PAGES_MAX or 0     */
    uint64_t cap_pages;  /* by how many pages all caps together grew                              */
    uint32_t nr_purges_left; /* to others who were at it */
    bool common;         /* uses the process's slot under common_mutex                            */
    uint8_t stock[VM_POOL_PAGES_MAX + 1]; /* log2 of how many ranges the next miss takes from space */
    uint8_t cap[VM_POOL_PAGES_MAX + 1]; /* ranges each magazine may hold now; grows on demand     */
};

/* ---- slot.c ---- */
/* False: do not even look at it, a look costs a page. */
static inline bool vm__slot_was_used(const vm_region *r, uint32_t i)
{
    return i < VM_PROCESSES ? VM_LOAD(&r->processes[i].state) != 0 : i < VM_LOAD(&r->h->high_slot);
}
extern _Thread_local vm_thread *vm__current __attribute__((tls_model("initial-exec")));
vm_thread *vm__thread_slow(vm_region *r); /* NULL: the region is not usable here */
static inline vm_thread *vm__thread(vm_region *r)
{
    vm_thread *t = vm__current;
    return vm_likely(t->serial == r->serial) ? t : vm__thread_slow(r);
}
void vm__enter(vm_thread *t); /* around every operation that may use the slot beyond the fast path */
void vm__leave(vm_thread *t);
uint64_t vm__new_serials(vm_region *r); /* the first of VM_ID_BLOCK - 1 */
static inline uint64_t vm__new_id(vm_thread *t, uint64_t nr_pages)
{
    if (vm_unlikely(vm__serial_is_spent(t->next_serial)))
        t->next_serial = vm__new_serials(t->region);
    return vm__id(t->next_serial++, nr_pages);
}
int vm__join(vm_region *r); /* a process slot */
int vm__finish_join(vm_region *r, int joined);
void vm__free_process(vm_region *r, uint32_t process); /* its slot, under the next incarnation [purge_lock] */
bool vm__process_is_dead(vm_region *r, uint32_t process);
bool vm__incarnation_is_dead(vm_region *r, uint32_t process, uint32_t incarnation);
bool vm__owner_is_dead(vm_region *r, vm_token token);
bool vm__take_process(vm_region *r, bool clean, int lock_fd, uint32_t *process, uint32_t *incarnation);
void vm__give_up_slot(vm_region *r, vm_thread *t);
int vm__thread_error(vm_region *r); /* why vm__thread() gave NULL */
vm_thread *vm__thread_find(vm_region *r, bool may_forget);
void vm__forget_threads(void);
void vm__registry_lock(void);
vm_region *vm__registry(void); /* the first of all regions of the process */
void vm__registry_unlock(void);
int vm__register(vm_region *r); /* as vm__join() */
void vm__start_leaving(vm_region *r, const vm_thread *t);
void vm__unregister(vm_region *r);
int vm__claim_process(int lock_fd, uint32_t process); /* its OFD lock; 0 when ours now */
void vm__unclaim_process(int lock_fd, uint32_t process);
int vm__open_for_locks(const vm_region *r); /* a descriptor, or -errno */
uint64_t vm__new_serial(void);

/* ---- fork.c ---- */
void vm__register_fork(void);

/* ---- lock.c ---- */
enum { VM_LOCK_BRIEF = 1 << 11 }; /* EAGAIN after some milliseconds: the caller has another way */
int vm__lock(vm_region *r, vm_thread *t, vm_lock *lock, unsigned flags);
bool vm__trylock(vm_region *r, vm_thread *t, vm_lock *lock);
void vm__unlock(vm_region *r, vm_thread *t, vm_lock *lock);
bool vm__lock_is_held(const vm_thread *t, const vm_lock *lock);
void vm__lock_init(vm_region *r, vm_lock *lock);
void vm__lock_steal(vm_region *r, vm_thread *t, vm_lock *lock, vm_token dead);
uint64_t vm__now_ns(void);
extern _Thread_local uint32_t vm__busy_pid;
int vm__wait_slice(vm_region *r, uint64_t started_ns, vm_token owner); /* between looks at a stuck owner */

/* ---- index.c: the free index; all but init [space_lock] ---- */
void vm__index_init(vm_region *r);
void vm__index_set(vm_region *r, uint64_t page, uint64_t nr_pages, bool taken);
bool vm__index_is_free(const vm_region *r, uint64_t page);
uint64_t vm__index_find(const vm_region *r, uint64_t from, uint64_t nr_pages);
uint64_t vm__index_run_start(const vm_region *r, uint64_t page);
void vm__index_write_bits(vm_region *r, uint64_t page, uint64_t nr_pages, bool taken);
void vm__index_summarise_all(vm_region *r);
uint64_t vm__index_largest(const vm_region *r);
uint64_t vm__index_nr_wrong(const vm_region *r, uint32_t *first_level, uint64_t *first_entry);

/* ---- space.c ---- */
int vm__space_lock(vm_region *r, vm_thread *t, unsigned flags); /* repaired if it was stolen */
void vm__space_unlock(vm_region *r, vm_thread *t);
int vm__space_take(vm_region *r, vm_thread *t, uint64_t nr_pages, uint64_t align_pages, unsigned flags,
                   vm_range *out);
uint32_t vm__space_take_many(vm_region *r, vm_thread *t, uint64_t nr_pages, uint32_t max, unsigned flags,
                             uint64_t *pages);
void vm__space_grant(vm_region *r, uint64_t used, uint64_t most); /* [space_lock] */
void vm__space_put(vm_region *r, vm_thread *t, uint64_t page, uint64_t nr_pages, bool dirty); /* [space_lock] */
int vm__space_rebuild(vm_region *r, vm_thread *t);                                            /* [space_lock] */
bool vm__space_carve(vm_region *r, vm_thread *t, uint64_t page, uint64_t nr_pages, vm_range *out); /* [space_lock] */
bool vm__space_words_agree(const vm_region *r, uint64_t page, uint64_t nr_pages);                  /* [space_lock] */
int vm__space_fits(vm_region *r, uint64_t nr_pages);                                               /* [space_lock] */

/* ---- pools: pool.c chooses, pool_locked.c and pool_llist.c do ---- */
typedef struct vm_batch vm_batch;
typedef struct vm_pool_design {
    /* Ready ranges of exactly nr_pages: up to `max` of them into pages[], their words MOVING(t).
     * Returns how many. */
    uint32_t (*take)(vm_region *, vm_thread *, vm_node *, uint64_t nr_pages, uint64_t align_pages, uint32_t max,
                     uint64_t *pages);
    /* Keep ranges whose words are MOVING(t) or CACHED(t). Returns how many, from the front. */
    uint32_t (*give)(vm_region *, vm_thread *, vm_node *, uint64_t nr_pages, uint32_t count, const uint64_t *pages);
    /* Take a quarter of each pool, rounded up, coldest first; all if full. Words become PURGING(t). */
    int (*decay)(vm_region *, vm_thread *, vm_node *, bool full, unsigned flags, vm_batch *out);
    /* Around a recovery's scan of the words: before it keep takers out, after it take what is still
     * listed, so that afterwards no list holds a range the scan collected. */
    int (*before_scan)(vm_region *, vm_thread *, vm_node *, unsigned flags);
    void (*after_scan)(vm_region *, vm_thread *, vm_node *, vm_batch *out);
} vm_pool_design;
extern const vm_pool_design vm__pool_off, vm__pool_locked, vm__pool_llist;
const vm_pool_design *vm__pool_design(const vm_region *r);
uint32_t vm__pool_take(vm_region *r, vm_thread *t, uint64_t nr_pages, uint64_t align_pages, uint32_t max,
                       uint64_t *pages);
void vm__pool_give(vm_region *r, vm_thread *t, uint64_t nr_pages, uint32_t count, const uint64_t *pages);
static inline uint32_t vm__pool_index(uint64_t nr_pages) { return (uint32_t)nr_pages - 1; }
uint32_t vm__pool_cap(uint64_t nr_pages);
uint32_t vm__node_here(const vm_region *r);

/* ---- magazine.c ---- */
int vm__magazine_refill(vm_region *r, vm_thread *t, uint64_t nr_pages, uint64_t align_pages, vm_range *out);
bool vm__magazine_take(vm_region *r, vm_thread *t, uint64_t nr_pages, uint64_t align_pages, vm_range *out);
bool vm__magazine_put_slow(vm_region *r, vm_thread *t, uint64_t page, uint64_t nr_pages);
int vm__magazine_put_foreign(vm_region *r, vm_thread *t, uint64_t page, vm_word w);
int vm__magazine_stock(vm_region *r, vm_thread *t, uint64_t nr_pages, unsigned flags, vm_range *out);
bool vm__magazine_flush_all(vm_region *r, vm_thread *t, vm_slot *slot);
void vm__magazine_init(vm_thread *t);
int vm__magazine_drain(vm_region *r, vm_thread *t, uint32_t slot);
void vm__drain_all(vm_region *r, vm_thread *t);
uint64_t vm__magazines_reclaim(vm_region *r, vm_thread *t);

/* ---- lazy.c ---- */
void vm__lazy_put(vm_region *r, vm_thread *t, uint64_t page, uint64_t nr_pages); /* word is MOVING(t) */
int vm__lazy_take(vm_region *r, vm_thread *t, uint64_t nr_pages, uint64_t align_pages, vm_range *out);
void vm__lazy_collect(vm_region *r, vm_thread *t, vm_node *node, vm_batch *out); /* [purge_lock] */
void vm__lazy_collect_shelf(vm_region *r, vm_thread *t, vm_batch *out);          /* [purge_lock] */
uint64_t vm__lazy_pages_max(const vm_region *r);
void vm__list_push(vm_region *r, uint32_t *head, uint64_t page);
uint64_t vm__chain_take(vm_region *r, vm_thread *t, uint64_t link, vm_batch *out);

/* ---- purge.c ---- */
enum {
    VM_PURGE_FULL = 1 << 8,    /* empty the pools too                                             */
    VM_PURGE_IF_IDLE = 1 << 9, /* leave it to whoever purges already                              */
};
int vm__purge(vm_region *r, vm_thread *t, unsigned flags, uint64_t *pages_returned);
int vm__give_back(vm_region *r, unsigned flags, uint64_t *pages_returned);
/* A purge in scan mode; `then` runs after a complete one, still under purge_lock. */
int vm__purge_scan(vm_region *r, vm_thread *t, unsigned flags, void (*then)(vm_region *, const void *), const void *arg);
void vm__batch_add(vm_region *r, vm_thread *t, vm_batch *b, uint64_t page, uint64_t nr_pages);

/* ---- alloc.c, free.c ---- */
int vm__alloc_slow(vm_region *r, vm_thread *t, uint64_t nr_pages, uint64_t align_pages, unsigned flags, vm_range *out);
void vm__release(vm_region *r, vm_thread *t, uint64_t page, uint64_t nr_pages); /* word is MOVING(t) */
void vm__hand_out(vm_region *r, vm_thread *t, uint64_t page, uint64_t nr_pages, bool zeroed, vm_range *out);

/* ---- holder.c ---- */
int vm__share(vm_region *r, vm_thread *t, uint64_t page, uint64_t id);
int vm__adopt(vm_region *r, vm_thread *t, uint64_t page, uint64_t id, vm_range *out);
int vm__drop_shared(vm_region *r, vm_thread *t, uint64_t page, uint64_t id, unsigned flags);
bool vm__take_if_unheld(vm_region *r, vm_thread *t, uint64_t page, vm_word taken);
bool vm__holds(const vm_region *r, uint64_t page, uint64_t id); /* [holder_mutex] */
int vm__settled_word(vm_region *r, vm_thread *t, uint64_t page, vm_word *out);
void vm__release_if_unheld(vm_region *r, vm_thread *t, uint64_t page);
int vm__share_for(vm_region *r, vm_thread *t, uint64_t page, uint64_t id, uint32_t heir); /* [holder_mutex] */
int vm__hold_for(vm_region *r, vm_thread *t, uint64_t page, uint64_t id, uint32_t heir, bool may_wait); /* [holder_mutex] */
int vm__inherit(vm_region *r, const vm_inherited *range);                                 /* [holder_mutex] */

/* ---- lease.c ---- */
int vm__lease_lock(vm_region *r, vm_thread *t, unsigned flags); /* mended if it was stolen */
int vm__lease_deaths(vm_region *r, vm_thread *t, unsigned flags);
int vm__expire_leases(vm_region *r, vm_thread *t, unsigned flags, uint64_t older_than_ns, uint64_t *nr);

/* ---- names.c ---- */
int vm__names_lock(vm_region *r, vm_thread *t); /* mended if it was stolen */
bool vm__is_named(const vm_region *r, uint64_t page, uint64_t id);
bool vm__names_hold(const vm_region *r, uint64_t page); /* of a shared range, as all of these */
void vm__hold_for_name(vm_region *r, uint64_t page);
bool vm__unhold_unnamed(vm_region *r, uint64_t page); /* [names_lock] */

/* ---- recover.c ---- */

int vm__recover_dead(vm_region *r, vm_thread *t, unsigned flags, uint64_t *pages);
int vm__recover_scan(vm_region *r, vm_thread *t, unsigned flags, vm_batch *out); /* [purge_lock] */
int vm__settle_lazy_pages(vm_region *r, vm_thread *t, unsigned flags);          /* [purge_lock] */
void vm__retire_threads(vm_region *r, uint32_t process, const vm_thread *but);
bool vm__is_retired_process(const vm_region *r, uint32_t process, uint32_t incarnation);

/* ---- pages.c: the only file that asks the operating system for memory ---- */
int vm__pages_create(const char *name, uint64_t bytes, int *fd);
#define VM_MAP_ALIGN (2ull << 20) /* of the mapping and, in layout, of the data */
int vm__pages_map(int fd, uint64_t bytes, bool readonly, void **base);
int vm__pages_discard(vm_region *r, uint64_t page, uint64_t nr_pages);
uint64_t vm__pages_most(const vm_region *r);
uint64_t vm__pages_resident_bytes(const vm_region *r);

/* ---- stats.c ---- */
/* Walk the words under space_lock. Without it in a read-only attachment (`t` is NULL): again and again, until
 * `walk` returns 0 and nothing moved meanwhile, or for about 0.1 s; then what the last one gave. */
int vm__look(vm_region *r, vm_thread *t, int (*walk)(vm_region *r, void *arg), void *arg);

/* ---- check.c ---- */
int vm__corrupt(vm_region *r, int line); /* marks the region; -EUCLEAN */
#define VM_CORRUPT(r) vm__corrupt((r), __LINE__)

/* Next range of a scan under space_lock: its word, or 0 and *page = nr_pages at the end, or on
 * corruption 0 and *page < nr_pages. */
static inline vm_word vm__scan(const vm_region *r, uint64_t page)
{
    if (page >= r->nr_pages)
        return 0;
    vm_word w = VM_LOAD(&r->heads[page].word);
    uint64_t len = vm__len(w);
    return len == 0 || len > r->nr_pages - page ? 0 : w;
}
/* A hint named this stretch: is it one, and within the mapping? */
static inline bool vm__is_within(const vm_region *r, uint64_t page, uint64_t nr_pages)
{
    return nr_pages && page < r->nr_pages && nr_pages <= r->nr_pages - page;
}

#endif
