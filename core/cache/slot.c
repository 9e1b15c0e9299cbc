/* SPDX-License-Identifier: MIT */
/*
 * Slot: the entry to a thread's own magazines and run, and the exit.
 *
 * The owner marks its slot, then looks whether somebody drains it; who drains (drain.c) says so, then waits for the mark to
 * go.
 */
#include "cache.h"

void vm__magazines_leave(vm_thread *t)
{
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    VM_STORE(&t->slot->in_operation, 0);
}

bool vm__magazines_enter(vm_thread *t)
{
    vm_region *r = t->region;
    vm_slot *slot = t->slot;
    VM_PUT(&slot->in_operation, 1);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    vm_token drainer = VM_ACQUIRE(&slot->drain);
    if (drainer && vm__owner_is_dead(r, drainer) && VM_CAS(&slot->drain, drainer, 0))
        drainer = 0;
    if (!drainer)
        return true;
    vm__magazines_leave(t);
    return false;
}
