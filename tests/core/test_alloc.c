/* SPDX-License-Identifier: MIT */
/* Alloc and free keep one promise in every design, with and without memory. */
#include "kit.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

typedef struct kind {
    vm_pools pools;
    bool is_memory;
} kind;

static vm_region *make(kind k, uint64_t nr_pages)
{
    return MAKE(.nr_pages = nr_pages, .pools = k.pools, .granule_bytes = k.is_memory ? 0 : 1 << 20, .base = 1ull << 40,
                SMALL);
}

/* ---- what holds for every kind ---- */

static void a_range_is_mine_until_i_free_it(kind k)
{
    vm_region *r = make(k, 2000);
    vm_range a = take(r, 3), b = take(r, 300);
    CHECK(a.id != b.id && a.id != 0);
    CHECK(a.page + a.nr_pages <= b.page || b.page + b.nr_pages <= a.page);
    if (k.is_memory) {
        memset(vm_pointer(r, a.page), 1, a.nr_pages * 4096);
        memset(vm_pointer(r, b.page), 2, b.nr_pages * 4096);
        CHECK_EQ(((uint8_t *)vm_pointer(r, a.page))[3 * 4096 - 1], 1);
    } else {
        CHECK(vm_pointer(r, a.page) == NULL);
    }
    CHECK_EQ(stats_of(r).busy_pages, a.nr_pages + b.nr_pages);
    CHECK_CLEAN(r);
    GIVE_BACK(r, a);
    GIVE_BACK(r, b);
    CHECK_EQ(stats_of(r).busy_pages, 0);
    FINISH(r);
}

static void a_freed_range_of_the_same_size_is_reused_hot(kind k)
{
    vm_region *r = make(k, 2000);
    vm_range a = take(r, 4), b = take(r, 4);
    GIVE_BACK(r, a);
    vm_range c = take(r, 4);
    if (k.pools != VM_POOLS_OFF)
        CHECK_EQ(c.page, a.page);
    CHECK(c.id != a.id);
    GIVE_BACK(r, b);
    GIVE_BACK(r, c);
    FINISH(r);
}

/* From space first, then from where the first one went. */
static void what_is_taken_in_registers_is_a_range_like_any_other(kind k)
{
    vm_region *r = make(k, 64);
    for (int i = 0; i < 2; i++) {
        vm_taken got = vm_take(r, 3);
        vm_range range;
        CHECK(got.id != 0);
        CHECK_EQ(vm_lookup(r, got.page, &range), 0);
        CHECK(range.page == got.page && range.nr_pages == 3 && range.id == got.id);
        CHECK_EQ(vm_free(r, got.page, got.id, 0), 0);
        CHECK(vm_free(r, got.page, got.id, 0) < 0); /* twice */
    }
    const struct {
        uint64_t nr_pages;
        int error;
    } wrong[] = {{0, EINVAL}, {65, ENOSPC}, {257, ENOSPC}, {UINT64_MAX, ENOSPC}};
    for (size_t i = 0; i < LENGTH(wrong); i++) {
        vm_taken got = vm_take(r, wrong[i].nr_pages);
        CHECK_EQ(got.id, 0);
        CHECK_EQ(got.page, wrong[i].error);
    }
    FINISH(r);
}

