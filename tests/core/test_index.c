/* SPDX-License-Identifier: MIT */
/* The free index against the simplest index there is: one bool a page. */
#include "kit.h"

typedef struct oracle {
    uint64_t nr_pages;
    bool *taken;
} oracle;

static uint64_t oracle_find(const oracle *o, uint64_t from, uint64_t nr_pages)
{
    for (uint64_t page = from, run = 0; page < o->nr_pages; page++) {
        run = o->taken[page] ? 0 : run + 1;
        if (run == nr_pages)
            return page + 1 - nr_pages;
    }
    return VM_NONE;
}

static uint64_t oracle_find_aligned(const oracle *o, uint64_t from, uint64_t nr_pages, uint64_t align_pages)
{
    for (uint64_t page = from, n; page + nr_pages <= o->nr_pages;
         page = (page + n + align_pages) & ~(align_pages - 1)) {
        for (n = 0; n < nr_pages && !o->taken[page + n]; n++)
            ;
        if (n == nr_pages)
            return page;
    }
    return VM_NONE;
}

static uint64_t oracle_run_start(const oracle *o, uint64_t page)
{
    while (page && !o->taken[page - 1])
        page--;
    return page;
}

static uint64_t oracle_largest(const oracle *o)
{
    uint64_t best = 0;
    for (uint64_t page = 0, run = 0; page < o->nr_pages; page++) {
        run = o->taken[page] ? 0 : run + 1;
        best = run > best ? run : best;
    }
    return best;
}

static void same_answers(vm_region *r, const oracle *o, uint64_t *seed)
{
    uint64_t from = random_below(seed, o->nr_pages), page = random_below(seed, o->nr_pages);
    uint64_t nr_pages = random_pages(seed, o->nr_pages);
    CHECK_EQ(vm__index_find(&r->map, 0, nr_pages), oracle_find(o, 0, nr_pages));
    CHECK_EQ(vm__index_find(&r->map, from, nr_pages), oracle_find(o, from, nr_pages));
    CHECK_EQ(vm__index_find(&r->map, page, 1), oracle_find(o, page, 1));
    uint64_t align = 1ull << random_below(seed, 13), aligned = from / align * align;
    CHECK_EQ(vm__index_find_aligned(&r->map, 0, nr_pages, align), oracle_find_aligned(o, 0, nr_pages, align));
    CHECK_EQ(vm__index_find_aligned(&r->map, aligned, nr_pages, align),
             oracle_find_aligned(o, aligned, nr_pages, align));
    CHECK_EQ(vm__index_is_free(&r->map, page), !o->taken[page]);
    if (!o->taken[page])
        CHECK_EQ(vm__index_run_start(&r->map, page), oracle_run_start(o, page));
    CHECK_EQ(vm__index_largest(&r->map), oracle_largest(o));
}

static size_t summaries_bytes(const vm_region *r)
{
    return (r->map.level_offset[r->map.nr_levels - 1] + 1) * sizeof(vm_summary);
}

static void rebuilding_changes_nothing(vm_region *r)
{
    size_t bytes = summaries_bytes(r);
    vm_summary *before = malloc(bytes);
    CHECK(before != NULL);
    memcpy(before, r->map.summaries, bytes);
    vm__index_summarise_all(&r->map);
    CHECK(memcmp(before, r->map.summaries, bytes) == 0);
    free(before);
}

static void summaries_come_back_from_the_bits_alone(vm_region *r)
{
    size_t bytes = summaries_bytes(r);
    vm_summary *before = malloc(bytes);
    CHECK(before != NULL);
    memcpy(before, r->map.summaries, bytes);
    memset(r->map.summaries, 0xa5, bytes);
    r->map.h->high_pages = r->map.nr_pages;
    vm__index_summarise_all(&r->map);
    CHECK(memcmp(before, r->map.summaries, bytes) == 0);
    free(before);
}

static vm_region *numbers(uint64_t nr_pages) { return MAKE(.nr_pages = nr_pages, .granule_bytes = 1, SMALL); }

static void a_random_history_gives_the_oracles_answers(uint64_t nr_pages, int nr_steps)
{
    vm_region *r = numbers(nr_pages);
    oracle o = {nr_pages, calloc(nr_pages, 1)};
    CHECK(o.taken != NULL);
    uint64_t seed = nr_pages * 2 + 1;
    for (int step = 0; step < nr_steps; step++) {
        uint64_t page = random_below(&seed, nr_pages), n = random_pages(&seed, nr_pages - page);
        bool taken = random_below(&seed, 2);
        vm__index_set(&r->map, page, n, taken);
        memset(o.taken + page, taken, n);
        same_answers(r, &o, &seed);
    }
    rebuilding_changes_nothing(r);
    summaries_come_back_from_the_bits_alone(r);
    vm__index_set(&r->map, 0, nr_pages, false);
    CHECK_CLEAN(r);
    free(o.taken);
    CHECK_EQ(vm_detach(r), 0);
}

