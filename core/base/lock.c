/* SPDX-License-Identifier: MIT */
/*
 * Locks between processes that may be killed while they hold one, and the private ones beside them.
 *
 * A lock word names its owner (thread slot and incarnation). A waiter spins about 2 us, then sleeps on the word as a
 * futex. Unlocking is one exchange, so that no wake-up is missed, and wakes one. One waiter of a lock watches: it looks
 * every 100 us whether the owner is dead, and steals the lock then and marks it needs_mending; all others sleep until
 * woken, however many they are. Whoever holds a lock with that mark mends what it protects before using it. A live owner is
 * never robbed: when the call's time is up and he is seen stopped, the waiter gives up with EBUSY.
 *
 * The order of all locks is vm_rank (base.h), which builds with hooks assert.
 */
#include "base.h"

#define SPIN_ROUNDS 60
#define WATCH_NS 100000
#define SLEEP_NS 100000000 /* so often a sleeper looks whether there is a watcher at all */
#define BRIEF_NS 5000000ull

/* ---- ranks ---- */

#ifdef VM_HOOKS
/* Which ranks this thread holds of each region; a fork holds those of all regions. */
typedef struct vm_ranked {
    const vm_region *region; /* NULL: the registry's */
    uint32_t ranks;
} vm_ranked;
static _Thread_local vm_ranked *held; /* grows: a library has little room for variables of threads */
static _Thread_local int nr_held, room_held;
static pthread_key_t key_of_held;

static void drop_held(void *p)
{
    free(p);
    held = NULL;
    nr_held = room_held = 0;
}
__attribute__((constructor)) static void make_key(void) { VM_ASSERT(pthread_key_create(&key_of_held, drop_held) == 0); }

static void grow_held(void)
{
    room_held = room_held ? 2 * room_held : 8;
    held = realloc(held, (size_t)room_held * sizeof *held);
    VM_ASSERT(held && pthread_setspecific(key_of_held, held) == 0);
}

/* Where it stands, or nr_held. */
static int place_of(const vm_region *r)
{
    int i = 0;
    while (i < nr_held && held[i].region != r)
        i++;
    return i;
}
static uint32_t ranks_held(const vm_region *r)
{
    int i = place_of(r);
    return i < nr_held ? held[i].ranks : 0;
}

/* Before it is waited for: none of the same or a higher rank of that region may be held, and none at all for the
 * registry's. */
static void assert_order(const vm_region *r, vm_rank rank)
{
    VM_ASSERT(ranks_held(r) >> rank == 0);
    VM_ASSERT(rank != VM_RANK_REGISTRY || nr_held == 0);
}
static void note_taken(const vm_region *r, vm_rank rank)
{
    int i = place_of(r);
    if (i == nr_held) {
        if (nr_held == room_held)
            grow_held();
        held[nr_held].region = r;
        held[nr_held++].ranks = 0;
    }
    held[i].ranks |= 1u << rank;
}
static void note_left(const vm_region *r, vm_rank rank)
{
    int i = place_of(r);
    if (i == nr_held)
        return;
    held[i].ranks &= ~(1u << rank);
    if (!held[i].ranks)
        held[i] = held[--nr_held];
}
bool vm__rank_is_held(const vm_region *r, vm_rank rank) { return ranks_held(r) >> rank & 1; }

#else
#define assert_order(r, rank) ((void)(r), (void)(rank))
#define note_taken(r, rank) ((void)(r), (void)(rank))
#define note_left(r, rank) ((void)(r), (void)(rank))
#endif

/* ---- private ---- */

void vm__mutex_lock(const vm_region *r, pthread_mutex_t *mutex, vm_rank rank)
{
    assert_order(r, rank);
    pthread_mutex_lock(mutex);
    note_taken(r, rank);
}

bool vm__mutex_trylock(const vm_region *r, pthread_mutex_t *mutex, vm_rank rank)
{
    assert_order(r, rank);
    if (pthread_mutex_trylock(mutex) != 0)
        return false;
    note_taken(r, rank);
    return true;
}

void vm__mutex_unlock(const vm_region *r, pthread_mutex_t *mutex, vm_rank rank)
{
    note_left(r, rank);
    pthread_mutex_unlock(mutex);
}

/* ---- shared ---- */

static inline vm_rank rank_of(const vm_region *r, const vm_lock *lock)
{
    const vm_header *h = r->map.h;
    return lock == &h->purge_lock   ? VM_RANK_PURGE
           : lock == &h->names_lock ? VM_RANK_NAMES
           : lock == &h->lease_lock ? VM_RANK_LEASE
           : lock == &h->space_lock ? VM_RANK_SPACE
           : lock == &h->warm.lock  ? VM_RANK_WARM
                                    : VM_RANK_POOL;
}

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

bool vm__lock_is_held(const vm_thread *t, const vm_lock *lock)
{
    return (VM_RELAXED(&lock->owner) & VM_TOKEN_MASK) == t->token;
}