static void wrong_handles_are_told_apart(kind k)
{
    vm_region *r = make(k, 2000);
    vm_range a = take(r, 8), b;
    CHECK_EQ(vm_free(r, a.page + 1, a.id, 0), -ENOENT); /* interior */
    CHECK_EQ(vm_free(r, a.page, a.id + 1, 0), -ESTALE);
    CHECK_EQ(vm_free(r, a.page, 0, 0), -ESTALE);
    CHECK_EQ(vm_free(r, r->map.nr_pages, a.id, 0), -ENOENT);
    CHECK_EQ(vm_free(r, UINT64_MAX, a.id, 0), -ENOENT);
    CHECK_EQ(vm_free(r, 1999, a.id, 0), -ENOENT); /* never handed out */
    CHECK_EQ(vm_lookup(r, a.page + 1, &b), -ENOENT);
    CHECK_EQ(vm_lookup(r, UINT64_MAX, &b), -ENOENT);
    CHECK_EQ(vm_lookup(r, a.page, &b), 0);
    CHECK(b.id == a.id && b.nr_pages == 8);
    GIVE_BACK(r, a);
    CHECK(vm_free(r, a.page, a.id, 0) < 0); /* twice */
    CHECK_EQ(vm_lookup(r, a.page, &b), -ENOENT);
    b = take(r, 8);
    if (b.page == a.page) /* the same pages under another id */
        CHECK_EQ(vm_free(r, a.page, a.id, 0), -ESTALE);
    GIVE_BACK(r, b);
    FINISH(r);
}

static void wrong_sizes_are_refused_and_leave_the_output_alone(kind k)
{
    vm_region *r = make(k, 2000);
    vm_range a = {7, 7, 7, true};
    CHECK_EQ(vm_alloc(r, 0, 1, 0, &a), -EINVAL);
    CHECK_EQ(vm_alloc(r, 1, 0, 0, &a), -EINVAL);
    CHECK_EQ(vm_alloc(r, 1, 3, 0, &a), -EINVAL);
    CHECK_EQ(vm_alloc(r, 2001, 1, 0, &a), -ENOSPC);
    CHECK_EQ(vm_alloc(r, UINT64_MAX, 1, 0, &a), -ENOSPC);
    CHECK_EQ(vm_alloc(r, 1, 1ull << 63, 0, &a), -ENOSPC);
    CHECK(a.page == 7 && a.nr_pages == 7 && a.id == 7 && a.zeroed);
    FINISH(r);
}

static void bulk_is_all_or_nothing(kind k)
{
    enum { COUNT = 40 };
    vm_region *r = make(k, 100);
    vm_range a[COUNT];
    CHECK_EQ(vm_alloc_bulk(r, 2, 2, COUNT, a), 0);
    for (int i = 0; i < COUNT; i++)
        CHECK(a[i].nr_pages == 2 && a[i].page % 2 == 0);
    CHECK_EQ(stats_of(r).busy_pages, 80);
    CHECK_EQ(vm_alloc_bulk(r, 2, 2, 11, (vm_range[11]){{0}}), -ENOSPC);
    CHECK_EQ(stats_of(r).busy_pages, 80);
    CHECK_EQ(vm_free_bulk(r, COUNT, a), 0);
    CHECK(vm_free_bulk(r, 1, a) < 0);
    FINISH(r);
}

static void congruent_ranges_share_one_base(kind k)
{
    static const uint64_t offsets[] = {0, 256, 512}, nr_pages[] = {10, 20, 300};
    vm_region *r = make(k, 2000);
    vm_range in_the_way = take(r, 100), a[3], b[3];
    CHECK_EQ(vm_alloc_congruent(r, 3, offsets, nr_pages, 16, a), 0);
    CHECK_EQ(vm_alloc_congruent(r, 3, offsets, nr_pages, 16, b), 0);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(a[i].page - a[0].page, offsets[i]);
        CHECK_EQ(b[i].page - b[0].page, offsets[i]);
        CHECK_EQ(a[i].nr_pages, nr_pages[i]);
    }
    CHECK_EQ(a[0].page % 16, 0);
    CHECK_CLEAN(r);
    CHECK_EQ(vm_free_bulk(r, 3, a), 0);
    CHECK_EQ(vm_free_bulk(r, 3, b), 0);
    GIVE_BACK(r, in_the_way);
    FINISH(r);
}

