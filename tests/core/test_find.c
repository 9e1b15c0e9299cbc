/* SPDX-License-Identifier: MIT */
/* Find: the range that an address lies in. */
#include "kit.h"

static vm_region *make(vm_pools d) { return MAKE(.nr_pages = 9000, .pools = d, SMALL); }

static void *at(vm_region *r, uint64_t page) { return (char *)vm_pointer(r, page) + 77; }

static vm_range noted(vm_region *r, uint64_t nr_pages)
{
    vm_range a = take(r, nr_pages);
    vm_note(r, &a);
    return a;
}

static void check_found(vm_region *r, vm_range a)
{
    for (uint64_t i = 0; i < a.nr_pages; i += i < 70 || i + 70 > a.nr_pages ? 1 : 61) {
        vm_range b = {0};
        CHECK_EQ(vm_find(r, at(r, a.page + i), &b), 0);
        CHECK(b.page == a.page && b.id == a.id && b.nr_pages == a.nr_pages);
    }
}

static void an_address_in_the_middle_finds_its_range(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a = noted(r, 1), b = noted(r, VM_NOTED_PAGES), c = noted(r, VM_NOTED_PAGES + 1), e = noted(r, 5000),
             f = noted(r, 3);
    check_found(r, a), check_found(r, b), check_found(r, c), check_found(r, e), check_found(r, f);
    GIVE_BACK(r, a);
    GIVE_BACK(r, b);
    GIVE_BACK(r, c);
    GIVE_BACK(r, e);
    GIVE_BACK(r, f);
    FINISH(r);
}

static void what_is_free_or_elsewhere_is_in_no_range(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a = noted(r, 100), b;
    int here;
    CHECK_EQ(vm_find(r, &here, &b), -ENOENT);
    CHECK_EQ(vm_find(r, NULL, &b), -ENOENT);
    CHECK_EQ(vm_find(r, at(r, 8999), &b), -ENOENT);
    CHECK_EQ(vm_find(r, (char *)vm_pointer(r, 8999) + 4096, &b), -ENOENT);
    GIVE_BACK(r, a);
    CHECK_EQ(vm_find(r, at(r, a.page + 50), &b), -ENOENT);
    FINISH(r);
}

static void a_range_over_many_former_ones_is_found(vm_pools d)
{
    vm_region *r = make(d);
    vm_range small[200], b;
    for (int i = 0; i < 200; i++)
        small[i] = noted(r, 20 + (uint64_t)i % 9);
    for (int i = 0; i < 200; i++)
        GIVE_BACK(r, small[i]);
    CHECK_EQ(vm_shrink(r, &(uint64_t){0}), 0);
    b = noted(r, 8000);
    check_found(r, b);
    check_found(r, b); /* the former ones' marks are gone */
    GIVE_BACK(r, b);
    FINISH(r);
}

static void only_a_holder_finds_it(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a = noted(r, 40), b;
    pid_t child;
    CHECK_EQ(vm_share(r, a.page, a.id), 0);
    CHILD(child, {
        vm_range c;
        uint64_t nr;
        CHECK_EQ(vm_find(r, at(r, a.page + 39), &c), 0); /* inherited, marks and all */
        CHECK_EQ(vm_drop_inherited(r, &nr), 0);
        CHECK_EQ(vm_find(r, at(r, a.page + 39), &c), -ENOENT);
    });
    ended_well(child);
    CHECK_EQ(vm_find(r, at(r, a.page + 39), &b), 0);
    GIVE_BACK(r, a);
    FINISH(r);
}

int main(void)
{
    FOR_EACH_DESIGN (d) {
        an_address_in_the_middle_finds_its_range(d);
        what_is_free_or_elsewhere_is_in_no_range(d);
        a_range_over_many_former_ones_is_found(d);
        only_a_holder_finds_it(d);
    }
    return 0;
}
