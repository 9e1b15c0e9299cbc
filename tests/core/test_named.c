/* SPDX-License-Identifier: MIT */
/* Attach by name or pid, and what results mean in words. */
#include "kit.h"

static void a_region_is_found_by_its_name_and_by_its_maker(vm_pools d)
{
    char name[64], pid[16];
    vm_region *second;
    snprintf(name, sizeof name, "named (deleted) %d", (int)getpid());
    snprintf(pid, sizeof pid, "%d", (int)getpid());
    vm_region *first = MAKE(.nr_pages = 100, .pools = d, .name = name, SMALL);
    vm_info of_first, of_second;
    vm_describe(first, &of_first);
    const char *both[] = {name, pid};
    for (size_t i = 0; i < 2; i++) {
        CHECK_EQ(vm_attach_named(both[i], &second), 0);
        vm_describe(second, &of_second);
        CHECK(memcmp(of_first.id, of_second.id, sizeof of_first.id) == 0);
        CHECK_EQ(vm_detach(second), 0);
    }
    FINISH(first);
    CHECK_EQ(vm_attach_named(name, &second), -ENOENT);
}

static void none_and_several_are_told_apart(vm_pools d)
{
    char name[64];
    vm_region *found;
    snprintf(name, sizeof name, "twins %d", (int)getpid());
    vm_region *first = MAKE(.nr_pages = 100, .pools = d, .name = name, SMALL);
    vm_region *twin = MAKE(.nr_pages = 100, .pools = d, .name = name, SMALL);
    CHECK_EQ(vm_attach_named(name, &found), -EEXIST);
    CHECK_EQ(vm_attach_named("", &found), -ENOENT);
    CHECK_EQ(vm_attach_named("no region is called so", &found), -ENOENT);
    CHECK_EQ(vm_attach_named("4294967296", &found), -ENOENT); /* no process has this number */
    CHECK_EQ(vm_attach_named("../../etc", &found), -ENOENT);
    FINISH(twin);
    FINISH(first);
}

static void every_result_has_words(void)
{
    CHECK(strcmp(vm_strerror(0), "no error") == 0);
    CHECK(strcmp(vm_strerror(7), "no error") == 0); /* a number of findings */
    CHECK(strcmp(vm_strerror(-ENOSPC), "no free range of that size") == 0);
    CHECK(strcmp(vm_strerror(-ENODEV), strerror(ENODEV)) == 0);
    for (int e = -200; e <= 200; e++)
        CHECK(vm_strerror(e) && *vm_strerror(e));
}

int main(void)
{
    FOR_EACH_DESIGN (d) {
        a_region_is_found_by_its_name_and_by_its_maker(d);
        none_and_several_are_told_apart(d);
    }
    every_result_has_words();
    return 0;
}
