/* SPDX-License-Identifier: MIT */
/* Steps: what a tick, a helper, quota and limits write. */
#include "steps.h"

#include <sys/resource.h>

static bool always(vm_thread *t)
{
    (void)t;
    return true;
}

void shelve_and_mark(stage *s)
{
    shelve(s);
    s->r->map.h->lazy_low = s->r->map.h->lazy_pages;
    s->r->map.h->live_high = 0;
}

/* The marks say that nothing of it was ever used. */
static void mark_pools(vm_region *r)
{
    for (uint32_t i = 0; i < vm__nodes_used(r); i++)
        for (uint32_t k = 0; k < VM_POOL_PAGES_MAX; k++)
            r->map.nodes[i].low[k] = vm__pool_count(r, &r->map.nodes[i].pool[k]);
    for (uint32_t i = 0; r->design->kept->turn && i < vm__nodes_used(r); i++)
        r->design->kept->turn(r, i);
}
void warm_up_forty_and_mark(stage *s)
{
    warm_up_forty(s);
    mark_pools(s->r);
}

/* Lazy, pooled and in magazines. */
void leave_much_idle(stage *s)
{
    vm_region *r = s->r;
    hold(s, 2, 40);
    let_go(s);
    hold(s, 300, 3);
    let_go(s);
    r->map.h->lazy_low = r->map.h->lazy_pages;
    mark_pools(r);
}

/* Each a turn, as if a tick's time had passed. */
void tick_thrice(stage *s)
{
    for (int i = 0; i < 3; i++) {
        if (s->r->watch) {
            s->r->watch->ticked_ns = 0;
            s->r->watch->nr_ticks = 0;
        }
        CHECK_EQ(vm_tick(s->r), 0);
    }
}

void set_a_quota(stage *s) { s->r->map.h->quota_pages = 100; }
void use_up_the_quota(stage *s)
{
    vm_range a[60], again;
    size_t nr = 0;
    while (nr < LENGTH(a) && vm_alloc(s->r, 2, 1, 0, &a[nr]) == 0)
        nr++;
    CHECK(nr >= 40 && nr < LENGTH(a));
    for (size_t i = 0; i < nr; i++)
        GIVE_BACK(s->r, a[i]);
    again = take(s->r, 2);
    GIVE_BACK(s->r, again);
}
void lift_the_quota(stage *s) { s->r->map.h->quota_pages = 0; }

static void set_limits(stage *s, uint64_t limit, uint64_t soft, uint64_t quota, uint64_t floor)
{
    CHECK_EQ(vm_set_limit(s->r, VM_LIMIT, limit), 0);
    CHECK_EQ(vm_set_limit(s->r, VM_SOFT_LIMIT, soft), 0);
    CHECK_EQ(vm_set_limit(s->r, VM_QUOTA, quota), 0);
    CHECK_EQ(vm_set_limit(s->r, VM_FLOOR, floor), 0);
}
void set_all_limits(stage *s) { set_limits(s, PAGES, 100, PAGES, 1); }
void lift_all_limits(stage *s) { set_limits(s, 0, 0, 0, 0); }

/* What the helper's thread does, in the victim's own. */
void serve_as_helper(stage *s)
{
    vm_thread t;
    vm__thread_borrow(s->r, &t);
    s->r->map.h->helper_wake = 1;
    vm__helper_round(&t, always);
    vm__helper_round(&t, always);
    vm__thread_return(&t);
    vm__helper_resign(s->r);
}
/* And more is lazy than may be when the two ranges held are freed, but not so much that a free must help. */
void seem_to_have_a_helper(stage *s)
{
    hold(s, 300, 2);
    s->r->map.h->lazy_pages_fixed = s->r->map.h->lazy_pages + 550;
    s->r->map.h->helper_wake = 0;
    s->r->map.h->helper = vm__thread(s->r)->token;
    s->r->map.h->helper_beat_ns = vm__now_ns();
}
void forget_the_helper(stage *s) { s->r->map.h->helper = 0; }

/* The survivor records, and with it everybody. */
static vm_recorder *recorder;
void record(stage *s) { CHECK_EQ(vm_record_start(s->r, false, &recorder), 0); }
void record_exactly(stage *s) { CHECK_EQ(vm_record_start(s->r, true, &recorder), 0); }
void stop_recording(stage *s)
{
    (void)s;
    vm_record_end(recorder);
}

/* The victim records; there are two events of its own at least. */
void record_and_stop(stage *s)
{
    uint64_t events[64], lost = 0;
    record(s);
    vm_record_stop(recorder);
    CHECK(vm_record_read(recorder, vm__thread(s->r)->index, LENGTH(events) / 2, events, &lost) >= 2);
    vm_record_end(recorder);
}
void record_twice(stage *s)
{
    record_and_stop(s);
    record_and_stop(s);
}

void have_no_descriptor_to_spare(stage *s) /* so no ring can be had */
{
    (void)s;
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &(struct rlimit){3, 3}), 0);
}
void hold_forty_recorded(stage *s)
{
    hold(s, 2, 40);
    let_go(s);
    hold(s, 2, 40);
}
/* Hits and what is none, more than a batch. */
void free_and_take_recorded(stage *s)
{
    let_go(s);
    for (int i = 0; i < VM_EVENT_BATCH; i++) {
        vm_range a;
        CHECK_EQ(vm_alloc(s->r, 2, 1, 0, &a), 0);
        GIVE_BACK(s->r, a);
    }
}
