/* SPDX-License-Identifier: MIT */
/* Stats beside work: counters are read while others write them, which a sanitizer for threads must not mind, and at rest
 * they are sums. */
#include "kit.h"

enum { WORKERS = 3, ROUNDS = 400 / SLOWER };

typedef struct job {
    vm_region *r;
    uint64_t seed;
    bool *is_over;
} job;

/* Every counter moves: requests that hit and miss, splits, merges, purges, discards, failures, leases, waits. */
static void *work(void *arg)
{
    job *j = arg;
    for (int i = 0; i < ROUNDS; i++) {
        vm_range a, b;
        uint64_t lease;
        CHECK_EQ(vm_alloc(j->r, 1 + random_below(&j->seed, 400), 1ull << random_below(&j->seed, 3), 0, &a), 0);
        CHECK_EQ(vm_alloc(j->r, j->r->map.nr_pages, 1, VM_NO_PURGE, &b), -ENOSPC);
        CHECK_EQ(vm_share(j->r, a.page, a.id), 0);
        CHECK_EQ(vm_lease(j->r, a.page, a.id, &lease), 0);
        CHECK_EQ(vm_drop_lease(j->r, lease), 0);
        GIVE_BACK(j->r, a);
        if (i % 8 == 0)
            CHECK_EQ(vm_purge(j->r, NULL), 0);
        if (i % 32 == 0)
            CHECK_EQ(vm_shrink(j->r, NULL), 0);
    }
    return NULL;
}

static void *look(void *arg)
{
    job *j = arg;
    vm_stats before = {0}, s;
    vm_info info;
    while (!__atomic_load_n(j->is_over, __ATOMIC_ACQUIRE)) {
        s = stats_of(j->r);
        CHECK(s.nr_purges >= before.nr_purges && s.nr_splits >= before.nr_splits && s.nr_merges >= before.nr_merges);
        CHECK(s.nr_alloc >= before.nr_alloc && s.nr_failed >= before.nr_failed
              && s.lock_wait_ns >= before.lock_wait_ns);
        CHECK(s.nr_magazine_hit >= before.nr_magazine_hit && s.nr_slab_hit >= before.nr_slab_hit
              && s.nr_pool_hit >= before.nr_pool_hit && s.nr_neighbour_hit >= before.nr_neighbour_hit);
        vm_describe(j->r, &info);
        vm_lock_wait_ns(j->r);
        before = s;
    }
    return NULL;
}

static uint64_t served(vm_region *r)
{
    vm_stats s = stats_of(r);
    return s.nr_magazine_hit + s.nr_slab_hit + s.nr_pool_hit + s.nr_neighbour_hit + s.nr_lazy_hit + s.nr_space_hit;
}

static void counters_are_read_while_others_write_them(vm_pools pools)
{
    vm_region *r = MAKE(.nr_pages = 4000, .pools = pools, .nr_nodes = 2, .nr_threads = 8, .lazy_pages_max = 500);
    bool is_over = false;
    pthread_t worker[WORKERS], looker;
    job jobs[WORKERS], seen = {r, 0, &is_over};
    CHECK_EQ(pthread_create(&looker, NULL, look, &seen), 0);
    for (int i = 0; i < WORKERS; i++) {
        jobs[i] = (job){r, (uint64_t)i + 1, &is_over};
        CHECK_EQ(pthread_create(&worker[i], NULL, work, &jobs[i]), 0);
    }
    for (int i = 0; i < WORKERS; i++)
        CHECK_EQ(pthread_join(worker[i], NULL), 0);
    __atomic_store_n(&is_over, true, __ATOMIC_RELEASE);
    CHECK_EQ(pthread_join(looker, NULL), 0);
    CHECK_EQ(stats_of(r).nr_failed, WORKERS * ROUNDS);
    CHECK(stats_of(r).nr_alloc >= WORKERS * ROUNDS);
    CHECK_EQ(served(r), WORKERS * ROUNDS);
    FINISH(r);
}

static void *pairs(void *arg)
{
    for (uint64_t i = 0; i < VM_ID_BLOCK + 10; i++) {
        vm_range a = take(arg, 3);
        GIVE_BACK(arg, a);
    }
    return NULL;
}

/* Through blocks of ids, and through the threads that had a slot one after the other. */
static void every_request_counts_once(vm_pools pools)
{
    vm_region *r = MAKE(.nr_pages = 4000, .pools = pools, .nr_nodes = 1);
    for (uint64_t nr = 1; nr <= 3; nr++) {
        pthread_t thread;
        CHECK_EQ(pthread_create(&thread, NULL, pairs, r), 0);
        CHECK_EQ(pthread_join(thread, NULL), 0);
        CHECK_EQ(served(r), nr * (VM_ID_BLOCK + 10));
    }
    FINISH(r);
}

/* Where the owner is killed or stopped in the middle of a hit, the hits before it count. */
static void a_hit_in_the_middle_keeps_the_count(void)
{
    vm_region *r = MAKE(.nr_pages = 4000, .nr_nodes = 1);
    for (int i = 0; i < 100; i++) {
        vm_range a = take(r, 3);
        GIVE_BACK(r, a);
    }
    uint64_t before = stats_of(r).nr_magazine_hit;
    vm_magazine *m = &vm__thread(r)->hit.magazine[3];
    uint8_t was = m->mark;
    CHECK_EQ(was, vm__magazine_count(m->header));
    m->mark = VM_MAGAZINE_TAKING;
    CHECK(vm__magazine_is_taking(m->header));
    CHECK_EQ(stats_of(r).nr_magazine_hit, before);
    m->mark = was;
    FINISH(r);
}

int main(void)
{
    FOR_EACH_DESIGN (d)
        counters_are_read_while_others_write_them(d);
    FOR_EACH_DESIGN (d)
        every_request_counts_once(d);
    a_hit_in_the_middle_keeps_the_count();
    return 0;
}
