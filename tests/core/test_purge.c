/* SPDX-License-Identifier: MIT */
/* Pools, lazy ranges, purge, decay, shrink: what is kept warm, in which order, and what goes back. */
#include "kit.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

static vm_region *make(vm_pools d) { return MAKE(.nr_pages = 10000, .pools = d, SMALL); }

/* ---- pools and their decay ---- */

static void fill_pool(vm_region *r, uint64_t nr_pages, uint32_t count, vm_range *a)
{
    for (uint32_t i = 0; i < count; i++)
        a[i] = take(r, nr_pages);
    CHECK_EQ(vm_free_bulk(r, count, a), 0);
    CHECK_EQ(vm__pool_count(r, &r->map.nodes[0].pool[vm__pool_index(nr_pages)]), count);
    CHECK_EQ(stats_of(r).pooled_pages, count * nr_pages);
}

static void a_purge_takes_a_quarter_of_a_pool_rounded_up(vm_pools d)
{
    static const uint32_t taken[] = {0, 1, 1, 1, 1, 2, 2, 2, 2, 3};
    for (uint32_t count = 1; count < LENGTH(taken); count++) {
        vm_region *r = make(d);
        vm_range a[16];
        fill_pool(r, 3, count, a);
        CHECK_EQ(vm_purge(r, NULL), 0);
        CHECK_EQ(stats_of(r).pooled_pages, (count - taken[count]) * 3);
        CHECK_CLEAN(r);
        FINISH(r);
    }
}

static void a_decay_takes_the_coldest(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a[8];
    fill_pool(r, 3, 8, a); /* a[0] was freed first */
    CHECK_EQ(vm_purge(r, NULL), 0);
    CHECK_EQ(vm__state(r->map.heads[a[0].page].word), VM_FREE);
    CHECK_EQ(vm__state(r->map.heads[a[1].page].word) == VM_POOLED, 0);
    CHECK_EQ(vm__state(r->map.heads[a[2].page].word), VM_POOLED);
    CHECK_EQ(take(r, 3).page, a[7].page); /* the hottest is served first */
    CHECK_EQ(vm_free(r, a[7].page, r->map.heads[a[7].page].aux, 0), 0);
    FINISH(r);
}

static void a_pool_drains_smoothly_to_nothing(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a[16];
    fill_pool(r, 1, 16, a);
    int nr_purges = 0;
    for (uint64_t before; (before = stats_of(r).pooled_pages); nr_purges++) {
        CHECK_EQ(vm_purge(r, NULL), 0);
        CHECK_EQ(stats_of(r).pooled_pages, before - (before + 3) / 4);
    }
    CHECK_EQ(nr_purges, 8); /* 16 12 9 6 4 3 2 1 0 */
    FINISH(r);
}

static void what_a_pool_does_not_keep_becomes_lazy(vm_pools d)
{
    vm_region *r = make(d);
    enum { COUNT = 39 };
    vm_range a[COUNT];
    uint32_t cap = vm__pool_cap(250);
    CHECK_EQ(cap, 32);
    for (int i = 0; i < COUNT; i++)
        a[i] = take(r, 250);
    CHECK_EQ(vm_free_bulk(r, COUNT, a), 0);
    CHECK_EQ(stats_of(r).pooled_pages, cap * 250);
    CHECK_EQ(stats_of(r).lazy_pages, (COUNT - cap) * 250);
    FINISH(r);
}

static void only_the_head_of_a_pool_is_tried_for_an_alignment(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a, b, c;
    CHECK_EQ(vm_alloc(r, 2, 16, 0, &a), 0);
    CHECK_EQ(vm_alloc(r, 2, 1, 0, &b), 0);
    CHECK(a.page == 0 && b.page == 2);
    GIVE_BACK(r, b);
    GIVE_BACK(r, a); /* now the head is aligned */
    CHECK_EQ(vm_alloc(r, 2, 16, 0, &c), 0);
    CHECK_EQ(c.page, 0);
    CHECK_EQ(vm_alloc(r, 2, 16, 0, &a), 0); /* the head is page 2: a miss, so from space */
    CHECK_EQ(a.page, 16);
    CHECK_CLEAN(r);
    GIVE_BACK(r, a);
    GIVE_BACK(r, c);
    FINISH(r);
}

