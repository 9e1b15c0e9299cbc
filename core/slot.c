/* SPDX-License-Identifier: MIT */
/*
 * Slots: who is who. A process slot per attached process, a thread slot per thread that allocates.
 *
 * A process owns its slot as long as the kernel holds its OFD lock on that byte of the memfd. The
 * lock lives on a description the process opened itself, close-on-exec, so it ends with the process
 * and with nothing else; pids are kept for messages only. Every reissue raises an incarnation, and
 * words and locks name slot and incarnation, so what a dead owner wrote is never taken for its
 * successor's.
 *
 * A thread finds its slot through one thread-local pointer, whose serial must be the
 * region's. It points to memory the kernel wipes in a child, so that not even a raw clone writes
 * through its parent's slot.
 */
#include "internal.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

static vm_thread nobody = {.serial = UINT64_MAX, .fast_serial = UINT64_MAX};
_Thread_local vm_thread *vm__current __attribute__((tls_model("initial-exec"))) = &nobody;
static _Thread_local vm_thread *my_threads; /* this thread in each of its regions */

static pthread_mutex_t registry_mutex = PTHREAD_MUTEX_INITIALIZER;
static vm_region *registry; /* every region this process attached */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t exit_key;

uint64_t vm__new_serial(void)
{
    static uint64_t last;
    return __atomic_add_fetch(&last, 1, __ATOMIC_RELAXED);
}

/* ---- the process's OFD lock ---- */

/* A description of the memfd of our own: locks on an inherited one would outlive us in the others. */
int vm__open_for_locks(const vm_region *r)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", r->fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd >= 0 && fd <= STDERR_FILENO) { /* somebody closed his standard streams, and may open them again */
        int moved = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
        close(fd);
        fd = moved;
    }
    return fd < 0 ? -errno : fd;
}

static int ofd(int lock_fd, int command, short type, uint32_t process, struct flock *out)
{
    struct flock l = {.l_type = type, .l_whence = SEEK_SET, .l_start = process, .l_len = 1};
    int rc = fcntl(lock_fd, command, &l);
    if (out)
        *out = l;
    return rc < 0 ? -errno : 0;
}

int vm__claim_process(int lock_fd, uint32_t process) { return ofd(lock_fd, F_OFD_SETLK, F_WRLCK, process, NULL); }
void vm__unclaim_process(int lock_fd, uint32_t process) { ofd(lock_fd, F_OFD_SETLK, F_UNLCK, process, NULL); }

/* Undecidable means alive. */
bool vm__process_is_dead(vm_region *r, uint32_t process)
{
    struct flock l;
    if (process == r->process || process >= VM_PROCESS_NAMES)
        return false;
    return ofd(r->lock_fd, F_OFD_GETLK, F_WRLCK, process, &l) == 0 && l.l_type == F_UNLCK;
}

bool vm__incarnation_is_dead(vm_region *r, uint32_t process, uint32_t incarnation)
{
    if (process >= VM_PROCESS_NAMES)
        return false;
    uint64_t state = VM_LOAD(&r->processes[process].state);
    return (state >> 32 & VM_INC_MASK) != incarnation || !(state & VM_PROCESS_LIVE) || vm__process_is_dead(r, process);
}

static uint32_t slot_process(uint64_t state) { return (uint32_t)(state >> 1) & (VM_PROCESSES - 1); }

bool vm__owner_is_dead(vm_region *r, vm_token token)
{
    uint32_t slot = vm__token_slot(token);
    if (slot >= r->nr_threads)
        return true; /* no such slot: scribbled over */
    uint64_t state = VM_LOAD(&r->slots[slot].state);
    return !(state & 1) || (state >> 32 & VM_INC_MASK) != vm__token_inc(token)
           || vm__process_is_dead(r, slot_process(state));
}

/* ---- process slots ---- */

/* Take a slot of that kind for whoever has `lock_fd`: a clean one becomes LIVE; a dead process's stays
 * DYING until its new owner, with vm__finish_join(), has reclaimed what the dead left, since holder bits
 * have no incarnation. */
bool vm__take_process(vm_region *r, bool clean, int lock_fd, uint32_t *process, uint32_t *incarnation)
{
    for (uint32_t p = 0; p < VM_PROCESS_NAMES; p++) {
        if (((uint32_t)VM_LOAD(&r->processes[p].state) == 0) != clean || vm__claim_process(lock_fd, p) != 0)
            continue;
        uint64_t state = VM_LOAD(&r->processes[p].state), inc = (state >> 32) + 1;
        if (((uint32_t)state == 0) != clean) { /* it changed before we had the lock */
            vm__unclaim_process(lock_fd, p);
            continue;
        }
        if (!clean) {
            VM_PUT(&r->h->purge_needs_scan, 1);
            vm__retire_threads(r, p, NULL);
        }
        uint64_t *common = &r->slots[p].state;
        VM_PUT(&r->processes[p].pid, (uint32_t)getpid());
        VM_STORE(common, ((VM_LOAD(common) >> 32) + 1) << 32 | (uint64_t)p << 1 | 1);
        VM_STORE(&r->processes[p].state, inc << 32 | (clean ? VM_PROCESS_LIVE : VM_PROCESS_DYING));
        *process = p;
        *incarnation = (uint32_t)inc & VM_INC_MASK;
        return true;
    }
    return false;
}

