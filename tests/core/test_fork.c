/* SPDX-License-Identifier: MIT */
/* Fork: a child keeps what it finds in its memory, for itself, until it lets go of it or ends. */
#include "kit.h"

#include <sys/resource.h>

static vm_region *make(vm_pools d) { return MAKE(.nr_pages = 3000, .pools = d, SMALL); }

/* What a thread frees while a child holds it too, the child hands on to another thread. TSan sees no other process, so
 * threads tell it that order themselves: between take and write, and before they free. */
static void tell_order(void)
{
    static uint64_t order;
    if (IS_TSAN)
        __atomic_fetch_add(&order, 1, __ATOMIC_ACQ_REL);
}

/* All of it, also where it is longer than was asked for. */
static vm_range take_stamped(vm_region *r, uint64_t nr_pages)
{
    vm_range a = take(r, nr_pages);
    tell_order();
    for (uint64_t p = 0; p < a.nr_pages; p++)
        *(uint64_t *)vm_pointer(r, a.page + p) = a.id + p;
    return a;
}
static void check_stamped(vm_region *r, const vm_range *a)
{
    for (uint64_t p = 0; p < a->nr_pages; p++)
        CHECK_EQ(*(uint64_t *)vm_pointer(r, a->page + p), a->id + p);
}
static uint64_t drop_inherited(vm_region *r)
{
    uint64_t nr = UINT64_MAX;
    CHECK_EQ(vm_drop_inherited(r, &nr), 0);
    return nr;
}

/* Parent and child take turns: each waits for the other's number. */
static volatile int *turn;
static void wait_for_turn(int n)
{
    for (double until = seconds() + 60; __atomic_load_n(turn, __ATOMIC_ACQUIRE) != n; sched_yield())
        CHECK(seconds() < until);
}
static void next_turn(int n) { __atomic_store_n(turn, n, __ATOMIC_RELEASE); }

static void a_child_keeps_what_its_parent_frees(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a = take_stamped(r, 3), b = take_stamped(r, 400);
    pid_t child;
    *turn = 0;
    CHILD(child, {
        wait_for_turn(1); /* the parent let go, and used the pages if it could get them */
        check_stamped(r, &a);
        check_stamped(r, &b);
        GIVE_BACK(r, a);
        CHECK(vm_free(r, a.page, a.id, 0) < 0); /* one reference was inherited, not two */
    });
    GIVE_BACK(r, a);
    GIVE_BACK(r, b);
    CHECK(vm_free(r, a.page, a.id, 0) < 0);
    CHECK_EQ(vm_shrink(r, NULL), 0);
    for (int i = 0; i < 5; i++)
        take_stamped(r, 3);
    take_stamped(r, 400);
    CHECK_EQ(stats_of(r).busy_pages, 403 + 15 + 400);
    next_turn(1);
    ended_well(child);
    CHECK_EQ(vm_recover(r, NULL), 0);
    CHECK_EQ(stats_of(r).busy_pages, 15 + 400);
    CHECK_CLEAN(r);
    CHECK_EQ(vm_detach(r), 0);
}

/* While space is short a request may get a ready range that is longer than it asked for. */
static void a_child_keeps_all_of_a_range_that_is_longer_than_was_asked_for(vm_pools d)
{
    vm_region *r = make(d);
    vm_range ready = take(r, 40), rest = take(r, 2960), none, all[12];
    pid_t child;
    CHECK_EQ(vm_alloc(r, 100, 1, 0, &none), -ENOSPC); /* space is short now */
    GIVE_BACK(r, rest);
    GIVE_BACK(r, ready);
    vm_range a = take_stamped(r, 38);
    CHECK(d != VM_POOLS_MAGAZINE || a.nr_pages == 40);
    *turn = 0;
    CHILD(child, {
        wait_for_turn(1);
        check_stamped(r, &a);
        GIVE_BACK(r, a);
    });
    GIVE_BACK(r, a);
    for (size_t i = 0; i < LENGTH(all); i++)
        all[i] = take_stamped(r, 240); /* all the rest but less than one */
    next_turn(1);
    ended_well(child);
    for (size_t i = 0; i < LENGTH(all); i++) {
        check_stamped(r, &all[i]);
        GIVE_BACK(r, all[i]);
    }
    CHECK_EQ(vm_recover(r, NULL), 0);
    CHECK_EQ(stats_of(r).busy_pages, 0);
    FINISH(r);
}

static void what_a_child_frees_stays_its_parents(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a = take_stamped(r, 3), b = take_stamped(r, 20);
    IN_CHILD({
        GIVE_BACK(r, a);
        CHECK_EQ(vm_free(r, b.page, b.id, VM_INHERITED), 0);
        CHECK_EQ(vm_shrink(r, NULL), 0);
        take(r, 3);
        take(r, 20);
    });
    check_stamped(r, &a);
    check_stamped(r, &b);
    CHECK_EQ(vm_recover(r, NULL), 0);
    CHECK_EQ(stats_of(r).busy_pages, 23);
    GIVE_BACK(r, a);
    GIVE_BACK(r, b);
    FINISH(r);
}