static void a_request_looks_at_the_neighbours_pools(vm_pools d)
{
    vm_region *r = MAKE(.nr_pages = 1000, .nr_nodes = 8, .nr_threads = 8, .pools = d, .lazy_pages_max = 1u << 28);
    vm_range a = take(r, 5);
    vm_thread *t = vm__thread(r);
    vm_word moving = vm__moving(t, a.nr_pages);
    r->map.heads[a.page].word = moving;
    vm_node *far = &r->map.nodes[(vm__node_here(r) + 5) % 8];
    CHECK_EQ(r->design->kept->give(t, far, 5, 1, &a.page), 1);
    CHECK_CLEAN(r);
    vm_range b = take(r, 5);
    CHECK_EQ(b.page, a.page);
    GIVE_BACK(r, b);
    FINISH(r);
}

/* ---- lazy and warm ---- */

static void a_large_range_is_reused_warm(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a = take(r, 1000), in_front = take(r, 300);
    memset(vm_pointer(r, a.page), 7, 4096);
    GIVE_BACK(r, a);
    CHECK_EQ(stats_of(r).lazy_pages, 1000);
    vm_range b = take(r, 950); /* wastes less than an eighth */
    CHECK(b.page == a.page && b.nr_pages == 1000 && !b.zeroed);
    CHECK_EQ(*(char *)vm_pointer(r, b.page), 7);
    CHECK_EQ(stats_of(r).nr_lazy_hit, 1);
    GIVE_BACK(r, b);
    vm_range c = take(r, 1100); /* it is too short: cold */
    CHECK(c.page != a.page);
    vm_range e = take(r, 600); /* the other part stays warm */
    CHECK(e.page == a.page && e.nr_pages == 600);
    CHECK_EQ(stats_of(r).lazy_pages, 400);
    CHECK_CLEAN(r);
    GIVE_BACK(r, e);
    GIVE_BACK(r, c);
    GIVE_BACK(r, in_front);
    FINISH(r);
}

static void the_tightest_warm_fit_wins(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a = take(r, 420), b = take(r, 405), c = take(r, 440);
    GIVE_BACK(r, a);
    GIVE_BACK(r, b);
    GIVE_BACK(r, c);
    vm_range got = take(r, 400);
    CHECK_EQ(got.page, b.page);
    GIVE_BACK(r, got);
    FINISH(r);
}

/* Many threads that ask for many large sizes, each again for its own, in any order: else each takes what is another's, and
 * the last one faults. 2,400 to 2,500 pages are one list, which is longer than a look at small ranges; the frees of the second
 * node are not sorted yet when the first request finds one that would do. */
static void who_asks_again_for_what_it_freed_finds_just_that(vm_pools d)
{
    enum { COUNT = 40 };
    vm_region *r = MAKE(.nr_pages = 200000, .pools = d, .nr_nodes = 2, .nr_threads = 8, .lazy_pages_max = 1u << 28);
    vm_range a[COUNT], again;
    for (uint64_t i = 0; i < COUNT; i++)
        a[i] = take(r, 2400 + 2 * i);
    cpu_set_t all, one;
    CHECK_EQ(sched_getaffinity(0, sizeof all, &all), 0);
    for (int i = 0; i < COUNT; i++) {
        for (int cpu = 0, nr = 0; cpu < CPU_SETSIZE && nr <= i % 2; cpu++) /* one of the first two CPUs */
            if (CPU_ISSET(cpu, &all)) {
                CPU_ZERO(&one);
                CPU_SET(cpu, &one);
                nr++;
            }
        CHECK_EQ(sched_setaffinity(0, sizeof one, &one), 0);
        GIVE_BACK(r, a[i]);
    }
    for (int i = 0; i < COUNT; i++) {
        again = take(r, a[i].nr_pages);
        CHECK_EQ(again.page, a[i].page);
        a[i] = again;
    }
    CHECK_EQ(stats_of(r).nr_lazy_hit, COUNT);
    CHECK_EQ(vm_free_bulk(r, COUNT, a), 0);
    CHECK_EQ(sched_setaffinity(0, sizeof all, &all), 0);
    FINISH(r);
}

