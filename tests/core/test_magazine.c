/* SPDX-License-Identifier: MIT */
/* Magazines: the cap grows on demand, the overflow goes to the pools, an exit leaves nothing behind,
 * and a neighbour who is out of memory may empty them. */
#include "kit.h"

#include <pthread.h>
#include <sched.h>

static vm_region *make(uint64_t nr_pages) { return MAKE(.nr_pages = nr_pages, .pools = VM_POOLS_MAGAZINE, SMALL); }
static uint32_t nr_in_magazine(vm_region *r, uint64_t nr_pages)
{
    return vm__magazine_count(vm__thread(r)->hit.magazine[nr_pages].header);
}
static uint32_t cap_of(vm_region *r, uint64_t nr_pages) { return vm__thread(r)->hit.cap[nr_pages]; }

static int by_page(const void *a, const void *b)
{
    uint64_t one = ((const vm_range *)a)->page, other = ((const vm_range *)b)->page;
    return one < other ? -1 : one > other;
}

static void take_and_give_back(vm_region *r, uint64_t nr_pages, int count)
{
    vm_range a[256];
    CHECK(count <= 256);
    for (int i = 0; i < count; i++)
        a[i] = take(r, nr_pages);
    CHECK_EQ(vm_free_bulk(r, (size_t)count, a), 0);
}

static void a_magazines_cap_grows_on_demand_up_to_its_size(void)
{
    vm_region *r = make(2000);
    CHECK_EQ(cap_of(r, 2), 0);
    vm_range a = take(r, 2);
    CHECK_EQ(cap_of(r, 2), 1);
    GIVE_BACK(r, a);
    take_and_give_back(r, 2, 2);
    CHECK(cap_of(r, 2) >= 2);
    CHECK(nr_in_magazine(r, 2) >= 2);
    CHECK_EQ(stats_of(r).cached_pages, nr_in_magazine(r, 2) * 2);
    take_and_give_back(r, 2, 200);
    CHECK_EQ(cap_of(r, 2), VM_MAGAZINE_CAP);
    CHECK(nr_in_magazine(r, 2) <= VM_MAGAZINE_CAP);
    FINISH(r);
}

static void what_overflows_goes_to_the_pools(void)
{
    vm_region *r = make(2000);
    take_and_give_back(r, 1, 200);
    vm_stats s = stats_of(r);
    CHECK_EQ(s.cached_pages, nr_in_magazine(r, 1));
    CHECK(s.pooled_pages >= 200 - s.cached_pages); /* and what was stocked up */
    CHECK_EQ(s.lazy_pages, 0);
    FINISH(r);
}

static void the_growth_of_all_caps_is_bounded(void)
{
    vm_region *r = MAKE(.nr_pages = 40000, .granule_bytes = 1 << 20, .pools = VM_POOLS_MAGAZINE, SMALL);
    for (uint64_t n = 200; n <= VM_POOL_PAGES_MAX; n++)
        take_and_give_back(r, n, 60);
    vm_thread *t = vm__thread(r);
    CHECK(t->cap_pages <= vm__magazine_budget(r));
    CHECK(stats_of(r).cached_pages <= vm__magazine_budget(r) + VM_POOL_PAGES_MAX * (VM_POOL_PAGES_MAX + 1) / 2);
    FINISH(r);
}

static void *use_a_little(void *r)
{
    take_and_give_back(r, 1, 1);
    return NULL;
}

static void who_never_had_another_thread_beside_it_has_twice_the_budget(void)
{
    enum { SHARE = (1 << 20) / VM_MAGAZINE_BUDGET_SHARE };
    vm_region *r = MAKE(.nr_pages = 1 << 20, .pools = VM_POOLS_MAGAZINE, SMALL);
    pthread_t thread;
    vm_thread helper;
    vm__thread(r);
    CHECK_EQ(vm__magazine_budget(r), VM_MAGAZINE_BUDGET_ALONE * SHARE);
    vm__thread_borrow(r, &helper); /* allocates nothing */
    CHECK_EQ(vm__magazine_budget(r), VM_MAGAZINE_BUDGET_ALONE * SHARE);
    vm__thread_return(&helper);
    use_a_little(r);
    CHECK_EQ(pthread_create(&thread, NULL, use_a_little, r), 0);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK_EQ(vm__magazine_budget(r), r->map.h->free_pages / VM_MAGAZINE_BUDGET_SHARE);
    FINISH(r);
}

/* As a neighbour may write it: behind the last slot lies something else, or nothing. */
static void no_slot_beyond_the_last_is_looked_at(void)
{
    vm_region *r = MAKE(.nr_pages = 1 << 20, .pools = VM_POOLS_MAGAZINE, .nr_nodes = 1, .nr_threads = 1);
    vm__thread(r);
    CHECK_EQ(vm__first_thread(r) + 1, r->map.nr_threads);
    uint64_t high = r->map.h->high_slot, budget = vm__magazine_budget(r);
    uint64_t *behind = &r->map.slots[r->map.nr_threads].state, was = *behind;
    *behind = 0;
    r->map.h->high_slot = high + 1;
    CHECK_EQ(vm__magazine_budget(r), budget);
    r->map.h->high_slot = high;
    *behind = was;
    FINISH(r);
}

/* What another process allocated, freed here one after the other. */
static void frees_of_others_go_on_in_batches(void)
{
    vm_region *r = make(4000), *other;
    enum { N = 20, BATCH = VM_FLOW_LOT_RANGES };
    vm_range a[N];
    CHECK_EQ(vm_attach(vm_fd(r), &other), 0);
    for (int i = 0; i < N; i++)
        a[i] = take(other, VM_FLOW_PAGES);
    uint64_t pooled = stats_of(r).pooled_pages;
    for (int i = 0; i < N; i++) {
        GIVE_BACK(r, a[i]);
        CHECK(nr_in_magazine(r, VM_FLOW_PAGES) <= BATCH);
    }
    CHECK_EQ(stats_of(r).pooled_pages - pooled, (N - nr_in_magazine(r, VM_FLOW_PAGES)) * VM_FLOW_PAGES);
    vm_range b = take(other, VM_POOL_PAGES_MAX);
    GIVE_BACK(r, b);
    CHECK_EQ(nr_in_magazine(r, VM_POOL_PAGES_MAX), 0); /* a batch of these would be less than one */
    CHECK_EQ(vm_detach(other), 0);
    FINISH(r);
}

/* Of one lot no range lies in a pool while another lies in a magazine. */
static void check_lots_are_whole(const vm_region *r, int nr, const vm_range *a)
{
    uint64_t lot_pages = vm__lot_pages(a[0].nr_pages);
    for (int i = 0; i < nr; i++)
        for (int k = 0; k < i; k++)
            if (vm__is_of_one_lot(a[i].page, a[k].page, lot_pages)) {
                vm_state one = vm__state(VM_ACQUIRE(&r->map.heads[a[i].page].word));
                vm_state other = vm__state(VM_ACQUIRE(&r->map.heads[a[k].page].word));
                CHECK(one != VM_CACHED || other != VM_POOLED);
                CHECK(one != VM_POOLED || other != VM_CACHED);
            }
}

