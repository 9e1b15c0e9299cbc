/* SPDX-License-Identifier: MIT */
/*
 * HOSTILE: a neighbour that scribbles over the region's metadata while others work.
 *
 * Errors and wrong data are allowed. A range outside the region, a crash and an endless loop are not. Two
 * ways to do it:
 *   alone     one process, which scribbles between its operations and, in builds with hooks, before the shared
 *             writes inside them: a seed repeats such a run exactly;
 *   together  a process that does nothing but scribble, and three that work: for what lies between two reads.
 * Every round has its own seed and its own process; a failure names them:
 *   test_hostile SECONDS SEED    runs the round `alone` with that seed, then goes on from there.
 * VM_HOSTILE_SECONDS and VM_HOSTILE_SEED in the environment do the same.
 *
 * Assertions are off here: some of them compare what a neighbour may have written (base.h).
 */
#include "kit.h"

#define NR_PAGES 3000
#define STEPS 250            /* operations of a round alone */
#define ROUND_S 0.15         /* of a round together */
#define HANGS_AFTER_S 40u    /* no round takes a tenth of that, even under a sanitizer */
#define NR_HELD 64

typedef struct worker {
    vm_region *r;
    uint64_t seed;
    vm_range held[NR_HELD];
    uint64_t lease[NR_HELD];
} worker;

static uint64_t chance(uint64_t *seed, uint64_t n) { return random_below(seed, n); }

/* ---- scribbling ---- */

typedef struct area {
    uint64_t offset, bytes;
} area;

static area area_of(const vm_region *r, uint64_t *seed)
{
    const uint8_t *base = (const uint8_t *)r->map.h;
    uint64_t page = chance(seed, NR_PAGES), near = chance(seed, 3) ? 600 : NR_PAGES;
    uint64_t slot = chance(seed, 2) ? vm__first_thread(r) + chance(seed, 3) : chance(seed, r->map.nr_threads);
#define AREA(p, n) ((area){(uint64_t)((const uint8_t *)(p) - base), (n)})
    vm_node *node = &r->map.nodes[chance(seed, vm__nodes_used(r))];
    switch (chance(seed, 15)) {
    case 0:
        return AREA(r->map.h, sizeof *r->map.h);
    case 1:
        return AREA(&r->map.h->corrupt, sizeof *r->map.h - offsetof(vm_header, corrupt));
    case 2:
        return AREA(r->map.processes, 6 * sizeof *r->map.processes);
    case 3:
        return AREA(node, sizeof *node);
    case 4:
        return AREA(r->map.names, 8 * sizeof *r->map.names);
    case 5:
        return AREA(r->map.leases, 64 * sizeof *r->map.leases);
    case 6:
        return AREA(&r->map.slots[slot], offsetof(vm_slot, magazine) + 16 * sizeof(vm_magazine));
    case 7:
        return AREA(&r->map.slots[slot], sizeof(vm_slot));
    case 8:
        return AREA(r->map.bits, NR_PAGES / 8);
    case 9:
        return AREA(r->map.summaries, (r->map.level_offset[r->map.nr_levels - 1] + 1) * sizeof *r->map.summaries);
    case 10:
        return AREA(&r->map.heads[page], sizeof *r->map.heads);
    case 11:
        return AREA(r->map.heads, near * sizeof *r->map.heads);
    case 12:
        return AREA(&node->pool, 8 * sizeof *node->pool); /* of the sizes that are asked for most */
    case 13:
        return AREA(&r->map.h->space_lock, sizeof *r->map.h - offsetof(vm_header, space_lock));
    default:
        return AREA(r->map.sharings, near * sizeof *r->map.sharings);
    }
}

static uint64_t *somewhere(const vm_region *r, uint64_t *seed)
{
    area a = area_of(r, seed);
    return (uint64_t *)((uint8_t *)r->map.h + a.offset) + chance(seed, a.bytes / 8);
}

/* Numbers at which bounds are decided. */
static uint64_t edge(uint64_t *seed)
{
    static const uint64_t edges[] = {
        0,
        1,
        29,
        30,
        31,
        32,
        255,
        256,
        257,
        511,
        512,
        513,
        NR_PAGES - 1,
        NR_PAGES,
        NR_PAGES + 1,
        (1u << 30) - 1,
        1u << 30,
        UINT32_MAX - 1,
        UINT32_MAX,
        1ull << 32,
        1ull << 63,
        UINT64_MAX - 1,
        UINT64_MAX,
    };
    return edges[chance(seed, LENGTH(edges))];
}

