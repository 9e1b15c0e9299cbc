/* SPDX-License-Identifier: MIT */
/*
 * Layer 2, store: all pages. Space and its index, the lazy ranges, and the only files that ask the system for memory.
 */
#ifndef VM_STORE_H
#define VM_STORE_H

#include "../base/base.h"

/* ---- pages.c: memory of the system, shared and private ---- */

int vm__pages_create(const char *name, uint64_t bytes, int *fd);
/* A region's memfd as somebody else's: a descriptor of our own, and its header, copied once and not
 * checked. *is_allowed: it is this user's, or we are root. */
int vm__pages_open(int fd, int *own, vm_header *h, uint64_t *file_bytes, bool *is_allowed);
int vm__pages_map(int fd, uint64_t bytes, bool readonly, void **base);
void vm__pages_unmap(void *base, uint64_t bytes);
int vm__pages_remove(void *at, uint64_t bytes);
int vm__pages_discard(vm_region *r, uint64_t page, uint64_t nr_pages);
/* A few bytes of the region, mapped for a moment; and bytes copied out without a mapping. */
typedef struct vm_view {
    void *at;
    void *base;
    uint64_t bytes;
} vm_view;
int vm__pages_view(int fd, uint64_t offset, uint64_t bytes, bool readonly, vm_view *out);
int vm__pages_keep_from_children(const vm_view *view);
void vm__pages_unview(vm_view *view);
int vm__pages_read(int fd, uint64_t offset, uint64_t bytes, void *out);
int vm__pages_populate(vm_region *r, uint64_t page, uint64_t nr_pages); /* resident, contents as they were */
int vm__pages_want_huge(vm_region *r); /* of all data, where the system's settings allow */
uint64_t vm__pages_resident_bytes(const vm_region *r);
/* A byte for each page from `at`: is it there? False: the system does not say. */
bool vm__pages_resident(const void *at, uint64_t bytes, uint8_t *is_there);
uint64_t vm__page_bytes(void);
uint64_t vm__memory_bytes(void); /* of the machine */
/* Private memory, zero and not touched; `wiped`: the kernel wipes it in a child. NULL: there is none. */
void *vm__private_pages(size_t bytes, bool wiped);
void vm__private_free(void *p, size_t bytes);
void vm__private_forget(void *p, size_t bytes); /* whole pages become zeros, and cost nothing until touched */
int vm__random(void *out, size_t bytes);

/* ---- headroom.c: what the machine and the cgroup have left ---- */

uint64_t vm__headroom_pages(const vm_region *r); /* pages that may be outside space at once */
uint64_t vm__cgroup_limit(void); /* bytes, the least up to the root; UINT64_MAX: none */
bool vm__cgroup_is_tightest(void);               /* it has less left than the machine */
typedef enum { VM_PRESSURE_NONE, VM_PRESSURE_SOME, VM_PRESSURE_HIGH } vm_pressure;
enum { /* who was asked */
       VM_PRESSURE_BY_STALLS = 1, /* PSI, of the system or the cgroup  */
       VM_PRESSURE_BY_CGROUP2 = 2,
       VM_PRESSURE_BY_CGROUP1 = 4,
       VM_PRESSURE_BY_MEMINFO = 8,
};
vm_pressure vm__memory_pressure(uint32_t *sources); /* on this process: the worst of what can be read */
uint64_t vm__resident_pages(const vm_region *r); /* at least so many of the data are */

/* ---- index.c: the free index; all but init [space_lock] ---- */

void vm__index_init(vm_map *m);
void vm__index_set(vm_map *m, uint64_t page, uint64_t nr_pages, bool taken);
bool vm__index_is_free(const vm_map *m, uint64_t page);
uint64_t vm__index_find(const vm_map *m, uint64_t from, uint64_t nr_pages);
uint64_t vm__index_find_aligned(const vm_map *m, uint64_t from, uint64_t nr_pages, uint64_t align_pages);
uint64_t vm__index_run_start(const vm_map *m, uint64_t page);
void vm__index_write_bits(vm_map *m, uint64_t page, uint64_t nr_pages, bool taken);
void vm__index_summarise_all(vm_map *m);
uint64_t vm__index_largest(const vm_map *m);
uint64_t vm__index_nr_wrong(const vm_map *m, uint32_t *first_level, uint64_t *first_entry);

/* ---- space.c ---- */

int vm__space_lock(vm_thread *t, unsigned flags); /* rebuilt if it was stolen */
void vm__space_unlock(vm_thread *t);
/* Did a request find no room a moment ago? Then what is freed is not kept for requests of its size. */
static inline bool vm__is_tight(const vm_region *r)
{
    uint64_t since = VM_RELAXED(&r->map.h->tight_s);
    return vm_unlikely(since) && vm__now_s() + VM_TIGHT_CLOSED_S - since <= VM_TIGHT_S + VM_TIGHT_CLOSED_S;
}
/* And did it not find any where others' magazines had been emptied either? Further ahead than that it is a scribble, or of a
 * clock that was set back since, as by a boot. */
