/* SPDX-License-Identifier: MIT */
/* Ticks: what nobody uses goes back along its curve, what is used stays; limits; who holds how much. */
#include "kit.h"

enum { TURN = VM_TURN_TICKS };

static vm_region *make(vm_pools d) { return MAKE(.nr_pages = 40000, .pools = d, SMALL); }

/* So many ticks, a tick's time apart. */
static void tick(vm_region *r, int nr)
{
    for (int i = 0; i < nr; i++) {
        CHECK_EQ(vm_tick(r), 0);
        vm_clock_advance(VM_TICK_MS * 1000000ull);
    }
}

static void free_so_many(vm_region *r, uint64_t nr_pages, int count)
{
    vm_range a[64];
    for (int i = 0; i < count; i++)
        a[i] = take(r, nr_pages);
    CHECK_EQ(vm_free_bulk(r, (size_t)count, a), 0);
}

static uint64_t lazy(vm_region *r) { return stats_of(r).lazy_pages; }

static void what_is_idle_goes_by_a_quarter_each_tick(vm_pools d)
{
    vm_region *r = make(d);
    tick(r, 1);
    free_so_many(r, 300, 40); /* 12,000 pages */
    tick(r, TURN);            /* it was not there through all of this turn ... */
    CHECK_EQ(lazy(r), 12000);
    tick(r, TURN); /* ... but it was through this one: the last tick turns */
    CHECK_EQ(lazy(r), 12000);
    tick(r, 1);
    CHECK_EQ(lazy(r), 9000);
    tick(r, 1);
    CHECK_EQ(lazy(r), 6750);
    tick(r, 20);
    CHECK_EQ(lazy(r), 0);
    CHECK_EQ(stats_of(r).nr_decayed_pages, 12000);
    CHECK_CLEAN(r);
    FINISH(r);
}

/* A pool of which nothing goes is not even looked into: who takes from it meanwhile finds it as it was. */
static void a_pool_that_gives_nothing_is_left_alone(vm_pools d)
{
    vm_region *r = make(d);
    vm_thread *t = vm__thread(r);
    uint32_t quota[VM_POOL_PAGES_MAX] = {[1] = 2};
    if (d != VM_POOLS_LOCKED && d != VM_POOLS_LLIST && d != VM_POOLS_TAGGED) {
        FINISH(r); /* what is freed comes to no pool at once */
        return;
    }
    vm_range a[10];
    for (size_t i = 0; i < LENGTH(a); i++)
        a[i] = take(r, 1 + i % 2);
    CHECK_EQ(vm_free_bulk(r, LENGTH(a), a), 0);
    vm_pool before = r->map.nodes[0].pool[0];
    CHECK_EQ(vm__pool_count(r, &before), 5);
    CHECK_EQ(vm__purge_pools(t, 0, quota), 4);
    CHECK_EQ(vm__pool_count(r, &r->map.nodes[0].pool[1]), 3);
    CHECK(memcmp(&before, &r->map.nodes[0].pool[0], sizeof before) == 0);
    CHECK_CLEAN(r);
    FINISH(r);
}

static void what_comes_back_within_a_turn_stays(vm_pools d)
{
    vm_region *r = make(d);
    for (int cycle = 0; cycle < 8; cycle++) {
        free_so_many(r, 300, 40);
        tick(r, TURN - 2);
    }
    CHECK_EQ(lazy(r), 12000);
    CHECK_EQ(stats_of(r).nr_decayed_pages, 0);
    CHECK_EQ(stats_of(r).nr_space_hit, 40);
    FINISH(r);
}

static void what_of_it_is_not_used_goes(vm_pools d)
{
    vm_region *r = make(d);
    free_so_many(r, 300, 40);
    for (int cycle = 0; cycle < 12; cycle++) {
        free_so_many(r, 300, 10); /* 3,000 of the 12,000 */
        tick(r, TURN - 2);
    }
    CHECK_EQ(lazy(r), 3000);
    FINISH(r);
}

static void the_floor_stays(vm_pools d)
{
    vm_region *r = make(d);
    CHECK_EQ(vm_set_limit(r, VM_FLOOR, 5000), 0);
    free_so_many(r, 300, 40);
    tick(r, 5 * TURN);
    CHECK_EQ(lazy(r), 5000);
    FINISH(r);
}

static void above_the_soft_limit_it_goes_at_once(vm_pools d)
{
    vm_region *r = make(d);
    vm_range busy = take(r, 1000);
    free_so_many(r, 300, 40);
    CHECK_EQ(vm_set_limit(r, VM_SOFT_LIMIT, 7000), 0);
    tick(r, 1);
    CHECK_EQ(r->map.nr_pages - stats_of(r).free_pages, 7000);
    GIVE_BACK(r, busy);
    FINISH(r);
}