/* A word that looks right: of a state, an owner and an incarnation that exist. */
static vm_word plausible(const vm_region *r, uint64_t *seed)
{
    uint32_t slot = chance(seed, 2) ? (uint32_t)chance(seed, 6) : vm__first_thread(r) + (uint32_t)chance(seed, 4);
    uint32_t inc = chance(seed, 4) ? (uint32_t)(r->map.slots[slot].state >> 32) : (uint32_t)chance(seed, 3);
    uint64_t len = chance(seed, 3) ? 1 + chance(seed, 8) : edge(seed) & VM_PAGES_MAX;
    return vm__word((vm_state)chance(seed, 9), chance(seed, 4) << 4, len, slot, inc);
}

static void put(uint64_t *at, uint64_t value) { __atomic_store_n(at, value, __ATOMIC_RELAXED); }

/* The first page of a range, as long as the words parse up to there. */
static uint64_t some_range(const vm_region *r, uint64_t *seed)
{
    uint64_t page = 0, len;
    for (uint64_t n = chance(seed, chance(seed, 2) ? 10 : 200); n-- && (len = vm__len(vm__word_at(r, page)));)
        page = page + len < NR_PAGES ? page + len : 0;
    return page;
}

/* A list that never ends, and a counter that says so. */
static void bend(const vm_region *r, uint64_t *seed)
{
    vm_node *node = &r->map.nodes[chance(seed, vm__nodes_used(r))];
    vm_pool *pool = &node->pool[chance(seed, 8)];
    uint32_t *head = chance(seed, 3) ? &pool->head : &node->lazy_head, link = *head;
    if (!link || link > NR_PAGES)
        return;
    put(&r->map.heads[link - 1].aux, link);
    if (head == &pool->head)
        __atomic_store_n(r->design->kept->count ? &pool->nr_listed : &pool->nr_ranges, (uint32_t)edge(seed),
                         __ATOMIC_RELAXED);
}

/* Words that parse, and no mark: or everybody refuses from the first good hit on, and nothing more is tried. */
static void heal(const vm_region *r, uint64_t *seed)
{
    for (uint64_t page = 0, len; page < NR_PAGES; page += len) {
        len = vm__len(vm__word_at(r, page));
        if (len)
            continue;
        len = 1 + chance(seed, NR_PAGES - page < 300 ? NR_PAGES - page : 300);
        put(&r->map.heads[page].word, vm__word(chance(seed, 4) ? VM_FREE : VM_LAZY, 0, len, 0, 0));
    }
    r->map.h->space_lock.needs_mending = chance(seed, 2) != 0;
    put(&r->map.h->corrupt, 0);
}

static void scribble(const vm_region *r, uint64_t *seed)
{
    uint64_t *at = somewhere(r, seed), *other = somewhere(r, seed);
    const uint64_t *end = (const uint64_t *)r->map.sharings;
    uint64_t page = chance(seed, NR_PAGES), run = 1 + chance(seed, 24);
    switch (chance(seed, 13)) {
    case 0:
        put(at, *at ^ 1ull << chance(seed, 64));
        break;
    case 1:
        put(at, next_random(seed));
        break;
    case 2: /* a stretch of zeros, or of ones */
    case 3:
        for (uint64_t value = chance(seed, 2) ? 0 : UINT64_MAX; run-- && at < end; at++)
            put(at, value);
        break;
    case 4: {
        uint64_t was = *at;
        put(at, *other);
        put(other, was);
        break;
    }
    case 5: /* links: circles, and lists that run into each other */
        put(&r->map.heads[page].aux, 1 + chance(seed, chance(seed, 2) ? 8 : NR_PAGES));
        break;
    case 6:
        put(at, edge(seed));
        break;
    case 7:
        put(at, edge(seed) << 32 | (uint32_t)edge(seed));
        break;
    case 8:
        put(&r->map.heads[page].word, plausible(r, seed));
        break;
    case 9:
        put(&r->map.heads[some_range(r, seed)].word, plausible(r, seed));
        break;
    case 10:
        put(&r->map.heads[some_range(r, seed)].word, 0);
        break;
    case 11:
        bend(r, seed);
        break;
    default:
        heal(r, seed);
        put((uint64_t *)&r->map.h->space_lock, chance(seed, 8) ? 0 : next_random(seed) >> chance(seed, 64));
        put((uint64_t *)&r->map.h->purge_lock, chance(seed, 8) ? 0 : next_random(seed) >> chance(seed, 64));
        break;
    }
}

