/* SPDX-License-Identifier: MIT */
/* Sharing: references of several processes to one range, and names. */
#include "kit.h"

static vm_region *make(vm_pools d) { return MAKE(.nr_pages = 3000, .pools = d, SMALL); }

/* Parent and child take turns: each waits for the other's number. */
static volatile int *turn;
static void wait_for_turn(int n)
{
    for (double until = seconds() + 60; __atomic_load_n(turn, __ATOMIC_ACQUIRE) != n; sched_yield())
        CHECK(seconds() < until);
}
static void next_turn(int n) { __atomic_store_n(turn, n, __ATOMIC_RELEASE); }

static void only_a_shared_range_can_be_adopted(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a = take(r, 3), b;
    CHECK_EQ(vm_adopt(r, a.page, a.id, &b), -ESTALE);
    CHECK_EQ(vm_share(r, a.page, a.id + 1), -ESTALE);
    CHECK_EQ(vm_share(r, a.page + 1, a.id), -ENOENT);
    CHECK_EQ(vm_share(r, UINT64_MAX, a.id), -ENOENT);
    CHECK_EQ(vm_share(r, a.page, a.id), 0);
    CHECK_EQ(vm_share(r, a.page, a.id), 0); /* again: nothing changes */
    CHECK_EQ(vm_adopt(r, a.page, a.id + 1, &b), -ESTALE);
    CHECK_EQ(vm_adopt(r, UINT64_MAX, a.id, &b), -ESTALE);
    CHECK_EQ(vm_resize(r, &a, 1), -EBUSY);
    GIVE_BACK(r, a);
    CHECK_EQ(vm_adopt(r, a.page, a.id, &b), -ESTALE);
    FINISH(r);
}

static void each_adoption_needs_its_own_free(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a = take(r, 3), b;
    CHECK_EQ(vm_share(r, a.page, a.id), 0);
    CHECK_EQ(vm_adopt(r, a.page, a.id, &b), 0);
    CHECK(b.page == a.page && b.id == a.id && b.nr_pages == 3);
    GIVE_BACK(r, a);
    CHECK_EQ(stats_of(r).nr_shared, 1);
    CHECK_CLEAN(r);
    GIVE_BACK(r, a);
    CHECK_EQ(stats_of(r).nr_shared, 0);
    CHECK(vm_free(r, a.page, a.id, 0) < 0);
    FINISH(r);
}

static void the_last_of_two_processes_frees(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a = take(r, 3);
    pid_t child;
    memset(vm_pointer(r, a.page), 5, 3 * 4096);
    CHECK_EQ(vm_share(r, a.page, a.id), 0);
    *turn = 0;
    CHILD(child, {
        vm_range b;
        CHECK_EQ(vm_adopt(r, a.page, a.id, &b), 0);
        CHECK_EQ(vm_free(r, a.page, a.id, VM_INHERITED), 0); /* what it had from fork; its own is left */
        CHECK_EQ(vm_free(r, a.page, a.id, VM_INHERITED), -ENOENT);
        next_turn(1);
        wait_for_turn(2); /* the parent dropped it */
        CHECK_EQ(((char *)vm_pointer(r, b.page))[3 * 4096 - 1], 5);
        CHECK_EQ(stats_of(r).nr_shared, 1);
        CHECK_EQ(vm_free(r, b.page, b.id, 0), 0);
        CHECK_EQ(stats_of(r).nr_shared, 0);
    });
    wait_for_turn(1);
    GIVE_BACK(r, a);
    CHECK_EQ(stats_of(r).nr_shared, 1);
    next_turn(2);
    ended_well(child);
    CHECK_EQ(vm_recover(r, NULL), 0);
    FINISH(r);
}

