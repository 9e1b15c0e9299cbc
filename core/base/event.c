/* SPDX-License-Identifier: MIT */
/*
 * Event: what a thread writes into its slot's ring while somebody records.
 *
 * Two words and the count, stored in that order: an event counts once the count is beyond it, so that of a writer who died,
 * or is at it, nothing half written is ever read. No lock; whoever uses a slot is alone in it (thread.c). Time is a stamp
 * in each batch. Where it is to be exact each event has the low half of the ticks, and a stamp both ticks and time.
 * face/record.c reads, cache/ring.c makes the ring.
 */
#include "base.h"

#define TICKS_APART (1ull << 30) /* of an event from its stamp, at most: it has 32 bits of them */

static void put(vm_thread *t, uint64_t what, uint64_t when)
{
    vm_ring *ring = t->ring;
    uint64_t at = VM_RELAXED(&ring->next);
    vm_event *e = &ring->event[at % VM_EVENT_RING];
    VM_ASSERT(!t->common || vm__rank_is_held(t->region, VM_RANK_COMMON));
    VM_STORE(&e->what, what);
    VM_STORE(&e->when, when);
    VM_STORE(&ring->next, at + 1);
}

void vm__event_stamp(vm_thread *t)
{
    uint64_t ns = vm__now_ns();
    t->stamped_ticks = vm__ticks();
    t->event_place = (uint64_t)vm__cpu() << VM_EVENT_CPU_SHIFT;
    put(t, VM_EVENT_STAMP | ns << VM_EVENT_LEN_SHIFT, t->event_place | (uint32_t)t->stamped_ticks);
}

/* What took long bears its own time in any case. */
void vm__event_slow(vm_thread *t, vm_event_kind kind, uint64_t page, uint64_t nr_pages, uint64_t detail)
{
    uint64_t ticks = vm__ticks();
    if (!t->is_exact || VM_RELAXED(&t->ring->next) % VM_EVENT_BATCH == 0 || ticks - t->stamped_ticks > TICKS_APART) {
        vm__event_stamp(t);
        ticks = t->stamped_ticks;
    }
    uint64_t place = t->is_exact ? (uint64_t)vm__cpu() << VM_EVENT_CPU_SHIFT : t->event_place;
    put(t, vm__event_what(kind, page, nr_pages), detail | place | (uint32_t)ticks);
}
