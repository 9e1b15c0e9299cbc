/* SPDX-License-Identifier: MIT */
/* Contexts: what a thread knows of a region lies in memory that threads after it use again, and that a child finds wiped. */
#include "kit.h"

#include <pthread.h>
#include <sys/resource.h>

/* Of the process; 0 in builds with a sanitizer, which maps memory of its own while we look. */
static uint64_t nr_mappings(void)
{
    if (SLOWER > 1)
        return 0;
    FILE *f = fopen("/proc/self/maps", "r");
    uint64_t nr = 0;
    CHECK(f);
    for (int c; (c = getc(f)) != EOF; nr += c == '\n')
        ;
    CHECK_EQ(fclose(f), 0);
    return nr;
}

static bool is_zero(const vm_thread *t)
{
    const uint8_t *at = (const uint8_t *)t;
    for (size_t i = 0; i < sizeof *t; i++)
        if (at[i])
            return false;
    return true;
}

static void the_next_thread_gets_the_memory_of_one_that_ended_as_zeros(void)
{
    vm_thread *a = vm__context_new(), *b = vm__context_new();
    CHECK(a && b && a != b && is_zero(a) && is_zero(b));
    memset(a, 0xff, sizeof *a);
    vm__context_drop(a);
    CHECK(vm__context_new() == a && is_zero(a));
    vm__context_drop(a);
    vm__context_drop(b);
}

/* More than there are places for, so that the last ones have mappings of their own. */
static void as_many_threads_as_there_are_have_one_each(void)
{
    enum { NR = 5000 };
    static vm_thread *all[NR];
    uint64_t before = nr_mappings();
    for (uint32_t i = 0; i < NR; i++) {
        all[i] = vm__context_new();
        CHECK(all[i] && is_zero(all[i]));
        all[i]->index = i;
    }
    for (uint32_t i = 0; i < NR; i++) {
        CHECK_EQ(all[i]->index, i);
        vm__context_drop(all[i]);
    }
    CHECK(nr_mappings() <= before + 64);
    vm_thread *t = vm__context_new();
    CHECK(t == all[0] && is_zero(t));
    vm__context_drop(t);
}

static uint64_t bytes_mapped(void)
{
    unsigned long long pages;
    FILE *f = fopen("/proc/self/statm", "r");
    CHECK(f && fscanf(f, "%llu", &pages) == 1);
    CHECK_EQ(fclose(f), 0);
    return pages * vm__page_bytes();
}

/* Before another test makes more mappings; not beside a sanitizer's own memory. */
static void where_no_room_is_left_for_many_one_has_a_mapping_of_its_own(void)
{
    if (SLOWER > 1)
        return;
    vm__context_drop(vm__context_new());
    IN_CHILD({
        for (int i = 0; i < 64; i++) /* the first mapping's */
            CHECK(vm__context_new());
        uint64_t before = nr_mappings(), most = bytes_mapped() + 64 * 1024;
        CHECK_EQ(setrlimit(RLIMIT_AS, &(struct rlimit){most, most}), 0);
        vm_thread *t = vm__context_new();
        CHECK(t && is_zero(t));
        vm__context_drop(t);
        CHECK_EQ(nr_mappings(), before);
    });
}

static vm_region *region;
static void *use_the_region(void *unused)
{
    (void)unused;
    vm_range a = take(region, 1);
    GIVE_BACK(region, a);
    return NULL;
}

static void one_thread(void)
{
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, use_the_region, NULL), 0);
    CHECK_EQ(pthread_join(thread, NULL), 0);
}

static void threads_that_come_and_go_leave_no_mapping(void)
{
    region = MAKE(.nr_pages = 1000, .pools = VM_POOLS_MAGAZINE, SMALL);
    one_thread();
    uint64_t before = nr_mappings();
    for (int i = 0; i < 100; i++)
        one_thread();
    CHECK_EQ(nr_mappings(), before);
    FINISH(region);
}

static void a_child_uses_the_memory_of_its_parents_threads_again(void)
{
    vm_thread *first = vm__context_new();
    region = MAKE(.nr_pages = 1000, .pools = VM_POOLS_MAGAZINE, SMALL);
    use_the_region(NULL);
    memset(first, 0xff, sizeof *first);
    IN_CHILD({
        CHECK(is_zero(first));
        vm_thread *a = vm__context_new();
        CHECK(a == first || vm__context_new() == first); /* or one of this thread, of a region before */
        use_the_region(NULL);
    });
    vm__context_drop(first);
    FINISH(region);
}

int main(void)
{
    the_next_thread_gets_the_memory_of_one_that_ended_as_zeros();
    where_no_room_is_left_for_many_one_has_a_mapping_of_its_own();
    as_many_threads_as_there_are_have_one_each();
    threads_that_come_and_go_leave_no_mapping();
    a_child_uses_the_memory_of_its_parents_threads_again();
    return 0;
}
