/* SPDX-License-Identifier: MIT */
/*
 * Locks between processes that may be killed while they hold one.
 *
 * The lock word names its owner (thread slot and incarnation). A waiter spins about 2 us, then sleeps on the
 * word as a futex, in slices that grow, lest many waiters wake just to look; one of them, the watcher, keeps
 * to short ones. Unlocking is one exchange, so that no wake-up is missed. When a slice ends without the lock,
 * the waiter asks whether the owner is dead; if so it steals the lock and marks it `needs_repair`. Whoever
 * holds a lock with that mark rebuilds or mends what it protects before using it: space, a node's pools,
 * names and leases each have a function of their own that takes their lock. A live owner is never robbed:
 * after the lock timeout the waiter gives up with EBUSY.
 */
#include "internal.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SPIN_ROUNDS 60
#define SLICE_NS 250000
#define WATCH_NS 100000
#define SLICE_MAX_NS 4000000
#define INTERRUPT_NS 20000000ull
#define BRIEF_NS 5000000ull

_Thread_local uint32_t vm__busy_pid;
static _Thread_local bool in_slices;

void vm_wait_in_slices(bool on) { in_slices = on; }
uint32_t vm_busy_pid(const vm_region *r)
{
    (void)r;
    return vm__busy_pid;
}

uint64_t vm__now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

static void futex_wait(vm_token *word, vm_token seen, long ns)
{
    struct timespec slice = {0, ns};
    syscall(SYS_futex, word, FUTEX_WAIT, seen, &slice, NULL, 0);
}
static void futex_wake_one(vm_token *word) { syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0); }

static uint32_t pid_of(const vm_region *r, vm_token owner)
{
    uint32_t slot = vm__token_slot(owner);
    if (slot >= r->nr_threads)
        return 0;
    uint32_t process = (uint32_t)(VM_PEEK(&r->slots[slot].state) >> 1) & (VM_PROCESSES - 1);
    return VM_PEEK(&r->processes[process].pid);
}

bool vm__lock_is_held(const vm_thread *t, const vm_lock *lock)
{
    return (VM_PEEK(&lock->owner) & VM_TOKEN_MASK) == t->token;
}

static bool try_with(vm_thread *t, vm_lock *lock, vm_token waiters)
{
    return VM_PEEK(&lock->owner) == 0 && VM_CAS(&lock->owner, 0, t->token | waiters);
}

void vm__lock_steal(vm_region *r, vm_thread *t, vm_lock *lock, vm_token dead)
{
    (void)r;
    if (VM_CAS(&lock->owner, dead, t->token | VM_TOKEN_WAITERS))
        VM_PUT(&lock->needs_repair, 1);
}

/* After a slice without success: 0 to go on, or a reason to stop waiting. */
int vm__wait_slice(vm_region *r, uint64_t started_ns, vm_token owner)
{
    uint64_t waited = vm__now_ns() - started_ns;
    if (waited <= r->lock_timeout_ns && !(in_slices && waited > INTERRUPT_NS))
        return 0;
    vm__busy_pid = pid_of(r, owner);
    return waited > r->lock_timeout_ns ? -EBUSY : -EINTR;
}

/* Sleep one slice, or less; true if the lock was ours to take from a dead owner. */
static bool sleep_or_steal(vm_region *r, vm_thread *t, vm_lock *lock, vm_token seen, long slice)
{
    if (!(seen & VM_TOKEN_WAITERS)) {
        if (!VM_CAS(&lock->owner, seen, seen | VM_TOKEN_WAITERS))
            return false;
        seen |= VM_TOKEN_WAITERS;
    }
    futex_wait(&lock->owner, seen, slice);
    if (VM_PEEK(&lock->owner) != seen || !vm__owner_is_dead(r, seen & VM_TOKEN_MASK))
        return false;
    vm__lock_steal(r, t, lock, seen);
    return vm__lock_is_held(t, lock);
}

/* One waiter of a lock looks often whether the owner died; it alone, lest many waiters wake just to look. */
static bool watch(vm_region *r, vm_thread *t, vm_lock *lock)
{
    vm_token now = VM_PEEK(&lock->watcher);
    return (now == 0 || vm__owner_is_dead(r, now)) && VM_CAS(&lock->watcher, now, t->token);
}

