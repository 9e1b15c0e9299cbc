/* SPDX-License-Identifier: MIT */
/*
 * Fork: a child keeps what it finds in its memory, whatever its parent frees meanwhile.
 *
 * Everything that can fail happens in the parent, before the fork: it takes a process slot for the
 * child, under a tie that only the child will keep, and makes the child a holder
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
 * A raw clone() runs none of this; a page that the kernel wipes tells (vm_region.wiped).
 * May wait for the locks it takes, as any slow path, each up to the lock timeout.
 */
#include "face.h"

/* ---- before, in the parent ---- */

static void take_heir_slot(vm_thread *t, vm_heir *heir)
{
    vm_region *r = t->region;
    if (vm__tie(r, &heir->tie) != 0)
        return;
    bool has_slot = vm__take_process(r, true, &heir->tie, &heir->process, &heir->process_inc);
    if (!has_slot) {
        vm__enter(t);
        vm__recover_dead(t, 0, NULL);
        vm__leave(t);
        has_slot = vm__take_process(r, true, &heir->tie, &heir->process, &heir->process_inc);
    }
    if (has_slot)
        vm__tie_without_number(r, &heir->tie);
    else
        vm__untie(r, &heir->tie);
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
 * if that took too long. ENOMEM. */
static int bequeath_range(vm_thread *t, vm_heir *heir, uint64_t page, bool may_wait)
{
    vm_region *r = t->region;
    VM_ASSERT_RANK_HELD(r, VM_RANK_HOLDER);
    uint64_t id = 0;
    int rc = -ESTALE;
    for (int i = 0; rc == -ESTALE && i < SHARE_ATTEMPTS; i++) {
        id = VM_ACQUIRE(&r->map.heads[page].aux);
        rc = VM_ACQUIRE(&r->map.heads[page].word) & VM_WORD_SHARED ? vm__hold_for(t, page, id, heir->process, may_wait)
                                                                   : vm__share_for(t, page, id, heir->process);
    }
    if (rc == 0 && heir->process < VM_PROCESSES && remember(heir, page, id, r->references[page].count))
        return 0;
    if (rc == 0 || rc == -EBUSY || rc == -EINTR) /* nobody can hold it for the child: we never let go of it */
        r->references[page].count++;
    return rc == -ENOENT || rc == -ESTALE ? 0 : rc;
}

/* Walk the words: what this process holds, its child will. */
static int bequeath(vm_thread *t, vm_heir *heir)
{
    vm_region *r = t->region;
    VM_ASSERT_RANK_HELD(r, VM_RANK_HOLDER);
    uint64_t page = 0;
    bool may_wait = true; /* one time-out for the whole walk */
    if (r->map.flags & (VM_FLAG_NO_DATA | VM_FLAG_KEEP))
        return 0;
    int rc = vm__space_lock(t, 0);
    if (rc)
        return rc;
    for (vm_word w; rc != -ENOMEM && (w = vm__word_at(r, page)); page += vm__len(w))
        if (vm__state(w) == VM_BUSY || (vm__state(w) == VM_FREEING && w & VM_WORD_SHARED)) {
            rc = bequeath_range(t, heir, page, may_wait);
            may_wait = may_wait && rc == 0;
        }
    vm__space_unlock(t);
    return rc == -ENOMEM ? rc : 0;
}

static void untie_heir(const vm_region *r, vm_heir *heir)
{
    vm__untie(r, &heir->tie); /* the child, if there is one, has inherited it */
    heir->process = VM_PROCESSES;
}

static void prepare_region(vm_region *r)
{
    vm_thread *t = r->is_leaving ? NULL : vm__thread_find(r, false);
    r->heir = (vm_heir){.tie.fd = -1, .process = VM_PROCESSES};
    bool is_usable = t && vm__health(r) == 0;
    if (is_usable)
        take_heir_slot(t, &r->heir);
    vm__mutex_lock(r, &r->common_mutex, VM_RANK_COMMON);
    vm__mutex_lock(r, &r->tick_mutex, VM_RANK_TICK);
    vm__mutex_lock(r, &r->recover_mutex, VM_RANK_RECOVER);
    vm__mutex_lock(r, &r->holder_mutex, VM_RANK_HOLDER);
    if (is_usable && bequeath(t, &r->heir) != 0)
        untie_heir(r, &r->heir); /* a stopped process has space_lock, or no memory: the child must do without */
}

static void before_fork(void)
{
    vm__registry_lock();
    vm__helpers_stop();
    for (vm_region *r = vm__registry(); r; r = r->next)
        prepare_region(r);
}

/* ---- after ---- */

static void unlock_region(vm_region *r)
{
    vm__mutex_unlock(r, &r->holder_mutex, VM_RANK_HOLDER);
    vm__mutex_unlock(r, &r->recover_mutex, VM_RANK_RECOVER);
    vm__mutex_unlock(r, &r->tick_mutex, VM_RANK_TICK);
    vm__mutex_unlock(r, &r->common_mutex, VM_RANK_COMMON);
}

/* The fork failed, or the child is gone already: nobody has the heir's lock. */
static void recover_child(vm_region *r, uint32_t child)
{
    vm_thread *t = vm__thread_find(r, false);
    if (!t || child >= VM_PROCESSES || !vm__process_is_dead(r, child))
        return;
    vm__enter(t);
    vm__recover_dead(t, VM_NO_WAIT, NULL);
    vm__leave(t);
}

static void in_parent(void)
{
    for (vm_region *r = vm__registry(); r; r = r->next) {
        uint32_t child = r->heir.process;
        untie_heir(r, &r->heir);
        free(r->heir.range);
        r->heir.range = NULL;
        unlock_region(r);
        recover_child(r, child);
    }
    vm__helpers_note_missing();
    vm__registry_unlock();
}

static void in_child(void)
{
    vm__forget_threads();
    for (vm_region *r = vm__registry(); r; r = r->next) {
        free(r->inheritance.range);
        r->inheritance = r->heir;
        r->heir.range = NULL;
        r->tie = r->heir.tie; /* the parent's own did not come along */
        r->heir.tie = (vm_tie){.fd = -1};
        if (r->tie.page)
            vm__tie_to_this_process(&r->tie);
        r->process = r->heir.process;
        r->process_inc = r->heir.process_inc;
        r->attachment = vm__new_attachment();
        vm__set_hit_keys(r);
        *r->wiped = 1;
        if (r->process < VM_PROCESSES)
            VM_PUT(&r->map.processes[r->process].pid, vm__pid());
        for (size_t i = 0; r->process < VM_PROCESSES && i < r->inheritance.nr; i++)
            vm__inherit(r, &r->inheritance.range[i]);
        unlock_region(r);
    }
    vm__helpers_note_missing();
    vm__registry_unlock();
}

void vm__register_fork(void) { pthread_atfork(before_fork, in_parent, in_child); }
