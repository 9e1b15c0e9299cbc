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

/* Without that the word cannot tell: what a second free took from its new owner is noticed when that one frees it. */
static void a_range_that_a_second_free_took_is_missed_by_its_owner_at_the_latest(void)
{
    vm_region *r = MAKE(.nr_pages = 64, .pools = VM_POOLS_MAGAZINE, SMALL);
    vm_range first = take(r, 1), second;
    GIVE_BACK(r, first);
    second = take(r, 1); /* the same page */
    CHECK_EQ(second.page, first.page);
    CHECK_EQ(vm_free(r, first.page, first.id, 0), -ESTALE); /* not at once: noticed */
    vm_word cached = VM_ACQUIRE(&r->map.heads[second.page].word) ^ vm__thread(r)->flip;
    __atomic_store_n(&r->map.heads[second.page].word, cached, __ATOMIC_RELEASE); /* at once: its last store comes now */
    CHECK_EQ(vm_free(r, second.page, second.id, 0), -ENOENT);
    CHECK_EQ(vm_repair(r, NULL, NULL) >= 0, 1);
    CHECK_EQ(vm_detach(r), 0);
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
    vm_region *r = MAKE(.nr_pages = 8000, .pools = VM_POOLS_MAGAZINE, .nr_nodes = 1, .nr_threads = 8, .lazy_pages_max = 100);
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
    CHECK_EQ(stats_of(r).nr_space_hit, 0);
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
    FOR_EACH_DESIGN(d) {
        of_two_frees_at_once_one_fails_in_a_hardened_region(d);
        who_drops_the_last_reference_may_keep_the_range(d);
    }
    a_range_that_a_second_free_took_is_missed_by_its_owner_at_the_latest();
    what_was_made_resident_is_found_warm();
    populating_changes_no_byte();
    a_long_range_lies_for_huge_pages_where_it_can();
    return 0;
}
