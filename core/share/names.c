/* SPDX-License-Identifier: MIT */
/*
 * Names: references that the region itself holds, until deleted or the region ends.
 *
 * A named range's holder is the process slot after those of processes, which never dies. An entry is filled
 * in and then committed by its `state`, the range's id; a half-filled one is unused. Two names of
 * one range share the holder bit, so deleting one looks for the other.
 *
 * After a death with names_lock there is nothing to mend but a holder bit that no name stands for.
 */
#include "share.h"

static uint64_t *names_holder(const vm_region *r, uint64_t page)
{
    return vm__holder_word(r, page, r->map.nr_processes);
}
#define NAMES_BIT 1ull /* vm__holder_of() */

static vm_name *find(vm_region *r, const char *name)
{
    for (uint32_t i = 0; i < VM_NAMES_MAX; i++) {
        vm_name *n = &r->map.names[i];
        if (VM_ACQUIRE(&n->state) && strncmp(n->name, name, VM_NAME_BYTES) == 0)
            return n;
    }
    return NULL;
}

static vm_name *find_unused(vm_region *r)
{
    for (uint32_t i = 0; i < VM_NAMES_MAX; i++)
        if (!VM_ACQUIRE(&r->map.names[i].state))
            return &r->map.names[i];
    return NULL;
}

bool vm__is_named(const vm_region *r, uint64_t page, uint64_t id)
{
    for (uint32_t i = 0; i < VM_NAMES_MAX; i++)
        if (VM_ACQUIRE(&r->map.names[i].state) == id && VM_RELAXED(&r->map.names[i].page) == page)
            return true;
    return false;
}

bool vm__names_hold(const vm_region *r, uint64_t page) { return VM_ACQUIRE(names_holder(r, page)) & NAMES_BIT; }
void vm__hold_for_name(vm_region *r, uint64_t page) { VM_OR(names_holder(r, page), NAMES_BIT); }

/* Drop the names' holder bit of a shared range that has none. */
bool vm__unhold_unnamed(vm_region *r, uint64_t page)
{
    VM_ASSERT_RANK_HELD(r, VM_RANK_NAMES);
    if (!vm__names_hold(r, page) || vm__is_named(r, page, VM_ACQUIRE(&r->map.heads[page].aux)))
        return false;
    VM_AND(names_holder(r, page), ~NAMES_BIT);
    return true;
}

/* Who died with the lock may have left a holder bit that no name stands for. */
static int mend(vm_thread *t, unsigned flags)
{
    vm_region *r = t->region;
    VM_ASSERT_HELD(t, &r->map.h->names_lock);
    int rc = vm__space_lock(t, flags);
    if (rc)
        return rc;
    uint64_t page = 0;
    for (vm_word w; (w = vm__word_at(r, page)); page += vm__len(w)) {
        if (vm__is_shared(w))
            vm__unhold_unnamed(r, page);
    }
    vm__space_unlock(t);
    VM_PUT(&r->map.h->purge_needs_scan, 1); /* it takes what nobody holds now */
    return page == r->map.nr_pages ? 0 : VM_CORRUPT(r);
}

int vm__names_lock(vm_thread *t, unsigned flags)
{
    vm_region *r = t->region;
    vm_lock *lock = &r->map.h->names_lock;
    int rc = vm__lock(t, lock, flags);
    if (rc || vm_likely(!VM_RELAXED(&lock->needs_mending)))
        return rc;
    rc = mend(t, flags);
    if (rc == 0)
        VM_STORE(&lock->needs_mending, 0);
    else
        vm__unlock(t, lock);
    return rc;
}