static void as_often_as_the_parent_had_it_the_child_has_it(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a = take(r, 3), b;
    CHECK_EQ(vm_share(r, a.page, a.id), 0);
    CHECK_EQ(vm_adopt(r, a.page, a.id, &b), 0);
    CHECK_EQ(vm_adopt(r, a.page, a.id, &b), 0);
    IN_CHILD({
        for (int i = 0; i < 3; i++)
            GIVE_BACK(r, a);
        CHECK_EQ(vm_free(r, a.page, a.id, 0), -ENOENT);
    });
    CHECK_EQ(stats_of(r).busy_pages, 3);
    for (int i = 0; i < 3; i++)
        GIVE_BACK(r, a);
    CHECK_EQ(vm_recover(r, NULL), 0);
    CHECK_EQ(stats_of(r).busy_pages, 0);
    FINISH(r);
}

static void dropping_what_was_inherited_spares_what_a_child_took_itself(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a = take_stamped(r, 3), b = take_stamped(r, 300);
    pid_t child;
    *turn = 0;
    CHILD(child, {
        vm_range own = take_stamped(r, 5), again;
        CHECK_EQ(vm_adopt(r, a.page, a.id, &again), 0);
        CHECK_EQ(drop_inherited(r), 2);
        CHECK_EQ(drop_inherited(r), 0);
        CHECK_EQ(vm_free(r, b.page, b.id, 0), -ENOENT);
        CHECK_EQ(vm_free(r, a.page, a.id, VM_INHERITED), -ENOENT);
        next_turn(1);
        wait_for_turn(2); /* the parent let go of both */
        CHECK_EQ(stats_of(r).busy_pages, 5 + 3);
        check_stamped(r, &a);
        check_stamped(r, &own);
        GIVE_BACK(r, again);
        GIVE_BACK(r, own);
        CHECK_EQ(stats_of(r).busy_pages, 0);
    });
    wait_for_turn(1);
    GIVE_BACK(r, a);
    GIVE_BACK(r, b);
    next_turn(2);
    ended_well(child);
    CHECK_EQ(vm_recover(r, NULL), 0);
    FINISH(r);
}

static void who_forked_nothing_has_nothing_to_drop(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a = take(r, 3);
    CHECK_EQ(drop_inherited(r), 0);
    IN_CHILD({
        CHECK_EQ(drop_inherited(r), 1);
        vm_range b = take(r, 2);
        CHECK_EQ(vm_share(r, b.page, b.id), 0);
        CHECK_EQ(vm_free(r, b.page, b.id, VM_INHERITED), -ENOENT); /* it took that itself */
        GIVE_BACK(r, b);
    });
    GIVE_BACK(r, a);
    CHECK_EQ(vm_recover(r, NULL), 0);
    FINISH(r);
}

static void a_grandchild_has_what_both_before_it_had(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a = take_stamped(r, 3);
    IN_CHILD({
        vm_range b = take_stamped(r, 4);
        IN_CHILD({
            check_stamped(r, &a);
            check_stamped(r, &b);
            CHECK_EQ(drop_inherited(r), 2);
        });
        check_stamped(r, &b);
        CHECK_EQ(drop_inherited(r), 1);
        GIVE_BACK(r, b);
    });
    CHECK_EQ(vm_recover(r, NULL), 0);
    check_stamped(r, &a);
    GIVE_BACK(r, a);
    FINISH(r);
}

static void a_child_goes_on_when_its_parent_is_dead(vm_pools d)
{
    vm_region *r = make(d);
    int *is_over = shared_memory(4096);
    CHECK_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1), 0); /* the grandchild becomes our child */
    pid_t child;
    CHILD(child, {
        vm_range a = take_stamped(r, 3);
        pid_t self = getpid();
        if (fork() == 0) {
            while (getppid() == self)
                sched_yield();
            CHECK_EQ(vm_recover(r, NULL), 0);
            CHECK_EQ(vm_shrink(r, NULL), 0);
            check_stamped(r, &a);
            GIVE_BACK(r, a);
            *is_over = 1;
            _exit(0);
        }
        kill(self, SIGKILL);
    });
    CHECK(WIFSIGNALED(end_of(child)));
    int status = 1;
    CHECK(wait(&status) > 0);
    CHECK_EQ(status, 0);
    CHECK_EQ(*is_over, 1);
    CHECK_EQ(vm_recover(r, NULL), 0);
    CHECK_EQ(stats_of(r).busy_pages, 0);
    FINISH(r);
}

static void a_child_that_dies_or_becomes_another_program_holds_nothing(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a = take_stamped(r, 3);
    pid_t child;
    CHILD(child, kill(getpid(), SIGKILL));
    CHECK(WIFSIGNALED(end_of(child)));
    CHILD(child, execl("/proc/self/exe", "test_fork", "--nothing", NULL));
    ended_well(child);
    GIVE_BACK(r, a);
    CHECK_EQ(vm_recover(r, NULL), 0);
    CHECK_EQ(stats_of(r).busy_pages, 0);
    CHECK_EQ(stats_of(r).nr_processes, 1);
    FINISH(r);
}

