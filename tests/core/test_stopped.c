/* SPDX-License-Identifier: MIT */
/*
 * A neighbour is stopped in each lock in turn while each function is called. Who has to wait for him gives up and learns his
 * pid; who need not does not sleep for any lock. Whoever sleeps says so in the lock's word.
 */
#include "kit.h"

enum { HELD = 40, LONG = 700, TOO_LONG = 19000, PAGES = 20000 };

typedef struct scene {
    vm_region *r;
    vm_range held[HELD], longer[3]; /* of 4 pages; of LONG */
    uint64_t lease, own_lease;
    size_t next; /* of held: each is used once */
} scene;

static vm_range *another(scene *s)
{
    CHECK(s->next < HELD);
    return &s->held[s->next++];
}

/* ---- what is called ---- */

static int give_back(scene *s)
{
    const vm_range *a = another(s);
    return vm_free(s->r, a->page, a->id, 0);
}
static int give_back_a_long_one(scene *s) { return vm_free(s->r, s->longer[0].page, s->longer[0].id, 0); }
static int give_back_some(scene *s)
{
    s->next += 4;
    return vm_free_bulk(s->r, 4, &s->held[s->next - 4]);
}
static int give_back_and_keep(scene *s)
{
    const vm_range *a = another(s);
    vm_range kept;
    return vm_free_kept(s->r, a->page, a->id, 0, &kept);
}
static int alloc(scene *s, uint64_t nr_pages, uint64_t align_pages)
{
    vm_range a;
    return vm_alloc(s->r, nr_pages, align_pages, 0, &a);
}
static int alloc_small(scene *s) { return alloc(s, 5, 1); }
static int alloc_long(scene *s) { return alloc(s, 900, 1); }
static int alloc_aligned(scene *s) { return alloc(s, 64, 64); }
static int alloc_too_long(scene *s) { return alloc(s, TOO_LONG, 1) == -ENOSPC ? 0 : 1; }
static int alloc_some(scene *s)
{
    vm_range some[20];
    return vm_alloc_bulk(s->r, 7, 1, LENGTH(some), some);
}
static int alloc_congruent(scene *s)
{
    vm_range two[2];
    return vm_alloc_congruent(s->r, 2, (uint64_t[]){0, 16}, (uint64_t[]){4, 4}, 1, two);
}
static int alloc_cold(scene *s)
{
    vm_range a;
    return vm_alloc_cold(s->r, 8, 1, &a);
}
static int shorten(scene *s) { return vm_resize(s->r, &s->longer[1], LONG - 1); }
static int lengthen(scene *s) { return vm_resize(s->r, &s->longer[2], LONG + 1); }
static int share_and_adopt(scene *s)
{
    const vm_range *a = another(s);
    vm_range same;
    int rc = vm_share(s->r, a->page, a->id);
    return rc ? rc : vm_adopt(s->r, a->page, a->id, &same);
}
static int lend(scene *s)
{
    const vm_range *a = another(s);
    uint64_t lease;
    return vm_lease(s->r, a->page, a->id, &lease);
}
static int claim(scene *s)
{
    vm_range same;
    return vm_claim(s->r, s->held[0].page, s->held[0].id, s->lease, &same);
}
static int drop_lease(scene *s) { return vm_drop_lease(s->r, s->own_lease); }
static int end_oldest(scene *s)
{
    uint64_t nr;
    return vm_end_oldest(s->r, 1, &nr);
}
static int expire(scene *s)
{
    uint64_t nr;
    return vm_expire_leases(s->r, 1, &nr);
}
static int set_name(scene *s)
{
    const vm_range *a = another(s);
    return vm_name_set(s->r, "another", a->page, a->id, "", 0);
}
static int get_name(scene *s)
{
    vm_range same;
    char meta[8];
    size_t bytes = sizeof meta;
    return vm_name_get(s->r, "it", &same, meta, &bytes);
}
static int delete_name(scene *s) { return vm_name_delete(s->r, "it"); }
static int note_name(void *arg, const char *name, uint64_t page)
{
    (void)arg, (void)name, (void)page;
    return 0;
}
static int list_names(scene *s) { return vm_name_list(s->r, note_name, NULL); }
static int warm_up(scene *s)
{
    const vm_range *a = another(s);
    int rc = vm_populate(s->r, a->page, a->nr_pages);
    rc = rc ? rc : vm_keep_warm(s->r, 10);
    return rc ? rc : vm_zero(s->r, a->page, a->nr_pages * vm__page_bytes());
}
static int tick(scene *s)
{
    vm_clock_advance(2 * VM_TICK_MS * 1000000ull);
    return vm_tick(s->r);
}
static int purge(scene *s) { return vm_purge(s->r, NULL); }
static int shrink(scene *s) { return vm_shrink(s->r, NULL); }
static int recover(scene *s) { return vm_recover(s->r, NULL); }
static int stats(scene *s)
{
    vm_stats told;
    return vm_get_stats(s->r, &told);
}
static int look(scene *s)
{
    vm_glance glance;
    vm_holding who[4];
    vm_get_glance(s->r, &glance);
    return vm_holdings(s->r, LENGTH(who), who) < 0;
}
static int explain(scene *s)
{
    vm_shortage why;
    return vm_explain(s->r, TOO_LONG, -ENOSPC, &why);
}
static int set_limits(scene *s)
{
    int rc = vm_set_limit(s->r, VM_LIMIT, PAGES);
    return rc ? rc : vm_set_limit(s->r, VM_SOFT_LIMIT, PAGES);
}
static int note_range(void *arg, const vm_range_info *range)
{
    (void)arg, (void)range;
    return 0;
}
static int walk(scene *s) { return vm_walk(s->r, note_range, NULL); }
static int check(scene *s) { return vm_check(s->r, false, say_finding, "beside a stopped one"); }
static void hear(void *arg, const char *text) { (void)arg, (void)text; } /* what is on the move may be told */
static int repair(scene *s)
{
    int rc = vm_repair(s->r, hear, NULL);
    return rc < 0 ? rc : 0;
}
static int record(scene *s)
{
    vm_recorder *rec = NULL;
    int rc = vm_record_start(s->r, false, &rec);
    if (rc == 0)
        vm_record_end(rec);
    return rc;
}

