/* SPDX-License-Identifier: MIT */
/* Space: lowest address first, split, merge, limit. The `off` design shows it bare: a freed range is
 * lazy, and a purge returns it. */
#include "kit.h"

static void return_now(vm_region *r, vm_range a)
{
    GIVE_BACK(r, a);
    CHECK_EQ(vm_purge(r, NULL), 0);
    CHECK_CLEAN(r);
}

static vm_region *bare(uint64_t nr_pages) { return MAKE(.nr_pages = nr_pages, .pools = VM_POOLS_OFF, SMALL); }

static void a_request_gets_the_lowest_address_that_fits(void)
{
    vm_region *r = bare(100);
    vm_range a = take(r, 10), b = take(r, 5), c = take(r, 10);
    CHECK_EQ(a.page, 0);
    CHECK_EQ(b.page, 10);
    CHECK_EQ(c.page, 15);
    return_now(r, a);
    return_now(r, c);
    CHECK_EQ(stats_of(r).nr_free_ranges, 2); /* [0, 10) and [15, 100) */
    vm_range d = take(r, 11);
    CHECK_EQ(d.page, 15); /* 11 do not fit into the 10 at 0 */
    vm_range e = take(r, 4);
    CHECK_EQ(e.page, 0);
    return_now(r, b);
    return_now(r, d);
    return_now(r, e);
    FINISH(r);
}

static void a_freed_range_merges_with_both_neighbours(void)
{
    vm_region *r = bare(100);
    vm_range a = take(r, 10), b = take(r, 10), c = take(r, 10), d = take(r, 70);
    return_now(r, a);
    CHECK_EQ(stats_of(r).nr_free_ranges, 1);
    return_now(r, c);
    CHECK_EQ(stats_of(r).nr_free_ranges, 2);
    uint64_t before = stats_of(r).nr_merges;
    return_now(r, b);
    CHECK_EQ(stats_of(r).nr_merges, before + 2);
    CHECK_EQ(stats_of(r).nr_free_ranges, 1);
    CHECK_EQ(stats_of(r).largest_free_pages, 30);
    return_now(r, d);
    FINISH(r);
}

static void an_aligned_request_leaves_the_gap_before_it_free(void)
{
    vm_region *r = bare(100);
    vm_range a = take(r, 3), b;
    CHECK_EQ(vm_alloc(r, 8, 16, 0, &b), 0);
    CHECK_EQ(b.page, 16);
    CHECK_EQ(stats_of(r).nr_free_ranges, 2); /* [3, 16) and [24, 100) */
    vm_range c = take(r, 13);
    CHECK_EQ(c.page, 3);
    CHECK_EQ(vm_alloc(r, 1, 128, 0, &b), -ENOSPC); /* page 0 is taken and there is no page 128 */
    return_now(r, a);
    return_now(r, c);
    CHECK_EQ(vm_free(r, 16, b.id, 0), 0);
    FINISH(r);
}

static void every_power_of_two_alignment_is_kept(void)
{
    vm_region *r = bare(5000);
    vm_range odd = take(r, 1), a;
    for (uint64_t align = 1; align <= 4096; align *= 2) {
        CHECK_EQ(vm_alloc(r, 1, align, 0, &a), 0);
        CHECK_EQ(a.page, align);
        return_now(r, a);
    }
    return_now(r, odd);
    FINISH(r);
}

static void no_more_than_the_limit_leaves_space(void)
{
    vm_region *r = MAKE(.nr_pages = 100, .pools = VM_POOLS_OFF, .limit_pages = 60, SMALL);
    vm_range a = take(r, 50), b;
    CHECK_EQ(vm_alloc(r, 11, 1, 0, &b), -ENOSPC);
    CHECK_EQ(vm_alloc(r, 10, 1, 0, &b), 0);
    CHECK_EQ(vm_alloc(r, 1, 1, 0, &(vm_range){0}), -ENOSPC);
    GIVE_BACK(r, a); /* lazy ranges count, until a request that would fail purges them */
    a = take(r, 50);
    GIVE_BACK(r, a);
    GIVE_BACK(r, b);
    FINISH(r);
}

