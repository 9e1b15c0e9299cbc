/* SPDX-License-Identifier: MIT */
/* Walk: look at every word, under space_lock or, where nothing may be written, until two looks agree. */
#include "face.h"

#define LOOKS 100
#define LOOK_PAUSE_NS 1000000
#define LOOKS_NS 100000000 /* a look at many ranges takes long: then fewer */

/* Sums that change when a boundary does, nearly always. */
static uint64_t moves(const vm_region *r)
{
    return VM_ACQUIRE(&r->map.h->nr_splits) + VM_ACQUIRE(&r->map.h->nr_merges);
}

static int look_unlocked(vm_region *r, int (*walk)(vm_region *, void *), void *arg)
{
    int rc = 0;
    uint64_t begin = vm__now_ns();
    for (int i = 0; i < LOOKS && (i == 0 || vm__now_ns() - begin < LOOKS_NS); i++) {
        uint64_t before = moves(r);
        bool is_quiet = !VM_ACQUIRE(&r->map.h->space_lock.owner);
        rc = walk(r, arg);
        is_quiet = is_quiet && !VM_ACQUIRE(&r->map.h->space_lock.owner) && moves(r) == before;
        if ((rc == 0 && is_quiet) || rc == -ENOMEM)
            break;
        vm__sleep_ns(LOOK_PAUSE_NS);
    }
    return rc;
}

int vm__look(vm_region *r, vm_thread *t, int (*walk)(vm_region *, void *), void *arg)
{
    if (!t)
        return look_unlocked(r, walk, arg);
    int rc = vm__space_lock(t, 0);
    if (rc == -EUCLEAN) /* the index cannot be rebuilt, but one can look */
        rc = vm__lock(t, &r->map.h->space_lock, 0);
    if (rc)
        return rc;
    rc = walk(r, arg);
    vm__space_unlock(t);
    return rc;
}

vm_thread *vm__look_enter(vm_region *r, int *rc)
{
    vm_thread *t = r->readonly ? NULL : vm__thread(r);
    *rc = t || r->readonly ? 0 : vm__thread_error(r);
    if (t)
        vm__enter(t);
    return t;
}
void vm__look_leave(vm_thread *t)
{
    if (t)
        vm__leave(t);
}

typedef struct picture {
    vm_range_info *info;
    size_t nr, room;
} picture;

vm_range_info vm__range_info(const vm_region *r, uint64_t page, vm_word w)
{
    bool is_busy = vm__state(w) == VM_BUSY || vm__state(w) == VM_FREEING;
    return (vm_range_info){page,
                           vm__len(w),
                           is_busy ? VM_ACQUIRE(&r->map.heads[page].aux) : 0,
                           vm__state(w),
                           vm__owner(w),
                           (w & VM_WORD_SHARED) != 0,
                           (w & VM_WORD_DIRTY) != 0};
}

static int copy_range(picture *p, const vm_region *r, uint64_t page, vm_word w)
{
    if (p->nr == p->room) {
        size_t room = p->room ? 2 * p->room : 1024;
        vm_range_info *grown = realloc(p->info, room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        p->info = grown;
        p->room = room;
    }
    p->info[p->nr++] = vm__range_info(r, page, w);
    return 0;
}

static int copy_all(vm_region *r, void *arg)
{
    picture *p = arg;
    uint64_t page = 0;
    int rc = 0;
    p->nr = 0;
    for (vm_word w; rc == 0 && (w = vm__word_at(r, page)); page += vm__len(w))
        rc = copy_range(p, r, page, w);
    return rc ? rc : page == r->map.nr_pages ? 0 : VM_CORRUPT(r);
}

/* Copied under the lock, told outside it: a callback may allocate. */
int vm_walk(vm_region *r, int (*each)(void *, const vm_range_info *), void *arg)
{
    int rc;
    picture p = {0};
    vm_thread *t = vm__look_enter(r, &rc);
    if (rc == 0)
        rc = vm__look(r, t, copy_all, &p);
    vm__look_leave(t);
    for (size_t i = 0; rc == 0 && i < p.nr; i++)
        rc = each(arg, &p.info[i]);
    free(p.info);
    return rc;
}