static void wrong_congruent_requests_are_refused(kind k)
{
    vm_region *r = make(k, 2000);
    vm_range a[2];
    CHECK_EQ(vm_alloc_congruent(r, 0, NULL, NULL, 1, a), -EINVAL);
    CHECK_EQ(vm_alloc_congruent(r, 2, (uint64_t[]){0, 5}, (uint64_t[]){6, 1}, 1, a), -EINVAL); /* overlap */
    CHECK_EQ(vm_alloc_congruent(r, 2, (uint64_t[]){0, 5}, (uint64_t[]){1, 1}, 2, a), -EINVAL); /* misaligned */
    CHECK_EQ(vm_alloc_congruent(r, 1, (uint64_t[]){0}, (uint64_t[]){0}, 1, a), -EINVAL);
    CHECK_EQ(vm_alloc_congruent(r, 1, (uint64_t[]){0}, (uint64_t[]){UINT64_MAX}, 1, a), -EINVAL);
    CHECK_EQ(vm_alloc_congruent(r, 1, (uint64_t[]){UINT64_MAX}, (uint64_t[]){1}, 1, a), -EINVAL);
    CHECK_EQ(vm_alloc_congruent(r, 2, (uint64_t[]){0, 1999}, (uint64_t[]){1, 2}, 1, a), -ENOSPC);
    FINISH(r);
}

static void a_resize_keeps_the_bytes(kind k)
{
    vm_region *r = make(k, 2000);
    vm_range a = take(r, 300), b = take(r, 1);
    uint64_t page = a.page, id = a.id;
    if (k.is_memory)
        memset(vm_pointer(r, a.page), 9, 300 * 4096);
    CHECK_EQ(vm_resize(r, &a, 20), 0); /* in place */
    CHECK(a.page == page && a.id == id && a.nr_pages == 20);
    CHECK_EQ(stats_of(r).busy_pages, 21);
    CHECK_EQ(vm_resize(r, &a, 20), 0);
    CHECK_EQ(vm_resize(r, &a, 500), 0); /* elsewhere */
    CHECK(a.nr_pages >= 500);
    if (k.is_memory)
        for (int i = 0; i < 20 * 4096; i++)
            CHECK_EQ(((uint8_t *)vm_pointer(r, a.page))[i], 9);
    CHECK_EQ(vm_resize(r, &a, 0), -EINVAL);
    CHECK_EQ(vm_resize(r, &a, 5000), -ENOSPC);
    CHECK_EQ(vm_resize(r, &(vm_range){a.page + 1, 1, a.id, false}, 2), -ENOENT);
    CHECK_EQ(vm_resize(r, &(vm_range){a.page, 1, a.id + 1, false}, 2), -ESTALE);
    CHECK_CLEAN(r);
    GIVE_BACK(r, a);
    GIVE_BACK(r, b);
    FINISH(r);
}

static void a_request_falls_through_every_station_before_it_fails(kind k)
{
    enum { COUNT = 500 };
    vm_region *r = make(k, COUNT);
    static vm_range a[COUNT];
    for (int i = 0; i < COUNT; i++)
        a[i] = take(r, 1);
    CHECK_EQ(vm_free_bulk(r, COUNT, a), 0); /* now in magazines, pools or lazy */
    a[0] = take(r, COUNT);
    CHECK_EQ(a[0].page, 0);
    CHECK_EQ(vm_alloc(r, 1, 1, 0, &a[1]), -ENOSPC);
    CHECK_EQ(stats_of(r).nr_failed, 1);
    GIVE_BACK(r, a[0]);
    FINISH(r);
}

