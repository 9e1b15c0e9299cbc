/* SPDX-License-Identifier: MIT */
/*
 * Event: what a thread writes into its slot's ring while somebody records.
 *
 * Two words and the count, stored in that order: an event counts once the count is beyond it, so that of a writer who died,
 * or is at it, nothing half written is ever read. No lock; whoever uses a slot is alone in it (thread.c). Time is a stamp
 * in each batch. Where it is to be exact each event has the low bits of the ticks, and a stamp both ticks and time.
 * face/record.c reads, cache/ring.c makes the ring.
 */
#include "base.h"

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

/* The low ticks of the last stamp, to which an event adds: they never carry into the CPU before it is far. */
static uint64_t when_here(const vm_thread *t)
{
    uint64_t low = (1ull << VM_EVENT_TICKS_BITS) - 1;
    return (uint64_t)vm__cpu() << VM_EVENT_CPU_SHIFT | (t->stamped_ticks & low);
}

void vm__event_stamp(vm_thread *t)
{
    uint64_t ns = vm__now_ns();
    t->stamped_ticks = vm__ticks();
    t->event_when = when_here(t);
    put(t, VM_EVENT_STAMP | ns << VM_EVENT_LEN_SHIFT, t->event_when);
}

/* What took long bears its own time in any case. */
void vm__event_slow(vm_thread *t, vm_event_kind kind, uint64_t page, uint64_t nr_pages, uint64_t detail)
{
    uint64_t since = vm__event_since(t), when = when_here(t) + since;
    if (!t->is_exact || VM_RELAXED(&t->ring->next) % VM_EVENT_BATCH == 0 || vm__event_is_far(since)) {
        vm__event_stamp(t);
        when = t->event_when;
    }
    put(t, vm__event_what(kind, page, nr_pages), detail | when);
}

int vm__event_of_hit(vm_thread *t, vm_event_kind kind, uint64_t page, uint64_t nr_pages)
{
    vm__event_stamp(t);
    put(t, vm__event_what(kind, page, nr_pages), t->event_when);
    return 0;
}
