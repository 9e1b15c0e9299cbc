/* SPDX-License-Identifier: MIT */
/*
 * Names: references that the region itself holds, until deleted or the region ends.
 *
 * A named range's holder is the process slot VM_PROCESS_NAMES, which never dies. An entry is filled
 * in and then committed by its `state`, the range's id; a half-filled one is unused. Two names of
 * one range share the holder bit, so deleting one looks for the other.
 *
 * Locks: names_lock; mend() takes space_lock inside it. Nothing to repair after a death but a holder
 * bit no name stands for.
 */
#include "internal.h"

static uint64_t *names_holder(vm_region *r, uint64_t page)
{
    return &r->sharings[page].holders[VM_PROCESS_NAMES / 64];
}
#define NAMES_BIT (1ull << VM_PROCESS_NAMES % 64)

static vm_name *find(vm_region *r, const char *name)
{
    for (uint32_t i = 0; i < VM_NAMES; i++) {
        vm_name *n = &r->names[i];
        if (VM_LOAD(&n->state) && strncmp(n->name, name, VM_NAME_BYTES) == 0)
            return n;
    }
    return NULL;
}

static vm_name *find_unused(vm_region *r)
{
    for (uint32_t i = 0; i < VM_NAMES; i++)
        if (!VM_LOAD(&r->names[i].state))
            return &r->names[i];
    return NULL;
}

bool vm__is_named(const vm_region *r, uint64_t page, uint64_t id)
{
    for (uint32_t i = 0; i < VM_NAMES; i++)
        if (VM_LOAD(&r->names[i].state) == id && VM_PEEK(&r->names[i].page) == page)
            return true;
    return false;
}

bool vm__names_hold(const vm_region *r, uint64_t page)
{
    return VM_LOAD(&r->sharings[page].holders[VM_PROCESS_NAMES / 64]) & NAMES_BIT;
}
void vm__hold_for_name(vm_region *r, uint64_t page) { VM_OR(names_holder(r, page), NAMES_BIT); }

/* Drop the names' holder bit of a shared range that has none. [names_lock] */
bool vm__unhold_unnamed(vm_region *r, uint64_t page)
{
    if (!vm__names_hold(r, page) || vm__is_named(r, page, VM_LOAD(&r->heads[page].aux)))
        return false;
    VM_AND(names_holder(r, page), ~NAMES_BIT);
    return true;
}

/* Who died with the lock may have left a holder bit that no name stands for. [names_lock] */
static int mend(vm_region *r, vm_thread *t)
{
    VM_ASSERT_HELD(t, &r->h->names_lock);
    int rc = vm__space_lock(r, t, 0);
    if (rc)
        return rc;
    uint64_t page = 0;
    for (vm_word w; (w = vm__scan(r, page)); page += vm__len(w)) {
        bool is_shared = w & VM_WORD_SHARED && (vm__state(w) == VM_BUSY || vm__state(w) == VM_FREEING);
        if (is_shared)
            vm__unhold_unnamed(r, page);
    }
    vm__space_unlock(r, t);
    VM_PUT(&r->h->purge_needs_scan, 1); /* it takes what nobody holds now */
    return page == r->nr_pages ? 0 : VM_CORRUPT(r);
}

int vm__names_lock(vm_region *r, vm_thread *t)
{
    vm_lock *lock = &r->h->names_lock;
    int rc = vm__lock(r, t, lock, 0);
    if (rc || vm_likely(!VM_PEEK(&lock->needs_repair)))
        return rc;
    rc = mend(r, t);
    if (rc == 0)
        VM_STORE(&lock->needs_repair, 0);
    else
        vm__unlock(r, t, lock);
    return rc;
}

/* [names_lock] */
static void drop_if_unnamed(vm_region *r, vm_thread *t, uint64_t page, uint64_t id)
{
    if (page >= r->nr_pages || vm__is_named(r, page, id) || VM_LOAD(&r->heads[page].aux) != id)
        return;
    VM_AND(names_holder(r, page), ~NAMES_BIT);
    vm__release_if_unheld(r, t, page);
}

static void copy_in(void *to, const void *from, size_t bytes)
{
    VM_FAULT();
    memcpy(to, from, bytes);
}

static int check_name(const char *name) { return *name && strlen(name) < VM_NAME_BYTES ? 0 : -EINVAL; }

/* The names hold it too, unless another thread of ours let go of it meanwhile. */
static bool hold_while_held(vm_region *r, uint64_t page, uint64_t id)
{
    pthread_mutex_lock(&r->holder_mutex);
    bool is_held = vm__holds(r, page, id);
    if (is_held)
        vm__hold_for_name(r, page);
    pthread_mutex_unlock(&r->holder_mutex);
    return is_held;
}