/* What is lazy or ready elsewhere stays so, and space is not said to be short. */
static void an_aligned_request_fails_at_once_while_each_of_its_places_is_in_use(kind k)
{
    enum { PAGES = 1024, ALIGN = PAGES / 4 };
    vm_region *r = make(k, PAGES);
    vm_range a[4], none = {0};
    for (int i = 0; i < 4; i++)
        CHECK_EQ(vm_alloc(r, 1, ALIGN, 0, &a[i]), 0);
    CHECK_EQ(vm_alloc(r, 1, ALIGN, 0, &none), -ENOSPC);
    CHECK_EQ(vm_alloc(r, 2, PAGES, 0, &none), -ENOSPC);
    CHECK_EQ(stats_of(r).nr_purges, 0);
    CHECK_EQ(r->map.h->tight_s, 0);
    CHECK_EQ(stats_of(r).nr_failed, 2);
    GIVE_BACK(r, a[2]);
    CHECK_EQ(vm_alloc(r, 3, ALIGN, 0, &a[2]), 0); /* of another size: it is gathered first */
    CHECK_EQ(a[2].page, 2 * ALIGN);
    for (int i = 0; i < 4; i++)
        GIVE_BACK(r, a[i]);
    FINISH(r);
}

/* An ordinary request would get it from a pool, and keep a place that few such requests find. */
static void what_is_aligned_to_more_than_a_pooled_range_goes_back_to_space(kind k)
{
    enum { PAGES = 4096, ALIGN = 1024 };
    vm_region *r = make(k, PAGES);
    bool is_pooled = k.pools != VM_POOLS_OFF;
    vm_range a[2];
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 2; i++) {
            CHECK_EQ(vm_alloc(r, 2, ALIGN, 0, &a[i]), 0);
            if (k.is_memory)
                memset(vm_pointer(r, a[i].page), 7, 4096);
            CHECK_EQ(a[i].zeroed, k.is_memory);
            CHECK_EQ(a[i].page, ALIGN * (i + (is_pooled ? 0 : 2 * round)));
        }
        GIVE_BACK(r, a[0]);
        CHECK_EQ(vm_free(r, a[0].page, a[0].id, 0), -ENOENT);
        GIVE_BACK(r, a[1]);
        CHECK_EQ(stats_of(r).lazy_pages, is_pooled ? 0 : 4 * (round + 1));
        CHECK_EQ(stats_of(r).cached_pages + stats_of(r).pooled_pages, 0);
        CHECK_EQ(stats_of(r).nr_purges, 0);
    }
    FINISH(r);
}

/* Also a shared one, by whoever had it last. */
static void it_goes_back_to_space_whoever_frees_it(kind k)
{
    enum { PAGES = 4096, ALIGN = 1024 };
    vm_region *r = make(k, PAGES), *other;
    vm_range a;
    CHECK_EQ(vm_attach(vm_fd(r), &other), 0);
    for (int round = 0; round < 2; round++) {
        bool is_shared = round;
        CHECK_EQ(vm_alloc(other, 2, ALIGN, 0, &a), 0);
        if (is_shared)
            CHECK_EQ(vm_share(other, a.page, a.id), 0);
        GIVE_BACK(is_shared ? other : r, a);
        CHECK_EQ(vm_free(r, a.page, a.id, 0), -ENOENT);
        CHECK_EQ(stats_of(r).cached_pages + stats_of(r).pooled_pages, 0);
        CHECK_EQ(stats_of(r).lazy_pages, k.pools == VM_POOLS_OFF ? 2 * (round + 1) : 0);
    }
    CHECK_EQ(vm_detach(other), 0);
    FINISH(r);
}

/* Its id says no size, either, and it came from no few places. */
static void what_was_shrunk_to_a_pooled_size_does_not_go_back_to_space(kind k)
{
    vm_region *r = make(k, 4096);
    vm_range a = take(r, 300);
    CHECK_EQ(vm_resize(r, &a, 200), 0);
    GIVE_BACK(r, a);
    CHECK_EQ(stats_of(r).free_pages, 4096 - 300);
    FINISH(r);
}