static void a_dead_holder_holds_nothing(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a = take(r, 3), mine = take(r, 300);
    pid_t child;
    CHECK_EQ(vm_share(r, a.page, a.id), 0);
    CHILD(child, {
        vm_range b;
        CHECK_EQ(vm_adopt(r, a.page, a.id, &b), 0);
        take(r, 7);
        kill(getpid(), SIGKILL);
    });
    CHECK(WIFSIGNALED(end_of(child)));
    GIVE_BACK(r, a); /* asks whether the other holder lives */
    CHECK_EQ(vm_recover(r, NULL), 0);
    CHECK(stats_of(r).nr_recovered >= 7); /* and what its magazines held */
    CHECK_EQ(stats_of(r).busy_pages, 300);
    CHECK_CLEAN(r);
    GIVE_BACK(r, mine);
    FINISH(r);
}

static void a_range_is_freed_in_another_process(vm_pools d)
{
    vm_region *r = make(d);
    vm_range *gift = shared_memory(4096);
    pid_t child;
    *turn = 0;
    CHILD(child, { /* made before the ranges are: it inherits none */
                   wait_for_turn(1);
                   CHECK_EQ(vm_free(r, gift[0].page, gift[0].id, 0), 0);
                   CHECK_EQ(vm_free(r, gift[1].page, gift[1].id, 0), 0);
                   CHECK(vm_free(r, gift[0].page, gift[0].id, 0) < 0);
    });
    gift[0] = take(r, 3);
    gift[1] = take(r, 500);
    next_turn(1);
    ended_well(child);
    CHECK(vm_free(r, gift[0].page, gift[0].id, 0) < 0); /* of two frees one wins */
    CHECK_EQ(vm_recover(r, NULL), 0);
    FINISH(r);
}

static void of_racing_adopters_and_droppers_nobody_is_left_with_freed_pages(vm_pools d)
{
    enum { ROUNDS = 400 / SLOWER };
    vm_region *r = make(d);
    vm_range *offer = shared_memory(4096);
    pid_t child;
    *turn = 0;
    CHILD(child, {
        uint64_t nr_adopted = 0;
        while (!*(volatile uint64_t *)&offer[1].id) {
            vm_range b;
            uint64_t page = __atomic_load_n(&offer[0].page, __ATOMIC_ACQUIRE);
            uint64_t id = __atomic_load_n(&offer[0].id, __ATOMIC_ACQUIRE);
            if (!id || vm_adopt(r, page, id, &b) != 0)
                continue;
            CHECK_EQ(__atomic_load_n((uint64_t *)vm_pointer(r, page), __ATOMIC_RELAXED), id);
            CHECK_EQ(vm_free(r, page, id, 0), 0);
            nr_adopted++;
            __atomic_store_n(&offer[2].id, nr_adopted, __ATOMIC_RELEASE);
        }
        CHECK(nr_adopted > 0);
    });
    for (int i = 0; i < ROUNDS; i++) {
        vm_range a = take(r, 2);
        __atomic_store_n((uint64_t *)vm_pointer(r, a.page), a.id, __ATOMIC_RELAXED);
        CHECK_EQ(vm_share(r, a.page, a.id), 0);
        __atomic_store_n(&offer[0].page, a.page, __ATOMIC_RELEASE);
        __atomic_store_n(&offer[0].id, a.id, __ATOMIC_RELEASE);
        for (int spin = i % 50 ? i % 3 : 50; spin; spin--) /* a turn may cost a time slice */
            sched_yield();
        while (i == 0 && !__atomic_load_n(&offer[2].id, __ATOMIC_ACQUIRE))
            sched_yield(); /* the first is adopted for sure */
        GIVE_BACK(r, a);
    }
    __atomic_store_n(&offer[1].id, 1, __ATOMIC_RELEASE);
    ended_well(child);
    CHECK_EQ(vm_recover(r, NULL), 0);
    CHECK_EQ(stats_of(r).busy_pages, 0);
    FINISH(r);
}

/* ---- names ---- */

