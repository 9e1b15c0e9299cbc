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

static _Thread_local vm_wait *wait; /* of the call that is under way; NULL: none */
static _Thread_local uint32_t busy_pid;

#ifdef VM_HOOKS
static uint64_t advanced_ns;
VM_API void vm_clock_advance(uint64_t ns) { __atomic_add_fetch(&advanced_ns, ns, __ATOMIC_RELAXED); }
#define ADVANCED_NS __atomic_load_n(&advanced_ns, __ATOMIC_RELAXED)
#else
#define ADVANCED_NS 0
#endif

uint64_t vm__now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec + ADVANCED_NS;
}

void vm__sleep_ns(uint64_t ns)
{
    struct timespec pause = {(time_t)(ns / 1000000000), (long)(ns % 1000000000)};
    nanosleep(&pause, NULL);
}

void vm__wait_with(vm_wait *with) { wait = with; }
uint32_t vm__busy_pid(void) { return busy_pid; }

bool vm__time_is_up(const vm_region *r, uint64_t started_ns)
{
    uint64_t since = started_ns, timeout = r->lock_timeout_ns;
    if (wait) {
        since = wait->since_ns = wait->since_ns ? wait->since_ns : started_ns;
        timeout = wait->timeout_ns ? wait->timeout_ns : timeout;
    }
    return vm__now_ns() - since > timeout;
}

int vm__wait_slice(const vm_region *r, uint64_t started_ns, vm_token owner)
{
    bool is_up = vm__time_is_up(r, started_ns);
    if (!is_up && !(wait && wait->in_slices && vm__now_ns() - started_ns > INTERRUPT_NS))
        return 0;
    busy_pid = vm__pid_of(r, owner);
    return is_up ? -EBUSY : -EINTR;
}