typedef struct call {
    const char *name;
    int (*run)(scene *);
    bool never_waits;
} call;
static const call calls[] = {
    {"free", give_back, true},
    {"free a long one", give_back_a_long_one, true},
    {"free some", give_back_some, true},
    {"free and keep", give_back_and_keep, true},
    {"share and adopt", share_and_adopt, true},
    {"list names", list_names, true},
    {"make resident", warm_up, true},
    {"tick", tick, true},
    {"look", look, true},
    {"limits", set_limits, true},
    {"record", record, true},
    {"alloc", alloc_small, false},
    {"alloc a long one", alloc_long, false},
    {"alloc an aligned one", alloc_aligned, false},
    {"alloc one too long", alloc_too_long, false},
    {"alloc some", alloc_some, false},
    {"alloc congruent", alloc_congruent, false},
    {"alloc cold", alloc_cold, false},
    {"shorten", shorten, false},
    {"lengthen", lengthen, false},
    {"lease", lend, false},
    {"claim", claim, false},
    {"drop lease", drop_lease, false},
    {"end oldest", end_oldest, false},
    {"expire", expire, false},
    {"set name", set_name, false},
    {"get name", get_name, false},
    {"delete name", delete_name, false},
    {"purge", purge, false},
    {"shrink", shrink, false},
    {"recover", recover, false},
    {"stats", stats, false},
    {"explain", explain, false},
    {"walk", walk, false},
    {"check", check, false},
    {"repair", repair, false},
};

/* ---- who is stopped ---- */

static char *const lock_names[] = {"purge", "names", "lease", "space", "warm", "pool"};

