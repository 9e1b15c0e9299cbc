/* SPDX-License-Identifier: MIT */
/*
 * AFTERMATH: the region before a death, and the questions after it.
 *
 *   Does check() find nothing? Are my ranges and their bytes mine? Has every lease of the dead a
 *   deadline? Can exactly the rest be handed out, each page once? And when I free all, is every page
 *   free, and every slot?
 */
#include "stage.h"

enum { WARM = 12, STAMP_ALL = 64 };

static uint64_t stamp(const vm_range *a, uint64_t page) { return a->id * 1000003 + page; }
/* Every page of a small range, every tenth of a large one. */
static uint64_t stamp_step(const vm_range *a) { return a->nr_pages <= STAMP_ALL ? 1 : 10; }

void stamp_range(const stage *s, const vm_range *a)
{
    for (uint64_t p = 0; p < a->nr_pages; p += stamp_step(a))
        *(uint64_t *)vm_pointer(s->r, a->page + p) = stamp(a, p);
}

void check_stamps(const stage *s, const vm_range *a)
{
    for (uint64_t p = 0; p < a->nr_pages; p += stamp_step(a))
        CHECK_EQ(*(uint64_t *)vm_pointer(s->r, a->page + p), stamp(a, p));
}

stage *make_stage(vm_pools d)
{
    stage *s = shared_memory(sizeof *s);
    CHECK_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1), 0); /* for collect_orphans() */
    s->d = d;
    s->r = MAKE(.nr_pages = PAGES, .pools = d, .nr_nodes = 2, .nr_threads = BUSY_SLOTS, .lazy_pages_max = 1u << 28);
    s->survivor = s->r->process;
    return s;
}

void end_stage(stage *s)
{
    CHECK_EQ(vm_detach(s->r), 0);
    munmap(s, sizeof *s);
}

/* As in a new region, again: nothing lies where processes were that are gone. */
static void forget_high_groups(vm_region *r)
{
    r->map.h->high_group = 0;
    for (uint32_t p = 0; p < r->map.nr_processes; p++)
        if (r->map.processes[p].state & VM_PROCESS_LIVE && vm__group_of_process(r, p) >= r->map.h->high_group)
            r->map.h->high_group = vm__group_of_process(r, p) + 1ull;
}

/* The survivor's part; its children are there already. */
void set_stage(stage *s)
{
    static const uint64_t sizes[SURVIVORS] = {1, 3, 20, 256, 300}, gifts[GIFTS] = {2, 2, 400, 20};
    vm_range warm[WARM];
    s->r->map.h->used_peak = s->r->map.h->granted_pages =
        0; /* as in a new region: else who raises them depends on the past */
    forget_high_groups(s->r);
    for (int i = 0; i < WARM; i++)
        warm[i] = take(s->r, (uint64_t)i / 4 + 1);
    for (int i = 0; i < SURVIVORS; i++) {
        s->mine[i] = take(s->r, sizes[i]);
        stamp_range(s, &s->mine[i]);
    }
    for (int i = 0; i < GIFTS; i++) {
        s->gift[i] = take(s->r, gifts[i]);
        stamp_range(s, &s->gift[i]);
        s->gift_is_ours[i] = true;
    }
    s->lease = 0;
    s->adopts_in_between = s->reuses_in_between = false;
    CHECK_EQ(vm_free_bulk(s->r, WARM, warm), 0); /* something in our magazines, the pools, or lazy */
}

static void my_ranges_are_intact(stage *s)
{
    for (int i = 0; i < SURVIVORS; i++) {
        vm_range now;
        CHECK_EQ(vm_lookup(s->r, s->mine[i].page, &now), 0);
        CHECK(now.id == s->mine[i].id && now.nr_pages == s->mine[i].nr_pages);
        check_stamps(s, &now);
    }
}

static int collect_name(void *arg, const char *name, uint64_t page)
{
    (void)page;
    snprintf(arg, VM_NAME_BYTES, "%s", name);
    return 1;
}