static void a_name_keeps_a_range_alive(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a = take(r, 3), b;
    char meta[16];
    size_t bytes = sizeof meta;
    memset(vm_pointer(r, a.page), 8, 4096);
    CHECK_EQ(vm_name_set(r, "frames", a.page, a.id, "u1 3x4", 7), 0);
    GIVE_BACK(r, a);
    IN_CHILD({
        CHECK_EQ(vm_name_get(r, "frames", &b, meta, &bytes), 0);
        CHECK(b.page == a.page && b.nr_pages == 3 && bytes == 7 && strcmp(meta, "u1 3x4") == 0);
        CHECK_EQ(*(char *)vm_pointer(r, b.page), 8);
    });
    CHECK_EQ(vm_recover(r, NULL), 0);
    CHECK_EQ(stats_of(r).busy_pages, 3);
    CHECK_EQ(vm_name_delete(r, "frames"), 0);
    CHECK_EQ(vm_name_delete(r, "frames"), -ENOENT);
    CHECK_EQ(vm_name_get(r, "frames", &b, meta, &bytes), -ENOENT);
    CHECK_EQ(stats_of(r).busy_pages, 0);
    FINISH(r);
}

static void a_name_outlives_its_process(vm_pools d)
{
    vm_region *r = make(d);
    pid_t child;
    CHILD(child, {
        vm_range a = take(r, 5);
        CHECK_EQ(vm_name_set(r, "left behind", a.page, a.id, "", 0), 0);
        kill(getpid(), SIGKILL);
    });
    CHECK(WIFSIGNALED(end_of(child)));
    CHECK_EQ(vm_recover(r, NULL), 0);
    CHECK_EQ(stats_of(r).busy_pages, 5);
    CHECK_EQ(vm_name_delete(r, "left behind"), 0);
    CHECK_EQ(stats_of(r).busy_pages, 0);
    FINISH(r);
}

static void replacing_a_name_drops_what_it_stood_for(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a = take(r, 3), b = take(r, 4), got;
    char meta[4];
    size_t bytes = sizeof meta;
    CHECK_EQ(vm_name_set(r, "x", a.page, a.id, "a", 1), 0);
    CHECK_EQ(vm_name_set(r, "y", a.page, a.id, "a", 1), 0);
    CHECK_EQ(vm_name_new(r, "y", b.page, b.id, "b", 1), -EEXIST);
    CHECK_EQ(vm_name_new(r, "z", b.page, b.id, "b", 1), 0);
    CHECK_EQ(vm_name_delete(r, "z"), 0);
    GIVE_BACK(r, a);
    CHECK_EQ(vm_name_set(r, "x", b.page, b.id, "b", 1), 0);
    CHECK_EQ(stats_of(r).busy_pages, 7); /* y still names a */
    CHECK_EQ(vm_name_set(r, "y", b.page, b.id, "b", 1), 0);
    CHECK_EQ(stats_of(r).busy_pages, 4);
    CHECK_EQ(vm_name_set(r, "y", b.page, b.id, "c", 1), 0); /* the same again */
    GIVE_BACK(r, b);
    CHECK_EQ(vm_name_delete(r, "x"), 0);
    CHECK_EQ(vm_name_get(r, "y", &got, meta, &bytes), 0);
    CHECK(got.page == b.page && bytes == 1 && meta[0] == 'c');
    GIVE_BACK(r, got);
    CHECK_EQ(vm_name_delete(r, "y"), 0);
    CHECK_EQ(stats_of(r).busy_pages, 0);
    FINISH(r);
}

static int count_names(void *arg, const char *name, uint64_t page)
{
    (void)name, (void)page;
    ++*(int *)arg;
    return 0;
}

static bool in_names(const char *file, int line, uint64_t nr_passed)
{
    (void)line, (void)nr_passed;
    return strstr(file, "names.c");
}

/* The free is the first to see that the deleter is dead, and waits for no lock. */
static void what_a_name_held_is_free_once_its_dead_deleter_is_recovered(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a = take(r, 3);
    pid_t child;
    CHECK_EQ(vm_name_set(r, "deleted", a.page, a.id, NULL, 0), 0);
    CHILD(child, {
        vm_fault_filter(in_names);
        vm_fault_arm(1); /* the name is gone, its bit is not */
        vm_name_delete(r, "deleted");
    });
    CHECK(WIFSIGNALED(end_of(child)));
    GIVE_BACK(r, a);
    CHECK_EQ(vm_recover(r, NULL), 0);
    CHECK_EQ(stats_of(r).busy_pages, 0);
    FINISH(r);
}

