/* SPDX-License-Identifier: MIT */
/*
 * INLINE: vmalloc_inline.h does what vm_take() and vm_free() do, and hits where they would.
 *
 * tests/api/test_from_c.py asks the same of a program that was built through pkg-config, also with another layout.
 */
#include "kit.h"

static vm_region *make(vm_pools pools) { return MAKE(.nr_pages = 4000, .pools = pools, SMALL); }

static uint64_t hits(vm_region *r) { return stats_of(r).nr_magazine_hit; }

static void what_is_taken_without_a_call_is_a_range_like_any_other(vm_pools pools)
{
    vm_region *r = make(pools);
    for (int i = 0; i < 4; i++) { /* from space, from where the first one went, and freed either way */
        vm_taken got = vm_take_inline(r, 3);
        vm_range range;
        CHECK(got.id != 0);
        CHECK_EQ(vm_lookup(r, got.page, &range), 0);
        CHECK(range.page == got.page && range.nr_pages == 3 && range.id == got.id);
        CHECK_EQ(i % 2 ? vm_free(r, got.page, got.id, 0) : vm_free_inline(r, got.page, got.id, 0), 0);
        CHECK(vm_free_inline(r, got.page, got.id, 0) < 0); /* twice */
    }
    FINISH(r);
}

static void wrong_calls_fail_as_the_librarys_do(vm_pools pools)
{
    vm_region *r = make(pools);
    const uint64_t wrong[] = {0, 4001, UINT64_MAX};
    for (size_t i = 0; i < LENGTH(wrong); i++) {
        vm_taken inlined = vm_take_inline(r, wrong[i]), called = vm_take(r, wrong[i]);
        CHECK_EQ(inlined.id, 0);
        CHECK_EQ(inlined.page, called.page);
    }
    vm_taken got = vm_take_inline(r, 8);
    CHECK_EQ(vm_free_inline(r, got.page + 1, got.id, 0), -ENOENT);
    CHECK_EQ(vm_free_inline(r, got.page, got.id + (1 << VM_ID_SIZE_BITS), 0), -ESTALE);
    CHECK_EQ(vm_free_inline(r, UINT64_MAX, got.id, 0), -ENOENT);
    CHECK_EQ(vm_free_inline(r, got.page, got.id, 0), 0);
    FINISH(r);
}

/* Through blocks of ids: each pair but the first is a hit. */
static void every_hit_counts_once(void)
{
    vm_region *r = make(VM_POOLS_MAGAZINE);
    const uint64_t nr = VM_ID_BLOCK + 10;
    for (uint64_t i = 0; i < nr; i++) {
        vm_taken got = vm_take_inline(r, 3);
        CHECK_EQ(vm_free_inline(r, got.page, got.id, 0), 0);
    }
    vm_stats s = stats_of(r);
    CHECK_EQ(s.nr_magazine_hit + s.nr_space_hit, nr);
    CHECK_EQ(s.nr_space_hit, 1);
    FINISH(r);
}

static void a_pair(vm_region *r)
{
    vm_taken got = vm_take_inline(r, 1);
    CHECK(got.id != 0);
    CHECK_EQ(vm_free_inline(r, got.page, got.id, 0), 0);
}

static void a_library_of_another_layout_is_called(void)
{
    vm_region *r = make(VM_POOLS_MAGAZINE);
    a_pair(r);
    vm_region other = {.hit = r->hit};
    const vm_hit_thread *t = &vm__thread(r)->hit;
    CHECK(vm__hits_are_open(t, &other.hit));
    for (int bit = 32; bit < 64; bit++) {
        other.hit.key = r->hit.key ^ 1ull << bit;
        CHECK(!vm__hits_are_open(t, &other.hit));
    }
    uint64_t key = r->hit.key;
    r->hit.key ^= 1ull << 32;
    a_pair(r);
    r->hit.key = key;
    FINISH(r);
}

static void injected_failures_happen_here_too(void)
{
    vm_region *r = make(VM_POOLS_MAGAZINE);
    a_pair(r);
    vm_fail_every(r, 2);
    a_pair(r);
    vm_taken failed = vm_take_inline(r, 1);
    CHECK_EQ(failed.id, 0);
    CHECK_EQ(failed.page, ENOSPC);
    vm_fail_every(r, 0);
    uint64_t before = hits(r);
    a_pair(r);
    CHECK_EQ(hits(r), before + 1);
    FINISH(r);
}

static void a_hardened_region_is_asked(void)
{
    vm_region *r = MAKE(.nr_pages = 4000, .hardened = true, SMALL);
    a_pair(r);
    CHECK(!vm__hits_are_open(&vm__thread(r)->hit, &r->hit));
    vm_taken got = vm_take_inline(r, 2);
    CHECK_EQ(vm_free_inline(r, got.page, got.id, 0), 0);
    CHECK(vm_free_inline(r, got.page, got.id, 0) < 0);
    FINISH(r);
}

static void magazines_that_a_neighbour_empties_are_left_alone(void)
{
    vm_region *r = make(VM_POOLS_MAGAZINE);
    a_pair(r);
    vm_slot *slot = vm__thread(r)->slot;
    uint64_t header = slot->magazine[1].header;
    CHECK_EQ(vm__magazine_count(header), 1);
    slot->drain = vm__token(vm__first_thread(r) + 5, 1); /* nobody's: dead, so the library takes it back */
    vm_taken got;
    CHECK(!vm__hit_take(&vm__thread(r)->hit, &r->hit, 1, NULL, &got));
    CHECK_EQ(slot->magazine[1].header, header);
    slot->drain = 0;
    CHECK(vm__hit_take(&vm__thread(r)->hit, &r->hit, 1, NULL, &got));
    CHECK_EQ(vm_free_inline(r, got.page, got.id, 0), 0);
    FINISH(r);
}

static void two_regions_take_turns(void)
{
    vm_region *a = make(VM_POOLS_MAGAZINE), *b = make(VM_POOLS_MAGAZINE);
    for (int i = 0; i < 10; i++) {
        vm_taken of_a = vm_take_inline(a, 1), of_b = vm_take_inline(b, 1);
        CHECK_EQ(vm_free_inline(a, of_a.page, of_a.id, 0), 0);
        CHECK_EQ(vm_free_inline(b, of_b.page, of_b.id, 0), 0);
    }
    FINISH(a);
    FINISH(b);
}

static void a_child_hits_in_a_slot_of_its_own(void)
{
    vm_region *r = make(VM_POOLS_MAGAZINE);
    a_pair(r);
    uint32_t ours = vm__thread(r)->index;
    pid_t child = fork();
    if (child == 0) {
        a_pair(r);
        uint64_t before = hits(r);
        a_pair(r);
        CHECK_EQ(hits(r), before + 1);
        _exit(vm__thread(r)->index == ours);
    }
    int status;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
    a_pair(r);
    CHECK_EQ(vm_recover(r, NULL), 0);
    FINISH(r);
}

int main(void)
{
    FOR_EACH_DESIGN (d) {
        what_is_taken_without_a_call_is_a_range_like_any_other(d);
        wrong_calls_fail_as_the_librarys_do(d);
    }
    every_hit_counts_once();
    a_library_of_another_layout_is_called();
    injected_failures_happen_here_too();
    a_hardened_region_is_asked();
    magazines_that_a_neighbour_empties_are_left_alone();
    two_regions_take_turns();
    a_child_hits_in_a_slot_of_its_own();
    return 0;
}