/* They begin in the middle of a lot. */
static void frees_of_others_go_on_in_whole_lots(void)
{
    const uint64_t sizes[] = {2, VM_FLOW_PAGES};
    for (int k = 0; k < 2; k++) {
        vm_region *r = make(8000), *other;
        enum { N = 90 };
        vm_range a[N], before;
        CHECK_EQ(vm_attach(vm_fd(r), &other), 0);
        CHECK_EQ(vm_alloc(other, 5 * sizes[k], 1, 0, &before), 0);
        for (int i = 0; i < N; i++)
            CHECK_EQ(vm_alloc(other, sizes[k], sizes[k], 0, &a[i]), 0);
        qsort(a, N, sizeof *a, by_page);
        for (int i = 0; i < N; i++) {
            GIVE_BACK(r, a[i]);
            check_lots_are_whole(r, i + 1, a);
        }
        CHECK(stats_of(r).pooled_pages >= N * sizes[k] / 2);
        GIVE_BACK(other, before);
        CHECK_EQ(vm_detach(other), 0);
        FINISH(r);
    }
}

/* All on one CPU, so that one pool has all of it. */
static void stay_here(cpu_set_t *before)
{
    cpu_set_t here;
    CPU_ZERO(&here);
    CPU_SET(sched_getcpu(), &here);
    CHECK_EQ(sched_getaffinity(0, sizeof *before, before), 0);
    CHECK_EQ(sched_setaffinity(0, sizeof here, &here), 0);
}

/* In the pool lies a lot, and on it a part of the next one. */
static void a_taker_gets_what_others_freed_in_whole_lots_and_by_address(void)
{
    vm_region *r = make(8000), *other;
    enum { LOT = VM_FLOW_LOT_RANGES, PART = 10, N = 2 * LOT + 1 };
    cpu_set_t before;
    vm_range a[N];
    stay_here(&before);
    CHECK_EQ(vm_attach(vm_fd(r), &other), 0);
    for (int i = 0; i < N; i++)
        CHECK_EQ(vm_alloc(other, VM_FLOW_PAGES, VM_FLOW_PAGES, 0, &a[i]), 0); /* aligned: no more than that */
    qsort(a, N, sizeof *a, by_page);
    vm_range *lot = a;
    while (lot->page % vm__lot_pages(VM_FLOW_PAGES))
        lot++;
    CHECK(lot + LOT + PART <= a + N);
    vm_range own = take(r, VM_FLOW_PAGES); /* opens the magazine */
    vm__thread(r)->hit.cap[VM_FLOW_PAGES] = 0; /* so each goes to the pool at once */
    vm__thread(other)->hit.cap[VM_FLOW_PAGES] = VM_MAGAZINE_CAP;
    for (int i = 0; i < LOT; i++)
        GIVE_BACK(r, lot[i]);
    for (int i = LOT + PART; i-- > LOT;)
        GIVE_BACK(r, lot[i]);
    for (int i = LOT; i < LOT + PART; i++) {
        CHECK_EQ(take(other, VM_FLOW_PAGES).page, lot[i].page);
        CHECK_EQ(stats_of(r).pooled_pages, LOT * VM_FLOW_PAGES);
    }
    for (int i = 0; i < LOT; i++)
        CHECK_EQ(take(other, VM_FLOW_PAGES).page, lot[i].page);
    GIVE_BACK(r, own);
    CHECK_EQ(vm_detach(other), 0);
    CHECK_EQ(sched_setaffinity(0, sizeof before, &before), 0);
    FINISH(r);
}

/* By the order in which they are taken: how often the next one is of another lot. */
static int nr_changes_of_lot(int nr, const vm_range *a)
{
    int changes = 0;
    for (int i = 1; i < nr; i++)
        changes += !vm__is_of_one_lot(a[i].page, a[i - 1].page, vm__lot_pages(a[0].nr_pages));
    return changes;
}

static void a_flow_that_went_round_often_still_comes_in_whole_lots(void)
{
    const uint64_t sizes[] = {1, VM_FLOW_PAGES};
    for (int k = 0; k < 2; k++) {
        vm_region *r = make(20000), *other;
        enum { N = 256, LOTS = N / VM_FLOW_LOT_RANGES };
        vm_range a[N];
        CHECK_EQ(vm_attach(vm_fd(r), &other), 0);
        for (int round = 0; round < 50; round++) {
            for (int i = 0; i < N; i++)
                a[i] = take(other, sizes[k]);
            for (int i = 0; i < N; i++)
                GIVE_BACK(r, a[i]);
        }
        CHECK(nr_changes_of_lot(N, a)
              <= 3 * LOTS); /* some were cut when magazines were small; in no order it is nearly N */
        CHECK_EQ(vm_detach(other), 0);
        FINISH(r);
    }
}

/* A neighbour wrote into the heads. */
static void of_a_list_that_is_bent_into_a_ring_nobody_gets_a_range_twice(void)
{
    vm_region *r = make(4000), *other;
    enum { N = 40 };
    vm_range a[N], b[N];
    CHECK_EQ(vm_attach(vm_fd(r), &other), 0);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < N; i++)
            a[i] = take(other, 3);
        for (int i = 0; i < N; i++)
            GIVE_BACK(r, a[i]);
    }
    for (uint32_t n = 0; n < r->map.nr_nodes; n++) {
        uint64_t head = r->map.nodes[n].pool[vm__pool_index(3)].head, next = head ? r->map.heads[head - 1].aux : 0;
        if (next)
            r->map.heads[next - 1].aux = head;
    }
    for (int i = 0; i < N; i++) {
        b[i] = take(other, 3);
        for (int k = 0; k < i; k++)
            CHECK(b[i].page != b[k].page);
    }
    for (int i = 0; i < N; i++)
        GIVE_BACK(other, b[i]);
    CHECK_EQ(vm_detach(other), 0);
    CHECK(vm_repair(r, NULL, NULL) >= 0);
    FINISH(r);
}

static void a_free_of_what_another_process_allocated_is_a_hit(void)
{
    vm_region *r = make(4000), *other;
    CHECK_EQ(vm_attach(vm_fd(r), &other), 0);
    take_and_give_back(r, 2, 8); /* the magazine has ids, and from the next hit on room */
    vm_range a = take(other, 2), mine = take(r, 2), b;
    uint32_t nr = nr_in_magazine(r, 2);
    uint64_t before = vm_fault_nr_writes();
    GIVE_BACK(r, a);
    CHECK_EQ(vm_fault_nr_writes() - before, 3); /* its word, the entry, the header */
    CHECK_EQ(nr_in_magazine(r, 2), nr + 1);
    CHECK_EQ(vm_free(r, a.page, a.id, 0), -ENOENT);
    CHECK_EQ(vm_free(other, a.page, a.id, 0), -ENOENT);
    b = take(r, 2);
    CHECK_EQ(b.page, a.page);
    CHECK(b.id != a.id);
    CHECK_EQ(vm_free(other, b.page, a.id, 0), -ESTALE);
    GIVE_BACK(other, b);
    GIVE_BACK(r, mine);
    CHECK_EQ(vm_detach(other), 0);
    FINISH(r);
}