/* Few were freed since the last walk, but it has more pages than the walk has ranges. */
static void neighbours_are_joined_for_a_request_that_is_longer_than_the_walk(vm_pools d)
{
    enum { COUNT = 15 };
    vm_region *r = make(d);
    vm_range a[COUNT], fence[COUNT];
    for (int i = 0; i < COUNT; i++) {
        a[i] = take(r, 300);
        fence[i] = take(r, 300);
    }
    CHECK_EQ(vm_free_bulk(r, 3, a), 0);
    vm_range cold = take(r, 800); /* walks over all of them */
    CHECK(r->map.h->warm.nr_walked > 2 * COUNT);
    CHECK_EQ(vm_free_bulk(r, 2, fence), 0);
    vm_range joined = take(r, 1400);
    CHECK_EQ(joined.page, a[0].page);
    CHECK_EQ(joined.nr_pages, 5 * 300); /* a little more than was asked for */
    GIVE_BACK(r, joined);
    GIVE_BACK(r, cold);
    CHECK_EQ(vm_free_bulk(r, COUNT - 3, a + 3), 0);
    CHECK_EQ(vm_free_bulk(r, COUNT - 2, fence + 2), 0);
    FINISH(r);
}

/* Otherwise a CPU that the test comes to begins with an empty slab (percpu), and takes a few ranges from space. */
static void stay_on_one_of(const cpu_set_t *all)
{
    cpu_set_t one;
    int cpu = 0;
    while (!CPU_ISSET(cpu, all))
        cpu++;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    CHECK_EQ(sched_setaffinity(0, sizeof one, &one), 0);
}

/* One range in each of more lists than one look finds; no list's order helps. */
static void a_step_takes_the_oldest_of_however_many_lists(vm_pools d)
{
    enum { NR = 20, STEP = 7 };
    vm_region *r = MAKE(.nr_pages = 40000, .pools = d, SMALL);
    vm_range a[NR];
    for (uint64_t i = 0; i < NR; i++)
        a[i] = take(r, (256ull << i / 8) / 8 * (8 + i % 8) + 1);
    for (uint64_t i = 0; i < NR; i++) {
        vm_clock_hold(1000 + i);
        GIVE_BACK(r, a[i * 7 % NR]);
    }
    for (uint64_t gone = STEP; gone <= 2 * STEP; gone += STEP) {
        CHECK(vm__purge_step(vm__thread(r), 1u << 20, STEP, 0) > 0);
        for (uint64_t i = 0; i < NR; i++)
            CHECK_EQ(vm__state(r->map.heads[a[i * 7 % NR].page].word) == VM_LAZY, i >= gone);
    }
    vm_clock_hold(0);
    FINISH(r);
}

/* Also by the scan of all words with which another one leaves: else all of it would be faulted in once more. */
static void what_a_process_freed_stays_its_groups_when_another_ends(void)
{
    vm_region *r = MAKE(.nr_pages = 2000, .pools = VM_POOLS_MAGAZINE, SMALL), *other;
    CHECK_EQ(vm_attach(vm_fd(r), &other), 0);
    vm_range own = take(r, 300), others = take(other, 400), held = take(other, 500);
    GIVE_BACK(r, own);
    GIVE_BACK(other, others);
    CHECK_EQ(vm_detach(other), 0);
    const struct {
        uint64_t page;
        uint32_t group;
    } rows[] = {{own.page, 0}, {others.page, 1}, {held.page, 1}};
    for (size_t i = 0; i < LENGTH(rows); i++) {
        vm_word w = r->map.heads[rows[i].page].word;
        CHECK_EQ(vm__state(w), VM_LAZY);
        CHECK_EQ(vm__group_of_node(r, vm__owner(w)), rows[i].group);
    }
    FINISH(r);
}