static void a_region_of_any_size_has_an_index(void)
{
    static const uint64_t sizes[] = {1, 2, 63, 64, 65, 511, 512, 513, 1000, 4095, 4096, 4097, 32768, 40001, 300007};
    for (size_t i = 0; i < LENGTH(sizes); i++)
        a_random_history_gives_the_oracles_answers(sizes[i], (sizes[i] > 10000 ? 150 : 1500) / SLOWER);
}

static void pages_past_the_end_are_never_found(void)
{
    vm_region *r = numbers(700); /* the second leaf ends at 1024 */
    CHECK_EQ(vm__index_largest(&r->map), 700);
    CHECK_EQ(vm__index_find(&r->map, 0, 700), 0);
    CHECK_EQ(vm__index_find(&r->map, 0, 701), VM_NONE);
    CHECK_EQ(vm__index_find(&r->map, 699, 1), 699);
    CHECK_EQ(vm__index_find(&r->map, 699, 2), VM_NONE);
    CHECK_EQ(vm__index_find(&r->map, 700, 1), VM_NONE);
    CHECK(!vm__index_is_free(&r->map, 700));
    CHECK_EQ(vm_detach(r), 0);
}

static void a_run_is_found_across_leaves_and_levels(void)
{
    vm_region *r = numbers(10 * 4096);
    vm__index_set(&r->map, 0, r->map.nr_pages, true);
    vm__index_set(&r->map, 4096 - 10, 20, false); /* over the edge of a level-1 entry */
    CHECK_EQ(vm__index_find(&r->map, 0, 20), 4086);
    CHECK_EQ(vm__index_find(&r->map, 4090, 16), 4090);
    CHECK_EQ(vm__index_find(&r->map, 4090, 17), VM_NONE);
    CHECK_EQ(vm__index_run_start(&r->map, 4105), 4086);
    CHECK_EQ(vm__index_largest(&r->map), 20);
    vm__index_set(&r->map, 0, r->map.nr_pages, false);
    CHECK_EQ(vm_detach(r), 0);
}

/* Holes of `hole` pages, one every `period`; only the last lies at a multiple of `align`. */
static void only_the_last_hole_lies_right(uint64_t nr_pages, uint64_t hole, uint64_t period, uint64_t align)
{
    vm_region *r = numbers(nr_pages);
    oracle o = {nr_pages, malloc(nr_pages)};
    CHECK(o.taken != NULL);
    vm__index_set(&r->map, 0, nr_pages, true);
    memset(o.taken, 1, nr_pages);
    uint64_t last = (nr_pages - hole) / align * align;
    for (uint64_t page = 1; page + hole < last; page += period)
        if (page % align) {
            vm__index_set(&r->map, page, hole, false);
            memset(o.taken + page, 0, hole);
        }
    CHECK_EQ(vm__index_find_aligned(&r->map, 0, hole, align), oracle_find_aligned(&o, 0, hole, align));
    vm__index_set(&r->map, last, hole, false);
    memset(o.taken + last, 0, hole);
    CHECK_EQ(vm__index_find_aligned(&r->map, 0, hole, align), oracle_find_aligned(&o, 0, hole, align));
    CHECK_EQ(vm__index_find_aligned(&r->map, last, hole, align), last);
    CHECK_EQ(vm__index_find_aligned(&r->map, last + align, hole, align), VM_NONE);
    vm__index_set(&r->map, 0, nr_pages, false);
    free(o.taken);
    CHECK_EQ(vm_detach(r), 0);
}

static void an_aligned_run_is_found_behind_holes_that_lie_askew(void)
{
    only_the_last_hole_lies_right(5000, 1, 2, 2);
    only_the_last_hole_lies_right(5000, 2, 4, 2);
    only_the_last_hole_lies_right(5000, 3, 4, 4);
    only_the_last_hole_lies_right(40001, 64, 128, 64);
    only_the_last_hole_lies_right(40001, 65, 192, 64);
    only_the_last_hole_lies_right(40001, 256, 512, 256);
    only_the_last_hole_lies_right(40001, 512, 1024, 512);
    only_the_last_hole_lies_right(40001, 600, 1024, 512);
    only_the_last_hole_lies_right(100000, 4096, 8192, 4096);
    only_the_last_hole_lies_right(100000, 700, 1024, 8192);
}

static void a_huge_region_costs_the_pages_that_were_written(void)
{
    vm_region *r = MAKE(.nr_pages = VM_PAGES_MAX, .pools = VM_POOLS_MAGAZINE);
    CHECK(stats_of(r).resident_bytes < 128 << 10);
    vm_range a = take(r, 1);
    CHECK_EQ(a.page, 0);
    GIVE_BACK(r, a);
    CHECK(stats_of(r).resident_bytes < 256 << 10);
    CHECK_EQ(vm_detach(r), 0);
}

int main(void)
{
    a_region_of_any_size_has_an_index();
    pages_past_the_end_are_never_found();
    a_run_is_found_across_leaves_and_levels();
    an_aligned_run_is_found_behind_holes_that_lie_askew();
    if (SLOWER == 1) /* 4 TiB of address space are not a sanitizer's */
        a_huge_region_costs_the_pages_that_were_written();
    return 0;
}