/* Find this process a slot: a clean one (0), else a dead process's (1: vm__finish_join() has work). */
int vm__join(vm_region *r)
{
    r->process = VM_PROCESSES;
    if (vm__take_process(r, true, r->lock_fd, &r->process, &r->process_inc))
        return 0;
    return vm__take_process(r, false, r->lock_fd, &r->process, &r->process_inc) ? 1 : -ENOLCK;
}

static void go_live(vm_region *r, const void *unused)
{
    (void)unused;
    uint64_t *state = &r->processes[r->process].state;
    VM_STORE(state, VM_LOAD(state) >> 32 << 32 | VM_PROCESS_LIVE);
}

int vm__finish_join(vm_region *r, int joined)
{
    if (joined <= 0)
        return joined;
    vm_thread *t = vm__thread(r);
    return t ? vm__purge_scan(r, t, 0, go_live, NULL) : vm__thread_error(r);
}

void vm__free_process(vm_region *r, uint32_t process)
{
    uint64_t *state = &r->processes[process].state;
    VM_STORE(state, ((VM_LOAD(state) >> 32) + 1) << 32);
}

/* ---- thread slots ---- */

static void fill_thread(vm_region *r, vm_thread *t, uint32_t index, uint64_t state)
{
    t->region = r;
    t->index = index;
    t->slot = &r->slots[index];
    t->magazine = t->slot->magazine;
    uint32_t incarnation = (uint32_t)(state >> 32) & VM_INC_MASK;
    t->token = vm__token(index, incarnation);
    t->busy = vm__word(VM_BUSY, VM_WORD_DIRTY, 0, r->process, r->process_inc);
    t->cached = vm__word(VM_CACHED, VM_WORD_DIRTY, 0, index, incarnation);
    t->flip = t->busy ^ t->cached;
    t->moving = vm__word(VM_MOVING, VM_WORD_DIRTY, 0, index, incarnation);
    t->purging = vm__word(VM_PURGING, VM_WORD_DIRTY, 0, index, incarnation);
    t->common = index < VM_PROCESSES;
    t->fast_pages = !t->common && r->pools == VM_POOLS_MAGAZINE ? VM_POOL_PAGES_MAX : 0;
    vm__magazine_init(t);
}

/* Before a slot's first use, so that whoever looks for used ones finds it. */
static void raise_high_slot(vm_region *r, uint32_t i)
{
    uint64_t seen;
    while ((seen = VM_LOAD(&r->h->high_slot)) <= i && !VM_CAS(&r->h->high_slot, seen, (uint64_t)i + 1))
        ;
}

/* What the last owner of a slot left in it: its ids must not go on, its marks stopped a drainer. */
static void forget_magazines(vm_slot *s, uint64_t state)
{
    for (uint32_t i = 1; state >> 32 && i <= VM_POOL_PAGES_MAX; i++)
        if (VM_PEEK(&s->magazine[i].header))
            VM_PUT(&s->magazine[i].header, 0);
}

static bool claim_thread(vm_region *r, vm_thread *t)
{
    for (uint32_t i = VM_PROCESSES; i < r->nr_threads; i++) {
        raise_high_slot(r, i);
        uint64_t state = VM_LOAD(&r->slots[i].state), mine = (state >> 32) << 32 | (uint64_t)r->process << 1 | 1;
        vm_slot *s = &r->slots[i];
        vm_token drainer = VM_LOAD(&s->drain);
        if (drainer && !vm__owner_is_dead(r, drainer))
            continue; /* a neighbour still empties what the last owner left */
        if (state & 1 || !VM_CAS(&s->state, state, mine))
            continue;
        VM_PUT(&s->in_operation, 0);
        forget_magazines(s, state);
        if (drainer)
            VM_CAS(&s->drain, drainer, 0);
        fill_thread(r, t, i, mine);
        return true;
    }
    return false;
}

/* Ids are unique for the region's life: threads take their serials in blocks from one counter. */
uint64_t vm__new_serials(vm_region *r) { return VM_ADD(&r->h->next_id, VM_ID_BLOCK) + 1; }

static void leave_region(vm_thread *t)
{
    vm_region *r = t->region;
    uint64_t state = VM_LOAD(&t->slot->state);
    if (t->common || !(state & 1) || (state >> 32 & VM_INC_MASK) != vm__token_inc(t->token))
        return; /* none of its own, or retired: another thread of ours is detaching the region */
    bool is_empty = vm__magazine_flush_all(r, t, t->slot);
    VM_STORE(&t->slot->state, ((state >> 32) + 1) << 32);
    if (!is_empty) /* a drainer was at it; what it leaves is found by the words */
        VM_PUT(&r->h->purge_needs_scan, 1);
}

/* Give this thread's slot back and go on in the process's: that one ends with the process slot, so a
 * detach that dies right after freeing the process slot leaves no thread slot without a process. */