/* However many there are, of one size: what was taken once is taken again. */
static void repeated_work_touches_no_new_page(vm_pools d)
{
    static const uint64_t sizes[] = {1, 8, 256, 257, 500};
    enum { COUNT = 3000 };
    static vm_range a[COUNT];
    cpu_set_t all;
    if (d == VM_POOLS_OFF)
        return; /* its small ranges wait for a purge */
    CHECK_EQ(sched_getaffinity(0, sizeof all, &all), 0);
    stay_on_one_of(&all);
    for (size_t s = 0; s < LENGTH(sizes); s++) {
        vm_region *r = MAKE(.nr_pages = COUNT * 510, .granule_bytes = 4096, .pools = d, SMALL);
        for (int i = 0; i < COUNT; i++)
            a[i] = take(r, sizes[s]);
        uint64_t high = r->map.h->high_pages, from_space = stats_of(r).nr_space_hit;
        for (int epoch = 0; epoch < 3; epoch++) {
            CHECK_EQ(vm_free_bulk(r, COUNT, a), 0);
            for (int i = 0; i < COUNT; i++)
                a[i] = take(r, sizes[s]);
        }
        CHECK_EQ(r->map.h->high_pages, high);
        CHECK_EQ(stats_of(r).nr_space_hit, from_space);
        CHECK_EQ(vm_free_bulk(r, COUNT, a), 0);
        FINISH(r);
    }
    CHECK_EQ(sched_setaffinity(0, sizeof all, &all), 0);
}

static void warm_neighbours_become_one_when_a_longer_one_is_wanted(vm_pools d)
{
    enum { COUNT = 8 };
    vm_region *r = make(d);
    vm_range a[COUNT], fence = {0};
    for (int i = 0; i < COUNT; i++)
        a[i] = take(r, 300);
    fence = take(r, 300);
    CHECK_EQ(vm_free_bulk(r, COUNT, a), 0);
    vm_range all = take(r, COUNT * 300);
    CHECK_EQ(all.page, a[0].page);
    CHECK_EQ(stats_of(r).lazy_pages, 0);
    CHECK_CLEAN(r);
    GIVE_BACK(r, all);
    GIVE_BACK(r, fence);
    FINISH(r);
}

static void the_lists_are_made_anew_after_a_death(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a = take(r, 300), b = take(r, 400), c = take(r, 500);
    GIVE_BACK(r, a);
    GIVE_BACK(r, b);
    vm_range again = take(r, 300); /* sorts */
    CHECK_EQ(again.page, a.page);
    GIVE_BACK(r, again);
    pid_t child;
    CHILD(child, {
        vm_thread *t = vm__thread(r);
        CHECK_EQ(vm__lock(t, &r->map.h->warm.lock, 0), 0);
        memset(r->map.shelves->list, 0x55, sizeof r->map.shelves->list);
        kill(getpid(), SIGKILL);
    });
    CHECK_EQ(waitpid(child, NULL, 0), child);
    CHECK_EQ(take(r, 400).page, b.page);
    CHECK_EQ(take(r, 300).page, a.page);
    (void)c;
    CHECK_EQ(vm_recover(r, NULL), 0);
    CHECK_CLEAN(r);
    vm_detach(r);
}

static void over_the_threshold_a_free_gives_back_a_little(vm_pools d)
{
    vm_region *r = MAKE(.nr_pages = 10000, .pools = d, .nr_nodes = 1, .nr_threads = 4, .lazy_pages_max = 1000);
    vm_range a = take(r, 600), b = take(r, 700), keep = take(r, 1);
    GIVE_BACK(r, a);
    CHECK_EQ(stats_of(r).lazy_pages, 600);
    GIVE_BACK(r, b);
    CHECK_EQ(stats_of(r).lazy_pages, 1000); /* as much as is over it */
    CHECK_EQ(r->map.h->nr_steps, 1);
    CHECK_EQ(stats_of(r).nr_purges, 0);
    CHECK_CLEAN(r);
    GIVE_BACK(r, keep);
    FINISH(r);
}