static void an_aligned_request_is_a_hit_where_the_range_on_top_lies_so(kind k)
{
    vm_region *r = make(k, 2000);
    vm_range a, b;
    CHECK_EQ(vm_alloc(r, 5, 8, 0, &a), 0);
    GIVE_BACK(r, a);
    uint64_t nr_slow = stats_of(r).nr_alloc;
    CHECK_EQ(vm_alloc(r, 5, 8, 0, &b), 0);
    CHECK_EQ(b.page & 7, 0);
    CHECK(b.id != a.id);
    if (k.pools == VM_POOLS_MAGAZINE)
        CHECK(b.page == a.page && stats_of(r).nr_alloc == nr_slow);
    GIVE_BACK(r, b);
    a = take(r, 3);
    b = take(r, 3);
    vm_range askew = a.page & 3 ? a : b, even = a.page & 3 ? b : a;
    CHECK(askew.page & 3);
    GIVE_BACK(r, even);
    GIVE_BACK(r, askew);
    CHECK_EQ(vm_alloc(r, 3, 4, 0, &a), 0); /* not the one on top */
    CHECK_EQ(a.page & 3, 0);
    GIVE_BACK(r, a);
    FINISH(r);
}

/* All magazines would be emptied again and again for a few pages. */
static void little_that_is_ready_stays_so_for_a_request_over_the_peak(kind k)
{
    vm_region *r = make(k, 20000);
    vm_range a = take(r, 5), b;
    if (k.is_memory)
        memset(vm_pointer(r, a.page), 1, 5 * 4096);
    GIVE_BACK(r, a);
    b = take(r, 3);
    CHECK_EQ(stats_of(r).nr_lazy_hit, 0);
    a = take(r, 5);
    CHECK_EQ(stats_of(r).nr_space_hit, k.pools == VM_POOLS_OFF ? 3 : 2);
    GIVE_BACK(r, a);
    GIVE_BACK(r, b);
    FINISH(r);
}

/* How many calls of the system a stopped child makes until its end, which lets itself be traced; SIZE_MAX: it may not. */
static size_t calls_of_system(pid_t pid)
{
    int status;
    size_t nr = 0;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    bool is_traced = WIFSTOPPED(status);
    for (; WIFSTOPPED(status); nr++) { /* at the beginning and at the end of each */
        CHECK_EQ(ptrace(PTRACE_SYSCALL, pid, NULL, NULL), 0);
        CHECK_EQ(waitpid(pid, &status, 0), pid);
    }
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return is_traced ? nr / 2 : SIZE_MAX;
}

/* Whether what lies ready is in memory, for one: that takes longer than a request. */
static void a_filling_asks_the_system_seldom(kind k)
{
    enum { PAGES = 20000 };
    vm_region *r = make(k, 1 << 16);
    pid_t pid;
    CHILD(pid, {
        vm_range a = take(r, 1); /* what is set up once is not counted */
        GIVE_BACK(r, a);
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0)
            raise(SIGSTOP);
        for (int i = 0; i < PAGES; i++)
            take(r, 1);
    });
    size_t nr = calls_of_system(pid);
    if (nr == SIZE_MAX)
        printf("not here: this process may not trace its child\n");
    else
        CHECK(nr < PAGES / 40);
    CHECK_EQ(vm_recover(r, NULL), 0);
    FINISH(r);
}

/* To ask takes many times as long as to take from space, and who is asked for range after range gets the same answer. */
static void what_was_ready_but_not_in_memory_is_asked_for_again_after_8_mib(kind k)
{
    enum { NR = 40, EACH = 150, MORE = VM_DRAIN_BYTES / 4096 };
    if (!k.is_memory || k.pools == VM_POOLS_OFF)
        return;
    vm_region *r = make(k, 60000);
    vm_range a[NR], b[4];
    for (int i = 0; i < NR; i++)
        a[i] = take(r, EACH);
    for (int i = 0; i < NR; i++)
        GIVE_BACK(r, a[i]);
    vm__thread(r)->absent_live = 0; /* whoever asked on the way */
    b[0] = take(r, 5); /* asks: nobody wrote to what is ready */
    for (int i = 0; i < NR; i++)
        memset(vm_pointer(r, a[i].page), 1, EACH * 4096);
    b[1] = take(r, 6);
    b[2] = take(r, MORE - 7);
    memset(vm_pointer(r, b[2].page), 1, (MORE - 7) * 4096);
    CHECK_EQ(stats_of(r).nr_lazy_hit, 0);
    b[3] = take(r, 1200); /* asks */
    CHECK_EQ(stats_of(r).nr_lazy_hit, 1);
    for (int i = 0; i < 4; i++)
        GIVE_BACK(r, b[i]);
    FINISH(r);
}