static bool try_with(vm_thread *t, vm_lock *lock, vm_token waiters)
{
    return VM_RELAXED(&lock->owner) == 0 && VM_CAS(&lock->owner, 0, t->token | waiters);
}
static void steal(vm_thread *t, vm_lock *lock, vm_token dead)
{
    if (VM_CAS(&lock->owner, dead, t->token | VM_TOKEN_WAITERS))
        VM_PUT(&lock->needs_mending, 1);
}

/* Sleep one slice, or less; true if the lock was ours to take from a dead owner. */
static bool sleep_or_steal(vm_thread *t, vm_lock *lock, vm_token seen, long slice)
{
    vm_region *r = t->region;
    if (!(seen & VM_TOKEN_WAITERS)) {
        if (!VM_CAS(&lock->owner, seen, seen | VM_TOKEN_WAITERS))
            return false;
        seen |= VM_TOKEN_WAITERS;
    }
    vm__futex_wait(&lock->owner, seen, slice);
    if (VM_RELAXED(&lock->owner) != seen || !vm__owner_is_dead(r, seen & VM_TOKEN_MASK))
        return false;
    steal(t, lock, seen);
    return vm__lock_is_held(t, lock);
}

/* One waiter of a lock looks often whether the owner died; it alone, lest many waiters wake just to look. */
static bool watch(vm_thread *t, vm_lock *lock)
{
    vm_region *r = t->region;
    vm_token now = VM_RELAXED(&lock->watcher);
    return (now == 0 || vm__owner_is_dead(r, now)) && VM_CAS(&lock->watcher, now, t->token);
}

/* How long to sleep: the watcher looks often, the others sleep until they are woken or have to give up. */
static long slice_of(const vm_region *r, unsigned flags, uint64_t started, bool watches)
{
    if (watches)
        return WATCH_NS;
    uint64_t left = vm__wait_left_ns(r, started), most = flags & VM_LOCK_BRIEF ? BRIEF_NS : SLEEP_NS;
    left = left < WATCH_NS ? WATCH_NS : left;
    return (long)(left < most ? left : most);
}

/* The time is looked at in every round: the owner that a round sees need not be the same. */
static int wait_watching(vm_thread *t, vm_lock *lock, unsigned flags, uint64_t started, bool *watches)
{
    vm_region *r = t->region;
    for (;;) {
        vm_token seen = VM_RELAXED(&lock->owner);
        *watches = *watches || watch(t, lock);
        if (seen == 0 ? try_with(t, lock, VM_TOKEN_WAITERS)
                      : sleep_or_steal(t, lock, seen, slice_of(r, flags, started, *watches)))
            return 0;
        vm_token owner = seen & VM_TOKEN_MASK;
        bool is_same = owner && (VM_RELAXED(&lock->owner) & VM_TOKEN_MASK) == owner;
        if (flags & VM_LOCK_BRIEF && is_same && vm__now_ns() - started > BRIEF_NS)
            return -EAGAIN; /* alive but not running: the caller has another way */
        int rc = owner ? vm__wait_slice(r, started, owner, vm__pid_of(r, owner)) : 0;
        if (rc)
            return rc;
    }
}

/* Whoever stops watching wakes another to go on with it: one who sleeps must not have to look for himself. */
static int wait_for(vm_thread *t, vm_lock *lock, unsigned flags, uint64_t started)
{
    bool watches = false;
    int rc = wait_watching(t, lock, flags, started, &watches);
    if (watches) {
        VM_PUT(&lock->watcher, 0);
        vm__futex_wake_one(&lock->owner);
    }
    return rc;
}

bool vm__trylock(vm_thread *t, vm_lock *lock)
{
    assert_order(t->region, rank_of(t->region, lock));
    if (!try_with(t, lock, 0))
        return false;
    note_taken(t->region, rank_of(t->region, lock));
    return true;
}

/* Spin a little, then sleep. */
static int take_contended(vm_thread *t, vm_lock *lock, unsigned flags)
{
    uint64_t started = vm__wait_start();
    t->has_waited = true;
    t->nr_lock_waits++;
    int rc = -EAGAIN;
    for (int i = 0; rc && i < SPIN_ROUNDS; i++) {
        relax();
        if (try_with(t, lock, 0))
            rc = 0;
    }
    if (rc && !(flags & VM_NO_WAIT))
        rc = wait_for(t, lock, flags, started);
    VM_PUT(&t->slot->lock_wait_ns, VM_RELAXED(&t->slot->lock_wait_ns) + (vm__now_ns() - started));
    return rc;
}

int vm__lock(vm_thread *t, vm_lock *lock, unsigned flags)
{
    VM_ASSERT(!vm__lock_is_held(t, lock));
    assert_order(t->region, rank_of(t->region, lock));
    int rc = vm_likely(try_with(t, lock, 0)) ? 0 : take_contended(t, lock, flags);
    if (rc == 0)
        note_taken(t->region, rank_of(t->region, lock));
    return rc;
}

void vm__unlock(vm_thread *t, vm_lock *lock)
{
    VM_ASSERT_HELD(t, lock);
    note_left(t->region, rank_of(t->region, lock));
    if (VM_SWAP(&lock->owner, 0) & VM_TOKEN_WAITERS)
        vm__futex_wake_one(&lock->owner);
}
