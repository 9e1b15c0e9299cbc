/* SPDX-License-Identifier: MIT */
/* Windows: what a process without a slot and without a mapping receives, and what becomes of the lease. */
#include "kit.h"

static vm_region *make(vm_pools d) { return MAKE(.nr_pages = 3000, .pools = d, SMALL); }

static vm_window *window_of(vm_region *r)
{
    vm_window *w = NULL;
    CHECK_EQ(vm_window_open(vm_fd(r), false, &w), 0);
    return w;
}

/* A range of three pages, of sevens and an eight at the end, that only a lease keeps. */
static vm_range send_sevens(vm_region *r, uint64_t *lease)
{
    vm_range a = take(r, 3);
    memset(vm_pointer(r, a.page), 7, 3 * 4096 - 1);
    ((char *)vm_pointer(r, a.page))[3 * 4096 - 1] = 8;
    CHECK_EQ(vm_lease(r, a.page, a.id, lease), 0);
    GIVE_BACK(r, a);
    return a;
}

static void what_a_lease_keeps_can_be_read_and_then_the_lease_ends(vm_pools d)
{
    vm_region *r = make(d);
    vm_window *w = window_of(r);
    uint64_t lease;
    char got[4];
    vm_range a = send_sevens(r, &lease);
    CHECK_EQ(vm_window_read(w, a.page, a.id, 3 * 4096 - 2, 2, got), 0);
    CHECK(got[0] == 7 && got[1] == 8);
    CHECK_EQ(stats_of(r).nr_processes, 1);
    CHECK_EQ(vm_tick(r), 0);
    CHECK_EQ(stats_of(r).nr_leases, 1); /* not before it is done */
    vm_window_done(w, lease);
    CHECK_EQ(stats_of(r).busy_pages, 3);
    CHECK_EQ(vm_tick(r), 0);
    CHECK_EQ(stats_of(r).nr_leases, 0);
    CHECK_EQ(stats_of(r).busy_pages, 0);
    vm_window_close(w);
    FINISH(r);
}

static void what_is_not_there_cannot_be_read(vm_pools d)
{
    vm_region *r = make(d);
    vm_window *w = window_of(r);
    uint64_t lease;
    char got[2] = {1, 1};
    vm_range a = send_sevens(r, &lease), own = take(r, 2);
    CHECK_EQ(vm_window_read(w, a.page, a.id + 1, 0, 2, got), -ESTALE);
    CHECK_EQ(vm_window_read(w, a.page + 1, a.id, 0, 2, got), -ESTALE);
    CHECK_EQ(vm_window_read(w, UINT64_MAX, a.id, 0, 2, got), -ESTALE);
    CHECK_EQ(vm_window_read(w, a.page, a.id, 3 * 4096 - 1, 2, got), -ESTALE); /* past its end */
    CHECK_EQ(vm_window_read(w, a.page, a.id, UINT64_MAX, 2, got), -ESTALE);
    CHECK_EQ(vm_window_read(w, a.page, a.id, 1, UINT64_MAX, got), -ESTALE);
    CHECK_EQ(vm_window_read(w, own.page, own.id, 0, 2, got), -ESTALE); /* nobody shared it */
    CHECK(got[0] == 1 && got[1] == 1);
    vm_window_done(w, lease + 1);
    vm_window_done(w, 0);
    CHECK_EQ(vm_tick(r), 0);
    CHECK_EQ(stats_of(r).nr_leases, 1);
    CHECK_EQ(vm_drop_lease(r, lease), 0);
    CHECK_EQ(vm_window_read(w, a.page, a.id, 0, 2, got), -ESTALE);
    GIVE_BACK(r, own);
    vm_window_close(w);
    FINISH(r);
}

static void a_mark_that_comes_late_ends_no_other_lease(vm_pools d)
{
    vm_region *r = make(d);
    vm_window *w = window_of(r);
    uint64_t first, second;
    send_sevens(r, &first);
    CHECK_EQ(vm_drop_lease(r, first), 0);
    send_sevens(r, &second);
    CHECK_EQ(second % VM_LEASES_MAX, first % VM_LEASES_MAX); /* the same entry */
    r->map.leases[second % VM_LEASES_MAX].read_id = first;
    r->map.h->leases_read = 1;
    vm_window_done(w, first);
    CHECK_EQ(vm_tick(r), 0);
    CHECK_EQ(stats_of(r).nr_leases, 1);
    CHECK_EQ(vm_drop_lease(r, second), 0);
    vm_window_close(w);
    FINISH(r);
}

static void a_full_table_has_room_again_when_some_were_read(vm_pools d)
{
    vm_region *r = make(d);
    vm_window *w = window_of(r);
    uint64_t lease, another;
    vm_range a = take(r, 1);
    for (uint32_t i = 0; i < VM_LEASES_MAX; i++)
        CHECK_EQ(vm_lease(r, a.page, a.id, &lease), 0);
    CHECK_EQ(vm_lease(r, a.page, a.id, &another), -EXFULL);
    vm_window_done(w, lease);
    CHECK_EQ(vm_lease(r, a.page, a.id, &another), 0);
    uint64_t nr;
    CHECK_EQ(vm_expire_leases(r, 1, &nr), 0);
    CHECK_EQ(nr, VM_LEASES_MAX);
    GIVE_BACK(r, a);
    vm_window_close(w);
    FINISH(r);
}

static void only_a_region_has_windows(vm_pools d)
{
    vm_window *w = NULL;
    vm_region *numbers = MAKE(.nr_pages = 100, .pools = d, .granule_bytes = 1, SMALL);
    CHECK_EQ(vm_window_open(vm_fd(numbers), false, &w), -EINVAL);
    CHECK(vm_window_open(-1, false, &w) < 0);
    CHECK(w == NULL);
    CHECK_EQ(vm_detach(numbers), 0);
}

static void (*const tests[])(vm_pools) = {
    what_a_lease_keeps_can_be_read_and_then_the_lease_ends,
    what_is_not_there_cannot_be_read,
    a_mark_that_comes_late_ends_no_other_lease,
    a_full_table_has_room_again_when_some_were_read,
    only_a_region_has_windows,
};

int main(void)
{
    FOR_EACH_DESIGN (d)
        for (size_t i = 0; i < LENGTH(tests); i++)
            tests[i](d);
    return 0;
}