/* ---- working ---- */

static void must_be_inside(const worker *w, const vm_range *a)
{
    CHECK(a->nr_pages && a->page < w->r->map.nr_pages && a->nr_pages <= w->r->map.nr_pages - a->page);
    uint8_t *data = vm_pointer(w->r, a->page);
    data[0] = data[(a->nr_pages << w->r->map.page_shift) - 1] = 1;
}

static void keep(worker *w, const vm_range *a, int rc)
{
    if (rc)
        return;
    must_be_inside(w, a);
    vm_range *place = &w->held[chance(&w->seed, NR_HELD)];
    if (place->nr_pages)
        vm_free(w->r, place->page, place->id, 0);
    *place = *a;
}

static vm_range *any_held(worker *w) { return &w->held[chance(&w->seed, NR_HELD)]; }

static void op_alloc(worker *w)
{
    vm_range a;
    for (uint64_t n = 1 + chance(&w->seed, 20); n--;) {
        uint64_t nr_pages = chance(&w->seed, 4) ? 1 + chance(&w->seed, 8) : 1 + chance(&w->seed, 700);
        unsigned flags = chance(&w->seed, 2) ? VM_NO_PURGE : chance(&w->seed, 4) ? 0 : VM_NO_WAIT;
        keep(w, &a, vm_alloc(w->r, nr_pages, 1ull << (chance(&w->seed, 8) ? 0 : chance(&w->seed, 5)), flags, &a));
    }
}
static void op_free(worker *w)
{
    for (uint64_t n = 1 + chance(&w->seed, 20); n--;) {
        vm_range *a = any_held(w);
        if (!a->nr_pages)
            continue;
        vm_free(w->r, a->page, a->id, 0);
        if (chance(&w->seed, 8)) /* else it is freed again some day */
            a->nr_pages = 0;
    }
}
static void op_free_of_another(worker *w)
{
    vm_range a;
    if (vm_lookup(w->r, chance(&w->seed, NR_PAGES + 2), &a) == 0)
        vm_free(w->r, a.page, a.id, 0);
    vm_free(w->r, edge(&w->seed), next_random(&w->seed), 0);
}
static void op_bulk(worker *w)
{
    vm_range a[40];
    uint64_t n = 1 + chance(&w->seed, LENGTH(a));
    if (vm_alloc_bulk(w->r, 1 + chance(&w->seed, 4), 1, n, a) == 0) {
        for (uint64_t i = 0; i < n; i++)
            must_be_inside(w, &a[i]);
        vm_free_bulk(w->r, n, a);
    }
}
static void op_congruent(worker *w)
{
    uint64_t offset[] = {0, 64, 128}, nr_pages[] = {3, 1, 30};
    vm_range a[3];
    if (vm_alloc_congruent(w->r, 3, offset, nr_pages, 1, a) == 0)
        for (int i = 0; i < 3; i++)
            keep(w, &a[i], 0);
}
static void op_resize(worker *w)
{
    vm_range *a = any_held(w);
    if (a->nr_pages && vm_resize(w->r, a, 1 + chance(&w->seed, 300)) == 0)
        must_be_inside(w, a);
}
static void op_share(worker *w)
{
    vm_range *a = any_held(w), got;
    vm_share(w->r, a->page, a->id);
    keep(w, &got, vm_adopt(w->r, a->page, a->id, &got));
}
static void op_lease(worker *w)
{
    vm_range *a = any_held(w), got;
    uint64_t *lease = &w->lease[chance(&w->seed, NR_HELD)];
    vm_lease(w->r, a->page, a->id, lease);
    a = any_held(w);
    keep(w, &got, vm_claim(w->r, a->page, a->id, w->lease[chance(&w->seed, NR_HELD)], &got));
    vm_drop_lease(w->r, w->lease[chance(&w->seed, NR_HELD)]);
}
static void op_expire(worker *w)
{
    uint64_t nr;
    vm_expire_leases(w->r, chance(&w->seed, 2), &nr);
}
static int look_at_name(void *arg, const char *name, uint64_t page)
{
    CHECK(strlen(name) < VM_NAME_BYTES);
    *(uint64_t *)arg += page;
    return 0;
}
static void op_names(worker *w)
{
    static const char *const names[] = {"a", "b", "frame", "a name of some length"};
    const char *name = names[chance(&w->seed, LENGTH(names))];
    vm_range *a = any_held(w), got;
    char meta[VM_NAME_META_BYTES_MAX] = "meta";
    size_t bytes = sizeof meta;
    uint64_t sum = 0;
    vm_name_set(w->r, name, a->page, a->id, meta, chance(&w->seed, sizeof meta));
    keep(w, &got, vm_name_get(w->r, names[chance(&w->seed, LENGTH(names))], &got, meta, &bytes));
    CHECK(bytes <= sizeof meta);
    vm_name_list(w->r, look_at_name, &sum);
    if (chance(&w->seed, 2))
        vm_name_delete(w->r, name);
}
static void op_purge(worker *w) { vm_purge(w->r, NULL); }
static void op_shrink(worker *w) { vm_shrink(w->r, NULL); }
static void op_recover(worker *w) { vm_recover(w->r, NULL); }