void vm__give_up_slot(vm_region *r, vm_thread *t)
{
    leave_region(t);
    t->fast_serial = UINT64_MAX;
    fill_thread(r, t, r->process, VM_LOAD(&r->slots[r->process].state));
}

static void thread_exits(void *unused)
{
    (void)unused;
    vm__current = &nobody;
    pthread_mutex_lock(&registry_mutex);
    while (my_threads) {
        vm_thread *t = my_threads;
        my_threads = t->next;
        for (vm_region *r = registry; r; r = r->next)
            if (r == t->region && r->serial == t->serial)
                leave_region(t);
        munmap(t, sizeof *t);
    }
    pthread_mutex_unlock(&registry_mutex);
}

/* Drop what this thread knew of regions the process has detached since. */
static void forget_detached(void)
{
    pthread_mutex_lock(&registry_mutex);
    for (vm_thread **at = &my_threads; *at;) {
        vm_thread *t = *at;
        const vm_region *r = registry;
        while (r && (r != t->region || r->serial != t->serial))
            r = r->next;
        if (r) {
            at = &t->next;
            continue;
        }
        *at = t->next;
        munmap(t, sizeof *t);
    }
    pthread_mutex_unlock(&registry_mutex);
}

static vm_thread *new_thread(void)
{
    void *p = mmap(NULL, sizeof(vm_thread), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    if (madvise(p, sizeof(vm_thread), MADV_WIPEONFORK) == 0)
        return p;
    munmap(p, sizeof(vm_thread));
    return NULL;
}

static vm_thread *join_region(vm_region *r)
{
    vm_thread *t = new_thread();
    if (!t)
        return NULL;
    t->region = r;
    if (!claim_thread(r, t))
        fill_thread(r, t, r->process, VM_LOAD(&r->slots[r->process].state));
    t->serial = r->serial;
    t->fast_serial = t->fast_pages ? r->serial : UINT64_MAX;
    t->next = my_threads;
    my_threads = t;
    pthread_setspecific(exit_key, t);
    return vm__current = t;
}

/* `may_forget`: the registry is not ours yet. */
vm_thread *vm__thread_find(vm_region *r, bool may_forget)
{
    if (*r->wiped == 0 || r->process >= VM_PROCESSES)
        return NULL;
    for (vm_thread *t = my_threads; t; t = t->next)
        if (t->serial == r->serial)
            return vm__current = t;
    vm__current = &nobody;
    if (my_threads && may_forget)
        forget_detached();
    return join_region(r);
}

vm_thread *vm__thread_slow(vm_region *r) { return vm__thread_find(r, true); }

int vm__thread_error(vm_region *r)
{
    if (r->readonly)
        return -EROFS;
    return *r->wiped == 0 ? -EOWNERDEAD : r->process >= VM_PROCESSES ? -ENOLCK : -ENOMEM;
}

/* Threads without a slot of their own take turns with the process's. */
void vm__enter(vm_thread *t)
{
    if (vm_unlikely(t->common))
        pthread_mutex_lock(&t->region->common_mutex);
}
void vm__leave(vm_thread *t)
{
    if (vm_unlikely(t->common))
        pthread_mutex_unlock(&t->region->common_mutex);
}

/* In a child: the threads were the parent's, and giving their slots back is not ours to do. */
void vm__forget_threads(void)
{
    my_threads = NULL;
    vm__current = &nobody;
}

/* ---- the process's regions ---- */

void vm__registry_lock(void) { pthread_mutex_lock(&registry_mutex); }
vm_region *vm__registry(void) { return registry; }
void vm__registry_unlock(void) { pthread_mutex_unlock(&registry_mutex); }

static void prepare_process(void)
{
    pthread_key_create(&exit_key, thread_exits);
    vm__register_fork();
}

static int join_and_register(vm_region *r)
{
    r->lock_fd = vm__open_for_locks(r);
    if (r->lock_fd < 0)
        return r->lock_fd;
    int joined = vm__join(r);
    if (joined >= 0) {
        r->next = registry;
        registry = r;
    }
    return joined;
}

/* vm__join() with an OFD lock of its own. In one step for a fork: a child with a copy of that descriptor
 * which it does not know would keep this process's slot alive. */
int vm__register(vm_region *r)
{
    pthread_once(&once, prepare_process);
    pthread_mutex_lock(&registry_mutex);
    int joined = join_and_register(r);
    pthread_mutex_unlock(&registry_mutex);
    return joined;
}

/* From now on no thread of ours gives its slot of this region back by itself, and no child inherits. */
void vm__start_leaving(vm_region *r, const vm_thread *t)
{
    pthread_mutex_lock(&registry_mutex);
    r->is_leaving = true;
    vm__retire_threads(r, r->process, t);
    pthread_mutex_unlock(&registry_mutex);
}

void vm__unregister(vm_region *r)
{
    pthread_mutex_lock(&registry_mutex);
    for (vm_region **at = &registry; *at; at = &(*at)->next)
        if (*at == r) {
            *at = r->next;
            break;
        }
    if (r->lock_fd > 0) /* 0: attached read-only */
        close(r->lock_fd);
    r->lock_fd = -1;
    pthread_mutex_unlock(&registry_mutex);
}
