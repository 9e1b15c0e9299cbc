/* SPDX-License-Identifier: MIT */
/*
 * Fork: a child keeps what it finds in its memory, whatever its parent frees meanwhile.
 *
 * Everything that can fail happens in the parent, before the fork: it takes a process slot for the
 * child, under a description of the memfd that only the child will keep, and makes the child a holder
 * of all that this process holds; what was private becomes shared. The child only installs that.
 * A fork that fails, or a child that dies or execs at once, leaves a process slot whose OFD lock is
 * gone: an ordinary dead process, recovered like any other.
 *
 * Without a slot or a descriptor for the child its region is unusable (ENOLCK); the parent never lets go
 * of what the child inherited, so its arrays stay what they are as long as the parent lives.
 *
 * A thread that frees a private range just now by the hit path, with a plain store, may undo its sharing.
 * Python's hits and forks exclude each other by the interpreter lock; a C program that forks beside other
 * threads must see to that itself.
 *
 * Address spaces have no memory to inherit: their ranges stay the parent's, or nobody's (VM_FLAG_KEEP).
 * A raw clone() runs none of this; a page that the kernel wipes tells (slot.c).
 * May wait for the locks it takes, as any slow path, each up to the lock timeout.
 * Locks: the registry, then each region's common_mutex, recover_mutex, holder_mutex; space_lock inside.
 */
#include "internal.h"

#include <pthread.h>
#include <unistd.h>

/* ---- before, in the parent ---- */

static void take_heir_slot(vm_region *r, vm_thread *t, vm_heir *heir)
{
    int fd = vm__open_for_locks(r);
    if (fd < 0)
        return;
    bool has_slot = vm__take_process(r, true, fd, &heir->process, &heir->process_inc);
    if (!has_slot) {
        vm__enter(t);
        vm__recover_dead(r, t, 0, NULL);
        vm__leave(t);
        has_slot = vm__take_process(r, true, fd, &heir->process, &heir->process_inc);
    }
    if (has_slot)
        heir->lock_fd = fd;
    else
        close(fd);
}

static bool remember(vm_heir *heir, uint64_t page, uint64_t id, uint32_t count)
{
    if (heir->nr == heir->room) {
        size_t room = heir->room ? heir->room * 2 : 256;
        vm_inherited *grown = realloc(heir->range, room * sizeof *grown);
        if (!grown)
            return false;
        heir->range = grown;
        heir->room = room;
    }
    heir->range[heir->nr++] = (vm_inherited){page, id, count};
    return true;
}

#define SHARE_ATTEMPTS 8 /* at a range that other threads free and take again all the time */

/* The child will hold this range too, if we do. `may_wait`: for one that is just being freed; EBUSY or EINTR
 * if that took too long. ENOMEM. [holder_mutex] */
static int bequeath_range(vm_region *r, vm_thread *t, vm_heir *heir, uint64_t page, bool may_wait)
{
    uint64_t id = 0;
    int rc = -ESTALE;
    for (int i = 0; rc == -ESTALE && i < SHARE_ATTEMPTS; i++) {
        id = VM_LOAD(&r->heads[page].aux);
        rc = VM_LOAD(&r->heads[page].word) & VM_WORD_SHARED ? vm__hold_for(r, t, page, id, heir->process, may_wait)
                                                            : vm__share_for(r, t, page, id, heir->process);
    }
    if (rc == 0 && heir->process < VM_PROCESSES && remember(heir, page, id, r->references[page].count))
        return 0;
    if (rc == 0 || rc == -EBUSY || rc == -EINTR) /* nobody can hold it for the child: we never let go of it */
        r->references[page].count++;
    return rc == -ENOENT || rc == -ESTALE ? 0 : rc;
}