/* Also where page 0 lies ready, which every alignment divides. */
static void an_alignment_beyond_the_region_is_refused(kind k)
{
    enum { PAGES = 1024 };
    vm_region *r = make(k, PAGES);
    vm_range a = take(r, 1), none = {0};
    CHECK_EQ(a.page, 0);
    GIVE_BACK(r, a);
    CHECK_EQ(vm_alloc(r, 1, 2 * PAGES, 0, &none), -ENOSPC);
    CHECK_EQ(vm_alloc(r, 1, 1ull << 40, 0, &none), -ENOSPC);
    FINISH(r);
}

/* A range that begins before a place may reach into it, and a request of many pages meets one behind its place. */
static void a_place_is_in_use_wherever_a_range_meets_it(kind k)
{
    enum { PAGES = 1024 };
    vm_region *r = make(k, PAGES);
    vm_range a = take(r, 10), between = take(r, 490), b = take(r, 20), none = {0};
    CHECK_EQ(b.page, 500);
    GIVE_BACK(r, between);
    CHECK_EQ(vm_alloc(r, 505, PAGES / 2, 0, &none), -ENOSPC); /* 0 to 504 meets a, 512 to 1016 meets b */
    CHECK_EQ(stats_of(r).nr_purges, 0);
    GIVE_BACK(r, a);
    CHECK_EQ(vm_alloc(r, 500, PAGES / 2, 0, &a), 0);
    CHECK_EQ(a.page, 0);
    GIVE_BACK(r, a);
    GIVE_BACK(r, b);
    FINISH(r);
}

static void what_the_dead_have_in_use_bars_nobody(kind k)
{
    enum { PAGES = 1024 };
    vm_region *r = make(k, PAGES);
    pid_t pid;
    CHILD(pid, {
        CHECK_EQ(take(r, 1).page, 0);
        kill(getpid(), SIGKILL);
    });
    CHECK(WIFSIGNALED(end_of(pid)));
    vm_range a;
    CHECK_EQ(vm_alloc(r, 1, PAGES, 0, &a), 0);
    GIVE_BACK(r, a);
    FINISH(r);
}

static void every_nth_request_fails_when_told_to(kind k)
{
    vm_region *r = make(k, 100);
    vm_range a;
    vm_fail_every(r, 3);
    for (int i = 1; i <= 12; i++) {
        int rc = vm_alloc(r, 1, 1, 0, &a);
        CHECK_EQ(rc, i % 3 ? 0 : -ENOSPC);
        if (rc == 0)
            GIVE_BACK(r, a);
    }
    vm_fail_every(r, 0);
    for (int i = 0; i < 12; i++) {
        a = take(r, 1);
        GIVE_BACK(r, a);
    }
    FINISH(r);
}

static void the_statistics_add_up(kind k)
{
    vm_region *r = make(k, 5000);
    vm_range a[30];
    for (int i = 0; i < 30; i++)
        a[i] = take(r, (uint64_t)i * 10 + 1);
    uint64_t busy = 0;
    for (int i = 0; i < 30; i++)
        busy += a[i].nr_pages;
    vm_stats s = stats_of(r); /* checks the sum of the states itself */
    CHECK_EQ(s.busy_pages, busy);
    CHECK_EQ(s.nr_busy, 30);
    CHECK_EQ(s.nr_processes, 1);
    CHECK_EQ(s.nr_space_hit, 30);
    CHECK_EQ(vm_free_bulk(r, 30, a), 0);
    s = stats_of(r);
    CHECK_EQ(s.busy_pages + s.nr_busy + s.moving_pages, 0);
    CHECK_EQ(s.lazy_pages, r->map.h->lazy_pages);
    FINISH(r);
}