static vm_lock *lock_of(vm_region *r, size_t i)
{
    vm_header *h = r->map.h;
    vm_lock *const all[] = {&h->purge_lock, &h->names_lock, &h->lease_lock,
                            &h->space_lock, &h->warm.lock,  &r->map.nodes[0].pool_lock};
    return all[i];
}

static void set_scene(scene *s)
{
    vm_range other;
    for (size_t i = 0; i < LENGTH(s->longer); i++)
        s->longer[i] = take(s->r, LONG);
    for (size_t i = 0; i < HELD; i++)
        s->held[i] = take(s->r, 4);
    other = *another(s); /* the first: shared, named and lent */
    CHECK_EQ(vm_share(s->r, other.page, other.id), 0);
    CHECK_EQ(vm_name_set(s->r, "it", other.page, other.id, "", 0), 0);
    CHECK_EQ(vm_lease(s->r, other.page, other.id, &s->lease), 0);
    CHECK_EQ(vm_lease(s->r, other.page, other.id, &s->own_lease), 0);
}

static void until_it_stops(pid_t child)
{
    int status;
    CHECK_EQ(waitpid(child, &status, WUNTRACED), child);
    CHECK(WIFSTOPPED(status));
}

/* It is forked before there is anything to inherit: what is private here stays so. */
static pid_t fork_neighbour(vm_region *r, vm_lock *lock)
{
    pid_t child;
    CHILD(child, {
        raise(SIGSTOP);
        CHECK_EQ(vm__lock(vm__thread(r), lock, 0), 0);
        raise(SIGSTOP);
    });
    until_it_stops(child);
    return child;
}

static void call_beside(scene *s, const call *c, const vm_lock *lock, pid_t stopped, const char *where)
{
    int rc = c->run(s);
    bool has_slept = VM_RELAXED(&lock->owner) & VM_TOKEN_WAITERS;
    bool is_right = rc == 0 || (rc == -EBUSY && vm_busy_pid(s->r) == (uint32_t)stopped);
    if (!is_right || (c->never_waits && (rc || has_slept)))
        fprintf(stderr, "%s beside one stopped in the %s lock: %d, pid %u\n", c->name, where, rc, vm_busy_pid(s->r));
    CHECK(is_right);
    CHECK(!c->never_waits || (rc == 0 && !has_slept));
}

/* Those that wait come last: a lock's word says once and for all that somebody slept. */
static void who_waits_learns_his_pid_and_who_need_not_does_not(vm_pools d)
{
    for (size_t i = 0; i < LENGTH(lock_names); i++) {
        scene s = {.r = MAKE(.nr_pages = PAGES, .pools = d, .nr_nodes = 1, .nr_threads = 8, .lazy_pages_max = 3000)};
        vm_lock *lock = lock_of(s.r, i);
        pid_t stopped = fork_neighbour(s.r, lock);
        set_scene(&s);
        kill(stopped, SIGCONT);
        until_it_stops(stopped);
        vm_set_lock_timeout(s.r, 0.02);
        for (size_t k = 0; k < LENGTH(calls); k++)
            call_beside(&s, &calls[k], lock, stopped, lock_names[i]);
        kill(stopped, SIGKILL);
        CHECK_EQ(waitpid(stopped, NULL, 0), stopped);
        vm_set_lock_timeout(s.r, 60);
        CHECK_EQ(vm_recover(s.r, NULL), 0);
        CHECK_EQ(vm_purge(s.r, NULL), 0);
        CHECK_EQ(vm_check(s.r, false, say_finding, lock_names[i]), 0);
        CHECK_EQ(vm_detach(s.r), 0);
    }
}

int main(void)
{
    who_waits_learns_his_pid_and_who_need_not_does_not(VM_POOLS_LOCKED);
    who_waits_learns_his_pid_and_who_need_not_does_not(VM_POOLS_MAGAZINE);
    return 0;
}
