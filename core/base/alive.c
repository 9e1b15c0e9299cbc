/* SPDX-License-Identifier: MIT */
/*
 * Alive: who is who, and who is dead. A process slot per attached process; threads' slots name theirs.
 *
 * A process is dead when the kernel dropped its OFD lock (descriptor.c). Pids are kept for messages only. Every reissue of a
 * slot raises its incarnation, and words and locks name slot and incarnation, so what a dead owner wrote is never taken
 * for its successor's. Who retires a dead one's slots makes that visible without a system call.
 */
#include "base.h"

#define GONE_WAIT_NS 500000000ull
#define GONE_PAUSE_NS 1000000

/* ---- who is dead ---- */

/* Undecidable means alive. */
bool vm__process_is_dead(vm_region *r, uint32_t process)
{
    return process != r->process && process < r->map.nr_processes && !vm__process_is_claimed(r, process);
}

/* A sum over those whose pid is nobody's and whose lock is held; 0: there is none. */
static uint64_t gone(vm_region *r)
{
    uint64_t sum = 0;
    for (uint32_t p = 0; p < vm__high_process(r); p++) {
        uint64_t state = VM_ACQUIRE(&r->map.processes[p].state);
        if (state & VM_PROCESS_LIVE && p != r->process && vm__pid_is_nobodys(VM_RELAXED(&r->map.processes[p].pid))
            && !vm__process_is_dead(r, p))
            sum = (sum + state + p + 1) * 0x9e3779b97f4a7c15ull;
    }
    return sum;
}

/* The lock goes with a process's memory, which may be in use a moment longer than the process: by the child of a vfork, by
 * whoever reads /proc/PID/maps. Waits for that. False: there is no such process, or it stayed: one of another pid namespace
 * looks the same, so nobody is waited for twice. */
bool vm__await_gone(vm_region *r)
{
    uint64_t first = gone(r), until = vm__now_ns() + GONE_WAIT_NS;
    if (!first || first == __atomic_load_n(&r->awaited_in_vain, __ATOMIC_RELAXED))
        return false;
    while (gone(r) == first) {
        if (vm__now_ns() > until) {
            __atomic_store_n(&r->awaited_in_vain, first, __ATOMIC_RELAXED);
            return false;
        }
        vm__sleep_ns(GONE_PAUSE_NS);
    }
    return true;
}

bool vm__incarnation_is_dead(vm_region *r, uint32_t process, uint32_t incarnation)
{
    if (process >= r->map.nr_processes)
        return false;
    uint64_t state = VM_ACQUIRE(&r->map.processes[process].state);
    return (state >> 32 & VM_INC_MASK) != incarnation || !(state & VM_PROCESS_LIVE) || vm__process_is_dead(r, process);
}

bool vm__owner_is_dead(vm_region *r, vm_token token)
{
    uint32_t slot = vm__token_slot(token);
    if (slot >= r->map.nr_threads)
        return true; /* no such slot: scribbled over */
    uint64_t state = VM_ACQUIRE(&r->map.slots[slot].state);
    return !(state & 1) || (state >> 32 & VM_INC_MASK) != vm__token_inc(token)
           || vm__process_is_dead(r, vm__slot_process(r, state));
}

bool vm__process_is_retired(const vm_region *r, uint32_t process, uint32_t incarnation)
{
    if (process >= r->map.nr_processes)
        return true;
    uint64_t state = VM_ACQUIRE(&r->map.processes[process].state);
    return !(state & VM_PROCESS_LIVE) || (state >> 32 & VM_INC_MASK) != incarnation;
}

/* Dead by incarnation: its slot was retired. */
bool vm__owner_is_retired(const vm_region *r, vm_word w)
{
    uint32_t slot = vm__owner(w);
    if (slot >= r->map.nr_threads)
        return true;
    uint64_t state = VM_ACQUIRE(&r->map.slots[slot].state);
    return !(state & 1) || (state >> 32 & VM_INC_MASK) != vm__inc(w);
}

/* For messages: 0 if the token names no slot. */
uint32_t vm__pid_of(const vm_region *r, vm_token owner)
{
    uint32_t slot = vm__token_slot(owner);
    if (slot >= r->map.nr_threads)
        return 0;
    uint32_t process = vm__slot_process(r, VM_RELAXED(&r->map.slots[slot].state));
    return VM_RELAXED(&r->map.processes[process].pid);
}