/* Walk the words: what this process holds, its child will. [holder_mutex] */
static int bequeath(vm_region *r, vm_thread *t, vm_heir *heir)
{
    uint64_t page = 0;
    bool may_wait = true; /* one time-out for the whole walk */
    if (r->flags & (VM_FLAG_NO_DATA | VM_FLAG_KEEP))
        return 0;
    int rc = vm__space_lock(r, t, 0);
    if (rc)
        return rc;
    for (vm_word w; rc != -ENOMEM && (w = vm__scan(r, page)); page += vm__len(w))
        if (vm__state(w) == VM_BUSY || (vm__state(w) == VM_FREEING && w & VM_WORD_SHARED)) {
            rc = bequeath_range(r, t, heir, page, may_wait);
            may_wait = may_wait && rc == 0;
        }
    vm__space_unlock(r, t);
    return rc == -ENOMEM ? rc : 0;
}

static void close_heir(vm_heir *heir)
{
    if (heir->lock_fd >= 0)
        close(heir->lock_fd); /* of the child's, if there is one, a copy stays there */
    heir->lock_fd = -1;
    heir->process = VM_PROCESSES;
}

static void prepare_region(vm_region *r)
{
    vm_thread *t = r->is_leaving ? NULL : vm__thread_find(r, false);
    r->heir = (vm_heir){.lock_fd = -1, .process = VM_PROCESSES};
    bool is_usable = t && !VM_LOAD(&r->h->corrupt);
    if (is_usable)
        take_heir_slot(r, t, &r->heir);
    pthread_mutex_lock(&r->common_mutex);
    pthread_mutex_lock(&r->recover_mutex);
    pthread_mutex_lock(&r->holder_mutex);
    if (is_usable && bequeath(r, t, &r->heir) != 0)
        close_heir(&r->heir); /* a stopped process has space_lock, or no memory: the child must do without */
}

static void before_fork(void)
{
    vm__registry_lock();
    for (vm_region *r = vm__registry(); r; r = r->next)
        prepare_region(r);
}

/* ---- after ---- */

static void unlock_region(vm_region *r)
{
    pthread_mutex_unlock(&r->holder_mutex);
    pthread_mutex_unlock(&r->recover_mutex);
    pthread_mutex_unlock(&r->common_mutex);
}

/* The fork failed, or the child is gone already: nobody has the heir's lock. */
static void recover_child(vm_region *r, uint32_t child)
{
    vm_thread *t = vm__thread_find(r, false);
    if (!t || child >= VM_PROCESSES || !vm__process_is_dead(r, child))
        return;
    vm__enter(t);
    vm__recover_dead(r, t, VM_NO_WAIT, NULL);
    vm__leave(t);
}

static void in_parent(void)
{
    for (vm_region *r = vm__registry(); r; r = r->next) {
        uint32_t child = r->heir.process;
        close_heir(&r->heir);
        free(r->heir.range);
        r->heir.range = NULL;
        unlock_region(r);
        recover_child(r, child);
    }
    vm__registry_unlock();
}

static void in_child(void)
{
    vm__forget_threads();
    for (vm_region *r = vm__registry(); r; r = r->next) {
        close(r->lock_fd); /* or the parent's death would go unnoticed while we live */
        free(r->inheritance.range);
        r->inheritance = r->heir;
        r->heir.range = NULL;
        r->lock_fd = r->heir.lock_fd;
        r->process = r->heir.process;
        r->process_inc = r->heir.process_inc;
        r->serial = vm__new_serial();
        r->fast_serial = r->fail_every ? 0 : r->serial;
        *r->wiped = 1;
        if (r->process < VM_PROCESSES)
            VM_PUT(&r->processes[r->process].pid, (uint32_t)getpid());
        for (size_t i = 0; r->process < VM_PROCESSES && i < r->inheritance.nr; i++)
            vm__inherit(r, &r->inheritance.range[i]);
        unlock_region(r);
    }
    vm__registry_unlock();
}

void vm__register_fork(void) { pthread_atfork(before_fork, in_parent, in_child); }