/* [names_lock] */
static int name_set(vm_region *r, vm_thread *t, const char *name, uint64_t page, uint64_t id, const void *meta,
                    size_t bytes, bool must_be_new)
{
    vm_name *old = find(r, name), *n = find_unused(r);
    if (old && must_be_new)
        return -EEXIST;
    if (!n)
        return -ENFILE;
    if (!hold_while_held(r, page, id))
        return -ENOENT;
    VM_PUT(&n->page, page);
    VM_PUT(&n->meta_bytes, (uint32_t)bytes);
    copy_in(n->name, name, strlen(name) + 1);
    if (bytes)
        copy_in(n->meta, meta, bytes);
    uint64_t old_page = old ? VM_PEEK(&old->page) : 0, old_id = old ? VM_LOAD(&old->state) : 0;
    if (old) /* replaced: for a moment neither is there, never both */
        VM_STORE(&old->state, 0);
    VM_STORE(&n->state, id);
    if (old)
        drop_if_unnamed(r, t, old_page, old_id);
    return 0;
}

/* [names_lock] */
static int name_get(vm_region *r, vm_thread *t, const char *name, vm_range *out, void *meta, size_t *bytes)
{
    vm_name *n = find(r, name);
    int rc = n ? vm__adopt(r, t, VM_PEEK(&n->page), VM_LOAD(&n->state), out) : -ENOENT;
    if (rc)
        return rc;
    size_t said = VM_PEEK(&n->meta_bytes), have = said > VM_NAME_META_BYTES ? 0 : said;
    *bytes = have < *bytes ? have : *bytes;
    memcpy(meta, n->meta, *bytes);
    return 0;
}

/* [names_lock] */
static int name_delete(vm_region *r, vm_thread *t, const char *name)
{
    vm_name *n = find(r, name);
    if (!n)
        return -ENOENT;
    uint64_t page = VM_PEEK(&n->page), id = VM_LOAD(&n->state);
    VM_STORE(&n->state, 0);
    drop_if_unnamed(r, t, page, id);
    return 0;
}

static int enter_names(vm_region *r, vm_thread *t)
{
    vm__enter(t);
    int rc = vm__names_lock(r, t);
    if (rc)
        vm__leave(t);
    return rc;
}
static void leave_names(vm_region *r, vm_thread *t)
{
    vm__unlock(r, t, &r->h->names_lock);
    vm__leave(t);
}

/* The caller holds a reference, so the range cannot go away meanwhile. */
static int set(vm_region *r, const char *name, uint64_t page, uint64_t id, const void *meta, size_t bytes,
               bool must_be_new)
{
    vm_thread *t = vm__thread(r);
    int rc = t ? check_name(name) : vm__thread_error(r);
    if (rc == 0 && bytes > VM_NAME_META_BYTES)
        rc = -EINVAL;
    if (rc == 0)
        rc = enter_names(r, t);
    if (rc)
        return rc;
    rc = vm__share(r, t, page, id);
    if (rc == 0)
        rc = name_set(r, t, name, page, id, meta, bytes, must_be_new);
    leave_names(r, t);
    return rc;
}

int vm_name_set(vm_region *r, const char *name, uint64_t page, uint64_t id, const void *meta, size_t bytes)
{
    return set(r, name, page, id, meta, bytes, false);
}

int vm_name_new(vm_region *r, const char *name, uint64_t page, uint64_t id, const void *meta, size_t bytes)
{
    return set(r, name, page, id, meta, bytes, true);
}

int vm_name_get(vm_region *r, const char *name, vm_range *out, void *meta, size_t *bytes)
{
    vm_thread *t = vm__thread(r);
    int rc = t ? enter_names(r, t) : vm__thread_error(r);
    if (rc)
        return rc;
    rc = name_get(r, t, name, out, meta, bytes);
    leave_names(r, t);
    return rc;
}

int vm_name_delete(vm_region *r, const char *name)
{
    vm_thread *t = vm__thread(r);
    int rc = t ? enter_names(r, t) : vm__thread_error(r);
    if (rc)
        return rc;
    rc = name_delete(r, t, name);
    leave_names(r, t);
    return rc;
}

int vm_name_list(vm_region *r, int (*each)(void *, const char *, uint64_t page), void *arg)
{
    for (uint32_t i = 0; i < VM_NAMES; i++) {
        vm_name *n = &r->names[i];
        if (!VM_LOAD(&n->state))
            continue;
        char name[VM_NAME_BYTES];
        memcpy(name, n->name, sizeof name);
        name[VM_NAME_BYTES - 1] = 0;
        int rc = each(arg, name, VM_PEEK(&n->page));
        if (rc)
            return rc;
    }
    return 0;
}