static void listen(void *arg, const char *text) { *(size_t *)arg += strlen(text); }
static void op_check(worker *w)
{
    size_t told = 0;
    vm_check(w->r, chance(&w->seed, 2), listen, &told);
}
static void op_repair(worker *w)
{
    size_t told = 0;
    vm_repair(w->r, listen, &told);
}
static int look_at_range(void *arg, const vm_range_info *i)
{
    const worker *w = arg;
    CHECK(i->nr_pages && i->page < w->r->map.nr_pages && i->nr_pages <= w->r->map.nr_pages - i->page);
    return 0;
}
static void op_look(worker *w)
{
    vm_stats s;
    vm_info info;
    vm_get_stats(w->r, &s);
    vm_walk(w->r, look_at_range, w);
    vm_describe(w->r, &info);
    CHECK_EQ(info.nr_pages, NR_PAGES);
}

/* From nothing, as another process would, whatever the header says by now. */
static void op_attach(worker *w)
{
    worker other = {.seed = w->seed};
    if (vm_attach(vm_fd(w->r), &other.r) != 0)
        return;
    CHECK_EQ(other.r->map.nr_pages, NR_PAGES);
    vm_set_lock_timeout(other.r, 0.002);
    op_alloc(&other);
    op_look(&other);
    op_free(&other);
    vm_detach(other.r);
}
static void op_look_in(worker *w)
{
    worker other = {.seed = w->seed};
    if (chance(&w->seed, 8) || vm_attach_readonly(vm_fd(w->r), &other.r) != 0)
        return; /* seldom: it looks a hundred times at what does not parse */
    op_look(&other);
    op_check(&other);
    vm_detach(other.r);
}
static void op_fork(worker *w)
{
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        uint64_t nr;
#ifdef VM_HOOKS
        vm_fault_filter(NULL);
#endif
        alarm(HANGS_AFTER_S);
        op_alloc(w);
        op_free(w);
        if (chance(&w->seed, 2))
            vm_drop_inherited(w->r, &nr);
        _exit(0);
    }
    ended_well(pid);
}

/* How often each is done, of 100. */
static const struct {
    void (*op)(worker *);
    uint64_t weight;
} ops[] = {
    {op_alloc, 22}, {op_free, 16},  {op_free_of_another, 5}, {op_bulk, 4},   {op_congruent, 3},
    {op_resize, 4}, {op_share, 6},  {op_lease, 6},           {op_expire, 2}, {op_names, 6},
    {op_purge, 5},  {op_shrink, 3}, {op_recover, 3},         {op_check, 3},  {op_repair, 4},
    {op_look, 4},   {op_attach, 2}, {op_look_in, 1},         {op_fork, 1},
};