static void drop_names(stage *s)
{
    char name[VM_NAME_BYTES];
    while (vm_name_list(s->r, collect_name, name) == 1)
        CHECK_EQ(vm_name_delete(s->r, name), 0);
}

/* A lease whose owner is dead must not wait for ever: nobody else would end it. */
static void end_leases(stage *s)
{
    uint64_t nr = 0, nr_before = stats_of(s->r).nr_leases;
    for (uint32_t i = 0; i < s->r->map.h->lease_high; i++) {
        const vm_lease_entry *e = &s->r->map.leases[i];
        bool is_dead = vm__process_is_retired(s->r, e->owner & 0xffff, e->owner >> 16 & VM_INC_MASK);
        CHECK(!e->id || !is_dead || e->deadline_ns);
        nr += e->id != 0;
    }
    CHECK_EQ(nr, nr_before);
    CHECK_EQ(vm_expire_leases(s->r, true, &nr), 0);
    CHECK_EQ(nr, nr_before);
    CHECK_EQ(stats_of(s->r).nr_leases, 0);
}

static void drop_gifts_left(stage *s)
{
    for (int i = 0; i < GIFTS; i++) {
        vm_range now;
        bool is_there = vm_lookup(s->r, s->gift[i].page, &now) == 0 && now.id == s->gift[i].id;
        if (s->gift_is_ours[i] && is_there) {
            check_stamps(s, &now);
            GIVE_BACK(s->r, s->gift[i]);
        } else
            CHECK(!is_there);
    }
}

static int say_range(void *arg, const vm_range_info *info)
{
    (void)arg;
    if (info->state != VM_BUSY && info->state != VM_FREE)
        fprintf(stderr, "pages %" PRIu64 " to %" PRIu64 ": state %u, owner %u\n", info->page,
                info->page + info->nr_pages, info->state, info->owner);
    return 0;
}

/* Everything that is not mine can be had, and nothing twice. */
static void the_rest_can_be_handed_out_once(stage *s)
{
    static uint8_t owner[PAGES];
    static vm_range got[PAGES];
    size_t nr = 0;
    uint64_t sum = 0;
    memset(owner, 0, sizeof owner);
    for (int i = 0; i < SURVIVORS; i++) {
        memset(owner + s->mine[i].page, 1, s->mine[i].nr_pages);
        sum += s->mine[i].nr_pages;
    }
    CHECK_EQ(vm_shrink(s->r, NULL), 0);
    for (uint64_t n = 1 << 13; n; n /= 2)
        while (vm_alloc(s->r, n, 1, VM_NO_PURGE, &got[nr]) == 0) {
            for (uint64_t p = got[nr].page; p < got[nr].page + got[nr].nr_pages; p++)
                CHECK_EQ(owner[p]++, 0);
            sum += got[nr++].nr_pages;
        }
    if (sum != PAGES)
        vm_walk(s->r, say_range, NULL);
    CHECK_EQ(sum, PAGES);
    CHECK_EQ(vm_free_bulk(s->r, nr, got), 0);
}

/* Called when all is recovered and the neighbour, if there is one, rests. */
void nothing_is_lost(stage *s)
{
    uint32_t nr_living = 1 + (s->neighbour != NEIGHBOUR_NONE);
    CHECK_CLEAN(s->r);
    my_ranges_are_intact(s);
    drop_names(s);
    end_leases(s);
    drop_gifts_left(s);
    the_rest_can_be_handed_out_once(s);
    my_ranges_are_intact(s);
    CHECK_EQ(vm_free_bulk(s->r, SURVIVORS, s->mine), 0);
    CHECK_ALL_FREE(s->r);
    CHECK_EQ(stats_of(s->r).nr_shared, 0);
    CHECK_EQ(stats_of(s->r).nr_processes, nr_living);
    CHECK_EQ(stats_of(s->r).nr_thread_slots, nr_living);
}
