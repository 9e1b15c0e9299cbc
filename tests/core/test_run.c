/* SPDX-License-Identifier: MIT */
/* Runs: who asks space for much gets pages in advance, cuts them without a lock, and keeps nobody else from them. */
#include "kit.h"

enum { PAGES = 300000 };

static vm_region *make(void)
{
    return MAKE(.nr_pages = PAGES, .granule_bytes = 1 << 20, .pools = VM_POOLS_MAGAZINE, SMALL);
}
/* As where this thread had to wait for another. */
static vm_region *make_busy(void)
{
    vm_region *r = make();
    vm__thread(r)->has_waited = true;
    return r;
}
static vm_slot *slot_of(vm_region *r) { return vm__thread(r)->slot; }
static uint64_t run_pages(vm_region *r, const vm_slot *s)
{
    return s->run ? vm__len(r->map.heads[s->run - 1].word) : 0;
}

static vm_range held[8000];
static size_t nr_held;

static void hold(vm_region *r, uint64_t nr_pages, size_t count)
{
    CHECK(nr_held + count <= LENGTH(held));
    for (size_t i = 0; i < count; i++)
        held[nr_held++] = take(r, nr_pages);
}
static void let_go(vm_region *r)
{
    CHECK_EQ(vm_free_bulk(r, nr_held, held), 0);
    nr_held = 0;
}
static void hold_until_there_is_a_run(vm_region *r)
{
    vm__thread(r)->has_waited = true;
    while (!slot_of(r)->run)
        hold(r, 1, 1);
}
static void end(vm_region *r)
{
    let_go(r);
    CHECK_EQ(vm_shrink(r, NULL), 0);
    CHECK_EQ(stats_of(r).free_pages, PAGES);
    FINISH(r);
}

static void who_met_nobody_has_none(void)
{
    vm_region *r = make();
    hold(r, 1, 8000);
    CHECK_EQ(slot_of(r)->run, 0);
    end(r);
}

static void who_asks_for_little_has_none(void)
{
    vm_region *r = make_busy();
    hold(r, 1, VM_RUN_AFTER_PAGES / 2);
    CHECK_EQ(slot_of(r)->run, 0);
    end(r);
}

/* Each turn at the lock splits the free range once. */
static void a_filling_takes_few_turns_at_the_lock(void)
{
    vm_region *r = make_busy();
    hold(r, 1, 8000);
    CHECK(stats_of(r).nr_splits < 8000 / VM_MAGAZINE_STOCK_PAGES / 3);
    CHECK_CLEAN(r);
    end(r);
}

static void a_run_is_a_small_part_of_what_is_free(void)
{
    vm_region *r = make_busy();
    uint64_t most = PAGES / VM_RUN_FREE_SHARE < VM_RUN_PAGES_MAX ? PAGES / VM_RUN_FREE_SHARE : VM_RUN_PAGES_MAX;
    for (int i = 0; i < 80; i++) {
        hold(r, 1, 100);
        CHECK(run_pages(r, slot_of(r)) <= most);
    }
    end(r);
}

static void a_run_serves_all_sizes(void)
{
    vm_region *r = make();
    hold_until_there_is_a_run(r);
    uint64_t before = stats_of(r).nr_splits, page = slot_of(r)->run - 1;
    hold(r, 3, 1);
    CHECK_EQ(held[nr_held - 1].page, page);
    hold(r, 50, 1);
    CHECK_EQ(held[nr_held - 1].page, page + 3);
    CHECK_EQ(stats_of(r).nr_splits, before);
    CHECK_CLEAN(r);
    end(r);
}

static void what_is_too_short_goes_back(void)
{
    vm_region *r = make();
    hold_until_there_is_a_run(r);
    while (run_pages(r, slot_of(r)) >= 250)
        hold(r, 100, 1);
    uint64_t page = slot_of(r)->run - 1;
    CHECK(page);
    hold(r, 250, 1);
    CHECK(slot_of(r)->run != page + 1);
    CHECK_CLEAN(r);
    end(r);
}

static void pages_that_were_never_used_are_known_to_be_zero(void)
{
    vm_region *r = MAKE(.nr_pages = PAGES, .pools = VM_POOLS_MAGAZINE, SMALL);
    hold_until_there_is_a_run(r);
    hold(r, 50, 1);
    CHECK(held[nr_held - 1].zeroed);
    end(r);
}

/* A range like those in a magazine, of which none says that it is clean, would be one of it for the hit of an empty magazine
 * whose next id is such that what is read there as an entry is the run's page. */
static void of_pages_that_may_be_dirty_it_is_longer_than_any_magazine_keeps(void)
{
    vm_region *r = make_busy();
    size_t nr_with_run = 0;
    r->map.heads[0].word |= VM_WORD_DIRTY;
    r->map.h->dirty_pages = PAGES;
    while (nr_held < LENGTH(held)) {
        hold(r, 1, 1);
        nr_with_run += run_pages(r, slot_of(r)) > 0;
        CHECK(run_pages(r, slot_of(r)) == 0 || run_pages(r, slot_of(r)) > VM_POOL_PAGES_MAX);
    }
    CHECK(nr_with_run > LENGTH(held) / 2);
    CHECK_CLEAN(r);
    end(r);
}

static void under_a_quota_there_is_none(void)
{
    vm_region *r = make_busy();
    CHECK_EQ(vm_set_limit(r, VM_QUOTA, PAGES), 0);
    hold(r, 1, 2 * VM_RUN_AFTER_PAGES);
    CHECK_EQ(slot_of(r)->run, 0);
    end(r);
}