/* The time is looked at in every round: the owner that a round sees need not be the same. */
static int wait_in_slices(vm_region *r, vm_thread *t, vm_lock *lock, unsigned flags, uint64_t started, bool *watches)
{
    for (long slice = SLICE_NS;; slice = *watches ? WATCH_NS : slice < SLICE_MAX_NS ? slice * 2 : SLICE_MAX_NS) {
        vm_token seen = VM_PEEK(&lock->owner);
        if (seen == 0 ? try_with(t, lock, VM_TOKEN_WAITERS) : sleep_or_steal(r, t, lock, seen, slice))
            return 0;
        bool is_stuck = seen && ((VM_PEEK(&lock->owner) ^ seen) & VM_TOKEN_MASK) == 0;
        if (flags & VM_LOCK_BRIEF && is_stuck && vm__now_ns() - started > BRIEF_NS)
            return -EAGAIN; /* alive but not running: the caller has another way */
        int rc = vm__wait_slice(r, started, seen & VM_TOKEN_MASK);
        if (rc)
            return rc;
        *watches = *watches || watch(r, t, lock);
    }
}

static int wait_for(vm_region *r, vm_thread *t, vm_lock *lock, unsigned flags, uint64_t started)
{
    bool watches = false;
    int rc = wait_in_slices(r, t, lock, flags, started, &watches);
    if (watches)
        VM_PUT(&lock->watcher, 0);
    return rc;
}

static int pthread_lock(vm_region *r, vm_thread *t, vm_lock *lock, unsigned flags)
{
    int rc = pthread_mutex_trylock(&lock->mutex);
    if (rc == EBUSY) {
        if (flags & VM_NO_WAIT)
            return -EAGAIN;
        uint64_t started = vm__now_ns();
        do {
            struct timespec until;
            clock_gettime(CLOCK_REALTIME, &until);
            until.tv_nsec += (long)BRIEF_NS;
            if (until.tv_nsec >= 1000000000) {
                until.tv_nsec -= 1000000000;
                until.tv_sec++;
            }
            rc = pthread_mutex_timedlock(&lock->mutex, &until);
            if (rc == ETIMEDOUT && flags & VM_LOCK_BRIEF)
                return -EAGAIN;
            if (rc == ETIMEDOUT) {
                int stop = vm__wait_slice(r, started, VM_PEEK(&lock->owner) & VM_TOKEN_MASK);
                if (stop)
                    return stop;
            }
        } while (rc == ETIMEDOUT);
        VM_PUT(&t->slot->lock_wait_ns, VM_PEEK(&t->slot->lock_wait_ns) + (vm__now_ns() - started));
    }
    if (rc == EOWNERDEAD) {
        pthread_mutex_consistent(&lock->mutex);
        VM_PUT(&lock->needs_repair, 1);
        rc = 0;
    }
    if (rc == 0)
        VM_PUT(&lock->owner, t->token);
    return -rc;
}

bool vm__trylock(vm_region *r, vm_thread *t, vm_lock *lock)
{
    if (vm_unlikely(r->flags & VM_FLAG_PTHREAD))
        return pthread_lock(r, t, lock, VM_NO_WAIT) == 0;
    return try_with(t, lock, 0);
}

/* Take the lock: 0, or EAGAIN (VM_NO_WAIT), EBUSY, EINTR. The caller repairs if needs_repair. */
int vm__lock(vm_region *r, vm_thread *t, vm_lock *lock, unsigned flags)
{
    VM_ASSERT(!vm__lock_is_held(t, lock));
    if (vm_unlikely(r->flags & VM_FLAG_PTHREAD))
        return pthread_lock(r, t, lock, flags);
    if (vm_likely(try_with(t, lock, 0)))
        return 0;
    uint64_t started = vm__now_ns();
    int rc = -EAGAIN;
    for (int i = 0; rc && i < SPIN_ROUNDS; i++) {
        relax();
        if (try_with(t, lock, 0))
            rc = 0;
    }
    if (rc && !(flags & VM_NO_WAIT))
        rc = wait_for(r, t, lock, flags, started);
    VM_PUT(&t->slot->lock_wait_ns, VM_PEEK(&t->slot->lock_wait_ns) + (vm__now_ns() - started));
    return rc;
}

void vm__unlock(vm_region *r, vm_thread *t, vm_lock *lock)
{
    VM_ASSERT_HELD(t, lock);
    (void)t;
    if (vm_unlikely(r->flags & VM_FLAG_PTHREAD)) {
        VM_PUT(&lock->owner, 0);
        pthread_mutex_unlock(&lock->mutex);
        return;
    }
    if (VM_SWAP(&lock->owner, 0) & VM_TOKEN_WAITERS)
        futex_wake_one(&lock->owner);
}

void vm__lock_init(vm_region *r, vm_lock *lock)
{
    if (!(r->flags & VM_FLAG_PTHREAD))
        return;
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&lock->mutex, &attr);
    pthread_mutexattr_destroy(&attr);
}

void vm_set_lock_timeout(vm_region *r, double seconds) { r->lock_timeout_ns = (uint64_t)(seconds * 1e9); }

uint64_t vm_lock_wait_ns(vm_region *r)
{
    vm_thread *t = vm__thread(r);
    return t ? VM_PEEK(&t->slot->lock_wait_ns) : 0;
}
