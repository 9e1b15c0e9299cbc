/* SPDX-License-Identifier: MIT */
/*
 * What bench_record.py asks: the hot pair of 4 KiB without a recording, with one, and with one that has exact times, in turn.
 *
 * `record_loop ROUNDS PAIRS` prints a line for each round: ns a pair, CPU time, without, with, with exact times; of vm_alloc()
 * and then of vm_take(). Nobody reads the rings meanwhile.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <vmalloc.h>

static vm_region *region;

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static double by_alloc(int nr)
{
    double began = now_ns();
    for (int i = 0; i < nr; i++) {
        vm_range a;
        if (vm_alloc(region, 1, 1, 0, &a) || vm_free(region, a.page, a.id, 0))
            exit(3);
    }
    return (now_ns() - began) / nr;
}

static double by_take(int nr)
{
    double began = now_ns();
    for (int i = 0; i < nr; i++) {
        vm_taken a = vm_take(region, 1);
        if (!a.id || vm_free(region, a.page, a.id, 0))
            exit(3);
    }
    return (now_ns() - began) / nr;
}

int main(int argc, char **argv)
{
    vm_options options = {.nr_pages = 100000, .pools = VM_POOLS_MAGAZINE};
    int rounds = argc > 1 ? atoi(argv[1]) : 0, nr = argc > 2 ? atoi(argv[2]) : 0;
    if (rounds < 1 || nr < 1 || vm_create(&options, &region))
        return 2;
    for (int i = 0; i < rounds; i++) {
        double alloc[3], take[3];
        for (int kind = 0; kind < 3; kind++) {
            vm_recorder *recorder = NULL;
            if (kind && vm_record_start(region, kind == 2, &recorder))
                return 3;
            by_alloc(1000); /* so that what is measured are hits */
            alloc[kind] = by_alloc(nr);
            take[kind] = by_take(nr);
            if (recorder)
                vm_record_end(recorder);
        }
        printf("%f %f %f %f %f %f\n", alloc[0], alloc[1], alloc[2], take[0], take[1], take[2]);
    }
    return 0;
}
