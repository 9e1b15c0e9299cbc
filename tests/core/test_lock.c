/* SPDX-License-Identifier: MIT */
/* Locks are taken in one order, and a call waits as long as it was told, however often it is called again. */
#include "kit.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define ABORTS(...)                                                \
    do {                                                           \
        pid_t aborter;                                             \
        CHILD(aborter, {                                           \
            fclose(stderr);                                        \
            __VA_ARGS__;                                           \
        });                                                        \
        int status;                                                \
        CHECK_EQ(waitpid(aborter, &status, 0), aborter);           \
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT); \
    } while (0)

static void a_lock_of_a_lower_rank_is_not_taken_inside_a_higher_one(void)
{
    vm_region *r = MAKE(.nr_pages = 1000, .pools = VM_POOLS_LOCKED, SMALL);
    vm_lock *in_order[] = {&r->map.h->purge_lock, &r->map.h->names_lock, &r->map.h->lease_lock,
                           &r->map.nodes[0].pool_lock, &r->map.h->space_lock};
    for (size_t outer = 0; outer < LENGTH(in_order); outer++)
        for (size_t inner = 0; inner < outer; inner++)
            ABORTS({
                vm_thread *t = vm__thread(r);
                vm__lock(t, in_order[outer], 0);
                vm__lock(t, in_order[inner], 0);
            });
    CHECK_EQ(vm_recover(r, NULL), 0);
    vm_thread *t = vm__thread(r);
    for (size_t i = 0; i < LENGTH(in_order); i++)
        CHECK_EQ(vm__lock(t, in_order[i], 0), 0);
    for (size_t i = 0; i < LENGTH(in_order); i++) /* let go of in any order */
        vm__unlock(t, in_order[i]);
    FINISH(r);
}

static void two_nodes_are_never_locked_at_once(void)
{
    vm_region *r = MAKE(.nr_pages = 1000, .nr_nodes = 2, .nr_threads = 2, .pools = VM_POOLS_LOCKED);
    ABORTS({
        vm_thread *t = vm__thread(r);
        vm__lock(t, &r->map.nodes[0].pool_lock, 0);
        vm__trylock(t, &r->map.nodes[1].pool_lock);
    });
    CHECK_EQ(vm_recover(r, NULL), 0);
    FINISH(r);
}

static void a_private_mutex_has_its_rank_too(void)
{
    vm_region *r = MAKE(.nr_pages = 1000, SMALL);
    ABORTS({
        vm__lock(vm__thread(r), &r->map.h->space_lock, 0);
        vm__mutex_lock(r, &r->holder_mutex, VM_RANK_HOLDER);
    });
    ABORTS({
        vm__mutex_lock(r, &r->holder_mutex, VM_RANK_HOLDER);
        vm__registry_lock();
    });
    CHECK_EQ(vm_recover(r, NULL), 0);
    FINISH(r);
}

static void regions_have_ranks_of_their_own(void)
{
    vm_region *r = MAKE(.nr_pages = 1000, SMALL), *other = MAKE(.nr_pages = 1000, SMALL);
    vm_thread *t = vm__thread(r);
    CHECK_EQ(vm__lock(t, &r->map.h->space_lock, 0), 0);
    vm_thread *u = vm__thread(other);
    CHECK_EQ(vm__lock(u, &other->map.h->purge_lock, 0), 0);
    vm__unlock(u, &other->map.h->purge_lock);
    vm__unlock(t, &r->map.h->space_lock);
    FINISH(other);
    FINISH(r);
}

/* A child that holds space_lock and is stopped. */
static pid_t stop_with_the_space_lock(vm_region *r)
{
    pid_t child;
    CHILD(child, {
        CHECK_EQ(vm__lock(vm__thread(r), &r->map.h->space_lock, 0), 0);
        raise(SIGSTOP);
        vm__unlock(vm__thread(r), &r->map.h->space_lock);
    });
    CHECK_EQ(waitpid(child, NULL, WUNTRACED), child);
    return child;
}

#define SECOND_NS 1000000000ull

static void a_time_out_goes_on_over_slices_and_calls(void)
{
    vm_region *r = MAKE(.nr_pages = 1000, SMALL);
    pid_t child = stop_with_the_space_lock(r);
    vm_range a;
    vm_wait wait = {.timeout_ns = 3600 * SECOND_NS, .in_slices = true}, another = wait;
    vm_wait_begin(&wait);
    CHECK_EQ(vm_alloc(r, 600, 1, 0, &a), -EINTR);
    vm_clock_advance(1800 * SECOND_NS);
    vm_wait_begin(&another); /* what a signal handler does in between has a time of its own */
    CHECK_EQ(vm_alloc(r, 600, 1, 0, &a), -EINTR);
    vm_wait_begin(&wait);
    CHECK_EQ(vm_alloc(r, 600, 1, 0, &a), -EINTR);
    vm_clock_advance(1801 * SECOND_NS);
    CHECK_EQ(vm_alloc(r, 600, 1, 0, &a), -EBUSY);
    vm_wait_end();
    CHECK_EQ(vm_busy_pid(r), child);
    vm_wait_begin(&another);
    CHECK_EQ(vm_alloc(r, 600, 1, 0, &a), -EINTR);
    vm_wait_end();
    kill(child, SIGCONT);
    ended_well(child);
    CHECK_EQ(vm_recover(r, NULL), 0);
    FINISH(r);
}

static void a_lease_expires_by_the_clock_and_not_by_waiting(void)
{
    vm_region *r = MAKE(.nr_pages = 1000, .lease_ttl_s = 3600, SMALL);
    vm_range a = take(r, 1);
    vm_stats s;
    pid_t child;
    CHECK_EQ(vm_share(r, a.page, a.id), 0);
    CHILD(child, { /* it holds `a` through fork, leases it and is gone */
                   uint64_t lease;
                   CHECK_EQ(vm_lease(r, a.page, a.id, &lease), 0);
                   kill(getpid(), SIGKILL);
    });
    CHECK_EQ(waitpid(child, NULL, 0), child);
    GIVE_BACK(r, a);
    CHECK_EQ(vm_recover(r, NULL), 0); /* the lease gets its deadline */
    CHECK_EQ(vm_purge(r, NULL), 0);
    CHECK_EQ(vm_get_stats(r, &s), 0);
    CHECK_EQ(s.busy_pages, 1);
    vm_clock_advance(3601 * SECOND_NS);
    CHECK_EQ(vm_purge(r, NULL), 0);
    CHECK_EQ(vm_get_stats(r, &s), 0);
    CHECK_EQ(s.busy_pages, 0);
    FINISH(r);
}

static void a_tick_is_welcome_at_any_time(void)
{
    vm_region *r = MAKE(.nr_pages = 1000, SMALL), *reader = NULL;
    CHECK_EQ(vm_tick(r), 0);
    CHECK_EQ(vm_attach_readonly(vm_fd(r), &reader), 0);
    CHECK_EQ(vm_tick(reader), -EROFS);
    vm_detach(reader);
    FINISH(r);
}

int main(void)
{
    a_lock_of_a_lower_rank_is_not_taken_inside_a_higher_one();
    two_nodes_are_never_locked_at_once();
    a_private_mutex_has_its_rank_too();
    regions_have_ranks_of_their_own();
    a_time_out_goes_on_over_slices_and_calls();
    a_lease_expires_by_the_clock_and_not_by_waiting();
    a_tick_is_welcome_at_any_time();
    return 0;
}
