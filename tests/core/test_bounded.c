/* SPDX-License-Identifier: MIT */
/*
 * The most that one free does, counted: holes, pages, files that are read; and the most that is looked at for one turn at
 * a lock. Counts and not times, so that they hold on any machine.
 *
 * The program has madvise() and open() of its own, which the core calls.
 */
#include "kit.h"

#include <fcntl.h>
#include <stdarg.h>
#include <sys/syscall.h>

static struct {
    uint64_t holes, pages, files;
} done;

int madvise(void *at, size_t bytes, int advice)
{
    if (advice == MADV_REMOVE) {
        done.holes++;
        done.pages += bytes / 4096;
    }
    return (int)syscall(SYS_madvise, at, bytes, advice);
}

int open(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    int mode = flags & O_CREAT ? va_arg(rest, int) : 0;
    va_end(rest);
    done.files++;
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

static void start_counting(void) { memset(&done, 0, sizeof done); }

/* As make() of others, but over its threshold at once. */
static vm_region *make(vm_pools d, uint64_t nr_pages)
{
    return MAKE(.nr_pages = nr_pages, .pools = d, .nr_nodes = 1, .nr_threads = 8, .lazy_pages_max = 50);
}

/* ---- a free ---- */

static void check_one_free(vm_region *r, vm_range a, uint64_t most_pages, uint64_t most_holes)
{
    start_counting();
    GIVE_BACK(r, a);
    CHECK(done.holes <= most_holes);
    CHECK(done.pages <= most_pages);
    CHECK_EQ(done.files, 0);
}

static void a_free_makes_few_holes_and_reads_no_file(vm_pools d)
{
    enum { NR = 9000 };
    static vm_range a[NR];
    vm_region *r = make(d, 3 * NR);
    uint64_t holes = 0;
    for (int i = 0; i < NR; i++)
        a[i] = take(r, 1 + i % 3);
    for (int i = 0; i < NR; i += 2) {
        check_one_free(r, a[i], VM_PURGE_STEP_PAGES, VM_PURGE_STEP_RANGES);
        holes += done.holes;
    }
    CHECK(holes > 0 || d != VM_POOLS_OFF); /* the others keep them in pools */
    for (int i = 1; i < NR; i += 2)
        GIVE_BACK(r, a[i]);
    FINISH(r);
}

static void a_large_free_gives_back_twice_its_own_and_no_more_than_a_bound(vm_pools d)
{
    static const uint64_t sizes[] = {300, 1000, 2000, 5000, 9000};
    vm_region *r = make(d, 60000);
    for (size_t i = 0; i < LENGTH(sizes); i++) {
        vm_range a[3];
        for (int k = 0; k < 3; k++)
            a[k] = take(r, sizes[i]);
        uint64_t most = 2 * sizes[i] < VM_PURGE_STEP_PAGES_MAX ? 2 * sizes[i] : VM_PURGE_STEP_PAGES_MAX;
        for (int k = 0; k < 3; k++)
            check_one_free(r, a[k], most, VM_PURGE_STEP_RANGES);
    }
    FINISH(r);
}

/* Process slots that seem to be used: only the count of them is looked at. */
static void seem_attached(vm_region *r, uint32_t nr, uint64_t state)
{
    for (uint32_t p = 0, left = nr; left && p < r->map.nr_processes; p++)
        if (p != r->process) {
            vm__raise_high_process(r, p);
            r->map.processes[p].state = state;
            left--;
        }
}

static void beside_many_processes_a_free_makes_fewer_holes(void)
{
    enum { NR = 4000, OTHERS = 3 * VM_PURGE_STEP_PROCESSES };
    static vm_range a[NR];
    vm_region *r = make(VM_POOLS_OFF, 2 * NR);
    uint64_t most = 0;
    for (int i = 0; i < NR; i++)
        a[i] = take(r, 1);
    r->map.h->lazy_pages_fixed = 1u << 28;
    for (int i = 0; i < NR / 2; i += 2)
        GIVE_BACK(r, a[i]); /* a backlog, so that there is enough for a whole step */
    r->map.h->lazy_pages_fixed = 50;
    seem_attached(r, OTHERS, 1ull << 32 | VM_PROCESS_LIVE);
    for (int i = NR / 2; i < NR / 2 + 100; i += 2) {
        check_one_free(r, a[i], VM_PURGE_STEP_PAGES / 4, VM_PURGE_STEP_RANGES / 4);
        most = done.holes > most ? done.holes : most;
    }
    CHECK_EQ(most, VM_PURGE_STEP_RANGES / 4);
    seem_attached(r, OTHERS, 0);
    for (int i = 1; i < NR; i += 2)
        GIVE_BACK(r, a[i]);
    for (int i = NR / 2 + 100; i < NR; i += 2)
        GIVE_BACK(r, a[i]);
    FINISH(r);
}

/* ---- few pages beside a long clean range ---- */

enum { PLACES = VM_PURGE_STEP_RANGES, DIRTY = 100, CLEAN = 1200, PLACE = DIRTY + 1 + CLEAN + 1 };

/* So many places side by side, each: free and dirty, busy, free and clean, busy. */
static void lay_out(vm_region *r, vm_range between[PLACES], vm_range fence[PLACES])
{
    static vm_range dirty[PLACES], clean[PLACES];
    for (int i = 0; i < PLACES; i++) {
        dirty[i] = take(r, DIRTY);
        between[i] = take(r, 1);
        clean[i] = take(r, CLEAN);
        fence[i] = take(r, 1);
    }
    CHECK_EQ(vm_free_bulk(r, PLACES, clean), 0);
    CHECK_EQ(vm_shrink(r, NULL), 0);
    CHECK_EQ(vm_free_bulk(r, PLACES, dirty), 0);
    CHECK_EQ(vm__purge(vm__thread(r), VM_PURGE_UNPUNCHED, &(uint64_t){0}), 0);
    CHECK_EQ(r->map.h->dirty_pages, PLACES * DIRTY);
}

static void what_is_cleaned_under_the_lock_of_space_is_little(void)
{
    vm_region *r = MAKE(.nr_pages = PLACES * PLACE, .pools = VM_POOLS_OFF, SMALL);
    vm_range between[PLACES], fence[PLACES];
    lay_out(r, between, fence);
    for (int i = 1; i < PLACES; i++)
        GIVE_BACK(r, between[i]);
    r->map.h->lazy_pages_fixed = 1; /* the next one gives all of them back */
    check_one_free(r, between[0], PLACES + VM_CLEAN_TURN_PAGES, PLACES + VM_CLEAN_TURN_PAGES / DIRTY);
    CHECK(done.pages > VM_CLEAN_TURN_PAGES / 2); /* and it is not nothing */
    CHECK_EQ(stats_of(r).lazy_pages, 0);
    CHECK(r->map.h->dirty_pages > 0); /* the rest is left for a turn of a watch */
    CHECK_CLEAN(r);
    uint64_t at = 0, pages = 0;
    while (vm__purge_dirty(vm__thread(r), &at, &pages))
        ;
    CHECK_EQ(r->map.h->dirty_pages, 0);
    CHECK_CLEAN(r);
    CHECK_EQ(vm_free_bulk(r, PLACES, fence), 0);
    FINISH(r);
}

/* ---- what is free and dirty ---- */

enum { HOLES = 5 * VM_DIRTY_LOOK_RANGES / 2 };

/* Free ranges of one page with a busy one between them; the last ones are dirty. */
static vm_region *full_of_holes(vm_range *a, int nr_dirty)
{
    vm_region *r = MAKE(.nr_pages = 2 * HOLES, .pools = VM_POOLS_OFF, SMALL);
    for (int i = 0; i < 2 * HOLES; i++)
        a[i] = take(r, 1);
    for (int i = 0; i < 2 * (HOLES - nr_dirty); i += 2)
        GIVE_BACK(r, a[i]);
    CHECK_EQ(vm_purge(r, NULL), 0);
    for (int i = 2 * (HOLES - nr_dirty); i < 2 * HOLES; i += 2)
        GIVE_BACK(r, a[i]);
    CHECK_EQ(vm__purge(vm__thread(r), VM_PURGE_UNPUNCHED, &(uint64_t){0}), 0);
    CHECK_EQ(r->map.h->dirty_pages, nr_dirty);
    return r;
}

static void give_back_the_rest(vm_region *r, vm_range *a)
{
    for (int i = 1; i < 2 * HOLES; i += 2)
        GIVE_BACK(r, a[i]);
    FINISH(r);
}

static void a_turn_at_the_lock_looks_at_few_free_ranges_and_the_next_goes_on(void)
{
    static vm_range a[2 * HOLES];
    vm_region *r = full_of_holes(a, 3);
    uint64_t at = 0, pages = 0;
    for (uint64_t turn = 1; turn <= HOLES / VM_DIRTY_LOOK_RANGES; turn++) {
        CHECK(vm__purge_dirty(vm__thread(r), &at, &pages));
        CHECK_EQ(at, 2 * turn * VM_DIRTY_LOOK_RANGES - 1); /* behind the last one that was looked at */
    }
    CHECK_EQ(pages, 0);
    CHECK(!vm__purge_dirty(vm__thread(r), &at, &pages)); /* the end */
    CHECK_EQ(pages, 3);
    CHECK_EQ(at, 0);
    CHECK_CLEAN(r);
    give_back_the_rest(r, a);
}

static void where_the_index_lies_it_is_made_anew_and_nothing_is_lost(void)
{
    static vm_range a[2 * HOLES];
    vm_region *r = full_of_holes(a, HOLES);
    uint64_t at = 0, pages = 0;
    CHECK_EQ(a[1].page, 1);
    r->map.bits[0] &= ~2ull; /* a busy page that seems to be free */
    CHECK(!vm__purge_dirty(vm__thread(r), &at, &pages));
    CHECK_CLEAN(r);
    CHECK_EQ(vm_purge(r, NULL), 0);
    CHECK_EQ(r->map.h->dirty_pages, 0);
    CHECK_CLEAN(r);
    give_back_the_rest(r, a);
}

static uint32_t go_on_left;
static bool go_on(vm_thread *t)
{
    (void)t;
    return go_on_left && go_on_left--;
}

static int broken_off_tick(vm_region *r, uint32_t go_on_times)
{
    go_on_left = go_on_times;
    CHECK(vm__mutex_trylock(r, &r->tick_mutex, VM_RANK_TICK));
    int rc = vm__tick(vm__thread(r), go_on);
    vm__mutex_unlock(r, &r->tick_mutex, VM_RANK_TICK);
    vm_clock_advance(VM_TICK_MS * 1000000ull);
    return rc;
}

/* A program that forks again and again stops its helper each time. */
static void a_turn_that_is_broken_off_goes_on_where_it_was(void)
{
    static vm_range a[2 * HOLES];
    vm_region *r = full_of_holes(a, HOLES);
    CHECK_EQ(vm_set_limit(r, VM_FLOOR, HOLES), 0);
    uint64_t before = r->map.h->dirty_pages;
    for (int turn = 0; turn < 5; turn++)
        for (int i = 0; i < VM_TURN_TICKS; i++) { /* once before and once for the node; then one piece */
            CHECK_EQ(broken_off_tick(r, 3), 1);
            CHECK(before - r->map.h->dirty_pages <= VM_DIRTY_LOOK_RANGES);
            before = r->map.h->dirty_pages;
        }
    CHECK_EQ(before, 0);
    give_back_the_rest(r, a);
}

/* ---- magazines of idle threads ---- */

enum { IDLERS = 5 };
static int nr_idle, is_over;

static void *fill_magazines_and_idle(void *arg)
{
    vm_region *r = arg;
    vm_range a[8];
    for (int i = 0; i < 8; i++)
        a[i] = take(r, 3);
    CHECK_EQ(vm_free_bulk(r, 8, a), 0);
    __atomic_add_fetch(&nr_idle, 1, __ATOMIC_RELEASE);
    while (!__atomic_load_n(&is_over, __ATOMIC_ACQUIRE))
        usleep(1000);
    return NULL;
}

static void every_idle_thread_has_its_turn_though_each_is_broken_off(void)
{
    vm_region *r = MAKE(.nr_pages = 4000, .pools = VM_POOLS_MAGAZINE, SMALL);
    pthread_t idler[IDLERS];
    nr_idle = is_over = 0;
    CHECK(vm__thread(r));
    for (int i = 0; i < IDLERS; i++)
        CHECK_EQ(pthread_create(&idler[i], NULL, fill_magazines_and_idle, r), 0);
    while (__atomic_load_n(&nr_idle, __ATOMIC_ACQUIRE) < IDLERS)
        usleep(1000);
    CHECK(stats_of(r).cached_pages > 0);
    for (int i = 0; i < 3 * (IDLERS + 1) * VM_TURN_TICKS; i++) /* seen, and seen again */
        CHECK_EQ(broken_off_tick(r, 3), 1); /* once before, once for the node, and one slot */
    CHECK_EQ(stats_of(r).cached_pages, 0);
    __atomic_store_n(&is_over, 1, __ATOMIC_RELEASE);
    for (int i = 0; i < IDLERS; i++)
        CHECK_EQ(pthread_join(idler[i], NULL), 0);
    FINISH(r);
}

int main(void)
{
    FOR_EACH_DESIGN (d) {
        a_free_makes_few_holes_and_reads_no_file(d);
        a_large_free_gives_back_twice_its_own_and_no_more_than_a_bound(d);
    }
    beside_many_processes_a_free_makes_fewer_holes();
    what_is_cleaned_under_the_lock_of_space_is_little();
    a_turn_at_the_lock_looks_at_few_free_ranges_and_the_next_goes_on();
    where_the_index_lies_it_is_made_anew_and_nothing_is_lost();
    a_turn_that_is_broken_off_goes_on_where_it_was();
    every_idle_thread_has_its_turn_though_each_is_broken_off();
    return 0;
}