static void the_oldest_goes_first(vm_pools d)
{
    vm_region *r = MAKE(.nr_pages = 10000, .pools = d, .nr_nodes = 1, .nr_threads = 4, .lazy_pages_max = 1300);
    vm_range a = take(r, 300), e = take(r, 1), b = take(r, 310), g = take(r, 1), c = take(r, 300), h = take(r, 1);
    GIVE_BACK(r, b);
    vm_clock_advance(5000000000ull);
    GIVE_BACK(r, a);
    GIVE_BACK(r, c); /* 910 */
    vm_clock_advance(5000000000ull);
    vm_range f = take(r, 600);
    GIVE_BACK(r, f); /* over it */
    vm_word w = r->map.heads[b.page].word;
    CHECK_EQ(vm__len(w), 310 - VM_PURGE_STEP_PAGES);
    CHECK_EQ(vm__len(r->map.heads[a.page].word), 300);
    CHECK_CLEAN(r);
    GIVE_BACK(r, e);
    GIVE_BACK(r, g);
    GIVE_BACK(r, h);
    FINISH(r);
}

static void large_frees_do_not_pass_the_threshold(vm_pools d)
{
    vm_region *r = MAKE(.nr_pages = 100000, .pools = d, .nr_nodes = 1, .nr_threads = 4, .lazy_pages_max = 1000);
    vm_range a[20], between[20];
    for (int i = 0; i < 20; i++) {
        a[i] = take(r, 2000);
        between[i] = take(r, 1);
    }
    for (int i = 0; i < 20; i++) {
        GIVE_BACK(r, a[i]);
        CHECK(stats_of(r).lazy_pages <= 1000);
    }
    CHECK_CLEAN(r);
    CHECK_EQ(vm_free_bulk(r, 20, between), 0);
    FINISH(r);
}

/* ---- a free waits for nobody ---- */

static vm_lock *lock_of(vm_region *r, int i)
{
    vm_header *h = r->map.h;
    return (vm_lock *[]){&h->purge_lock, &h->space_lock, &h->warm.lock, &r->map.nodes[0].pool_lock,
                         &h->names_lock, &h->lease_lock}[i];
}

/* Whoever sleeps for a lock says so in its word. */
static void a_free_beside_a_stopped_neighbour_sleeps_for_no_lock(vm_pools d)
{
    enum { NR = 3000, POOL_LOCK = 3, NR_LOCKS = 6 };
    static vm_range a[NR];
    for (int i = 0; i < NR_LOCKS; i++) {
        if (i == POOL_LOCK && d != VM_POOLS_LOCKED && d != VM_POOLS_MAGAZINE)
            continue; /* nobody takes it */
        vm_region *r = MAKE(.nr_pages = 40000, .pools = d, .nr_nodes = 1, .nr_threads = 8, .lazy_pages_max = 100);
        vm_range large = take(r, 400);
        pid_t child;
        for (int k = 0; k < NR; k++)
            a[k] = take(r, 4);
        CHILD(child, {
            CHECK_EQ(vm__lock(vm__thread(r), lock_of(r, i), 0), 0);
            raise(SIGSTOP);
        });
        CHECK_EQ(waitpid(child, NULL, WUNTRACED), child);
        for (int k = 0; k < NR; k += 2)
            GIVE_BACK(r, a[k]);
        GIVE_BACK(r, large);
        CHECK(VM_RELAXED(&lock_of(r, i)->owner) != 0);
        CHECK(!(VM_RELAXED(&lock_of(r, i)->owner) & VM_TOKEN_WAITERS));
        kill(child, SIGKILL);
        CHECK_EQ(waitpid(child, NULL, 0), child);
        CHECK_EQ(vm_recover(r, NULL), 0);
        for (int k = 1; k < NR; k += 2)
            GIVE_BACK(r, a[k]);
        CHECK_CLEAN(r);
        vm_detach(r);
    }
}

/* ---- space is short, memory is not ---- */

static void fill_and_free_every_other(vm_region *r, vm_range *a, int nr)
{
    r->map.h->used_peak = 1 << 20; /* far away: nothing is loosened before space is short */
    for (int i = 0; i < nr; i++) {
        a[i] = take(r, 2);
        memset(vm_pointer(r, a[i].page), 7, 8192);
    }
    for (int i = 0; i < nr; i++)
        if (i % 8 != 7)
            GIVE_BACK(r, a[i]);
}