typedef struct picture {
    uint64_t next, nr;
} picture;
static int tiles(void *arg, const vm_range_info *info)
{
    picture *p = arg;
    CHECK_EQ(info->page, p->next);
    p->next += info->nr_pages;
    p->nr++;
    return 0;
}
static int stop_at_once(void *arg, const vm_range_info *info)
{
    (void)arg, (void)info;
    return 42;
}

static void the_walk_tiles_the_region(kind k)
{
    vm_region *r = make(k, 2000);
    static vm_range a[1500];
    for (int i = 0; i < 1500; i++) /* more than the walk's first buffer */
        a[i] = take(r, 1);
    picture p = {0, 0};
    CHECK_EQ(vm_walk(r, tiles, &p), 0);
    CHECK_EQ(p.next, 2000);
    CHECK_EQ(p.nr, stats_of(r).nr_ranges);
    CHECK_EQ(vm_walk(r, stop_at_once, NULL), 42);
    CHECK_EQ(vm_free_bulk(r, 1500, a), 0);
    FINISH(r);
}

static void a_random_history_never_hands_a_page_out_twice(kind k)
{
    enum { PAGES = 3000, LIVE = 200 };
    static uint8_t owner[PAGES];
    static vm_range live[LIVE];
    vm_region *r = make(k, PAGES);
    uint64_t seed = 77 + k.pools;
    memset(owner, 0, sizeof owner);
    memset(live, 0, sizeof live);
    for (int step = 0; step < 4000 / SLOWER; step++) {
        uint64_t i = random_below(&seed, LIVE);
        vm_range *a = &live[i];
        if (a->nr_pages) {
            for (uint64_t p = a->page; p < a->page + a->nr_pages; p++) {
                CHECK_EQ(owner[p], i + 1);
                owner[p] = 0;
            }
            GIVE_BACK(r, *a);
            a->nr_pages = 0;
        } else if (vm_alloc(r, random_pages(&seed, 400), 1ull << random_below(&seed, 4), 0, a) == 0) {
            for (uint64_t p = a->page; p < a->page + a->nr_pages; p++) {
                CHECK_EQ(owner[p], 0);
                owner[p] = (uint8_t)(i + 1);
            }
        }
        if (step % 200 == 0) {
            CHECK_EQ(step % 400 ? vm_purge(r, NULL) : 0, 0);
            CHECK_CLEAN(r);
        }
    }
    for (int i = 0; i < LIVE; i++)
        if (live[i].nr_pages)
            GIVE_BACK(r, live[i]);
    FINISH(r);
}

static void (*const for_every_kind[])(kind) = {
    a_range_is_mine_until_i_free_it,
    a_freed_range_of_the_same_size_is_reused_hot,
    what_is_taken_in_registers_is_a_range_like_any_other,
    wrong_handles_are_told_apart,
    wrong_sizes_are_refused_and_leave_the_output_alone,
    bulk_is_all_or_nothing,
    congruent_ranges_share_one_base,
    wrong_congruent_requests_are_refused,
    a_resize_keeps_the_bytes,
    a_request_falls_through_every_station_before_it_fails,
    an_aligned_request_fails_at_once_while_each_of_its_places_is_in_use,
    what_is_aligned_to_more_than_a_pooled_range_goes_back_to_space,
    it_goes_back_to_space_whoever_frees_it,
    what_was_shrunk_to_a_pooled_size_does_not_go_back_to_space,
    an_aligned_request_is_a_hit_where_the_range_on_top_lies_so,
    little_that_is_ready_stays_so_for_a_request_over_the_peak,
    a_filling_asks_the_system_seldom,
    what_was_ready_but_not_in_memory_is_asked_for_again_after_8_mib,
    an_alignment_beyond_the_region_is_refused,
    a_place_is_in_use_wherever_a_range_meets_it,
    what_the_dead_have_in_use_bars_nobody,
    every_nth_request_fails_when_told_to,
    the_statistics_add_up,
    the_walk_tiles_the_region,
    a_random_history_never_hands_a_page_out_twice,
};