static void while_space_is_short_there_is_none(void)
{
    vm_region *r = make();
    hold_until_there_is_a_run(r);
    vm__magazine_tighten(vm__thread(r), true);
    CHECK_EQ(slot_of(r)->run, 0);
    CHECK_EQ(vm__run_most(vm__thread(r)), 0);
    CHECK_CLEAN(r);
    end(r);
}

static void who_is_being_drained_takes_none(void)
{
    vm_region *r = make();
    hold_until_there_is_a_run(r);
    vm_thread *t = vm__thread(r);
    vm__magazine_flush_all(t);
    t->slot->drain = t->token; /* of somebody who lives */
    hold(r, 1, 200);
    CHECK_EQ(t->slot->run, 0);
    t->slot->drain = 0;
    CHECK_CLEAN(r);
    end(r);
}

static vm_slot *drained;
static bool end_the_drain(const char *file, int line, uint64_t nr_passed)
{
    (void)line, (void)nr_passed;
    if (strstr(file, "space.c"))
        drained->drain = 0;
    return false;
}

static void who_was_drained_until_now_keeps_the_first_one(void)
{
    vm_region *r = make();
    hold_until_there_is_a_run(r);
    drained = slot_of(r);
    uint64_t run = drained->run;
    drained->drain = vm__thread(r)->token; /* of somebody who lives */
    vm_fault_filter(end_the_drain);
    while (drained->drain)
        hold(r, 1, 1);
    vm_fault_filter(NULL);
    CHECK_EQ(drained->run, run);
    CHECK_CLEAN(r);
    end(r);
}

typedef struct neighbour {
    vm_region *r;
    pthread_barrier_t ready, go_on;
    uint32_t index;
} neighbour;

static void *have_a_run_and_wait(void *arg)
{
    neighbour *n = arg;
    hold_until_there_is_a_run(n->r);
    n->index = vm__thread(n->r)->index;
    pthread_barrier_wait(&n->ready);
    pthread_barrier_wait(&n->go_on);
    CHECK(slot_of(n->r)->run); /* stale, and seen to be */
    hold(n->r, 1, 500);
    return NULL;
}

/* Another thread, until it has what it is to have. */
static pthread_t start(neighbour *n, void *(*body)(void *))
{
    pthread_t thread;
    pthread_barrier_init(&n->ready, NULL, 2);
    pthread_barrier_init(&n->go_on, NULL, 2);
    CHECK(vm__thread(n->r));
    CHECK_EQ(pthread_create(&thread, NULL, body, n), 0);
    pthread_barrier_wait(&n->ready);
    return thread;
}

static void a_neighbour_takes_a_run_away(void)
{
    vm_region *r = make();
    neighbour n = {.r = r};
    pthread_t thread = start(&n, have_a_run_and_wait);
    uint64_t nr = run_pages(r, &r->map.slots[n.index]), before = stats_of(r).free_pages;
    CHECK(nr);
    CHECK_EQ(vm__magazine_drain(vm__thread(r), n.index), 0);
    CHECK_EQ(stats_of(r).free_pages, before + nr);
    CHECK_EQ(stats_of(r).cached_pages, 0);
    CHECK_CLEAN(r);
    pthread_barrier_wait(&n.go_on);
    pthread_join(thread, NULL);
    end(r);
}

static void use_up_the_magazine(vm_region *r)
{
    while (vm__magazine_count(slot_of(r)->magazine[1].header))
        hold(r, 1, 1);
}

static void *have_a_run_alone_and_wait(void *arg)
{
    neighbour *n = arg;
    hold_until_there_is_a_run(n->r);
    use_up_the_magazine(n->r);
    n->index = vm__thread(n->r)->index;
    pthread_barrier_wait(&n->ready);
    pthread_barrier_wait(&n->go_on);
    return NULL;
}

static void an_idle_run_goes_back_by_itself(void)
{
    vm_region *r = MAKE(.nr_pages = PAGES, .pools = VM_POOLS_MAGAZINE, SMALL); /* without data nothing decays */
    neighbour n = {.r = r};
    pthread_t thread = start(&n, have_a_run_alone_and_wait);
    CHECK_EQ(stats_of(r).cached_pages, run_pages(r, &r->map.slots[n.index]));
    for (int i = 0; i < 3 * VM_TURN_TICKS; i++) {
        CHECK_EQ(vm_tick(r), 0);
        vm_clock_advance(VM_TICK_MS * 1000000ull);
    }
    CHECK_EQ(stats_of(r).cached_pages, 0);
    CHECK_CLEAN(r);
    pthread_barrier_wait(&n.go_on);
    pthread_join(thread, NULL);
    end(r);
}

int main(void)
{
    who_met_nobody_has_none();
    who_asks_for_little_has_none();
    a_filling_takes_few_turns_at_the_lock();
    a_run_is_a_small_part_of_what_is_free();
    a_run_serves_all_sizes();
    what_is_too_short_goes_back();
    pages_that_were_never_used_are_known_to_be_zero();
    of_pages_that_may_be_dirty_it_is_longer_than_any_magazine_keeps();
    under_a_quota_there_is_none();
    while_space_is_short_there_is_none();
    who_is_being_drained_takes_none();
    who_was_drained_until_now_keeps_the_first_one();
    a_neighbour_takes_a_run_away();
    an_idle_run_goes_back_by_itself();
    return 0;
}