/* ---- process slots ---- */

/* Step 2 for one process: its threads' slots are nobody's, under new incarnations. */
void vm__retire_threads(vm_region *r, uint32_t process, const vm_thread *but)
{
    for (uint32_t i = 0; i < r->map.nr_threads; i++) {
        if (!vm__slot_was_used(r, i))
            continue;
        uint64_t state = VM_ACQUIRE(&r->map.slots[i].state);
        bool is_its = state & 1 && vm__slot_process(r, state) == process;
        if (is_its && !(but && but->index == i))
            vm__free_slot(r, i, state);
    }
}

/* A thread's slot is nobody's, under the next incarnation, and among the first that the next thread looks at. */
void vm__free_slot(vm_region *r, uint32_t i, uint64_t state)
{
    VM_STORE(&r->map.slots[i].state, ((state >> 32) + 1) << 32);
    if (i >= vm__first_thread(r) && i < VM_RELAXED(&r->map.h->free_slot))
        VM_PUT(&r->map.h->free_slot, i);
}

/* Before a slot's first use, and so before a bit of its is set: who looks at all slots, or bits, stops there. */
void vm__raise_high_process(vm_region *r, uint32_t p)
{
    uint64_t seen;
    while ((seen = VM_ACQUIRE(&r->map.h->high_process)) <= p && !VM_CAS(&r->map.h->high_process, seen, (uint64_t)p + 1))
        ;
}

/* Before anybody of the group frees, so that whoever looks for what lies ready finds it. */
void vm__raise_high_group(vm_region *r, uint32_t group)
{
    uint64_t seen;
    while (group && (seen = VM_ACQUIRE(&r->map.h->high_group)) <= group
           && !VM_CAS(&r->map.h->high_group, seen, (uint64_t)group + 1))
        ;
}

/* Take a slot of that kind for whoever has the tie: a clean one becomes LIVE; a dead process's stays
 * DYING until its new owner, with finish_join(), has reclaimed what the dead left, since holder bits
 * have no incarnation. */
bool vm__take_process(vm_region *r, bool clean, const vm_tie *tie, uint32_t *process, uint32_t *incarnation)
{
    for (uint32_t p = 0; p < r->map.nr_processes; p++) {
        if (((uint32_t)VM_ACQUIRE(&r->map.processes[p].state) == 0) != clean || vm__claim_process(r, tie, p) != 0)
            continue;
        uint64_t state = VM_ACQUIRE(&r->map.processes[p].state), inc = (state >> 32) + 1;
        if (((uint32_t)state == 0) != clean) { /* it changed before we had the lock */
            vm__unclaim_process(r, tie, p);
            continue;
        }
        if (!clean) {
            VM_PUT(&r->map.h->purge_needs_scan, 1);
            vm__retire_threads(r, p, NULL);
        }
        vm__raise_high_process(r, p);
        uint64_t *common = &r->map.slots[p].state;
        vm__raise_high_group(r, vm__group_of_process(r, p));
        VM_PUT(&r->map.processes[p].pid, vm__pid());
        VM_PUT(&r->map.processes[p].no_barrier, !r->can_drain);
        VM_PUT(&r->map.processes[p].marks_reads, r->marks_reads);
        VM_STORE(common, ((VM_ACQUIRE(common) >> 32) + 1) << 32 | (uint64_t)p << 1 | 1);
        VM_STORE(&r->map.processes[p].state, inc << 32 | (clean ? VM_PROCESS_LIVE : VM_PROCESS_DYING));
        *process = p;
        *incarnation = (uint32_t)inc & VM_INC_MASK;
        return true;
    }
    return false;
}

/* Find this process a slot: a clean one (0), else a dead process's (1: finish_join() has work). */
int vm__join(vm_region *r)
{
    r->process = VM_PROCESSES;
    if (vm__take_process(r, true, &r->tie, &r->process, &r->process_inc))
        return 0;
    return vm__take_process(r, false, &r->tie, &r->process, &r->process_inc) ? 1 : -ENOLCK;
}

void vm__free_process(vm_region *r, uint32_t process)
{
    uint64_t *state = &r->map.processes[process].state;
    VM_STORE(state, ((VM_ACQUIRE(state) >> 32) + 1) << 32);
}
