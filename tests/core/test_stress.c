/* SPDX-License-Identifier: MIT */
/*
 * STRESS: threads, then processes, do everything at once on one region.
 *
 * A side array holds each page's owner: whoever is handed a page finds it unowned and stamps it, so an
 * overlap is caught at once. Ranges travel through a common board of slots, so most are freed by
 * another thread or process than the one that allocated them.
 */
#include "kit.h"

enum { PAGES = 6000, OFFERS = 64, WORKERS = 4, ROUNDS = 3 };

typedef struct offer {
    uint64_t state; /* 0 empty, 1 full, 2 somebody is at it */
    vm_range range;
    uint64_t is_shared;
} offer;

static struct arena {
    uint64_t owner[PAGES]; /* id of the range that has the page */
    offer offers[OFFERS];
    uint64_t nr_pairs, nr_full;
} *arena;

static void stamp(vm_region *r, const vm_range *a)
{
    for (uint64_t p = a->page; p < a->page + a->nr_pages; p++)
        CHECK_EQ(__atomic_exchange_n(&arena->owner[p], a->id, __ATOMIC_ACQ_REL), 0);
    __atomic_store_n((uint64_t *)vm_pointer(r, a->page), a->id, __ATOMIC_RELAXED);
}
static void unstamp(vm_region *r, const vm_range *a, uint64_t from)
{
    CHECK_EQ(__atomic_load_n((uint64_t *)vm_pointer(r, a->page), __ATOMIC_RELAXED), a->id);
    for (uint64_t p = a->page + from; p < a->page + a->nr_pages; p++)
        CHECK_EQ(__atomic_exchange_n(&arena->owner[p], 0, __ATOMIC_ACQ_REL), a->id);
}