static void above_the_threshold_too(vm_pools d)
{
    vm_region *r = make(d);
    free_so_many(r, 300, 40);
    r->map.h->lazy_pages_fixed = 5000;
    tick(r, 1);
    CHECK_EQ(lazy(r), 5000);
    r->map.h->lazy_pages_fixed = 1u << 28;
    FINISH(r);
}

static void idle_pools_and_magazines_go_too(vm_pools d)
{
    vm_region *r = make(d);
    free_so_many(r, 3, 60);
    CHECK(stats_of(r).pooled_pages || stats_of(r).cached_pages || d == VM_POOLS_OFF);
    tick(r, 12 * TURN);
    vm_stats s = stats_of(r);
    CHECK_EQ(s.pooled_pages, 0);
    CHECK_EQ(s.lazy_pages, 0);
    /* a thread's own magazines are left to other threads' ticks */
    CHECK_EQ(s.free_pages + s.cached_pages, r->map.nr_pages);
    CHECK_CLEAN(r);
    FINISH(r);
}

static int idles;
static void *use_magazines_then_idle(void *arg)
{
    vm_region *r = arg;
    free_so_many(r, 3, 60);
    __atomic_store_n(&idles, 1, __ATOMIC_RELEASE);
    while (__atomic_load_n(&idles, __ATOMIC_ACQUIRE) == 1)
        usleep(1000);
    vm_range a = take(r, 3); /* what its magazine says is stale: it must notice */
    GIVE_BACK(r, a);
    return NULL;
}
static void another_threads_idle_magazines_are_emptied(vm_pools d)
{
    vm_region *r = make(d);
    pthread_t other;
    idles = 0;
    CHECK_EQ(pthread_create(&other, NULL, use_magazines_then_idle, r), 0);
    while (!__atomic_load_n(&idles, __ATOMIC_ACQUIRE))
        usleep(1000);
    tick(r, 12 * TURN);
    CHECK_EQ(stats_of(r).free_pages, r->map.nr_pages);
    __atomic_store_n(&idles, 2, __ATOMIC_RELEASE);
    CHECK_EQ(pthread_join(other, NULL), 0);
    CHECK_CLEAN(r);
    FINISH(r);
}

static void what_went_to_space_with_its_pages_goes_too(vm_pools d)
{
    vm_region *r = make(d);
    vm_range all[4], last[1];
    for (int i = 0; i < 4; i++)
        all[i] = take(r, 9000);
    last[0] = take(r, 4000); /* nothing is free: what comes now lies beside nothing clean */
    for (int i = 0; i < 4; i += 2)
        GIVE_BACK(r, all[i]);
    CHECK_EQ(vm__purge(vm__thread(r), VM_PURGE_UNPUNCHED, &(uint64_t){0}), 0);
    CHECK_EQ(r->map.h->dirty_pages, 18000);
    CHECK(!vm__is_tight(r));
    tick(r, TURN + 1);
    CHECK_EQ(r->map.h->dirty_pages, 0);
    CHECK_EQ(stats_of(r).free_pages, 18000);
    CHECK_CLEAN(r);
    GIVE_BACK(r, all[1]);
    GIVE_BACK(r, all[3]);
    GIVE_BACK(r, last[0]);
    FINISH(r);
}

/* As locked memory's are where there is no address space for a second mapping: the system says no. */
static void forbid_discards(const vm_region *r, const vm_range *ranges, size_t nr)
{
    for (size_t i = 0; i < nr; i++)
        CHECK_EQ(munmap(vm_pointer(r, ranges[i].page), 1), 0);
}

static void a_tick_ends_where_pages_cannot_be_given_back(vm_pools d)
{
    vm_region *r = make(d);
    vm_range all[4];
    for (int i = 0; i < 4; i++)
        all[i] = take(r, 9000);
    vm_range last = take(r, 4000);
    vm_range freed[] = {all[0], all[2]};
    for (int i = 0; i < 4; i += 2)
        GIVE_BACK(r, all[i]);
    CHECK_EQ(vm__purge(vm__thread(r), VM_PURGE_UNPUNCHED, &(uint64_t){0}), 0);
    IN_CHILD({
        alarm(10);
        forbid_discards(r, freed, LENGTH(freed));
        tick(r, TURN + 1);
        CHECK_EQ(r->map.h->dirty_pages, 18000);
    });
    CHECK_EQ(vm_recover(r, NULL), 0);
    tick(r, TURN + 1);
    CHECK_EQ(r->map.h->dirty_pages, 0);
    CHECK_CLEAN(r);
    GIVE_BACK(r, all[1]);
    GIVE_BACK(r, all[3]);
    GIVE_BACK(r, last);
    FINISH(r);
}