static void drop_if_unnamed(vm_thread *t, uint64_t page, uint64_t id)
{
    vm_region *r = t->region;
    VM_ASSERT_RANK_HELD(r, VM_RANK_NAMES);
    if (page >= r->map.nr_pages || vm__is_named(r, page, id) || VM_ACQUIRE(&r->map.heads[page].aux) != id)
        return;
    VM_AND(names_holder(r, page), ~NAMES_BIT);
    vm__release_if_unheld(t, page);
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
    vm__mutex_lock(r, &r->holder_mutex, VM_RANK_HOLDER);
    bool is_held = vm__holds(r, page, id);
    if (is_held)
        vm__hold_for_name(r, page);
    vm__mutex_unlock(r, &r->holder_mutex, VM_RANK_HOLDER);
    return is_held;
}

static int name_set(vm_thread *t, const char *name, uint64_t page, uint64_t id, const void *meta, size_t bytes,
                    bool must_be_new)
{
    vm_region *r = t->region;
    VM_ASSERT_RANK_HELD(r, VM_RANK_NAMES);
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
    uint64_t old_page = old ? VM_RELAXED(&old->page) : 0, old_id = old ? VM_ACQUIRE(&old->state) : 0;
    if (old) /* replaced: for a moment neither is there, never both */
        VM_STORE(&old->state, 0);
    VM_STORE(&n->state, id);
    if (old)
        drop_if_unnamed(t, old_page, old_id);
    return 0;
}

int vm__name_set(vm_thread *t, const char *name, uint64_t page, uint64_t id, const void *meta, size_t bytes,
                 bool must_be_new)
{
    int rc = check_name(name);
    if (rc == 0 && bytes > VM_NAME_META_BYTES_MAX)
        rc = -EINVAL;
    if (rc == 0)
        rc = vm__names_lock(t, 0);
    if (rc)
        return rc;
    rc = vm__share(t, page, id);
    if (rc == 0)
        rc = name_set(t, name, page, id, meta, bytes, must_be_new);
    vm__unlock(t, &t->region->map.h->names_lock);
    return rc;
}

static int name_get(vm_thread *t, const char *name, vm_range *out, void *meta, size_t *bytes)
{
    VM_ASSERT_RANK_HELD(t->region, VM_RANK_NAMES);
    vm_name *n = find(t->region, name);
    int rc = n ? vm__adopt(t, VM_RELAXED(&n->page), VM_ACQUIRE(&n->state), out) : -ENOENT;
    if (rc)
        return rc;
    size_t said = VM_RELAXED(&n->meta_bytes), have = said > VM_NAME_META_BYTES_MAX ? 0 : said;
    *bytes = have < *bytes ? have : *bytes;
    memcpy(meta, n->meta, *bytes);
    return 0;
}

int vm__name_get(vm_thread *t, const char *name, vm_range *out, void *meta, size_t *bytes)
{
    int rc = vm__names_lock(t, 0);
    if (rc)
        return rc;
    rc = name_get(t, name, out, meta, bytes);
    vm__unlock(t, &t->region->map.h->names_lock);
    return rc;
}

static int name_delete(vm_thread *t, const char *name)
{
    VM_ASSERT_RANK_HELD(t->region, VM_RANK_NAMES);
    vm_name *n = find(t->region, name);
    if (!n)
        return -ENOENT;
    uint64_t page = VM_RELAXED(&n->page), id = VM_ACQUIRE(&n->state);
    VM_STORE(&n->state, 0);
    drop_if_unnamed(t, page, id);
    return 0;
}

int vm__name_delete(vm_thread *t, const char *name)
{
    int rc = vm__names_lock(t, 0);
    if (rc)
        return rc;
    rc = name_delete(t, name);
    vm__unlock(t, &t->region->map.h->names_lock);
    return rc;
}

int vm__name_list(vm_region *r, int (*each)(void *, const char *, uint64_t page), void *arg)
{
    for (uint32_t i = 0; i < VM_NAMES_MAX; i++) {
        vm_name *n = &r->map.names[i];
        if (!VM_ACQUIRE(&n->state))
            continue;
        char name[VM_NAME_BYTES];
        memcpy(name, n->name, sizeof name);
        name[VM_NAME_BYTES - 1] = 0;
        int rc = each(arg, name, VM_RELAXED(&n->page));
        if (rc)
            return rc;
    }
    return 0;
}
