/* SPDX-License-Identifier: MIT */
/*
 * BETWEEN: before each single write that an operation makes to a pool another thread does a whole one. Afterwards nothing may
 * be wrong: what is lost so in a pool or in its count is lost when two are at it by chance, once in very many runs.
 *
 * The one in between waits for nobody; where it would have to, it does nothing.
 */
#include "kit.h"

#include <pthread.h>

enum { SIZE = 3, READY = 6, MUCH = 1000 };

typedef struct scene {
    vm_region *r;
    vm_range used;
    void (*comes)(vm_region *);
    const char *where; /* in which files */
    uint64_t before;   /* which write of the operation there it comes before */
    uint64_t every;    /* 0: that one alone; else each so many more */
    uint64_t nr_writes;
} scene;

static scene *now;
static _Thread_local bool is_watched;

/* ---- what comes in between ---- */

static vm_thread *entered(vm_region *r)
{
    vm_thread *t = vm__thread(r);
    CHECK(t);
    vm__enter(t);
    return t;
}

static void a_scan(vm_region *r)
{
    vm_thread *t = entered(r);
    vm__purge_scan(t, VM_NO_WAIT, NULL, NULL);
    vm__leave(t);
}

static void a_purge_that_scans(vm_region *r)
{
    vm_thread *t = entered(r);
    uint64_t pages = 0;
    VM_STORE(&r->map.h->purge_needs_scan, 1);
    vm__purge(t, VM_NO_WAIT, &pages);
    vm__leave(t);
}

static void a_decay(vm_region *r)
{
    vm_thread *t = entered(r);
    uint64_t pages = 0;
    vm__purge(t, VM_NO_WAIT, &pages);
    vm__leave(t);
}

static void a_pair(vm_region *r)
{
    vm_range a;
    if (vm_alloc(r, SIZE, 1, VM_NO_WAIT, &a) == 0)
        GIVE_BACK(r, a);
}

static void two_pairs(vm_region *r)
{
    vm_range a[2];
    int nr = 0;
    while (nr < 2 && vm_alloc(r, SIZE, 1, VM_NO_WAIT, &a[nr]) == 0)
        nr++;
    for (int i = 0; i < nr; i++)
        GIVE_BACK(r, a[i]);
}

static void *come(void *arg)
{
    scene *s = arg;
    s->comes(s->r);
    return NULL;
}

static bool comes_now(const scene *s, uint64_t write)
{
    return s->every ? write % s->every == s->before : write == s->before;
}

static bool before_each_write(const char *file, int line, uint64_t nr_passed)
{
    (void)line, (void)nr_passed;
    if (!is_watched || !strstr(file, now->where) || !comes_now(now, now->nr_writes++))
        return true;
    CHECK(now->nr_writes < MUCH);
    pthread_t other;
    CHECK_EQ(pthread_create(&other, NULL, come, now), 0);
    pthread_join(other, NULL);
    return true;
}

/* ---- what it comes between ---- */

static void a_free(scene *s) { GIVE_BACK(s->r, s->used); }

static void an_alloc(scene *s)
{
    vm_range a = take(s->r, SIZE);
    is_watched = false;
    GIVE_BACK(s->r, a);
    GIVE_BACK(s->r, s->used);
}

static void the_decay(scene *s)
{
    uint64_t pages = 0;
    CHECK_EQ(vm_purge(s->r, &pages), 0);
    is_watched = false;
    GIVE_BACK(s->r, s->used);
}

/* Some lie ready, so that a list has a front and a rest. */
static void set_up(scene *s, vm_pools d)
{
    vm_range a[READY];
    s->r = MAKE(.nr_pages = 400, .pools = d, SMALL);
    for (int i = 0; i < READY; i++)
        a[i] = take(s->r, SIZE);
    s->used = a[READY - 1];
    CHECK_EQ(vm_free_bulk(s->r, READY - 1, a), 0);
}

static void nothing_is_lost(vm_pools d, void (*run)(scene *), void (*comes)(vm_region *))
{
    bool is_over = false;
    for (uint64_t before = 0; !is_over; before++) {
        scene s = {.comes = comes, .where = "pool_", .before = before};
        set_up(&s, d);
        now = &s;
        is_watched = true;
        run(&s);
        is_watched = false;
        is_over = s.nr_writes <= before;
        CHECK(before < MUCH);
        FINISH(s.r);
    }
}

/* To put one range back takes two writes. */
static void a_decay_comes_to_its_end_among_others(vm_pools d, void (*comes)(vm_region *))
{
    enum { EVERY = 3 };
    for (uint64_t before = 0; before < EVERY; before++) {
        scene s = {.comes = comes, .where = "pool_", .before = before, .every = EVERY};
        set_up(&s, d);
        now = &s;
        is_watched = true;
        the_decay(&s);
        is_watched = false;
        FINISH(s.r);
    }
}

/* ---- what is charged meanwhile ---- */

static void a_third_of_the_quota(vm_region *r) { take(r, 300); }

static void what_another_thread_takes_while_the_words_are_counted_is_charged(vm_pools d)
{
    scene s = {.r = MAKE(.nr_pages = 2000, .pools = d, SMALL), .comes = a_third_of_the_quota, .where = "charge.c"};
    vm_range a, b;
    CHECK_EQ(vm_set_limit(s.r, VM_QUOTA, 900), 0);
    a = take(s.r, 500);
    GIVE_BACK(s.r, a);
    now = &s;
    is_watched = true;
    a = take(s.r, 500); /* more than the quota, by what was charged: counted anew, and another takes its third */
    is_watched = false;
    CHECK_EQ(s.nr_writes > 0, 1);
    CHECK_EQ(s.r->map.processes[s.r->process].charged_pages, 800); /* what is held, so the next one need not count */
    CHECK_EQ(vm_alloc(s.r, 200, 1, 0, &b), -EDQUOT);
    CHECK_EQ(vm_detach(s.r), 0);
}

int main(void)
{
    static void (*const runs[])(scene *) = {a_free, an_alloc, the_decay};
    static void (*const comers[])(vm_region *) = {a_scan, a_purge_that_scans, a_decay, a_pair, two_pairs};
    vm_fault_filter(before_each_write);
    FOR_EACH_DESIGN (d) {
        what_another_thread_takes_while_the_words_are_counted_is_charged(d);
        a_decay_comes_to_its_end_among_others(d, a_pair);
        a_decay_comes_to_its_end_among_others(d, two_pairs);
        for (size_t i = 0; i < LENGTH(runs); i++)
            for (size_t k = 0; k < LENGTH(comers); k++)
                nothing_is_lost(d, runs[i], comers[k]);
    }
    return 0;
}
