/* SPDX-License-Identifier: MIT */
/*
 * Layer 6, face: what a program calls. Every public function stands here, and policy: the way of a request and back,
 * regions, fork, upkeep, and looking inside.
 */
#ifndef VM_FACE_H
#define VM_FACE_H

#include "../mend/mend.h"
#include "../vmalloc_inline.h"

/* ---- recorded hits: as quick as they can be ---- */

/* Of an event with a time of its own the counter is read when the call begins: the hit's loads and stores run beside the
 * reading, which takes longer than they do. What a hit takes or puts is this thread's own: no event of others belongs
 * between. */

/* For the compiler `x` is another value from here on. So who left before, by a jump, has no registers saved and restored for
 * what comes behind: two jumps lead to a recorded hit. */
#define VM_ANOTHER_FROM_HERE(x) __asm__("" : "+r"(x))
/* Where a hit begins: whether its jumps share a line must not depend on what stands before it. */
#define VM_HIT_ENTRY __attribute__((aligned(64)))

/* The first of a batch, or far from its stamp. */
int vm__event_of_batch(vm_thread *t, vm_event_kind kind, uint64_t page, uint64_t nr_pages); /* 0; record.c */
/* `since` is 0 of an event that has the time of its stamp. */
static inline __attribute__((always_inline)) int vm__event_hit(vm_thread *t, vm_event_kind kind, uint64_t page,
                                                               uint64_t nr_pages, uint64_t since)
{
    vm_ring *ring = t->ring;
    uint64_t at = VM_RELAXED(&ring->next);
    if (vm_unlikely(at % VM_EVENT_BATCH == 0 || vm__event_is_far(since)))
        return vm__event_of_batch(t, kind, page, nr_pages);
    vm_event *e = &ring->event[at % VM_EVENT_RING];
    VM_STORE(&e->what, vm__event_what(kind, page, nr_pages));
    VM_STORE(&e->when, t->event_when + since);
    VM_STORE(&ring->next, at + 1);
    return 0;
}

/* ---- alloc.c ---- */

int vm__alloc_slow(vm_thread *t, uint64_t nr_pages, uint64_t align_pages, unsigned flags, vm_range *out);
/* After the attempt-th request found no room: what may still bring pages back, cheapest first. */
int vm__make_room(vm_thread *t, uint64_t nr_pages, int attempt, unsigned flags);
#define VM_AT_FIRST (-1) /* before anything was tried */
/* Before an attempt: nobody but who is using it can give back what is lacking, for all pages that are asked for, or for the
 * nr_pages of them that must lie together. */
bool vm__is_barred(const vm_thread *t, uint64_t nr_pages, uint64_t all_pages, uint64_t align_pages, int attempt,
                   unsigned flags);

/* ---- helper.c ---- */

extern bool vm__helpers_are_missing;
/* On the slow paths, before any lock is taken. */
static inline void vm__helpers_resume_if_missing(void)
{
    if (vm_unlikely(VM_RELAXED(&vm__helpers_are_missing)))
        vm_helpers_resume();
}
bool vm__helper_keeps_up(vm_region *r); /* beside it a free gives nothing back */
uint32_t vm__helper_pid(const vm_region *r); /* 0: none lives */
bool vm__helper_round(vm_thread *t, bool (*may_go_on)(vm_thread *));
long vm__helper_rest_ns(uint64_t began_ns, uint64_t now_ns);
void vm__helper_resign(vm_region *r);
void vm__helper_end(vm_region *r);
void vm__helpers_stop(void); /* [registry] */
void vm__helpers_note_missing(void); /* [registry] */

/* ---- upkeep.c ---- */

void vm__tick_here(vm_thread *t, bool (*go_on)(vm_thread *)); /* unless another thread of ours is at it */

/* ---- region.c ---- */

int vm__check_header(const vm_header *h, uint64_t file_bytes); /* before any of it is believed */

/* ---- prefault.c ---- */

int vm__zero(vm_region *r, uint64_t page, uint64_t bytes, uint64_t punch_bytes);

/* ---- fork.c ---- */

void vm__register_fork(void);

/* ---- walk.c ---- */

/* Walk the words under space_lock. Without it in a read-only attachment (`t` is NULL): again and again, until
 * `walk` returns 0 and nothing moved meanwhile, or for about 0.1 s; then what the last one gave. */
void vm__forget_marks(vm_region *r);
int vm__look(vm_region *r, vm_thread *t, int (*walk)(vm_region *r, void *arg), void *arg);
/* Around that: the thread, NULL in a read-only attachment; then *rc is 0. */
vm_thread *vm__look_enter(vm_region *r, int *rc);
void vm__look_leave(vm_thread *t);
vm_range_info vm__range_info(const vm_region *r, uint64_t page, vm_word w);

/* ---- stats.c ---- */

void vm__add_range(vm_stats *s, vm_word w);
void vm__add_counters(const vm_region *r, vm_stats *s); /* all that needs no walk */

/* ---- limits.c ---- */

/* From what vm__add_held() summed up; the most first, how many. */
int vm__list_held(const vm_region *r, const uint64_t held[VM_PROCESSES], const uint64_t once[VM_PROCESSES],
                  bool idle_too, size_t room, vm_holding *out);

/* ---- check.c: comparisons that repair.c counts before it puts things right ---- */

typedef struct vm_check_state {
    vm_region *r;
    bool at_rest;
    vm_report report;
    uint64_t *leased; /* sorted: the pages that entries of the lease table name */
    size_t nr_leased;
    uint64_t pages[16]; /* by state */
    uint64_t dirty_pages; /* free, and perhaps resident */
} vm_check_state;

uint64_t vm__wrong_bits(const vm_region *r, uint64_t page, uint64_t nr_pages, bool is_free);
uint64_t vm__stray_bits(const vm_region *r, uint64_t bits, uint32_t i);
void vm__collect_leases(vm_check_state *c);
uint64_t vm__leases_of(const vm_check_state *c, uint64_t page, size_t *at);
bool vm__is_stray_thread(const vm_region *r, uint32_t i);
uint32_t vm__beyond_high(const vm_region *r);
bool vm__is_id_of(const vm_region *r, uint64_t page, vm_word w, uint64_t id);

#endif