/* A neighbour wrote into its head: no magazine is for ranges without pages. */
static void what_another_process_allocated_and_seems_to_have_no_pages_is_no_hit(void)
{
    vm_region *r = make(4000), *other;
    CHECK_EQ(vm_attach(vm_fd(r), &other), 0);
    vm_range a = take(other, 2);
    vm_head *head = &r->map.heads[a.page], before = *head;
    uint64_t id = a.id - vm__id_pages(a.id);
    *head = (vm_head){vm__with_len(before.word, 0), id};
    CHECK_EQ(vm_free(r, a.page, id, 0), -ENOENT);
    CHECK_EQ(nr_in_magazine(r, 0), 0);
    *head = before;
    GIVE_BACK(other, a);
    CHECK_EQ(vm_detach(other), 0);
    FINISH(r);
}

static void a_free_of_what_another_process_allocated_is_charged_where_there_is_a_quota(void)
{
    vm_region *r = make(4000), *other;
    CHECK_EQ(vm_attach(vm_fd(r), &other), 0);
    vm_range a = take(other, 2);
    CHECK_EQ(vm_set_limit(r, VM_QUOTA, 100), 0);
    uint64_t *charged = &r->map.processes[r->process].charged_pages, before = VM_ACQUIRE(charged);
    GIVE_BACK(r, a);
    CHECK_EQ(VM_ACQUIRE(charged), before + 2);
    CHECK_EQ(vm_set_limit(r, VM_QUOTA, 0), 0);
    CHECK_EQ(vm_detach(other), 0);
    FINISH(r);
}

static void a_shared_range_is_no_hit_of_another_process(void)
{
    vm_region *r = make(4000), *other;
    vm_range kept;
    CHECK_EQ(vm_attach(vm_fd(r), &other), 0);
    vm_range a = take(other, 2);
    CHECK_EQ(vm_share(other, a.page, a.id), 0);
    CHECK_EQ(vm_adopt(r, a.page, a.id, &kept), 0);
    GIVE_BACK(r, a);
    CHECK_EQ(vm_lookup(other, a.page, &kept), 0);
    CHECK_EQ(kept.id, a.id);
    GIVE_BACK(other, a);
    CHECK_EQ(vm_detach(other), 0);
    FINISH(r);
}

/* Of the node to which this thread gave, as many as stand there. */
static void a_pool_names_what_its_takers_get_next(void)
{
    vm_region *r = MAKE(.nr_pages = 4000, .pools = VM_POOLS_LOCKED, SMALL);
    enum { N = VM_POOL_NEXT + 3 };
    vm_range a[N];
    for (int i = 0; i < N; i++)
        a[i] = take(r, 3);
    for (int i = 0; i < N; i++)
        GIVE_BACK(r, a[i]);
    vm_node *n = &r->map.nodes[0];
    for (int i = N - VM_POOL_NEXT; i < N; i++)
        CHECK_EQ(n->next[vm__pool_index(3)][i % VM_POOL_NEXT], a[i].page);
    for (int i = 0; i < VM_POOL_NEXT; i++) /* whatever they say, the list is what counts */
        n->next[vm__pool_index(3)][i] = i % 2 ? UINT32_MAX : (uint32_t)i;
    for (int i = N; i-- > 0;)
        CHECK_EQ(take(r, 3).page, a[i].page);
    CHECK_EQ(stats_of(r).busy_pages, 3 * N);
    for (int i = 0; i < N; i++) {
        vm_range live;
        CHECK_EQ(vm_lookup(r, a[i].page, &live), 0);
        GIVE_BACK(r, live);
    }
    FINISH(r);
}

static void while_space_is_short_a_little_longer_one_will_do(void)
{
    vm_region *r = make(1000);
    vm_range a[4], b;
    for (int i = 0; i < 4; i++)
        a[i] = take(r, 250);
    CHECK_EQ(vm_alloc(r, 240, 1, 0, &b), -ENOSPC);
    GIVE_BACK(r, a[1]);
    CHECK_EQ(stats_of(r).pooled_pages, 250);
    CHECK_EQ(vm_alloc(r, 240, 1, 0, &b), 0);
    CHECK_EQ(b.page, a[1].page);
    CHECK_EQ(b.nr_pages, 250);
    vm_range c;
    CHECK_EQ(vm_alloc(r, 1, 1, 0, &c), -ENOSPC); /* what it got beyond that is nobody else's */
    CHECK_EQ(vm_lookup(r, b.page, &c), 0);
    CHECK_EQ(c.nr_pages, 250);
    CHECK_EQ(stats_of(r).busy_pages, 1000);
    GIVE_BACK(r, b);
    for (int i = 0; i < 4; i++)
        if (i != 1)
            GIVE_BACK(r, a[i]);
    FINISH(r);
}

static void under_a_quota_nobody_gets_more_than_was_asked_for(void)
{
    vm_region *r = make(2600);
    CHECK_EQ(vm_set_limit(r, VM_QUOTA, 2000), 0);
    vm_range a = take(r, 250), b = take(r, 550), c = take(r, 1200), d;
    CHECK_EQ(vm_alloc(r, 1, 1, 0, &d), -EDQUOT);
    vm__magazine_tighten(vm__thread(r), true);
    GIVE_BACK(r, a);
    GIVE_BACK(r, b);
    d = take(r, 500);
    CHECK_EQ(d.nr_pages, 500);
    a = take(r, 240);
    CHECK_EQ(a.nr_pages, 240);
    b = take(r, 60);
    CHECK_EQ(stats_of(r).busy_pages, 2000);
    GIVE_BACK(r, a);
    GIVE_BACK(r, b);
    GIVE_BACK(r, c);
    GIVE_BACK(r, d);
    CHECK_EQ(vm_set_limit(r, VM_QUOTA, 0), 0);
    FINISH(r);
}

/* Space is short from now on, or not; the next request sees it. */
static void be_tight(vm_region *r, bool is_tight)
{
    __atomic_store_n(&r->map.h->tight_s, is_tight ? vm__now_s() : 0, __ATOMIC_SEQ_CST);
    take_and_give_back(r, 300, 1);
}

static void use_large_sizes(vm_region *r)
{
    for (int i = 0; i < 3; i++)
        for (uint64_t n = VM_FLOW_PAGES + 1; n <= 100; n += 8) /* few enough for the budget */
            take_and_give_back(r, n, 12);
}

static uint64_t growth_of_caps(vm_region *r)
{
    uint64_t pages = 0;
    for (uint64_t n = 1; n <= VM_POOL_PAGES_MAX; n++)
        pages += cap_of(r, n) > 1 ? (cap_of(r, n) - 1) * n : 0;
    return pages;
}

