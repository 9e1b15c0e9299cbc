/* SPDX-License-Identifier: MIT */
/*
 * Clock: time is asked for here and nowhere else, and how long a call waits is decided here.
 *
 * A call waits for locks, one after the other. Between vm_wait_begin() and vm_wait_end() all of its waits, also when it
 * is called again after a slice (EINTR), share one time-out, which runs from the first of them.
 */
#include "base.h"

#include <time.h>

#define INTERRUPT_NS 20000000ull

static _Thread_local vm_wait of_one_lock; /* of a call that says nothing of its waiting: anew for each lock */
static _Thread_local vm_wait *given;

/* Of the call that is under way. */
static vm_wait *waiting(void) { return given ? given : &of_one_lock; }
static _Thread_local uint32_t busy_pid;

#ifdef VM_HOOKS
static uint64_t advanced_ns, held_s;
VM_API void vm_clock_advance(uint64_t ns) { __atomic_add_fetch(&advanced_ns, ns, __ATOMIC_RELAXED); }
VM_API void vm_clock_hold(uint64_t s) { __atomic_store_n(&held_s, s, __ATOMIC_RELAXED); }
#define ADVANCED_NS __atomic_load_n(&advanced_ns, __ATOMIC_RELAXED)
#define HELD_S __atomic_load_n(&held_s, __ATOMIC_RELAXED)
#else
#define ADVANCED_NS 0
#define HELD_S 0ull
#endif

uint64_t vm__now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec + ADVANCED_NS;
}

uint64_t vm__cpu_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

uint64_t vm__now_s(void)
{
    struct timespec ts;
    if (HELD_S)
        return HELD_S;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &ts);
    return (uint64_t)ts.tv_sec + ADVANCED_NS / 1000000000;
}

void vm__sleep_ns(uint64_t ns)
{
    struct timespec pause = {(time_t)(ns / 1000000000), (long)(ns % 1000000000)};
    nanosleep(&pause, NULL);
}

void vm__wait_with(vm_wait *with) { given = with; }
uint32_t vm__busy_pid(void) { return busy_pid; }

uint64_t vm__wait_start(void)
{
    uint64_t now = vm__now_ns();
    vm_wait *wait = waiting();
    if (!given || !wait->since_ns) {
        wait->since_ns = wait->owner_since_ns = now;
        wait->owner = 0;
    }
    return now;
}

static uint64_t timeout_of(const vm_region *r)
{
    return waiting()->timeout_ns ? waiting()->timeout_ns : r->lock_timeout_ns;
}
bool vm__time_is_up(const vm_region *r) { return vm__now_ns() - waiting()->since_ns > timeout_of(r); }

uint64_t vm__wait_left_ns(const vm_region *r, uint64_t started_ns)
{
    const vm_wait *wait = waiting();
    uint64_t now = vm__now_ns(), end = wait->since_ns + timeout_of(r), slice = started_ns + INTERRUPT_NS;
    if (wait->in_slices && slice < end)
        end = slice;
    return end > now ? end - now : 0;
}

/* Is the one in the way really stopped? One who only is slow gets as much time again, and one who changes all the time
 * never counts: others have their turns. */
static bool is_stuck(uint32_t pid, uint64_t timeout)
{
    uint64_t same = vm__now_ns() - waiting()->owner_since_ns;
    return same > timeout && (same > 2 * timeout || vm__is_stopped(pid));
}

int vm__wait_slice(const vm_region *r, uint64_t started_ns, uint64_t owner, uint32_t pid)
{
    vm_wait *wait = waiting();
    if (owner != wait->owner) {
        wait->owner = owner;
        wait->owner_since_ns = vm__now_ns();
    }
    if (vm__time_is_up(r) && is_stuck(pid, timeout_of(r))) {
        busy_pid = pid;
        return -EBUSY;
    }
    return wait->in_slices && vm__now_ns() - started_ns > INTERRUPT_NS ? -EINTR : 0;
}