static inline bool vm__is_very_tight(const vm_region *r)
{
    return VM_RELAXED(&r->map.h->tight_s) - vm__now_s() - 1 < VM_TIGHT_CLOSED_S;
}
/* Of what is in space, warm, or ready, which the caller counts: all but a reserve. A hint. */
uint64_t vm__idle_beyond_reserve(const vm_region *r, uint64_t ready_pages);
uint64_t vm__live_pages(const vm_region *r); /* in use or ready, by counters: a hint */
int vm__space_take(vm_thread *t, uint64_t nr_pages, uint64_t align_pages, unsigned flags, vm_range *out);
/* Pages beyond what was asked for, CACHED by t's slot as one range. */
typedef struct vm_run {
    uint64_t most; /* so many, or none */
    uint64_t page, nr_pages; /* 0: none were taken */
} vm_run;
/* May one have so many pages? Short and perhaps dirty it would look like a range of a magazine, and an empty one's hit, which
 * then reads a part of its header as an entry, might take it. */
static inline bool vm__may_be_run(vm_word dirty, uint64_t nr_pages)
{
    return !(dirty & VM_WORD_DIRTY) || nr_pages > VM_POOL_PAGES_MAX;
}
uint32_t vm__space_take_many(vm_thread *t, uint64_t nr_pages, uint32_t max, unsigned flags, uint64_t *pages,
                             vm_run *run);
int vm__space_collect_dirty(vm_thread *t, uint64_t *from, uint64_t most_pages, unsigned flags,
                            vm_batch *out); /* [purge_lock] */
/* Could a request begin in few places only? */
static inline bool vm__has_few_places(const vm_region *r, uint64_t nr_pages, uint64_t align_pages)
{
    return align_pages > 1 && (r->map.nr_pages - nr_pages) / align_pages < VM_PLACES_FEW;
}
/* A pooled size that is aligned to more than any pooled range is long, and has few places: one that ordinary requests got
 * serves no other such request. So it goes back to where it came from, and its id says that in place of its size. */
static inline bool vm__goes_apart(const vm_region *r, uint64_t nr_pages, uint64_t align_pages)
{
    return nr_pages <= VM_POOL_PAGES_MAX && align_pages > VM_POOL_PAGES_MAX
           && vm__has_few_places(r, nr_pages, align_pages);
}
/* The rest: [space_lock] */
void vm__space_grant(vm_thread *t, uint64_t used, uint64_t most);
void vm__space_put(vm_thread *t, uint64_t page, uint64_t nr_pages, bool dirty, uint64_t *may_clean);
int vm__space_rebuild(vm_thread *t);
bool vm__space_carve(vm_thread *t, uint64_t page, uint64_t nr_pages, bool is_apart, vm_range *out);
bool vm__space_words_agree(const vm_region *r, uint64_t page, uint64_t nr_pages);
int vm__space_fits(vm_thread *t, uint64_t nr_pages);
void vm__space_sink_peak(vm_thread *t, uint64_t pages);
void vm__note_use(vm_region *r);

/* ---- lazy.c ---- */

void vm__lazy_put(vm_thread *t, uint64_t page, uint64_t nr_pages); /* its word is MOVING(t) */
void vm__lazy_put_for(vm_thread *t, uint64_t page, uint64_t nr_pages, uint32_t node); /* as its group had freed it */
/* All of one size, in one push. */
void vm__lazy_put_many(vm_thread *t, uint64_t nr_pages, uint32_t nr, const uint64_t *pages, uint32_t node);
vm_word vm__lazy_word(uint64_t nr_pages, uint32_t node); /* of a range that becomes lazy now */
bool vm__lazy_is_due(const vm_region *r); /* more is lazy than may be */
uint64_t vm__lazy_excess(const vm_region *r); /* by so many pages */
uint64_t vm__lazy_pages_max(const vm_region *r);
/* As vm__lazy_pages_max() in a region whose recent peak is `peak` pages, of which `live` are in use, on a machine with so
 * many CPUs and bytes. */
uint64_t vm__lazy_threshold(const vm_region *r, uint64_t peak, uint64_t live, uint32_t cpus, uint64_t memory_bytes);
uint64_t vm__chain_take(vm_thread *t, uint64_t link, vm_batch *out);
/* Walk a list that nobody changes; every entry must be in `state`, and of nr_pages if that is not 0. Returns its
 * pages; *nr: how many entries. */
uint64_t vm__list_check(const vm_region *r, uint64_t link, vm_state state, uint64_t nr_pages, const char *what,
                        uint32_t *nr, vm_report *report);
/* ---- warm.c: lazy ranges by size and age ---- */

/* As long a range as a request may get whole. Under a quota no longer than was asked for, since no more was checked. */
static inline uint64_t vm__longest_for(const vm_region *r, uint64_t nr_pages)
{
    uint64_t slack = VM_RELAXED(&r->map.h->quota_pages) ? 0 : nr_pages >> VM_WARM_SLACK_SHIFT;
    return nr_pages + slack;
}

uint32_t vm__warm_take(vm_thread *t, uint64_t nr_pages, uint64_t align_pages, uint32_t max, bool is_own,
                       uint64_t *pages, uint64_t *len);
int vm__warm_lock(vm_thread *t, unsigned flags); /* mended if it was stolen */
void vm__warm_unlock(vm_thread *t);
bool vm__warm_is_damaged(vm_region *r); /* its lock's owner, or who closed it, died */
int vm__warm_close(vm_thread *t, unsigned flags); /* [purge_lock] */
int vm__warm_collect(vm_thread *t, uint64_t most_pages, uint32_t most_ranges, vm_batch *out); /* [purge_lock] */
int vm__warm_collect_all(vm_thread *t, unsigned flags, vm_batch *out); /* [purge_lock] */
uint64_t vm__warm_check(const vm_region *r, vm_report *report); /* returns the pages listed */

#endif