static uint64_t pages_touched(const vm_slot *s)
{
    uint8_t is_there[sizeof *s / 4096];
    uint64_t nr = 0;
    CHECK(vm__pages_resident(s, sizeof *s, is_there));
    for (size_t i = 0; i < sizeof *s / vm__page_bytes(); i++)
        nr += is_there[i] & 1;
    return nr;
}

static void who_uses_one_size_touches_one_page_of_its_slot_and_so_does_who_looks_at_it(void)
{
    vm_region *r = make(2000), *other;
    static vm_monitored seen;
    CHECK_EQ(vm_attach(vm_fd(r), &other), 0);
    take_and_give_back(r, 1, 4);
    vm_thread *t = vm__thread(r);
    CHECK_EQ(vm__magazine_pages(t), nr_in_magazine(r, 1));
    vm_monitor_look(other, &seen);
    CHECK_EQ(seen.in_magazines[0], nr_in_magazine(r, 1));
    CHECK_EQ(vm__magazine_drain(vm__thread(other), t->index), 0);
    CHECK(vm__magazine_flush_all(t));
    CHECK_EQ(pages_touched(t->slot), 1);
    CHECK_EQ(vm_detach(other), 0);
    FINISH(r);
}

static vm_region *threads_region;
static vm_range freed_in_a_thread;

static void *free_and_be_drained(void *unused)
{
    vm_region *r = threads_region, *other;
    (void)unused;
    GIVE_BACK(r, freed_in_a_thread);
    CHECK_EQ(nr_in_magazine(r, 5), 1);
    CHECK_EQ(vm__magazine_hits(vm__thread(r)->slot), 0);
    CHECK_EQ(vm_attach(vm_fd(r), &other), 0);
    CHECK_EQ(vm__magazine_drain(vm__thread(other), vm__thread(r)->index), 0);
    CHECK_EQ(vm__state(vm__word_at(r, freed_in_a_thread.page)), VM_LAZY);
    CHECK_EQ(vm_detach(other), 0);
    return NULL;
}

static void what_lies_in_a_magazine_that_served_nobody_is_drained_too(void)
{
    vm_region *r = threads_region = make(2000);
    pthread_t thread;
    freed_in_a_thread = take(r, 5);
    CHECK_EQ(pthread_create(&thread, NULL, free_and_be_drained, NULL), 0);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    FINISH(r);
}

static void *use_a_size(void *unused)
{
    (void)unused;
    take_and_give_back(threads_region, 7, 4);
    return NULL;
}

/* Others left ranges in the pool; a magazine that could not be opened must not grow, for nobody would look there. */
static void what_is_used_for_the_first_time_while_the_slot_is_drained_is_not_lost(void)
{
    vm_region *r = threads_region = make(2000);
    vm_thread *t = vm__thread(r);
    pthread_t thread;
    vm_range a[4];
    CHECK_EQ(pthread_create(&thread, NULL, use_a_size, NULL), 0);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK(stats_of(r).pooled_pages >= 4 * 7);
    t->slot->drain = t->token; /* one that lives */
    for (int i = 0; i < 3; i++)
        a[i] = take(r, 7);
    CHECK_EQ(cap_of(r, 7), 0);
    t->slot->drain = 0;
    CHECK_EQ(vm_free_bulk(r, 3, a), 0);
    CHECK_EQ(stats_of(r).cached_pages, nr_in_magazine(r, 7) * 7);
    for (int i = 0; i < 4; i++)
        a[i] = take(r, 7);
    CHECK_EQ(stats_of(r).cached_pages, nr_in_magazine(r, 7) * 7);
    CHECK_EQ(vm_free_bulk(r, 4, a), 0);
    CHECK_CLEAN(r);
    FINISH(r);
}

/* Of the slot's last owner, who had not used that size before. */
static void what_a_death_in_a_first_try_left_is_gone_once_the_size_is_used(void)
{
    vm_region *r = make(2000), *other;
    CHECK_EQ(vm_attach(vm_fd(r), &other), 0);
    take_and_give_back(r, 2, 1);
    vm_thread *t = vm__thread(r);
    vm_range a = take(other, 7);
    for (uint64_t n = 6; n <= 7; n++)
        t->slot->magazine[n].header = VM_MAGAZINE_TAKING;
    take_and_give_back(r, 6, 1);
    GIVE_BACK(r, a); /* to a magazine that served nobody */
    CHECK_EQ(nr_in_magazine(r, 7), 1);
    for (uint64_t n = 6; n <= 7; n++)
        CHECK(!vm__magazine_is_taking(t->slot->magazine[n].header));
    CHECK_EQ(vm__magazine_drain(vm__thread(other), t->index), 0);
    CHECK_EQ(vm_detach(other), 0);
    FINISH(r);
}

static void a_slot_that_is_being_drained_is_closed_too(void)
{
    vm_region *r = make(3000);
    vm_thread *t = vm__thread(r);
    take_and_give_back(r, 17, 1);
    CHECK_EQ(cap_of(r, 17), 1);
    t->slot->drain = t->token; /* one that lives */
    be_tight(r, true);
    CHECK(t->is_tight);
    CHECK_EQ(cap_of(r, 17), 0);
    t->slot->drain = 0;
    be_tight(r, false);
    CHECK_EQ(cap_of(r, 17), 1);
    CHECK_CLEAN(r);
    FINISH(r);
}

static void while_space_is_short_no_magazine_of_a_large_size_opens(void)
{
    vm_region *r = make(10000); /* too few for a range of each size in the magazines of eight */
    use_large_sizes(r);
    be_tight(r, true);
    use_large_sizes(r);
    for (uint64_t n = VM_FLOW_PAGES + 1; n <= VM_POOL_PAGES_MAX; n++)
        CHECK_EQ(cap_of(r, n), 0);
    take_and_give_back(r, 2, 100);
    CHECK_EQ(cap_of(r, 2), VM_MAGAZINE_CAP); /* a small one does */
    FINISH(r);
}

static void while_space_is_short_but_not_very_magazines_keep_a_few_rounded_sizes(void)
{
    vm_region *r = make(200000); /* space is not really short */
    use_large_sizes(r);
    be_tight(r, true);
    use_large_sizes(r);
    for (uint64_t n = VM_FLOW_PAGES + 1; n <= VM_POOL_PAGES_MAX; n++) {
        CHECK(vm__whole_pages(n) >= n && vm__whole_pages(n) <= vm__longest_whole_for(r, n));
        CHECK_EQ(cap_of(r, n), vm__whole_pages(n) == n ? VM_TIGHT_CAP : 0);
    }
    CHECK_EQ(vm__thread(r)->cap_pages, 0); /* that is no growth */
    FINISH(r);
}

