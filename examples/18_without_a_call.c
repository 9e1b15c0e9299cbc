/* SPDX-License-Identifier: MIT */
/*
 * Pages for a C or C++ program's own buffers, without a call into the library where this thread's magazine serves them:
 * it takes and frees NR of them, and says how many the magazine served.
 *
 *     cc -O2 18_without_a_call.c $(pkg-config --cflags --libs vmalloc) -o without_a_call
 *     ./without_a_call NR
 *
 * docs/c.md says what vmalloc_inline.h needs.
 */
#include <vmalloc_inline.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PAGES_EACH = 4 };

static int fail(const char *what, int result)
{
    fprintf(stderr, "%s: %s\n", what, vm_strerror(result));
    return 1;
}

int main(int argc, char **argv)
{
    long nr = argc == 2 ? strtol(argv[1], NULL, 10) : 0;
    if (nr < 1) {
        fprintf(stderr, "usage: %s NR\n", argv[0]);
        return 2;
    }
    vm_region *region;
    vm_options options;
    memset(&options, 0, sizeof options);
    options.nr_pages = 1024;
    options.pools = VM_POOLS_MAGAZINE;
    int rc = vm_create(&options, &region);
    if (rc < 0)
        return fail("create", rc);
    char *base = (char *)vm_pointer(region, 0);
    vm_info info;
    vm_describe(region, &info);

    for (long i = 0; i < nr; i++) {
        vm_taken got = vm_take_inline(region, PAGES_EACH);
        if (!got.id) /* `page` says why */
            return fail("take", -(int)got.page);
        base[got.page * info.page_bytes] = 1;
        rc = vm_free_inline(region, got.page, got.id, 0);
        if (rc < 0)
            return fail("free", rc);
    }

    vm_stats stats;
    rc = vm_get_stats(region, &stats);
    if (rc < 0)
        return fail("stats", rc);
    printf("%llu of %ld from the magazine\n", (unsigned long long)stats.nr_magazine_hit, nr);
    rc = vm_detach(region);
    return rc < 0 ? fail("detach", rc) : 0;
}
