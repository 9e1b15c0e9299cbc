/* SPDX-License-Identifier: MIT */
/*
 * A C program shares an array with Python, both ways: it doubles the float64 array NAME of REGION where it lies, and
 * leaves a copy of it there under the name "from C".
 *
 *     cc 13_from_c.c $(pkg-config --cflags --libs vmalloc) -o from_c
 *     ./from_c REGION NAME        REGION: a region's name, a pid, or unix:PATH of a socket where it is served
 *
 * docs/c.md tells it step by step.
 */
#include <vmalloc.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(int result, const char *what)
{
    if (result < 0) {
        fprintf(stderr, "%s: %s\n", what, vm_strerror(result));
        exit(1);
    }
}

/* What Python notes with a name; shape, kind and dtype follow it. */
struct description {
    uint8_t version, flags, ndim, kind_bytes;
    uint32_t dtype_bytes;
    uint64_t extra_bytes;
    int64_t offset; /* of the first element in the range's pages */
};
enum { STRIDED = 2 }; /* a flag: strides follow the shape */

/* The elements of a C-contiguous array of float64; -1 if it is none. */
static int64_t nr_elements(const unsigned char *meta, size_t bytes, uint64_t room, int64_t *offset)
{
    struct description d;
    if (bytes < sizeof d)
        return -1;
    memcpy(&d, meta, sizeof d);
    size_t numbers = d.ndim * sizeof(int64_t);
    if (d.version != 1 || d.flags & STRIDED || d.kind_bytes != 5 || d.dtype_bytes != 3 || bytes < sizeof d + numbers + 8
        || memcmp(meta + sizeof d + numbers, "array<f8", 8) != 0)
        return -1;
    if (d.offset < 0 || (uint64_t)d.offset > room)
        return -1;
    uint64_t left = (room - (uint64_t)d.offset) / sizeof(double), count = 1;
    for (int i = 0; i < d.ndim; i++) {
        int64_t length;
        memcpy(&length, meta + sizeof d + i * sizeof length, sizeof length);
        if (length < 0 || (length && count > left / (uint64_t)length)) /* others can write to the region, too */
            return -1;
        count *= (uint64_t)length;
    }
    *offset = d.offset;
    return count <= left ? (int64_t)count : -1;
}

static int attach(const char *which, vm_region **region)
{
    if (strncmp(which, "unix:", 5) == 0)
        return vm_attach_served(which + 5, NULL, 0, region);
    return vm_attach_named(which, region);
}

int main(int argc, char **argv)
{
    vm_region *region;
    vm_range range, copy;
    vm_info info;
    unsigned char meta[VM_NAME_META_BYTES_MAX];
    size_t bytes = sizeof meta;
    int64_t offset;
    if (argc != 3) {
        fprintf(stderr, "usage: %s REGION NAME\n", argv[0]);
        return 2;
    }
    check(attach(argv[1], &region), argv[1]);
    vm_describe(region, &info);

    check(vm_name_get(region, argv[2], &range, meta, &bytes), argv[2]); /* held from here on */
    uint64_t room = range.nr_pages * info.page_bytes;
    int64_t count = nr_elements(meta, bytes, room, &offset);
    if (count < 0) {
        fprintf(stderr, "%s: no plain array of float64\n", argv[2]);
        return 1;
    }
    double *numbers = (double *)((char *)vm_pointer(region, range.page) + offset);
    for (int64_t i = 0; i < count; i++)
        numbers[i] *= 2;

    check(vm_alloc(region, range.nr_pages, 1, 0, &copy), "a copy");
    memcpy(vm_pointer(region, copy.page), vm_pointer(region, range.page), room);
    check(vm_name_set(region, "from C", copy.page, copy.id, meta, bytes), "from C");
    printf("%lld numbers doubled\n", (long long)count);

    check(vm_free(region, copy.page, copy.id, 0), "free"); /* the name holds it now */
    check(vm_free(region, range.page, range.id, 0), "free");
    check(vm_detach(region), "detach");
    return 0;
}
