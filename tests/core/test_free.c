/* SPDX-License-Identifier: MIT */
/* Frees that are a program's own mistake, frees that keep the range, and memory that was made resident in advance. */
#include "kit.h"

enum { RACERS = 3, ROUNDS = 3000 / SLOWER };

/* ---- two frees of one range at once ---- */

typedef struct race {
    vm_region *r;
    vm_range range;
    pthread_barrier_t start, end;
    uint32_t nr_won;
    bool is_over;
    uint64_t nr_robbed;
} race;

static void *free_it_too(void *arg)
{
    race *c = arg;
    for (int i = 0; i < ROUNDS; i++) {
        pthread_barrier_wait(&c->start);
        int rc = vm_free(c->r, c->range.page, c->range.id, 0);
        CHECK(rc == 0 || rc == -ENOENT || rc == -ESTALE);
        if (rc == 0)
            __atomic_add_fetch(&c->nr_won, 1, __ATOMIC_RELAXED);
        pthread_barrier_wait(&c->end);
    }
    return NULL;
}

/* Takes what was freed and gives it back: the word is then as it was, and only the id is another. */
static void *use_it_again(void *arg)
{
    race *c = arg;
    vm_range a;
    while (!__atomic_load_n(&c->is_over, __ATOMIC_ACQUIRE))
        if (vm_alloc(c->r, 1, 1, 0, &a) == 0 && vm_free(c->r, a.page, a.id, 0) != 0)
            c->nr_robbed++;
    return NULL;
}

static void of_two_frees_at_once_one_fails_in_a_hardened_region(vm_pools d)
{
    race c = {.r = MAKE(.nr_pages = 4000, .pools = d, .hardened = true, SMALL)};
    pthread_t racer[RACERS], user;
    pthread_barrier_init(&c.start, NULL, RACERS + 1);
    pthread_barrier_init(&c.end, NULL, RACERS + 1);
    for (int i = 0; i < RACERS; i++)
        CHECK_EQ(pthread_create(&racer[i], NULL, free_it_too, &c), 0);
    CHECK_EQ(pthread_create(&user, NULL, use_it_again, &c), 0);
    for (int i = 0; i < ROUNDS; i++) {
        c.range = take(c.r, 1);
        c.nr_won = 0;
        pthread_barrier_wait(&c.start);
        pthread_barrier_wait(&c.end);
        CHECK_EQ(c.nr_won, 1);
    }
    __atomic_store_n(&c.is_over, true, __ATOMIC_RELEASE);
    for (int i = 0; i < RACERS; i++)
        pthread_join(racer[i], NULL);
    pthread_join(user, NULL);
    CHECK_EQ(c.nr_robbed, 0);
    FINISH(c.r);
}

/* Between what a free looked at and its first write the same range is freed and taken again by another thread. */
typedef struct slip {
    vm_region *r;
    vm_range range, taken;
    int rc;
    bool is_over;
} slip;

static slip *slip_now; /* of one free, by the thread that set it */
static _Thread_local bool slips;

static void *free_and_take(void *arg)
{
    slip *s = arg;
    s->rc = vm_free(s->r, s->range.page, s->range.id, 0);
    if (s->rc == 0)
        s->taken = take(s->r, 1);
    __atomic_store_n(&s->is_over, true, __ATOMIC_RELEASE);
    return NULL;
}

static pthread_t other;
static bool let_another_come_first(const char *file, int line, uint64_t nr_passed)
{
    (void)line, (void)nr_passed;
    if (slips && (strstr(file, "free.c") || strstr(file, "vmalloc_inline.h"))) {
        slips = false;
        CHECK_EQ(pthread_create(&other, NULL, free_and_take, slip_now), 0);
        for (int i = 0; i < 100 && !__atomic_load_n(&slip_now->is_over, __ATOMIC_ACQUIRE); i++)
            usleep(1000); /* it may have to wait for us */
    }
    return true;
}