static void a_small_request_joins_what_is_free_and_keeps_its_pages(vm_pools d)
{
    enum { NR = 400 };
    vm_region *r = MAKE(.nr_pages = 2 * NR, .pools = d, .nr_nodes = 1, .nr_threads = 4);
    vm_range a[NR], b;
    fill_and_free_every_other(r, a, NR);
    uint64_t resident = stats_of(r).resident_bytes;
    CHECK_EQ(vm_alloc(r, 14, 1, 0, &b), 0); /* as many as are side by side */
    CHECK(!b.zeroed);
    CHECK_EQ(*(char *)vm_pointer(r, b.page), 7);
    CHECK(stats_of(r).resident_bytes >= resident);
    CHECK_EQ(stats_of(r).nr_discards, 0);
    CHECK_CLEAN(r);
    GIVE_BACK(r, b);
    for (int i = 7; i < NR; i += 8)
        GIVE_BACK(r, a[i]);
    CHECK_EQ(vm_shrink(r, NULL), 0); /* and now the pages go */
    CHECK(stats_of(r).resident_bytes < 1 << 20);
    CHECK_EQ(r->map.h->dirty_pages, 0);
    FINISH(r);
}

static void a_purge_gives_back_what_went_to_space_with_its_pages(vm_pools d)
{
    enum { NR = 400 };
    vm_region *r = MAKE(.nr_pages = 2 * NR, .pools = d, .nr_nodes = 1, .nr_threads = 4);
    vm_range a[NR], b;
    fill_and_free_every_other(r, a, NR);
    CHECK_EQ(vm_alloc(r, 14, 1, 0, &b), 0);
    uint64_t dirty = r->map.h->dirty_pages, resident = stats_of(r).resident_bytes;
    CHECK(dirty > 0);
    CHECK_EQ(vm_purge(r, NULL), 0);
    CHECK_EQ(r->map.h->dirty_pages, 0);
    CHECK(stats_of(r).resident_bytes + dirty * 4096 <= resident);
    CHECK_CLEAN(r);
    GIVE_BACK(r, b);
    for (int i = 7; i < NR; i += 8)
        GIVE_BACK(r, a[i]);
    FINISH(r);
}

/* A taker that does not run just now has the only list; what is in it is there all the same. */
static vm_region *held_up;
static void *let_go_of_the_pool(void *arg)
{
    vm_pool *p = arg;
    __atomic_store_n(&p->in_use, vm__thread(held_up)->token, __ATOMIC_RELEASE);
    while (!VM_RELAXED(&held_up->map.h->tight_s)) /* somebody found no room */
        usleep(100);
    usleep(5000);
    __atomic_store_n(&p->in_use, 0, __ATOMIC_RELEASE);
    return NULL;
}
static void who_finds_no_room_waits_for_a_taker_that_is_held_up(void)
{
    enum { NR = 500 };
    static vm_range a[NR];
    vm_region *r = held_up = MAKE(.nr_pages = NR, .pools = VM_POOLS_LLIST, SMALL);
    vm_pool *p = &r->map.nodes[0].pool[0];
    pthread_t taker;
    for (int i = 0; i < NR; i++)
        a[i] = take(r, 1);
    for (int i = 0; i < NR; i++)
        GIVE_BACK(r, a[i]); /* all pages are in the pool */
    CHECK_EQ(pthread_create(&taker, NULL, let_go_of_the_pool, p), 0);
    while (!VM_RELAXED(&p->in_use))
        usleep(100);
    a[0] = take(r, 1);
    CHECK_EQ(pthread_join(taker, NULL), 0);
    GIVE_BACK(r, a[0]);
    FINISH(r);
}

/* ---- purge and shrink ---- */

static void a_purge_gives_the_pages_back_to_the_system(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a = take(r, 2000);
    uint64_t before = stats_of(r).resident_bytes, pages = 0;
    memset(vm_pointer(r, a.page), 1, 2000 * 4096);
    CHECK(stats_of(r).resident_bytes >= before + 2000 * 4096);
    GIVE_BACK(r, a);
    CHECK(stats_of(r).resident_bytes >= before + 2000 * 4096); /* still warm */
    CHECK_EQ(vm_purge(r, &pages), 0);
    CHECK_EQ(pages, 2000);
    CHECK(stats_of(r).resident_bytes < before + 100 * 4096);
    FINISH(r);
}