static void a_full_region_says_so_and_a_free_makes_room(void)
{
    vm_region *r = bare(64);
    vm_range a[64], b;
    for (int i = 0; i < 64; i++) {
        a[i] = take(r, 1);
        CHECK_EQ(a[i].page, i);
    }
    CHECK_EQ(vm_alloc(r, 1, 1, 0, &b), -ENOSPC);
    GIVE_BACK(r, a[40]);
    CHECK_EQ(vm_alloc(r, 1, 1, VM_NO_PURGE, &b), -ENOSPC); /* it is still lazy */
    b = take(r, 1);
    CHECK_EQ(b.page, 40);
    a[40] = b;
    CHECK_EQ(vm_free_bulk(r, 64, a), 0);
    FINISH(r);
}

static void never_touched_pages_are_told_apart(void)
{
    vm_region *r = bare(64);
    vm_range a = take(r, 4);
    CHECK(a.zeroed);
    memset(vm_pointer(r, a.page), 0x5a, 4 * 4096);
    return_now(r, a); /* a purge punches a hole: zeros again */
    vm_range b = take(r, 4);
    CHECK_EQ(b.page, a.page);
    CHECK(b.zeroed && ((char *)vm_pointer(r, b.page))[4095] == 0);
    return_now(r, b);
    FINISH(r);
}

static void the_index_comes_back_from_the_words_alone(void)
{
    vm_region *r = bare(3000);
    vm_range a = take(r, 700), b = take(r, 1), c = take(r, 999);
    return_now(r, b);
    memset(r->map.bits, 0x33, 3000 / 8); /* what a hostile neighbour may do to a hint */
    memset(r->map.summaries, 0x77, (r->map.level_offset[r->map.nr_levels - 1] + 1) * sizeof(vm_summary));
    r->map.h->free_pages = 5;
    CHECK(vm_check(r, true, NULL, NULL) > 0);
    CHECK(vm_repair(r, NULL, NULL) > 0);
    CHECK_EQ(vm_check(r, true, say_finding, "repaired"), 0);
    CHECK_EQ(stats_of(r).free_pages, 3000 - 700 - 999);
    GIVE_BACK(r, a);
    GIVE_BACK(r, c);
    FINISH(r);
}

/* The core itself compares each answer of the index with a linear scan in this build. */
static void a_random_history_tiles_the_region(uint64_t nr_pages, uint64_t max_pages, int nr_steps)
{
    enum { LIVE = 64 };
    vm_region *r = bare(nr_pages);
    vm_range live[LIVE] = {0};
    uint8_t *owner = calloc(nr_pages, 1);
    uint64_t seed = nr_pages + max_pages;
    CHECK(owner != NULL);
    for (int step = 0; step < nr_steps; step++) {
        uint64_t i = random_below(&seed, LIVE);
        if (live[i].nr_pages) {
            for (uint64_t p = live[i].page; p < live[i].page + live[i].nr_pages; p++) {
                CHECK_EQ(owner[p], i + 1);
                owner[p] = 0;
            }
            GIVE_BACK(r, live[i]);
            live[i].nr_pages = 0;
            if (random_below(&seed, 3) == 0)
                CHECK_EQ(vm_purge(r, NULL), 0);
        } else if (vm_alloc(r, random_pages(&seed, max_pages), 1ull << random_below(&seed, 5), 0, &live[i]) == 0) {
            for (uint64_t p = live[i].page; p < live[i].page + live[i].nr_pages; p++) {
                CHECK_EQ(owner[p], 0);
                owner[p] = (uint8_t)(i + 1);
            }
        }
        if (step % 50 == 0)
            CHECK_CLEAN(r);
    }
    for (int i = 0; i < LIVE; i++)
        if (live[i].nr_pages)
            GIVE_BACK(r, live[i]);
    free(owner);
    FINISH(r);
}

int main(void)
{
    a_request_gets_the_lowest_address_that_fits();
    a_freed_range_merges_with_both_neighbours();
    an_aligned_request_leaves_the_gap_before_it_free();
    every_power_of_two_alignment_is_kept();
    no_more_than_the_limit_leaves_space();
    a_full_region_says_so_and_a_free_makes_room();
    never_touched_pages_are_told_apart();
    the_index_comes_back_from_the_words_alone();
    a_random_history_tiles_the_region(100, 10, 5000 / SLOWER);
    a_random_history_tiles_the_region(777, 60, 5000 / SLOWER);
    a_random_history_tiles_the_region(5000, 700, 5000 / SLOWER);
    return 0;
}