/* Returns of how many it was freed. */
static int free_twice_at_once(slip *s)
{
    vm_range used = take(s->r, 1); /* so that it is dirty, as what comes back later */
    GIVE_BACK(s->r, used);
    slip_now = s;
    s->range = take(s->r, 1);
    vm_fault_filter(let_another_come_first);
    slips = true;
    int rc = vm_free(s->r, s->range.page, s->range.id, 0);
    CHECK(!slips);
    pthread_join(other, NULL);
    vm_fault_filter(NULL);
    CHECK(rc == 0 || rc == -ENOENT || rc == -ESTALE);
    CHECK(s->rc == 0 || s->rc == -ENOENT || s->rc == -ESTALE);
    return (rc == 0) + (s->rc == 0);
}

static void a_hardened_region_sees_a_free_that_comes_in_between(vm_pools d)
{
    slip s = {.r = MAKE(.nr_pages = 64, .pools = d, .hardened = true, SMALL)};
    CHECK_EQ(free_twice_at_once(&s), 1);
    if (s.taken.nr_pages)
        GIVE_BACK(s.r, s.taken); /* nobody took it away */
    FINISH(s.r);
}

/* The word has no id: what was freed and taken in between looks as before. It is noticed at the latest by whoever
 * was robbed of it. */
static void without_that_the_robbed_one_sees_it_at_its_own_free(void)
{
    slip s = {.r = MAKE(.nr_pages = 64, .pools = VM_POOLS_MAGAZINE, SMALL)};
    CHECK_EQ(free_twice_at_once(&s), 2);
    CHECK_EQ(s.taken.page, s.range.page);
    CHECK_EQ(vm_free(s.r, s.taken.page, s.taken.id, 0), -ENOENT);
    CHECK(vm_repair(s.r, NULL, NULL) >= 0);
    CHECK_EQ(vm_detach(s.r), 0);
}

/* ---- free, and keep it ---- */

static void who_drops_the_last_reference_may_keep_the_range(vm_pools d)
{
    vm_region *r = MAKE(.nr_pages = 2000, .pools = d, SMALL);
    for (uint64_t n = 1; n < 600; n += 299) {
        vm_range a = take(r, n), kept = {.nr_pages = 77}, b;
        CHECK_EQ(vm_share(r, a.page, a.id), 0);
        CHECK_EQ(vm_adopt(r, a.page, a.id, &b), 0);
        CHECK_EQ(vm_free_kept(r, a.page, a.id, 0, &kept), 0);
        CHECK_EQ(kept.nr_pages, 0); /* b holds it */
        CHECK_EQ(vm_free_kept(r, b.page, b.id, 0, &kept), 0);
        CHECK_EQ(kept.page, a.page);
        CHECK(kept.nr_pages >= n && kept.id != a.id);
        CHECK_EQ(vm_free(r, a.page, a.id, 0), -ESTALE);
        CHECK_EQ(vm_adopt(r, a.page, a.id, &b), -ESTALE); /* for everybody else it is gone */
        CHECK_EQ(vm_free_kept(r, a.page, a.id, 0, &b), -ESTALE);
        GIVE_BACK(r, kept);
    }
    FINISH(r);
}

/* ---- warm in advance ---- */

static void what_was_made_resident_is_found_warm(void)
{
    vm_region *r =
        MAKE(.nr_pages = 8000, .pools = VM_POOLS_MAGAZINE, .nr_nodes = 1, .nr_threads = 8, .lazy_pages_max = 100);
    vm_range a;
    CHECK_EQ(vm_alloc_cold(r, 4000, 1, &a), 0);
    CHECK(a.zeroed);
    uint64_t before = stats_of(r).resident_bytes;
    CHECK_EQ(vm_populate(r, a.page, a.nr_pages), 0);
    CHECK(stats_of(r).resident_bytes >= before + 4000 * 4096);
    CHECK_EQ(vm_keep_warm(r, a.nr_pages), 0);
    GIVE_BACK(r, a);
    CHECK_EQ(stats_of(r).lazy_pages, 4000); /* above lazy_pages_max, and yet nothing was given back */
    a = take(r, 3000);
    vm_range b = take(r, 7);
    CHECK_EQ(stats_of(r).nr_lazy_hit, 2);
    CHECK_EQ(stats_of(r).nr_space_hit, 1); /* the cold one */
    GIVE_BACK(r, a);
    GIVE_BACK(r, b);
    CHECK_EQ(vm_shrink(r, NULL), 0); /* forgets the wish */
    vm_info info;
    vm_describe(r, &info);
    CHECK_EQ(info.floor_pages, 0);
    CHECK_EQ(info.lazy_pages_max, 100);
    FINISH(r);
}