/* All slots are taken, so it gets the dead deleter's: nobody finds that one dead any more. */
static void what_a_name_held_is_free_once_somebody_joined_on_its_dead_deleters_slot(vm_pools d)
{
    enum { OTHERS = 61 };
    vm_region *r = MAKE(.nr_pages = 4096, .nr_nodes = 1, .nr_threads = 4, .nr_processes = OTHERS + 2, .pools = d);
    vm_region *other[OTHERS], *joined;
    vm_range a = take(r, 3);
    pid_t child;
    CHECK_EQ(vm_name_set(r, "deleted", a.page, a.id, NULL, 0), 0);
    *turn = 0;
    CHILD(child, {
        wait_for_turn(1);
        vm_fault_filter(in_names);
        vm_fault_arm(1); /* the name is gone, its bit is not */
        vm_name_delete(r, "deleted");
    });
    for (int i = 0; i < OTHERS; i++)
        CHECK_EQ(vm_attach(vm_fd(r), &other[i]), 0);
    next_turn(1);
    CHECK(WIFSIGNALED(end_of(child)));
    CHECK_EQ(vm_attach(vm_fd(r), &joined), 0);
    GIVE_BACK(r, a);
    CHECK_EQ(stats_of(r).busy_pages, 0);
    CHECK_EQ(vm_detach(joined), 0);
    for (int i = 0; i < OTHERS; i++)
        CHECK_EQ(vm_detach(other[i]), 0);
    FINISH(r);
}

static void wrong_names_are_refused_and_a_full_table_says_so(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a = take(r, 3);
    char name[VM_NAME_BYTES + 8];
    memset(name, 'n', sizeof name);
    name[VM_NAME_BYTES] = 0;
    CHECK_EQ(vm_name_set(r, name, a.page, a.id, "", 0), -EINVAL);
    CHECK_EQ(vm_name_set(r, "", a.page, a.id, "", 0), -EINVAL);
    CHECK_EQ(vm_name_set(r, "x", a.page, a.id + 1, "", 0), -ESTALE);
    CHECK_EQ(vm_name_set(r, "x", a.page, a.id, "", VM_NAME_META_BYTES_MAX + 1), -EINVAL);
    for (int i = 0; i < VM_NAMES_MAX; i++) {
        snprintf(name, sizeof name, "name %d", i);
        CHECK_EQ(vm_name_set(r, name, a.page, a.id, "", 0), 0);
    }
    CHECK_EQ(vm_name_set(r, "one more", a.page, a.id, "", 0), -ENFILE);
    int nr = 0;
    CHECK_EQ(vm_name_list(r, count_names, &nr), 0);
    CHECK_EQ(nr, VM_NAMES_MAX);
    for (int i = 0; i < VM_NAMES_MAX; i++) {
        snprintf(name, sizeof name, "name %d", i);
        CHECK_EQ(vm_name_delete(r, name), 0);
    }
    GIVE_BACK(r, a);
    FINISH(r);
}

static void *name_and_rename(void *arg)
{
    vm_region *r = arg;
    for (int i = 0; i < 3000 / SLOWER; i++) {
        vm_range a = take(r, 1), b;
        char meta[8];
        size_t bytes = sizeof meta;
        CHECK_EQ(vm_name_set(r, "ours", a.page, a.id, "m", 1), 0);
        if (vm_name_get(r, "ours", &b, meta, &bytes) == 0)
            GIVE_BACK(r, b);
        if (vm_share(r, a.page, a.id) == 0 && vm_adopt(r, a.page, a.id, &b) == 0)
            GIVE_BACK(r, b);
        GIVE_BACK(r, a);
        if (i % 10 == 0)
            vm_name_delete(r, "ours");
    }
    return NULL;
}

static void threads_without_a_slot_share_and_name_too(vm_pools d)
{
    vm_region *r = MAKE(.nr_pages = 1000, .pools = d, .nr_nodes = 1, .nr_threads = 1);
    pthread_t threads[4];
    vm__thread(r); /* takes the only slot */
    for (int i = 0; i < 4; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, name_and_rename, r), 0);
    name_and_rename(r);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    vm_name_delete(r, "ours");
    CHECK_EQ(stats_of(r).busy_pages, 0);
    FINISH(r);
}