static void while_space_is_short_but_not_very_what_one_size_freed_serves_its_neighbours(void)
{
    vm_region *r = make(200000);
    be_tight(r, true);
    vm_range a = take(r, 129);
    CHECK_EQ(a.nr_pages, 144);
    GIVE_BACK(r, a);
    uint64_t hits = stats_of(r).nr_magazine_hit;
    for (uint64_t n = 129; n <= 144; n++) {
        vm_range b = take(r, n);
        CHECK_EQ(b.page, a.page);
        CHECK_EQ(b.nr_pages, 144);
        GIVE_BACK(r, b);
    }
    CHECK_EQ(stats_of(r).nr_magazine_hit, hits + 16);
    vm_range c = take(r, 97), d = take(r, VM_FLOW_PAGES);
    CHECK_EQ(c.nr_pages, 104);
    CHECK_EQ(d.nr_pages, VM_FLOW_PAGES);
    GIVE_BACK(r, c);
    GIVE_BACK(r, d);
    FINISH(r);
}

static void while_space_is_short_but_not_very_a_range_may_be_a_quarter_longer(void)
{
    vm_region *r = make(200000);
    be_tight(r, true);
    vm_range a = take(r, 144), b = take(r, 115);
    CHECK_EQ(b.nr_pages, 120);
    GIVE_BACK(r, a);
    vm_range c = take(r, 115); /* 143 at most */
    CHECK_EQ(c.nr_pages, 120);
    vm_range d = take(r, 116);
    CHECK_EQ(d.page, a.page);
    CHECK_EQ(d.nr_pages, 144);
    GIVE_BACK(r, b);
    GIVE_BACK(r, c);
    GIVE_BACK(r, d);
    FINISH(r);
}

static void where_magazines_keep_few_no_range_is_cut_to_a_rounded_size(void)
{
    vm_region *r = make(30000);
    vm_range most = take(r, 13000);
    be_tight(r, true);
    CHECK_EQ(cap_of(r, VM_POOL_PAGES_MAX), 1);
    vm_range a = take(r, 129);
    CHECK_EQ(a.nr_pages, 144); /* enough is idle in space */
    vm_range ready[52];
    for (int i = 0; i < 52; i++)
        ready[i] = take(r, 256);
    GIVE_BACK(r, a);
    a = take(r, 97);
    CHECK_EQ(a.nr_pages, 97);
    for (int i = 0; i < 52; i++)
        GIVE_BACK(r, ready[i]);
    GIVE_BACK(r, a);
    GIVE_BACK(r, most);
    FINISH(r);
}

/* A request that magazines could serve and that cannot be had; the second is long over before anything of this test is. */
static void where_emptying_all_magazines_did_not_help_none_keeps_a_large_range_for_a_while(void)
{
    vm_region *r = make(200000);
    vm_range none, most = take(r, 100000), rest = take(r, 100000);
    vm_clock_hold(100);
    CHECK_EQ(vm_alloc(r, 100, 1, 0, &none), -ENOSPC);
    CHECK(vm__is_very_tight(r));
    GIVE_BACK(r, rest);
    take_and_give_back(r, 130, 2);
    CHECK(vm__thread(r)->is_tight && !vm__gets_whole(vm__thread(r)));
    CHECK_EQ(cap_of(r, 144), 0);
    vm_clock_hold(100 + VM_TIGHT_CLOSED_S);
    CHECK(vm__is_tight(r) && !vm__is_very_tight(r));
    for (int i = 0; i < VM_TIGHT_LOOK_OPERATIONS; i++)
        take_and_give_back(r, 300, 1);
    CHECK(vm__gets_whole(vm__thread(r)));
    vm_clock_hold(0);
    GIVE_BACK(r, most);
    FINISH(r);
}

static int congruent(vm_region *r, uint64_t nr_pages)
{
    vm_range two[2];
    return vm_alloc_congruent(r, 2, (uint64_t[]){0, nr_pages}, (uint64_t[]){nr_pages, nr_pages}, 1, two);
}

/* As who asks again and again for what is not there: others go on as before. */
static void a_request_that_only_users_of_memory_could_make_room_for_disturbs_nobody(void)
{
    vm_region *r = make(20000);
    vm_range most = take(r, 10000), none = {0}, lazy = take(r, 2000);
    take_and_give_back(r, 100, 10);
    GIVE_BACK(r, lazy);
    uint64_t ready = vm__magazine_pages(vm__thread(r));
    for (int is_limited = 0; is_limited < 2; is_limited++) {
        CHECK_EQ(vm_set_limit(r, VM_LIMIT, is_limited ? 15000 : 0), 0);
        CHECK_EQ(vm_alloc(r, is_limited ? 5001 : 10001, 1, 0, &none), -ENOSPC);
        CHECK_EQ(vm_alloc(r, 15001, 1, 0, &none), -ENOSPC);
        CHECK_EQ(congruent(r, is_limited ? 2501 : 5001), -ENOSPC); /* together as much */
        CHECK_EQ(congruent(r, 7600), -ENOSPC);
        CHECK_EQ(r->map.h->tight_s, 0);
        CHECK_EQ(vm__magazine_pages(vm__thread(r)), ready);
        CHECK_EQ(stats_of(r).lazy_pages, 2000);
        CHECK_EQ(stats_of(r).nr_purges, 0);
    }
    CHECK_EQ(stats_of(r).nr_failed, 4);
    vm_range a = take(r, 5000); /* what may be had is */
    CHECK_EQ(vm_set_limit(r, VM_LIMIT, 0), 0);
    vm_range b = take(r, 5000);
    GIVE_BACK(r, a);
    GIVE_BACK(r, b);
    GIVE_BACK(r, most);
    CHECK_CLEAN(r);
    FINISH(r);
}

/* Enough is free, but what is in use lies across it. */
static void a_long_range_where_what_is_in_use_lies_across_closes_no_magazine(void)
{
    vm_region *r = make(20000);
    vm_range a = take(r, 6000), b = take(r, 300), c = take(r, 6000), d = take(r, 300), none = {0};
    GIVE_BACK(r, a);
    GIVE_BACK(r, c);
    take_and_give_back(r, 100, 10);
    CHECK_EQ(vm_alloc(r, 8000, 1, 0, &none), -ENOSPC);
    CHECK(!vm__is_very_tight(r));
    GIVE_BACK(r, b);
    a = take(r, 12000); /* all that was freed, joined */
    GIVE_BACK(r, a);
    GIVE_BACK(r, d);
    CHECK_CLEAN(r);
    FINISH(r);
}

static void a_thread_that_goes_from_region_to_region_hits_in_both(void)
{
    vm_region *r[2] = {make(1000), make(1000)};
    vm_range a[2];
    for (int i = 0; i < 2; i++)
        take_and_give_back(r[i], 3, 4);
    for (int n = 0; n < 10; n++) {
        for (int i = 0; i < 2; i++)
            CHECK_EQ(vm_alloc(r[i], 3, 1, VM_HIT_ONLY, &a[i]), 0);
        for (int i = 0; i < 2; i++)
            CHECK_EQ(vm_free(r[i], a[i].page, a[i].id, VM_HIT_ONLY), 0);
    }
    CHECK_CLEAN(r[0]);
    FINISH(r[0]);
    CHECK_EQ(vm_alloc(r[1], 3, 1, VM_HIT_ONLY, &a[1]), 0); /* the last one used is gone */
    GIVE_BACK(r[1], a[1]);
    CHECK_CLEAN(r[1]);
    FINISH(r[1]);
}

