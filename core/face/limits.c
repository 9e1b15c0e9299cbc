/* SPDX-License-Identifier: MIT */
/* Limits: what bounds a region, who holds how much of it, and why a request finds no room. */
#include "face.h"

int vm_get_limits(vm_region *r, vm_limits *out)
{
    const vm_header *h = r->map.h;
    *out = (vm_limits){
        .limit_pages = VM_RELAXED(&h->limit_pages),
        .soft_limit_pages = VM_RELAXED(&h->soft_limit_pages),
        .quota_pages = VM_RELAXED(&h->quota_pages),
        .floor_pages = VM_RELAXED(&h->floor_pages),
    };
    return 0;
}

int vm_set_limit(vm_region *r, vm_limit which, uint64_t nr_pages)
{
    vm_header *h = r->map.h;
    if (!vm__thread(r))
        return vm__thread_error(r);
    int health = vm__health(r);
    if (vm_unlikely(health))
        return health;
    uint64_t *const at[] = {
        [VM_LIMIT] = &h->limit_pages,
        [VM_SOFT_LIMIT] = &h->soft_limit_pages,
        [VM_QUOTA] = &h->quota_pages,
        [VM_FLOOR] = &h->floor_pages,
    };
    if ((unsigned)which >= sizeof at / sizeof *at)
        return -EINVAL;
    bool is_new = which == VM_QUOTA && nr_pages && !VM_RELAXED(at[which]);
    VM_STORE(at[which], nr_pages);
    if (is_new)
        vm__charge_all(r);
    return 0;
}

/* ---- who holds how much ---- */

static int most_first(const void *a, const void *b)
{
    const vm_holding *x = a, *y = b;
    return x->nr_pages < y->nr_pages ? 1 : x->nr_pages > y->nr_pages ? -1 : 0;
}

int vm__list_held(const vm_region *r, const uint64_t held[VM_PROCESSES], const uint64_t once[VM_PROCESSES],
                  bool idle_too, size_t room, vm_holding *out)
{
    vm_holding all[VM_PROCESSES];
    size_t nr = 0;
    for (uint32_t p = 0, high = vm__high_process(r); p <= r->map.nr_processes; p++)
        if (held[p] || (idle_too && p < high && (uint32_t)VM_RELAXED(&r->map.processes[p].state)))
            all[nr++] = (vm_holding){p, VM_RELAXED(&r->map.processes[p].pid), held[p], once[p]};
    qsort(all, nr, sizeof *all, most_first);
    nr = nr < room ? nr : room;
    memcpy(out, all, nr * sizeof *all);
    return (int)nr;
}

static int count_and_list(const vm_region *r, bool idle_too, size_t room, vm_holding *out)
{
    uint64_t held[VM_PROCESSES], once[VM_PROCESSES];
    vm__count_held(r, false, held);
    vm__count_held(r, true, once);
    return vm__list_held(r, held, once, idle_too, room, out);
}

int vm_holdings(vm_region *r, size_t room, vm_holding *out) { return count_and_list(r, false, room, out); }

int vm_processes(vm_region *r, size_t room, vm_holding *out) { return count_and_list(r, true, room, out); }

uint64_t vm_cgroup_limit(void) { return vm__cgroup_limit(); }

/* ---- why not ---- */

int vm_explain(vm_region *r, uint64_t nr_pages, int error, vm_shortage *out)
{
    vm_stats s;
    int rc = vm_get_stats(r, &s);
    if (rc)
        return rc;
    *out = (vm_shortage){
        .free_pages = s.free_pages,
        .largest_free_pages = s.largest_free_pages,
        .busy_pages = s.busy_pages,
        .lazy_pages = s.lazy_pages,
        .headroom_pages = r->map.flags & VM_FLAG_NO_DATA ? UINT64_MAX : vm__headroom_pages(r),
    };
    vm_get_limits(r, &out->limits);
    uint64_t used = s.nr_pages - s.free_pages, limit = out->limits.limit_pages;
    if (error == -EDQUOT)
        out->cause = VM_CAUSE_QUOTA;
    else if (limit && used + nr_pages > limit)
        out->cause = VM_CAUSE_LIMIT;
    else if (used + nr_pages > out->headroom_pages)
        out->cause = vm__cgroup_is_tightest() ? VM_CAUSE_CGROUP : VM_CAUSE_MEMORY;
    else
        out->cause = VM_CAUSE_SPACE;
    return 0;
}