static void a_few_pages_do_not_make_a_long_range_dirty(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a = take(r, 300), b = take(r, 300), c = take(r, 20000);
    GIVE_BACK(r, a);
    CHECK_EQ(vm__purge(vm__thread(r), VM_PURGE_UNPUNCHED, &(uint64_t){0}), 0);
    CHECK_EQ(r->map.h->dirty_pages, 300); /* beside b and nothing else */
    GIVE_BACK(r, b);
    CHECK_EQ(vm__purge(vm__thread(r), VM_PURGE_UNPUNCHED, &(uint64_t){0}), 0);
    CHECK_EQ(r->map.h->dirty_pages, 600); /* the same, beside c */
    uint64_t pages;
    GIVE_BACK(r, c);
    CHECK_EQ(vm__purge(vm__thread(r), 0, &pages), 0);
    CHECK_EQ(r->map.h->dirty_pages, 0); /* 600 beside 39,400 clean ones */
    CHECK_EQ(stats_of(r).free_pages, 40000);
    CHECK_CLEAN(r);
    FINISH(r);
}

static void a_few_pages_beside_a_dirty_and_a_long_clean_range(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a = take(r, 300), b = take(r, 300);
    GIVE_BACK(r, a);
    CHECK_EQ(vm__purge(vm__thread(r), VM_PURGE_UNPUNCHED, &(uint64_t){0}), 0);
    CHECK_EQ(r->map.h->dirty_pages, 300);
    GIVE_BACK(r, b);
    CHECK_EQ(vm__purge(vm__thread(r), VM_PURGE_UNPUNCHED, &(uint64_t){0}), 0);
    CHECK_EQ(r->map.h->dirty_pages, 0);
    CHECK_EQ(stats_of(r).free_pages, 40000);
    CHECK_CLEAN(r);
    FINISH(r);
}

static void the_peak_sinks_to_what_was_in_use_in_two_turns(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a = take(r, 20000);
    CHECK_EQ(r->map.h->used_peak, 20000);
    GIVE_BACK(r, a);
    for (int cycle = 0; cycle < 30; cycle++) {
        a = take(r, 1000);
        GIVE_BACK(r, a);
        tick(r, TURN);
    }
    CHECK(r->map.h->used_peak >= 1000 && r->map.h->used_peak < 1100);
    FINISH(r);
}

static void two_ticks_within_a_tick_are_one(vm_pools d)
{
    vm_region *r = make(d);
    CHECK_EQ(vm_tick(r), 0);
    CHECK_EQ(vm_tick(r), 0);
    CHECK_EQ(stats_of(r).nr_ticks, 1);
    FINISH(r);
}

/* So that what is idle goes as quickly where a round takes long. */
static void a_helpers_rounds_begin_a_tick_apart(void)
{
    const uint64_t tick = VM_TICK_MS * 1000000ull;
    CHECK_EQ(vm__helper_rest_ns(7, 7), (long)tick);
    CHECK_EQ(vm__helper_rest_ns(7, 7 + tick / 2), (long)(tick / 2));
    CHECK_EQ(vm__helper_rest_ns(7, 7 + 9 * tick), (long)(tick / 4)); /* it rests in any case */
}

/* ---- deaths ---- */

static void what_a_purgers_death_closed_is_opened_again(vm_pools d)
{
    vm_region *r = make(d);
    pid_t pid;
    free_so_many(r, 300, 2);
    CHILD(pid, {
        CHECK_EQ(vm__lock(vm__thread(r), &r->map.h->purge_lock, 0), 0);
        CHECK_EQ(vm__warm_close(vm__thread(r), 0), 0);
        kill(getpid(), SIGKILL);
    });
    CHECK(WIFSIGNALED(end_of(pid)));
    uint64_t cold = stats_of(r).nr_space_hit;
    vm_range a = take(r, 300);
    CHECK_EQ(stats_of(r).nr_space_hit, cold);
    GIVE_BACK(r, a);
    tick(r, 1);
    CHECK(!vm__purge_is_behind(r));
    CHECK_CLEAN(r);
    FINISH(r);
}