static void a_neighbour_that_keeps_large_ranges_gives_them_up_when_emptying_did_not_help(void)
{
    vm_region *r = make(200000);
    vm_clock_hold(100);
    be_tight(r, true);
    take_and_give_back(r, 144, 2);
    CHECK(cap_of(r, 144) > 0 && vm__magazine_pages(vm__thread(r)) >= 144);
    r->map.h->tight_s = vm__now_s() + VM_TIGHT_CLOSED_S;
    take_and_give_back(r, 300, 1);
    CHECK_EQ(cap_of(r, 144), 0);
    CHECK_EQ(vm__magazine_pages(vm__thread(r)), 0);
    vm_clock_hold(0);
    FINISH(r);
}

/* As a neighbour scribbles it, or as the last boot left it in a file. */
static void a_time_that_is_too_far_ahead_says_nothing(void)
{
    vm_region *r = make(200000);
    uint64_t *tight_s = &r->map.h->tight_s;
    vm_range none, most = take(r, 200000);
    vm_clock_hold(100);
    *tight_s = 100 + VM_TIGHT_CLOSED_S;
    CHECK(vm__is_tight(r) && vm__is_very_tight(r));
    const uint64_t far[] = {*tight_s + 1, 1ull << 40, UINT64_MAX};
    for (int i = 0; i < 3; i++) {
        *tight_s = far[i];
        CHECK(!vm__is_tight(r) && !vm__is_very_tight(r));
        CHECK_EQ(vm_alloc(r, 100, 1, 0, &none), -ENOSPC);
        CHECK_EQ(*tight_s, 100 + VM_TIGHT_CLOSED_S);
    }
    vm_clock_hold(0);
    GIVE_BACK(r, most);
    FINISH(r);
}

/* Ranges of 1 to 256 pages, half of the region's idle ones beside them: one is freed at random, another taken. */
static void with_half_as_much_room_again_most_requests_are_hits(void)
{
    enum { LIVE = 40000, ROUNDS = 20000 };
    vm_region *r = MAKE(.nr_pages = LIVE * 3 / 2, .granule_bytes = 1 << 20, .pools = VM_POOLS_MAGAZINE, SMALL);
    vm_range *live = malloc(LIVE * sizeof *live);
    uint64_t seed = 7, pages = 0, nr = 0, hits = 0, purges = 0;
    CHECK(live != NULL);
    for (int i = 0; i < 2 * ROUNDS; i++) {
        uint64_t want = 1 + next_random(&seed) % VM_POOL_PAGES_MAX;
        while (pages + want > LIVE) {
            uint64_t at = next_random(&seed) % nr;
            pages -= live[at].nr_pages;
            GIVE_BACK(r, live[at]);
            live[at] = live[--nr];
        }
        live[nr] = take(r, want);
        pages += live[nr++].nr_pages;
        if (i == ROUNDS) {
            hits = stats_of(r).nr_magazine_hit;
            purges = stats_of(r).nr_purges;
        }
    }
    CHECK(stats_of(r).nr_magazine_hit - hits > ROUNDS / 2);
    CHECK(stats_of(r).nr_purges - purges < ROUNDS / 100);
    CHECK_EQ(vm_free_bulk(r, nr, live), 0);
    free(live);
    FINISH(r);
}

static void after_each_time_that_space_was_short_magazines_grow_as_before(void)
{
    vm_region *r = make(200000); /* space is not really short */
    use_large_sizes(r);
    use_large_sizes(r);
    uint64_t grown = growth_of_caps(r);
    CHECK(grown > 0);
    for (int i = 0; i < 20; i++) {
        be_tight(r, true);
        use_large_sizes(r);
        be_tight(r, false);
        CHECK_EQ(vm__thread(r)->cap_pages, growth_of_caps(r));
        use_large_sizes(r);
        use_large_sizes(r);
        CHECK(growth_of_caps(r) >= grown);
        CHECK_EQ(vm__thread(r)->cap_pages, growth_of_caps(r));
    }
    FINISH(r);
}

static void a_hit_takes_the_range_freed_last(void)
{
    vm_region *r = make(2000);
    take_and_give_back(r, 3, 8);
    uint64_t misses = stats_of(r).nr_alloc;
    vm_range a = take(r, 3), b = take(r, 3);
    GIVE_BACK(r, a);
    GIVE_BACK(r, b);
    vm_range c = take(r, 3);
    CHECK_EQ(c.page, b.page);
    CHECK_EQ(stats_of(r).nr_alloc, misses); /* all were hits */
    GIVE_BACK(r, c);
    FINISH(r);
}

static void a_stale_entry_is_skipped(void)
{
    vm_region *r = make(2000);
    vm_range a = take(r, 1), b = take(r, 1);
    GIVE_BACK(r, a);
    vm_magazine *m = &vm__thread(r)->hit.magazine[1];
    m->page[0] = (uint32_t)b.page; /* a hint that lies: b is busy */
    vm_range c = take(r, 1);
    CHECK(c.page != b.page);
    m->page[0] = UINT32_MAX;
    vm_range d = take(r, 1);
    CHECK(d.page != b.page && d.page != c.page);
    GIVE_BACK(r, b);
    GIVE_BACK(r, c);
    GIVE_BACK(r, d);
    m->header = 1ull << 63 | 99;
    c = take(r, 1);
    GIVE_BACK(r, c);
    CHECK_EQ(vm_repair(r, NULL, NULL) >= 0, 1);
    CHECK_EQ(vm_detach(r), 0);
}

/* What a process of the second group left in its pools. */
static void a_group_that_seems_never_used_is_found_by_a_repair(void)
{
    vm_region *r = make(2000), *other;
    CHECK_EQ(vm_attach(vm_fd(r), &other), 0);
    CHECK_EQ(vm__group_here(other), 1);
    vm_range a = take(other, 3);
    GIVE_BACK(other, a);
    CHECK_EQ(vm_detach(other), 0);
    CHECK_EQ(r->map.h->high_group, 2);
    r->map.h->high_group = 0; /* scribbled over */
    CHECK_EQ(vm_shrink(r, NULL), 0);
    CHECK(stats_of(r).pooled_pages > 0);
    CHECK(vm_repair(r, NULL, NULL) > 0);
    CHECK_EQ(r->map.h->high_group, 2);
    CHECK_CLEAN(r);
    CHECK_EQ(vm_shrink(r, NULL), 0);
    CHECK_EQ(stats_of(r).pooled_pages, 0);
    CHECK_EQ(vm_repair(r, NULL, NULL), 0);
    FINISH(r);
}

/* ---- threads ---- */