static void neighbours_are_merged_before_they_are_discarded(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a[20];
    for (int i = 0; i < 20; i++)
        a[i] = take(r, 2);
    CHECK_EQ(vm_free_bulk(r, 20, a), 0);
    CHECK_EQ(vm_shrink(r, NULL), 0);
    CHECK_EQ(stats_of(r).nr_discards, 1); /* twenty ranges, one hole */
    CHECK(stats_of(r).nr_purged_pages >= 40); /* and what was stocked up */
    FINISH(r);
}

static void a_shrink_gives_everything_back(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a[100];
    uint64_t seed = 3, nr = 0, pages = 0;
    for (int i = 0; i < 100; i++)
        nr += (a[i] = take(r, random_pages(&seed, 300))).nr_pages;
    vm_range keep = a[50];
    a[50] = a[99];
    CHECK_EQ(vm_free_bulk(r, 99, a), 0);
    CHECK_EQ(vm_shrink(r, &pages), 0);
    CHECK(pages >= nr - keep.nr_pages); /* and what was stocked up */
    CHECK_EQ(stats_of(r).free_pages, r->map.nr_pages - keep.nr_pages);
    GIVE_BACK(r, keep);
    FINISH(r);
}

static void the_purge_starts_at_another_node_each_time(vm_pools d)
{
    vm_region *r = MAKE(.nr_pages = 100, .nr_nodes = 4, .nr_threads = 4, .pools = d);
    for (uint64_t i = 0; i < 9; i++) {
        CHECK_EQ(r->map.h->purge_start_node % vm__nodes_used(r), i % 4);
        CHECK_EQ(vm_purge(r, NULL), 0);
    }
    FINISH(r);
}

static void the_recent_peak_sinks_to_the_present(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a = take(r, 8000);
    CHECK_EQ(r->map.h->used_peak, 8000);
    GIVE_BACK(r, a);
    for (int i = 0; i < 40; i++)
        CHECK_EQ(vm_purge(r, NULL), 0);
    CHECK(r->map.h->used_peak < 10);
    FINISH(r);
}

/* Magazines are drained each time the peak has risen by a part of itself: when it rises again after it sank, too. */
static void the_peak_at_which_magazines_were_drained_sinks_with_it(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a = take(r, 8000);
    r->map.h->drained_peak = 8000;
    GIVE_BACK(r, a);
    for (int i = 0; i < 20; i++)
        CHECK_EQ(vm_purge(r, NULL), 0);
    CHECK(r->map.h->drained_peak <= r->map.h->used_peak);
    r->map.h->used_peak = r->map.h->drained_peak = 9999;
    for (int i = 0; i < 2 * VM_TURN_TICKS; i++) {
        CHECK_EQ(vm_tick(r), 0);
        vm_clock_advance(VM_TICK_MS * 1000000ull);
    }
    CHECK(r->map.h->used_peak < 9999);
    CHECK(r->map.h->drained_peak <= r->map.h->used_peak);
    FINISH(r);
}

/* Counted, and not lazy yet: who sums up the words now must not take the pages off the counter. */
static void a_free_that_is_under_way_is_counted_once_by_a_scan(vm_pools d)
{
    vm_region *r = MAKE(.nr_pages = 100, .pools = d, SMALL);
    vm_thread *t = vm__thread(r);
    vm_range a = take(r, 3);
    uint64_t before = r->map.h->lazy_pages;
    r->map.heads[a.page].word = vm__moving(t, 3);
    r->map.h->lazy_pages += 3;
    r->map.h->purge_needs_scan = 1;
    CHECK_EQ(vm_recover(r, NULL), 0);
    CHECK_EQ(r->map.h->lazy_pages, before + 3);
    CHECK_EQ(r->map.h->lazy_is_off, 1);
    r->map.h->lazy_pages -= 3;
    vm__lazy_put(t, a.page, 3); /* from its beginning, to its end */
    r->map.h->lazy_pages += 7;  /* as a death left it */
    CHECK_EQ(vm_recover(r, NULL), 0);
    CHECK_EQ(r->map.h->lazy_pages, before + 3);
    CHECK_EQ(r->map.h->lazy_is_off, 0);
    CHECK_CLEAN(r);
    FINISH(r);
}