/* ---- creating ---- */

static void wrong_options_are_refused(void)
{
    vm_region *r = NULL;
    CHECK_EQ(vm_create(&(vm_options){.nr_pages = 0}, &r), -EINVAL);
    CHECK_EQ(vm_create(&(vm_options){.nr_pages = VM_PAGES_MAX + 1}, &r), -EINVAL);
    CHECK_EQ(vm_create(&(vm_options){.nr_pages = 1, .granule_bytes = 3}, &r), -EINVAL);
    char name[VM_REGION_NAME_BYTES_MAX + 2];
    memset(name, 'x', sizeof name);
    name[sizeof name - 1] = 0;
    CHECK_EQ(vm_create(&(vm_options){.nr_pages = 1, .name = name}, &r), -EINVAL);
    CHECK_EQ(vm_create(&(vm_options){.nr_pages = 1, .nr_nodes = VM_NODES_MAX + 1}, &r), -EINVAL);
    CHECK_EQ(vm_create(&(vm_options){.nr_pages = 1, .nr_threads = VM_THREAD_SLOTS_MAX}, &r), -EINVAL);
    CHECK_EQ(vm_create(&(vm_options){.nr_pages = 1, .pools = (vm_pools)VM_NR_POOL_DESIGNS}, &r), -EINVAL);
    CHECK(r == NULL);
}

static void one_page_is_a_region(void)
{
    FOR_EACH_DESIGN (d) {
        vm_region *r = MAKE(.nr_pages = 1, .pools = d, SMALL);
        vm_range a = take(r, 1), b;
        CHECK_EQ(vm_alloc(r, 1, 1, 0, &b), -ENOSPC);
        GIVE_BACK(r, a);
        b = take(r, 1);
        CHECK_EQ(b.page, 0);
        GIVE_BACK(r, b);
        FINISH(r);
    }
}

static void a_region_describes_itself(void)
{
    vm_region *r = MAKE(.nr_pages = 1000, .granule_bytes = 1 << 16, .base = 1 << 20, .limit_pages = 500,
                        .lazy_pages_max = 77, .nr_nodes = 3, .nr_threads = 5, .pools = VM_POOLS_LLIST);
    vm_info i;
    vm_describe(r, &i);
    CHECK(i.nr_pages == 1000 && i.granule_bytes == 1 << 16 && i.base == 1 << 20 && i.limit_pages == 500);
    CHECK(i.lazy_pages_max == 77 && i.nr_nodes == 3 && i.nr_threads == 5 && i.pools == VM_POOLS_LLIST);
    CHECK_EQ(vm_pages_of(r, 0), 0);
    CHECK_EQ(vm_pages_of(r, 1), 1);
    CHECK_EQ(vm_pages_of(r, 1 << 16), 1);
    CHECK_EQ(vm_pages_of(r, (1 << 16) + 1), 2);
    CHECK_EQ(vm_pages_of(r, UINT64_MAX), 1ull << 48);
    FINISH(r);
}

int main(void)
{
    wrong_options_are_refused();
    one_page_is_a_region();
    a_region_describes_itself();
    FOR_EACH_DESIGN (d)
        for (int is_memory = 0; is_memory < 2; is_memory++)
            for (size_t i = 0; i < LENGTH(for_every_kind); i++)
                for_every_kind[i]((kind){d, is_memory});
    return 0;
}