static void populating_changes_no_byte(void)
{
    vm_region *r = MAKE(.nr_pages = 100, .pools = VM_POOLS_MAGAZINE, SMALL);
    vm_range a = take(r, 3);
    uint8_t *at = vm_pointer(r, a.page);
    memset(at, 7, 2 * 4096);
    CHECK_EQ(vm_populate(r, a.page, 3), 0);
    CHECK(at[0] == 7 && at[2 * 4096 - 1] == 7 && at[2 * 4096] == 0);
    CHECK_EQ(vm_populate(r, 98, 3), -EINVAL);
    CHECK_EQ(vm_alloc_cold(r, 0, 1, &a), -EINVAL);
    CHECK_EQ(vm_alloc_cold(r, 1, 3, &a), -EINVAL);
    CHECK_EQ(vm_alloc_cold(r, 101, 1, &a), -ENOSPC);
    a.page = 0;
    GIVE_BACK(r, a);
    FINISH(r);
}

static void zeros_are_written_or_discarded(void)
{
    vm_region *r = MAKE(.nr_pages = 100, .pools = VM_POOLS_MAGAZINE, SMALL);
    static const uint64_t sizes[] = {1, 4095, 4096, 4097, 20 * 4096, 20 * 4096 + 5};
    vm_range a = take(r, 21);
    uint8_t *at = vm_pointer(r, a.page);
    for (size_t i = 0; i < LENGTH(sizes); i++)
        for (uint64_t punch = 4096; punch <= 1u << 20; punch <<= 8) {
            memset(at, 7, 21 * 4096);
            uint64_t before = stats_of(r).resident_bytes, n = sizes[i];
            CHECK_EQ(vm__zero(r, a.page, n, punch), 0);
            CHECK_EQ(before - stats_of(r).resident_bytes, n >= punch ? n / 4096 * 4096 : 0);
            for (uint64_t k = 0; k < 21 * 4096; k++)
                CHECK_EQ(at[k], k < n ? 0 : 7);
        }
    CHECK_EQ(vm_zero(r, 99, 4097), -EINVAL);
    GIVE_BACK(r, a);
    FINISH(r);
}

/* ---- huge pages ---- */

static void a_long_range_lies_for_huge_pages_where_it_can(void)
{
    uint64_t huge = (2u << 20) / 4096;
    vm_region *r = MAKE(.nr_pages = 5 * huge, .pools = VM_POOLS_MAGAZINE, .huge = true, SMALL);
    vm_range one = take(r, 1), a = take(r, huge), b = take(r, huge + 1), c;
    CHECK_EQ(a.page % huge, 0);
    CHECK_EQ(b.page % huge, 0);
    CHECK_EQ(take(r, huge - 1).page % huge != 0, 1); /* too short to be worth it: the lowest place */
    CHECK_EQ(vm_alloc(r, huge + 1, 1, 0, &c), 0); /* there is no such place left, but a place */
    CHECK(c.page % huge != 0);
    vm_info info;
    vm_describe(r, &info);
    CHECK(info.huge && !info.hardened);
    CHECK_EQ(vm_free(r, one.page, one.id, 0), 0);
    CHECK_EQ(vm_detach(r), 0);
    vm_options numbers = {.nr_pages = 100, .granule_bytes = 4096, .huge = true};
    CHECK_EQ(vm_create(&numbers, &r), -EINVAL);
}

int main(void)
{
    FOR_EACH_DESIGN (d) {
        of_two_frees_at_once_one_fails_in_a_hardened_region(d);
        a_hardened_region_sees_a_free_that_comes_in_between(d);
        who_drops_the_last_reference_may_keep_the_range(d);
    }
    without_that_the_robbed_one_sees_it_at_its_own_free();
    what_was_made_resident_is_found_warm();
    populating_changes_no_byte();
    zeros_are_written_or_discarded();
    a_long_range_lies_for_huge_pages_where_it_can();
    return 0;
}