typedef struct late_purge {
    vm_region *r;
    unsigned flags;
} late_purge;
static void *purge_late(void *arg)
{
    late_purge *late = arg;
    uint64_t pages = 0;
    CHECK_EQ(vm__purge(vm__thread(late->r), late->flags, &pages), 0);
    CHECK_EQ(pages, 0);
    return NULL;
}

/* Another one is at it until a thread waits for it: how many ended then. */
static uint64_t purges_of_two(unsigned flags_of_the_second)
{
    vm_region *r = make(VM_POOLS_MAGAZINE);
    vm_header *h = r->map.h;
    vm_thread *t = vm__thread(r);
    late_purge late = {r, flags_of_the_second};
    pthread_t thread;
    CHECK_EQ(vm__lock(t, &h->purge_lock, 0), 0);
    CHECK_EQ(pthread_create(&thread, NULL, purge_late, &late), 0);
    while (!(VM_ACQUIRE(&h->purge_lock.owner) & VM_TOKEN_WAITERS))
        sched_yield();
    VM_PUT(&h->nr_purges, h->nr_purges + 1);
    vm__unlock(t, &h->purge_lock);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    uint64_t nr = stats_of(r).nr_purges;
    FINISH(r);
    return nr;
}

static void one_purge_serves_all_that_waited_for_it(void)
{
    CHECK_EQ(purges_of_two(0), 2);
    CHECK_EQ(purges_of_two(VM_PURGE_IF_NOBODY_DID), 1);
}

static void (*const for_every_design[])(vm_pools) = {
    a_free_that_is_under_way_is_counted_once_by_a_scan,
    a_large_range_is_reused_warm,
    the_tightest_warm_fit_wins,
    a_step_takes_the_oldest_of_however_many_lists,
    repeated_work_touches_no_new_page,
    warm_neighbours_become_one_when_a_longer_one_is_wanted,
    who_asks_again_for_what_it_freed_finds_just_that,
    neighbours_are_joined_for_a_request_that_is_longer_than_the_walk,
    the_lists_are_made_anew_after_a_death,
    over_the_threshold_a_free_gives_back_a_little,
    the_oldest_goes_first,
    large_frees_do_not_pass_the_threshold,
    a_free_beside_a_stopped_neighbour_sleeps_for_no_lock,
    a_small_request_joins_what_is_free_and_keeps_its_pages,
    a_purge_gives_back_what_went_to_space_with_its_pages,
    a_purge_gives_the_pages_back_to_the_system,
    neighbours_are_merged_before_they_are_discarded,
    a_shrink_gives_everything_back,
    the_purge_starts_at_another_node_each_time,
    the_recent_peak_sinks_to_the_present,
    the_peak_at_which_magazines_were_drained_sinks_with_it,
};
/* `magazine` has the locked pools under its magazines. */
static void (*const for_every_pool[])(vm_pools) = {
    a_purge_takes_a_quarter_of_a_pool_rounded_up,
    a_decay_takes_the_coldest,
    a_pool_drains_smoothly_to_nothing,
    what_a_pool_does_not_keep_becomes_lazy,
    only_the_head_of_a_pool_is_tried_for_an_alignment,
    a_request_looks_at_the_neighbours_pools,
};

int main(void)
{
    FOR_EACH_DESIGN (d)
        for (size_t i = 0; i < LENGTH(for_every_design); i++)
            for_every_design[i](d);
    for (size_t i = 0; i < LENGTH(for_every_pool); i++) {
        for_every_pool[i](VM_POOLS_LOCKED);
        for_every_pool[i](VM_POOLS_LLIST);
        for_every_pool[i](VM_POOLS_TAGGED);
    }
    what_a_process_freed_stays_its_groups_when_another_ends();
    who_finds_no_room_waits_for_a_taker_that_is_held_up();
    one_purge_serves_all_that_waited_for_it();
    return 0;
}