static void a_tick_recovers_the_dead(vm_pools d)
{
    vm_region *r = make(d);
    pid_t pid;
    int *is_forked = mmap(NULL, sizeof *is_forked, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(is_forked != MAP_FAILED);
    CHILD(pid, {
        take(r, 700);
        while (!__atomic_load_n(is_forked, __ATOMIC_ACQUIRE)) /* a child that is dead by then, the fork recovers */
            usleep(100);
        kill(getpid(), SIGKILL);
    });
    __atomic_store_n(is_forked, 1, __ATOMIC_RELEASE);
    CHECK(WIFSIGNALED(end_of(pid)));
    CHECK_EQ(stats_of(r).busy_pages, 700);
    tick(r, VM_RECOVER_TICKS + 1);
    CHECK_EQ(stats_of(r).busy_pages, 0);
    CHECK_EQ(stats_of(r).nr_processes, 1);
    FINISH(r);
}

/* ---- limits ---- */

static void a_limit_may_be_lowered_and_lifted(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a = take(r, 600), b;
    CHECK_EQ(vm_set_limit(r, VM_LIMIT, 1000), 0);
    CHECK_EQ(vm_alloc(r, 500, 1, 0, &b), -ENOSPC);
    vm_shortage why;
    CHECK_EQ(vm_explain(r, 500, -ENOSPC, &why), 0);
    CHECK_EQ(why.cause, VM_CAUSE_LIMIT);
    CHECK_EQ(vm_set_limit(r, VM_LIMIT, 0), 0);
    b = take(r, 500);
    GIVE_BACK(r, a);
    GIVE_BACK(r, b);
    CHECK_EQ(vm_explain(r, 50000, -ENOSPC, &why), 0);
    CHECK_EQ(why.cause, VM_CAUSE_SPACE);
    FINISH(r);
}

static void a_quota_bounds_each_process_by_itself(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a, b;
    vm_holding held[4];
    pid_t pid;
    CHECK_EQ(vm_set_limit(r, VM_QUOTA, 1000), 0);
    a = take(r, 900);
    CHECK_EQ(vm_alloc(r, 900, 1, 0, &b), -EDQUOT);
    CHILD(pid, {
        vm_range own;
        CHECK_EQ(vm_drop_inherited(r, &(uint64_t){0}), 0);
        own = take(r, 900);
        CHECK_EQ(vm_holdings(r, LENGTH(held), held), 2);
        CHECK_EQ(held[0].nr_pages, 900);
        GIVE_BACK(r, own);
    });
    CHECK_EQ(end_of(pid), 0);
    for (int i = 0; i < 40; i++) { /* what was given back counts no more */
        GIVE_BACK(r, a);
        a = take(r, 900);
    }
    CHECK_EQ(vm_holdings(r, LENGTH(held), held), 1);
    CHECK_EQ(held[0].nr_pages, 900);
    CHECK_EQ(held[0].pid, (uint32_t)getpid());
    GIVE_BACK(r, a);
    CHECK_EQ(vm_set_limit(r, VM_QUOTA, 0), 0);
    CHECK_EQ(vm_set_limit(r, 7, 0), -EINVAL);
    FINISH(r);
}

static void a_quota_counts_what_was_held_before_it_was_set(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a = take(r, 900), b;
    CHECK_EQ(vm_set_limit(r, VM_QUOTA, 1000), 0);
    CHECK_EQ(vm_alloc(r, 200, 1, 0, &b), -EDQUOT);
    b = take(r, 100);
    GIVE_BACK(r, a);
    a = take(r, 900); /* what was given back counts no more */
    CHECK_EQ(vm_set_limit(r, VM_QUOTA, 1200), 0);
    vm_range c = take(r, 200);
    GIVE_BACK(r, a);
    GIVE_BACK(r, b);
    GIVE_BACK(r, c);
    CHECK_EQ(vm_set_limit(r, VM_QUOTA, 0), 0);
    FINISH(r);
}

static void (*const for_every_design[])(vm_pools) = {
    what_is_idle_goes_by_a_quarter_each_tick,
    what_comes_back_within_a_turn_stays,
    what_of_it_is_not_used_goes,
    the_floor_stays,
    above_the_soft_limit_it_goes_at_once,
    above_the_threshold_too,
    idle_pools_and_magazines_go_too,
    a_pool_that_gives_nothing_is_left_alone,
    another_threads_idle_magazines_are_emptied,
    what_went_to_space_with_its_pages_goes_too,
    a_tick_ends_where_pages_cannot_be_given_back,
    a_few_pages_do_not_make_a_long_range_dirty,
    a_few_pages_beside_a_dirty_and_a_long_clean_range,
    the_peak_sinks_to_what_was_in_use_in_two_turns,
    two_ticks_within_a_tick_are_one,
    what_a_purgers_death_closed_is_opened_again,
    a_tick_recovers_the_dead,
    a_limit_may_be_lowered_and_lifted,
    a_quota_bounds_each_process_by_itself,
    a_quota_counts_what_was_held_before_it_was_set,
};

int main(void)
{
    FOR_EACH_DESIGN (d)
        for (size_t i = 0; i < LENGTH(for_every_design); i++)
            for_every_design[i](d);
    a_helpers_rounds_begin_a_tick_apart();
    return 0;
}