static void work(worker *w)
{
    uint64_t dice = chance(&w->seed, 100);
    for (size_t i = 0; i < LENGTH(ops); dice -= ops[i++].weight)
        if (dice < ops[i].weight) {
            ops[i].op(w);
            return;
        }
}

static vm_region *hostile_region(vm_pools d)
{
    vm_region *r = MAKE(.nr_pages = NR_PAGES, .pools = d, .nr_nodes = 2, .nr_threads = 8, .lazy_pages_max = 400);
    vm_set_lock_timeout(r, 0.002);
    return r;
}

/* ---- alone ---- */

static vm_region *scribbled;
static uint64_t scribble_seed;

#ifdef VM_HOOKS
static bool now_and_then(const char *file, int line, uint64_t nr_passed)
{
    (void)file, (void)line, (void)nr_passed;
    if (chance(&scribble_seed, 40) == 0)
        scribble(scribbled, &scribble_seed);
    return false;
}
#endif

static void alone(vm_pools d, uint64_t seed)
{
    worker w = {.r = hostile_region(d), .seed = seed};
    scribbled = w.r;
    scribble_seed = ~seed;
    for (int i = 0; i < 20; i++)
        work(&w); /* so that there is something */
#ifdef VM_HOOKS
    vm_fault_filter(now_and_then);
#endif
    for (int i = 0; i < STEPS / SLOWER; i++) {
        if (chance(&scribble_seed, 3) == 0)
            scribble(w.r, &scribble_seed);
        if (w.r->map.h->corrupt)
            heal(w.r, &scribble_seed);
        work(&w);
    }
    vm_detach(w.r);
}

/* ---- together ---- */

static void together(vm_pools d, uint64_t seed)
{
    vm_region *r = hostile_region(d);
    pid_t pid[3], hostile;
    double ends = seconds() + ROUND_S * SLOWER;
    for (size_t i = 0; i < LENGTH(pid); i++)
        CHILD(pid[i], {
            worker w = {.r = r, .seed = seed * 31 + i};
            alarm(HANGS_AFTER_S);
            while (seconds() < ends)
                work(&w);
        });
    CHILD(hostile, {
        for (uint64_t n = 0; seconds() < ends; n++) {
            scribble(r, &seed);
            if (r->map.h->corrupt)
                heal(r, &seed);
            if (n % 16 == 0)
                usleep(50); /* some things need a moment's peace to go wrong */
        }
    });
    for (size_t i = 0; i < LENGTH(pid); i++)
        ended_well(pid[i]);
    ended_well(hostile);
}

/* ---- rounds ---- */

static void a_round(void (*how)(vm_pools, uint64_t), const char *name, vm_pools d, uint64_t seed)
{
    pid_t pid;
    CHILD(pid, {
        alarm(HANGS_AFTER_S);
        how(d, seed);
    });
    int status = end_of(pid);
    if (status == 0)
        return;
    fprintf(stderr, "round %s, pools %s, seed %" PRIu64 ": ended with %s %d\n", name, vm_pools_name(d), seed,
            WIFSIGNALED(status) ? "signal" : "status", WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    fprintf(stderr, "again: test_hostile 1 %" PRIu64 "\n", seed);
    exit(1);
}

static double argument(int argc, char **argv, int i, const char *name, double otherwise)
{
    const char *text = argc > i ? argv[i] : getenv(name);
    return text && *text ? strtod(text, NULL) : otherwise;
}

int main(int argc, char **argv)
{
    double lasts = argument(argc, argv, 1, "VM_HOSTILE_SECONDS", 6), ends = seconds() + lasts;
    uint64_t seed = (uint64_t)argument(argc, argv, 2, "VM_HOSTILE_SEED", (double)(time(NULL) % 1000000) * 1000 + 1);
    uint64_t first = seed, nr = 0;
#ifdef VM_HOOKS
    vm_fault_assertions(false);
#endif
    printf("first seed %" PRIu64 "\n", first);
    do {
        FOR_EACH_DESIGN (d) {
            a_round(alone, "alone", d, seed);
            if (nr % 4 == 3)
                a_round(together, "together", d, seed);
        }
        seed++;
        nr++;
    } while (seconds() < ends);
    printf("%" PRIu64 " seeds from %" PRIu64 " on, each with %d pool designs\n", nr, first, (int)VM_NR_POOL_DESIGNS);
    return 0;
}