static void *fill_and_exit(void *arg)
{
    vm_region *r = arg;
    for (uint64_t n = 1; n <= 20; n++)
        take_and_give_back(r, n, 10);
    CHECK(nr_in_magazine(r, 20) > 0);
    return NULL;
}

static void a_thread_that_exits_leaves_nothing_in_its_magazines(void)
{
    vm_region *r = make(4000);
    pthread_t thread;
    vm__thread(r);
    CHECK_EQ(pthread_create(&thread, NULL, fill_and_exit, r), 0);
    pthread_join(thread, NULL);
    CHECK_EQ(stats_of(r).cached_pages, 0);
    CHECK_EQ(stats_of(r).nr_thread_slots, 1);
    CHECK_CLEAN(r);
    FINISH(r);
}

static void a_slot_is_reused_under_another_incarnation(void)
{
    vm_region *r = make(4000);
    vm__thread(r);
    for (int i = 0; i < 20; i++) { /* more threads than slots, one after another */
        pthread_t thread;
        CHECK_EQ(pthread_create(&thread, NULL, fill_and_exit, r), 0);
        pthread_join(thread, NULL);
    }
    CHECK_EQ(r->map.slots[vm__first_thread(r) + 1].state, 20ull << 32);
    FINISH(r);
}

typedef struct neighbour {
    vm_region *r;
    pthread_barrier_t ready, done;
} neighbour;

static void *hoard(void *arg)
{
    neighbour *n = arg;
    take_and_give_back(n->r, 4, 100);
    pthread_barrier_wait(&n->ready);
    pthread_barrier_wait(&n->done);
    take_and_give_back(n->r, 4, 10); /* and it goes on as if nothing had happened */
    return NULL;
}

static void a_request_drains_a_neighbours_magazines_before_it_fails(void)
{
    vm_region *r = make(401);
    neighbour n = {.r = r};
    pthread_t thread;
    pthread_barrier_init(&n.ready, NULL, 2);
    pthread_barrier_init(&n.done, NULL, 2);
    CHECK_EQ(pthread_create(&thread, NULL, hoard, &n), 0);
    pthread_barrier_wait(&n.ready);
    CHECK(stats_of(r).cached_pages > 0);
    vm_range a;
    if (r->can_drain) {
        a = take(r, 401);
        GIVE_BACK(r, a);
    } else {
        CHECK_EQ(vm_alloc(r, 401, 1, 0, &a), -ENOSPC);
    }
    CHECK_EQ(vm_shrink(r, NULL), 0);
    pthread_barrier_wait(&n.done);
    pthread_join(thread, NULL);
    FINISH(r);
}

static void a_neighbour_stopped_in_an_operation_is_not_robbed(void)
{
    vm_region *r = make(1000);
    neighbour n = {.r = r};
    pthread_t thread;
    pthread_barrier_init(&n.ready, NULL, 2);
    pthread_barrier_init(&n.done, NULL, 2);
    CHECK_EQ(pthread_create(&thread, NULL, hoard, &n), 0);
    pthread_barrier_wait(&n.ready);
    uint64_t cached = stats_of(r).cached_pages;
    vm__thread(r);
    uint32_t its = vm__first_thread(r) + (vm__thread(r)->index == vm__first_thread(r));
    __atomic_store_n(&r->map.slots[its].in_operation, 1, __ATOMIC_SEQ_CST);
    CHECK_EQ(vm__magazine_drain(vm__thread(r), its), -EAGAIN);
    CHECK_EQ(stats_of(r).cached_pages, cached);
    __atomic_store_n(&r->map.slots[its].in_operation, 0, __ATOMIC_SEQ_CST);
    CHECK_EQ(vm__magazine_drain(vm__thread(r), its), 0);
    CHECK_EQ(stats_of(r).cached_pages, 0);
    CHECK_CLEAN(r);
    pthread_barrier_wait(&n.done);
    pthread_join(thread, NULL);
    FINISH(r);
}

/* ---- a crowd ---- */

enum { CROWD = 24, OF_EACH = 40, CROWD_SIZE = 8, CROWD_EPOCHS = 5 };

/* Its members work one after the other, each when it is told to, and all keep what their magazines have. */
typedef struct member {
    vm_region *r;
    pthread_t thread;
    pthread_barrier_t *go, *done;
    const int *turn;
    int number;
} member;

static void take_and_write(vm_region *r, vm_range out[OF_EACH])
{
    for (int i = 0; i < OF_EACH; i++) {
        out[i] = take(r, CROWD_SIZE);
        for (uint64_t k = 0; k < CROWD_SIZE; k++)
            *(volatile uint8_t *)vm_pointer(r, out[i].page + k) = 1;
    }
}

static void *work_in_epochs(void *arg)
{
    const member *m = arg;
    vm_range held[OF_EACH];
    for (int i = 0; i < 2 * CROWD * CROWD_EPOCHS; i++) {
        pthread_barrier_wait(m->go);
        if (*m->turn % CROWD == m->number && *m->turn / CROWD % 2 == 0)
            take_and_write(m->r, held);
        else if (*m->turn % CROWD == m->number)
            CHECK_EQ(vm_free_bulk(m->r, OF_EACH, held), 0);
        pthread_barrier_wait(m->done);
    }
    return NULL;
}

static void a_crowd_takes_no_cold_pages_from_the_second_epoch_on(void)
{
    vm_region *r = MAKE(.nr_pages = 40000, .pools = VM_POOLS_MAGAZINE, .nr_nodes = 1, .nr_threads = 64,
                        .lazy_pages_max = 1u << 28);
    pthread_barrier_t go, done;
    int turn = 0;
    member all[CROWD];
    const uint64_t bytes = (uint64_t)CROWD * OF_EACH * CROWD_SIZE << r->map.page_shift;
    uint64_t resident = 0;
    CHECK(CROWD > VM_CROWD_THREADS * r->map.nodes_each);
    pthread_barrier_init(&go, NULL, CROWD + 1);
    pthread_barrier_init(&done, NULL, CROWD + 1);
    for (int i = 0; i < CROWD; i++) {
        all[i] = (member){r, 0, &go, &done, &turn, i};
        CHECK_EQ(pthread_create(&all[i].thread, NULL, work_in_epochs, &all[i]), 0);
    }
    for (; turn < 2 * CROWD * CROWD_EPOCHS; turn++) {
        pthread_barrier_wait(&go);
        pthread_barrier_wait(&done);
        if (turn == CROWD - 1) /* all is in use, for the first time */
            resident = stats_of(r).resident_bytes;
    }
    CHECK(resident >= bytes);
    CHECK(stats_of(r).resident_bytes - resident <= bytes / 100 + (1 << 20)); /* and metadata */
    for (int i = 0; i < CROWD; i++)
        pthread_join(all[i].thread, NULL);
    FINISH(r);
}

/* ---- threads that found no slot ---- */

typedef struct latecomer {
    vm_region *r;
    pthread_barrier_t ready, go_on;
    bool was_common, is_common;
    uint32_t nr_in_magazine;
} latecomer;

