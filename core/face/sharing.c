/* SPDX-License-Identifier: MIT */
/* Sharing: the public side of holders, leases and names. The caller holds a reference to what it shares or names. */
#include "face.h"

/* `t` for one call, entered; NULL with the reason in *rc. */
static vm_thread *enter(vm_region *r, int *rc)
{
    vm_thread *t = vm__thread(r);
    *rc = t ? vm__health(r) : vm__thread_error(r);
    if (*rc)
        return NULL;
    vm__enter(t);
    return t;
}

/* The body of a public function: one call of the layer below, between enter and leave. */
#define ENTERED(r, call)              \
    do {                              \
        int rc;                       \
        vm_thread *t = enter(r, &rc); \
        if (t) {                      \
            rc = (call);              \
            vm__leave(t);             \
        }                             \
        return rc;                    \
    } while (0)

int vm_share(vm_region *r, uint64_t page, uint64_t id) { ENTERED(r, vm__share(t, page, id)); }

/* Reference a range another process shared; pair each with a vm_free(). */
int vm_adopt(vm_region *r, uint64_t page, uint64_t id, vm_range *out) { ENTERED(r, vm__adopt(t, page, id, out)); }

static int drop_inherited(vm_thread *t, uint64_t *nr_ranges)
{
    *nr_ranges = vm__drop_inherited(t);
    return 0;
}
uint64_t vm_nr_inherited(const vm_region *r) { return r->inheritance.nr; }
int vm_drop_inherited(vm_region *r, uint64_t *nr_ranges) { ENTERED(r, drop_inherited(t, nr_ranges)); }

int vm_lease(vm_region *r, uint64_t page, uint64_t id, uint64_t *lease)
{
    ENTERED(r, vm__lease(t, page, id, false, 0, lease));
}
int vm_lease_message(vm_region *r, uint64_t page, uint64_t id, uint64_t channel, uint64_t *lease)
{
    ENTERED(r, vm__lease(t, page, id, true, channel, lease));
}
uint64_t vm_channel_of(int fd) { return vm__channel_of(fd); }
bool vm_are_being_sent(vm_region *r, const vm_lease_name *leases, size_t nr, uint64_t channel)
{
    return vm__are_being_sent(r, leases, nr, channel);
}
int vm_move_leases(vm_region *r, const vm_lease_name *leases, size_t nr, vm_move move, uint64_t channel)
{
    ENTERED(r, vm__move_leases(t, leases, nr, move, channel));
}
void vm_mark_reads(vm_region *r, bool marks)
{
    r->marks_reads = marks;
    if (r->process < VM_PROCESSES && !r->readonly)
        VM_PUT(&r->map.processes[r->process].marks_reads, marks);
}
int vm_end_oldest(vm_region *r, uint64_t nr_pages, uint64_t *nr_ended)
{
    ENTERED(r, vm__end_oldest(t, nr_pages, nr_ended));
}
int vm_claim(vm_region *r, uint64_t page, uint64_t id, uint64_t lease, vm_range *out)
{
    ENTERED(r, vm__claim(t, page, id, lease, out));
}
int vm_drop_lease(vm_region *r, uint64_t lease) { ENTERED(r, vm__drop_lease(t, lease)); }

int vm_name_set(vm_region *r, const char *name, uint64_t page, uint64_t id, const void *meta, size_t bytes)
{
    ENTERED(r, vm__name_set(t, name, page, id, meta, bytes, false));
}
int vm_name_new(vm_region *r, const char *name, uint64_t page, uint64_t id, const void *meta, size_t bytes)
{
    ENTERED(r, vm__name_set(t, name, page, id, meta, bytes, true));
}
int vm_name_get(vm_region *r, const char *name, vm_range *out, void *meta, size_t *bytes)
{
    ENTERED(r, vm__name_get(t, name, out, meta, bytes));
}
int vm_name_delete(vm_region *r, const char *name) { ENTERED(r, vm__name_delete(t, name)); }
int vm_name_list(vm_region *r, int (*each)(void *, const char *, uint64_t page), void *arg)
{
    return vm__name_list(r, each, arg);
}