static bool claim_offer(offer *o, uint64_t state)
{
    return __atomic_compare_exchange_n(&o->state, &state, 2, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}
static void set_offer(offer *o, uint64_t state) { __atomic_store_n(&o->state, state, __ATOMIC_RELEASE); }

/* A shared one is stamped and unstamped by its sharer; others only look at the bytes. */
static void allocate(vm_region *r, uint64_t *seed, offer *o)
{
    int rc = vm_alloc(r, random_pages(seed, 500), 1ull << random_below(seed, 4),
                      random_below(seed, 4) ? 0 : VM_NO_PURGE, &o->range);
    if (rc) {
        CHECK_EQ(rc, -ENOSPC);
        __atomic_add_fetch(&arena->nr_full, 1, __ATOMIC_RELAXED);
        set_offer(o, 0);
        return;
    }
    stamp(r, &o->range);
    set_offer(o, 1);
}

static void resize_down(vm_region *r, vm_range *a)
{
    uint64_t keep = a->nr_pages / 2;
    vm_range whole = *a;
    unstamp(r, a, keep);
    int rc = vm_resize(r, a, keep);
    CHECK(rc == 0 || rc == -ENOENT); /* only its own process may */
    if (rc)
        for (uint64_t p = whole.page + keep; p < whole.page + whole.nr_pages; p++)
            __atomic_store_n(&arena->owner[p], whole.id, __ATOMIC_RELEASE);
}

static void release(vm_region *r, uint64_t *seed, offer *o)
{
    vm_range a = o->range, b;
    uint64_t chance = random_below(seed, 16);
    if (chance == 0 && a.nr_pages > 1) {
        vm_word w = VM_ACQUIRE(&r->map.heads[a.page].word);
        if (vm__owner(w) == r->process)
            resize_down(r, &a);
    }
    if (chance == 1 && vm_share(r, a.page, a.id) == 0) {
        CHECK_EQ(vm_adopt(r, a.page, a.id, &b), 0);
        CHECK_EQ(vm_free(r, b.page, b.id, 0), 0);
    }
    unstamp(r, &a, 0);
    CHECK_EQ(vm_free(r, a.page, a.id, 0), 0);
    CHECK(vm_free(r, a.page, a.id, 0) < 0);
    set_offer(o, 0);
    __atomic_add_fetch(&arena->nr_pairs, 1, __ATOMIC_RELAXED);
}

static void disturb(vm_region *r, uint64_t *seed)
{
    switch (random_below(seed, 60)) {
    case 0:
        CHECK_EQ(vm_purge(r, NULL), 0);
        break;
    case 1:
        CHECK_EQ(vm_shrink(r, NULL), 0);
        break;
    case 2:
        CHECK_EQ(vm_recover(r, NULL), 0);
        break;
    case 3:
        CHECK_EQ(vm_check(r, false, say_finding, "under way"), 0);
        break;
    default:
        break;
    }
}

static void work(vm_region *r, uint64_t seed, int nr_steps)
{
    for (int i = 0; i < nr_steps; i++) {
        offer *o = &arena->offers[random_below(&seed, OFFERS)];
        if (claim_offer(o, 0))
            allocate(r, &seed, o);
        else if (claim_offer(o, 1))
            release(r, &seed, o);
        if (i % 16 == 0)
            disturb(r, &seed);
    }
}

static void release_all(vm_region *r)
{
    uint64_t seed = 1;
    for (int i = 0; i < OFFERS; i++)
        if (claim_offer(&arena->offers[i], 1))
            release(r, &seed, &arena->offers[i]);
}

static void at_the_end_all_is_there(vm_region *r)
{
    CHECK_EQ(vm_recover(r, NULL), 0);
    CHECK_CLEAN(r);
    release_all(r);
    CHECK_EQ(stats_of(r).busy_pages, 0);
    FINISH(r);
    CHECK(arena->nr_pairs > 0);
    memset(arena, 0, sizeof *arena);
}

typedef struct task {
    vm_region *r;
    uint64_t seed;
    int nr_steps;
} task;
static void *work_in_thread(void *arg)
{
    task *t = arg;
    work(t->r, t->seed, t->nr_steps);
    return NULL;
}

static void run_threads(vm_region *r, uint64_t seed, int nr_steps)
{
    pthread_t threads[WORKERS];
    task tasks[WORKERS];
    for (uint64_t i = 0; i < WORKERS; i++) {
        tasks[i] = (task){r, seed + i * 1000, nr_steps};
        CHECK_EQ(pthread_create(&threads[i], NULL, work_in_thread, &tasks[i]), 0);
    }
    for (int i = 0; i < WORKERS; i++)
        pthread_join(threads[i], NULL);
}

static vm_region *make(vm_pools d, uint32_t nr_threads)
{
    return MAKE(.nr_pages = PAGES, .pools = d, .nr_nodes = 3, .nr_threads = nr_threads, .lazy_pages_max = 1000);
}

static void threads_come_and_go(vm_pools d, uint32_t nr_threads)
{
    vm_region *r = make(d, nr_threads);
    for (uint64_t round = 0; round < ROUNDS; round++)
        run_threads(r, 17 + round, 6000 / SLOWER);
    at_the_end_all_is_there(r);
}

static void processes_come_and_go(vm_pools d)
{
    vm_region *r = make(d, 32);
    for (uint64_t round = 0; round < ROUNDS; round++) {
        pid_t pid[WORKERS];
        for (uint64_t i = 0; i < WORKERS; i++)
            CHILD(pid[i], {
                run_threads(r, 5 + round * 100 + i, 1500 / SLOWER);
                /* what a process leaves busy would die with it: hand nothing over half-way */
                for (int o = 0; o < OFFERS; o++) {
                    vm_range now;
                    uint64_t state;
                    while ((state = __atomic_load_n(&arena->offers[o].state, __ATOMIC_ACQUIRE)) != 0
                           && !claim_offer(&arena->offers[o], 1))
                        sched_yield(); /* another one looks at it; it may still be ours */
                    if (state == 0)
                        continue;
                    uint64_t seed = 7;
                    if (vm_lookup(r, arena->offers[o].range.page, &now) == 0
                        && vm__owner(VM_ACQUIRE(&r->map.heads[now.page].word)) == r->process)
                        release(r, &seed, &arena->offers[o]);
                    else
                        set_offer(&arena->offers[o], 1);
                }
                CHECK_EQ(vm_detach(r), 0);
            });
        work(r, round + 1, 1500 / SLOWER);
        for (int i = 0; i < WORKERS; i++)
            ended_well(pid[i]);
        release_all(r); /* the next children would inherit it, and hold it */
    }
    at_the_end_all_is_there(r);
}

int main(void)
{
    arena = shared_memory(sizeof *arena);
    FOR_EACH_DESIGN (d)
        processes_come_and_go(d);
    FOR_EACH_DESIGN (d) { /* last: TSan does not fork after threads were there */
        threads_come_and_go(d, 16);
        threads_come_and_go(d, 2); /* most have no slot */
    }
    return 0;
}