static void *come_late(void *arg)
{
    latecomer *l = arg;
    take_and_give_back(l->r, 2, 1);
    l->was_common = vm__thread(l->r)->common;
    pthread_barrier_wait(&l->ready);
    pthread_barrier_wait(&l->go_on);
    for (int i = 0; i < VM_THREAD_ASK_OPERATIONS * (2 + VM_THREADS_MAX / VM_THREAD_ASK_SLOTS); i++)
        take_and_give_back(l->r, 2, 1);
    l->is_common = vm__thread(l->r)->common;
    l->nr_in_magazine = nr_in_magazine(l->r, 2);
    return NULL;
}

static void *take_a_slot_until(void *arg)
{
    latecomer *l = arg;
    take_and_give_back(l->r, 1, 1);
    CHECK(!vm__thread(l->r)->common);
    pthread_barrier_wait(&l->ready);
    pthread_barrier_wait(&l->go_on);
    return NULL;
}

/* The slots of a region of `nr_threads` but one are ours and those of others, who end when told to. */
static void one_more_than_there_are_slots(uint32_t nr_threads, bool some_end)
{
    vm_region *r = MAKE(.nr_pages = 4000, .pools = VM_POOLS_MAGAZINE, .nr_nodes = 1, .nr_threads = nr_threads,
                        .lazy_pages_max = 1u << 28);
    latecomer holder = {.r = r}, late = {.r = r};
    pthread_t *thread = malloc((nr_threads + 1) * sizeof *thread);
    CHECK(thread != NULL);
    vm__thread(r);
    pthread_barrier_init(&holder.ready, NULL, nr_threads);
    pthread_barrier_init(&holder.go_on, NULL, nr_threads);
    pthread_barrier_init(&late.ready, NULL, 2);
    pthread_barrier_init(&late.go_on, NULL, 2);
    for (uint32_t i = 1; i < nr_threads; i++)
        CHECK_EQ(pthread_create(&thread[i], NULL, take_a_slot_until, &holder), 0);
    pthread_barrier_wait(&holder.ready);
    CHECK_EQ(pthread_create(&thread[0], NULL, come_late, &late), 0);
    pthread_barrier_wait(&late.ready);
    CHECK(late.was_common);
    if (some_end)
        pthread_barrier_wait(&holder.go_on);
    for (uint32_t i = 1; some_end && i < nr_threads; i++)
        pthread_join(thread[i], NULL);
    pthread_barrier_wait(&late.go_on);
    pthread_join(thread[0], NULL);
    CHECK_EQ(late.is_common, !some_end);
    CHECK_EQ(late.nr_in_magazine > 0, some_end);
    if (!some_end)
        pthread_barrier_wait(&holder.go_on);
    for (uint32_t i = 1; !some_end && i < nr_threads; i++)
        pthread_join(thread[i], NULL);
    free(thread);
    FINISH(r);
}

static void a_thread_that_found_no_slot_gets_one_when_another_ends(void)
{
    one_more_than_there_are_slots(2, true);
    one_more_than_there_are_slots(40, true); /* more than it looks at at once */
}

static void as_long_as_none_is_free_it_goes_on_in_its_processs(void) { one_more_than_there_are_slots(3, false); }

static void who_leaves_the_region_asks_for_no_slot(void)
{
    vm_region *r = make(1000);
    vm_range a = take(r, 1);
    GIVE_BACK(r, a);
    vm_thread *t = vm__thread(r);
    vm__give_up_slot(t);
    for (int i = 0; i < 4 * VM_THREAD_ASK_OPERATIONS; i++) {
        vm__enter(t);
        CHECK(t->common);
        vm__leave(t);
    }
    CHECK_EQ(vm_detach(r), 0);
}

int main(void)
{
    a_thread_that_found_no_slot_gets_one_when_another_ends();
    as_long_as_none_is_free_it_goes_on_in_its_processs();
    who_leaves_the_region_asks_for_no_slot();
    a_magazines_cap_grows_on_demand_up_to_its_size();
    what_overflows_goes_to_the_pools();
    the_growth_of_all_caps_is_bounded();
    who_never_had_another_thread_beside_it_has_twice_the_budget();
    no_slot_beyond_the_last_is_looked_at();
    frees_of_others_go_on_in_batches();
    frees_of_others_go_on_in_whole_lots();
    a_taker_gets_what_others_freed_in_whole_lots_and_by_address();
    a_flow_that_went_round_often_still_comes_in_whole_lots();
    of_a_list_that_is_bent_into_a_ring_nobody_gets_a_range_twice();
    a_free_of_what_another_process_allocated_is_a_hit();
    what_another_process_allocated_and_seems_to_have_no_pages_is_no_hit();
    a_free_of_what_another_process_allocated_is_charged_where_there_is_a_quota();
    a_shared_range_is_no_hit_of_another_process();
    a_pool_names_what_its_takers_get_next();
    while_space_is_short_a_little_longer_one_will_do();
    under_a_quota_nobody_gets_more_than_was_asked_for();
    who_uses_one_size_touches_one_page_of_its_slot_and_so_does_who_looks_at_it();
    what_lies_in_a_magazine_that_served_nobody_is_drained_too();
    what_is_used_for_the_first_time_while_the_slot_is_drained_is_not_lost();
    what_a_death_in_a_first_try_left_is_gone_once_the_size_is_used();
    a_slot_that_is_being_drained_is_closed_too();
    while_space_is_short_no_magazine_of_a_large_size_opens();
    while_space_is_short_but_not_very_magazines_keep_a_few_rounded_sizes();
    while_space_is_short_but_not_very_what_one_size_freed_serves_its_neighbours();
    while_space_is_short_but_not_very_a_range_may_be_a_quarter_longer();
    where_magazines_keep_few_no_range_is_cut_to_a_rounded_size();
    where_emptying_all_magazines_did_not_help_none_keeps_a_large_range_for_a_while();
    a_request_that_only_users_of_memory_could_make_room_for_disturbs_nobody();
    a_long_range_where_what_is_in_use_lies_across_closes_no_magazine();
    a_thread_that_goes_from_region_to_region_hits_in_both();
    a_neighbour_that_keeps_large_ranges_gives_them_up_when_emptying_did_not_help();
    a_time_that_is_too_far_ahead_says_nothing();
    with_half_as_much_room_again_most_requests_are_hits();
    a_crowd_takes_no_cold_pages_from_the_second_epoch_on();
    after_each_time_that_space_was_short_magazines_grow_as_before();
    a_hit_takes_the_range_freed_last();
    a_stale_entry_is_skipped();
    a_group_that_seems_never_used_is_found_by_a_repair();
    a_thread_that_exits_leaves_nothing_in_its_magazines();
    a_slot_is_reused_under_another_incarnation();
    a_request_drains_a_neighbours_magazines_before_it_fails();
    a_neighbour_stopped_in_an_operation_is_not_robbed();
    return 0;
}