/* Before a write of holders, while a range is FREEING, another thread comes in between, once. */
static vm_region *looker;
static vm_range looked_at;
static void *(*what_comes)(void *);
static bool come_in_between(const char *file, int line, uint64_t nr_passed)
{
    pthread_t other;
    void *(*what)(void *) = what_comes;
    (void)line, (void)nr_passed;
    if (!what || !strstr(file, "holder.c")
        || vm__state(VM_ACQUIRE(&looker->map.heads[looked_at.page].word)) != VM_FREEING)
        return true;
    what_comes = NULL;
    CHECK_EQ(pthread_create(&other, NULL, what, NULL), 0);
    pthread_join(other, NULL);
    return true;
}

static void *wait_while_it_is_being_freed(void *unused)
{
    vm_word w;
    CHECK_EQ(vm__wait_while_freeing(vm__thread(looker), looked_at.page, &w), 0);
    return unused;
}

/* Who waits for it takes him for dead, since he is leaving. */
static void who_leaves_frees_what_was_taken_for_a_dead_ones_meanwhile(vm_pools d)
{
    vm_region *leaving;
    looker = make(d);
    CHECK_EQ(vm_attach(vm_fd(looker), &leaving), 0);
    looked_at = take(leaving, 3);
    CHECK_EQ(vm_share(leaving, looked_at.page, looked_at.id), 0);
    what_comes = wait_while_it_is_being_freed;
    vm_fault_filter(come_in_between);
    CHECK_EQ(vm_detach(leaving), 0);
    vm_fault_filter(NULL);
    CHECK(!what_comes);
    CHECK_EQ(stats_of(looker).busy_pages, 0); /* nobody holds it, and no scan is due */
    FINISH(looker);
}

static void *look_it_up_and_resize_it(void *unused)
{
    vm_range a;
    CHECK_EQ(vm_lookup(looker, looked_at.page, &a), 0);
    CHECK(a.id == looked_at.id && a.nr_pages == 3);
    CHECK_EQ(vm_resize(looker, &a, 5), -EBUSY);
    CHECK_EQ(vm_resize(looker, &a, 1), -EBUSY);
    return unused;
}

static void a_range_is_there_while_it_is_being_shared_and_is_not_resized(vm_pools d)
{
    looker = make(d);
    looked_at = take(looker, 3);
    what_comes = look_it_up_and_resize_it;
    vm_fault_filter(come_in_between);
    CHECK_EQ(vm_share(looker, looked_at.page, looked_at.id), 0);
    vm_fault_filter(NULL);
    CHECK(!what_comes);
    GIVE_BACK(looker, looked_at);
    FINISH(looker);
}

static void (*const for_every_design[])(vm_pools) = {
    only_a_shared_range_can_be_adopted,
    each_adoption_needs_its_own_free,
    the_last_of_two_processes_frees,
    a_dead_holder_holds_nothing,
    a_range_is_freed_in_another_process,
    of_racing_adopters_and_droppers_nobody_is_left_with_freed_pages,
    a_name_keeps_a_range_alive,
    a_name_outlives_its_process,
    replacing_a_name_drops_what_it_stood_for,
    what_a_name_held_is_free_once_its_dead_deleter_is_recovered,
    what_a_name_held_is_free_once_somebody_joined_on_its_dead_deleters_slot,
    wrong_names_are_refused_and_a_full_table_says_so,
};

int main(void)
{
    turn = shared_memory(4096);
    FOR_EACH_DESIGN (d)
        for (size_t i = 0; i < LENGTH(for_every_design); i++)
            for_every_design[i](d);
    FOR_EACH_DESIGN (d) { /* last: TSan does not fork after threads were there */
        threads_without_a_slot_share_and_name_too(d);
        who_leaves_frees_what_was_taken_for_a_dead_ones_meanwhile(d);
        a_range_is_there_while_it_is_being_shared_and_is_not_resized(d);
    }
    return 0;
}