static void forking_does_not_use_up_process_slots(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a = take_stamped(r, 2);
    for (int i = 0; i < 2 * (int)r->map.nr_processes / SLOWER; i++)
        IN_CHILD(check_stamped(r, &a));
    GIVE_BACK(r, a);
    CHECK_EQ(vm_recover(r, NULL), 0);
    CHECK_EQ(stats_of(r).nr_processes, 1);
    FINISH(r);
}

static void without_a_descriptor_a_child_can_look_while_its_parent_lives(vm_pools d)
{
    vm_region *r = make(d);
    IN_CHILD({ /* the limit is its own */
               vm_range a = take_stamped(r, 3);
               pid_t child;
               struct rlimit limit = {3, 3};
               *turn = 0;
               CHECK_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
               CHILD(child, {
                   vm_range b;
                   wait_for_turn(1);
                   check_stamped(r, &a);
                   CHECK_EQ(vm_alloc(r, 1, 1, 0, &b), -ENOLCK);
                   CHECK_EQ(vm_free(r, a.page, a.id, 0), -ENOLCK);
               });
               GIVE_BACK(r, a);
               CHECK_EQ(vm_shrink(r, NULL), 0);
               CHECK_EQ(stats_of(r).busy_pages, 3); /* kept for the child, who cannot hold it */
               next_turn(1);
               ended_well(child);
    });
    CHECK_EQ(vm_recover(r, NULL), 0); /* the parent ended */
    CHECK_EQ(stats_of(r).busy_pages, 0);
    FINISH(r);
}

static void an_address_space_is_not_inherited(vm_pools d)
{
    vm_region *r = MAKE(.nr_pages = 3000, .pools = d, .granule_bytes = 4096, SMALL);
    vm_range a = take(r, 3);
    IN_CHILD(CHECK_EQ(drop_inherited(r), 0));
    CHECK_EQ(stats_of(r).nr_shared, 0);
    GIVE_BACK(r, a);
    CHECK_EQ(vm_recover(r, NULL), 0);
    FINISH(r);
}

/* ---- while other threads work ---- */

static int is_over;
static void *take_and_give_back(void *arg)
{
    vm_region *r = arg;
    uint64_t seed = (uint64_t)(uintptr_t)&seed;
    while (!__atomic_load_n(&is_over, __ATOMIC_ACQUIRE)) {
        vm_range a = take_stamped(r, random_pages(&seed, 40)), b = take_stamped(r, 2);
        check_stamped(r, &a);
        tell_order();
        GIVE_BACK(r, a);
        check_stamped(r, &b);
        tell_order();
        GIVE_BACK(r, b);
    }
    return NULL;
}

static void threads_allocate_while_another_forks(vm_pools d)
{
    enum { THREADS = 2, FORKS = 200 / SLOWER };
    vm_region *r = make(d);
    vm_range a = take_stamped(r, 3);
    pthread_t thread[THREADS];
    __atomic_store_n(&is_over, 0, __ATOMIC_RELEASE);
    for (int i = 0; i < THREADS; i++)
        CHECK_EQ(pthread_create(&thread[i], NULL, take_and_give_back, r), 0);
    for (int i = 0; i < FORKS; i++)
        IN_CHILD({
            check_stamped(r, &a);
            vm_range b = take_stamped(r, 2);
            CHECK(drop_inherited(r) >= 1);
            check_stamped(r, &b);
        });
    __atomic_store_n(&is_over, 1, __ATOMIC_RELEASE);
    for (int i = 0; i < THREADS; i++)
        pthread_join(thread[i], NULL);
    check_stamped(r, &a);
    GIVE_BACK(r, a);
    CHECK_EQ(vm_recover(r, NULL), 0);
    CHECK_EQ(stats_of(r).busy_pages, 0);
    FINISH(r);
}

int main(int argc, char **argv)
{
    (void)argv;
    if (argc > 1)
        return 0; /* what a child became */
    turn = shared_memory(4096);
    FOR_EACH_DESIGN (d) {
        a_child_keeps_what_its_parent_frees(d);
        a_child_keeps_all_of_a_range_that_is_longer_than_was_asked_for(d);
        what_a_child_frees_stays_its_parents(d);
        as_often_as_the_parent_had_it_the_child_has_it(d);
        dropping_what_was_inherited_spares_what_a_child_took_itself(d);
        who_forked_nothing_has_nothing_to_drop(d);
        a_grandchild_has_what_both_before_it_had(d);
        a_child_goes_on_when_its_parent_is_dead(d);
        a_child_that_dies_or_becomes_another_program_holds_nothing(d);
        without_a_descriptor_a_child_can_look_while_its_parent_lives(d);
        an_address_space_is_not_inherited(d);
        threads_allocate_while_another_forks(d);
    }
    forking_does_not_use_up_process_slots(VM_POOLS_MAGAZINE);
    return 0;
}
