/* SPDX-License-Identifier: MIT */
/*
 * CRASH: death before every shared write of every operation, in every design.
 *
 * Each operation runs once in a forked process (the victim) that notes which write sites it passes;
 * then once per write in a fresh victim that dies (SIGKILL) before it. This process, the survivor,
 * holds stamped ranges all the while, recovers, and asks:
 *   does check() find nothing? are my ranges and their bytes mine? can exactly the rest be handed
 *   out, each page once? and when I free all, is every page free?
 * Then the same with two deaths, the second while it recovers from the first, and with a live
 * neighbour who allocates and frees throughout. At the end every site in core/ must have killed.
 *
 * VM_CRASH_FULL=1 kills at every single write; otherwise the repeats of one site within one
 * operation (a loop over 256 pools) are thinned to the first two and the last. VM_CRASH_DESIGN=llist and
 * VM_CRASH_ONLY=part-of-an-operation's-name run less.
 */
#include "kit.h"

enum { PAGES = 12000, LOG_MAX = 1 << 16, GIFTS = 3, SURVIVORS = 5, NAMED_SITES = 1024, BUSY_SLOTS = 8, STAMP_EVERY = 10 };

/* ---- what all processes see ---- */

typedef struct passed {
    const char *file;
    int line;
} passed;

static struct board {
    uint32_t nr_log;
    passed last; /* where the last victim died */
    int ready, go;
    int neighbour; /* 1: work, 0: pause, 2: paused, -1: end */
    uint64_t neighbour_pairs;
    passed log[LOG_MAX];
} * board;

/* When to die: before the nth time that a site is passed. nth 0: not at all. */
typedef struct moment {
    passed at;
    uint32_t nth;
} moment;
#define NOT_ARMED ((moment){{NULL, 0}, 0})

static bool is_same(passed a, passed b) { return a.line == b.line && a.file == b.file; }

static bool is_logging, is_armed;
static moment death;
static void adopt_in_between(void);
static bool note(const char *file, int line, uint64_t nr_passed)
{
    passed now = {file, line};
    (void)nr_passed;
    adopt_in_between();
    if (is_logging && board->nr_log < LOG_MAX)
        board->log[board->nr_log++] = now;
    if (!is_armed || !is_same(now, death.at) || --death.nth)
        return false;
    board->last = now;
    return true;
}

static void arm(moment m)
{
    is_logging = m.nth == 0;
    is_armed = m.nth != 0;
    death = m;
    vm_fault_arm(is_armed ? 0 : -1);
}
static void disarm(void)
{
    is_logging = is_armed = false;
    vm_fault_arm(-1);
}

/* ---- which sites killed ---- */

static uint64_t site_kills[NAMED_SITES], nr_kills;

static void count_kill(passed at)
{
    nr_kills++;
    for (size_t i = 0; i < vm_fault_nr_sites(); i++) {
        const char *file;
        int line;
        vm_fault_site(i, &file, &line);
        if (line == at.line && strcmp(file, at.file) == 0)
            site_kills[i]++;
    }
}

static size_t report_sites(void)
{
    size_t nr = vm_fault_nr_sites(), killed = 0;
    CHECK(nr <= NAMED_SITES);
    for (size_t i = 0; i < nr; i++) {
        const char *file;
        int line;
        vm_fault_site(i, &file, &line);
        killed += site_kills[i] != 0;
        if (!site_kills[i])
            printf("never killed: %s:%d\n", strrchr(file, '/') ? strrchr(file, '/') + 1 : file, line);
    }
    printf("sites killed %zu/%zu, kills %" PRIu64 "\n", killed, nr, nr_kills);
    fflush(stdout);
    return nr - killed;
}

/* ---- the stage: a region, what the survivor holds, what it lends to the victim ---- */

typedef struct stage {
    vm_region *r;
    vm_pools d;
    vm_range mine[SURVIVORS], gift[GIFTS];
    bool gift_is_ours[GIFTS]; /* still to be freed by the survivor */
    vm_range held[80];        /* the victim's */
    size_t nr_held;
    uint64_t fake_slots[BUSY_SLOTS];
} stage;

typedef struct operation {
    const char *name;
    void (*before)(stage *);    /* by the survivor */
    void (*setup)(stage *);     /* by the victim, not armed */
    void (*meanwhile)(stage *); /* by the survivor, after setup */
    void (*run)(stage *);       /* by the victim, armed */
    void (*after)(stage *);     /* by the survivor, before it recovers */
    unsigned flags;
} operation;
enum {
    LLIST = 1 << VM_POOLS_LLIST,
    LOCKED = 1 << VM_POOLS_LOCKED | 1 << VM_POOLS_MAGAZINE,
    MAGAZINE = 1 << VM_POOLS_MAGAZINE,
    DESIGNS = 15,
    FORK = 16,    /* armed before the fork itself */
    ALONE = 32,   /* not with a neighbour, not as one of two deaths */
    PTHREAD = 64, /* only with pthread locks */
};

static vm_region *make_stage_region(vm_pools d, bool pthread_locks)
{
    return MAKE(.nr_pages = PAGES, .pools = d, .nr_nodes = 2, .nr_threads = BUSY_SLOTS, .lazy_pages_max = 1u << 28,
                .pthread_locks = pthread_locks);
}

static uint64_t stamp(const vm_range *a, uint64_t i) { return a->id * 1000003 + i; }
static uint64_t *first_of(vm_region *r, uint64_t page) { return vm_pointer(r, page); }

static void set_stage(stage *s)
{
    static const uint64_t sizes[SURVIVORS] = {1, 3, 20, 256, 300}, gifts[GIFTS] = {2, 2, 400};
    vm_range warm[12];
    for (int i = 0; i < 12; i++)
        warm[i] = take(s->r, (uint64_t)i / 4 + 1);
    for (int i = 0; i < SURVIVORS; i++) {
        s->mine[i] = take(s->r, sizes[i]);
        for (uint64_t p = 0; p < s->mine[i].nr_pages; p += STAMP_EVERY)
            *first_of(s->r, s->mine[i].page + p) = stamp(&s->mine[i], p);
    }
    for (int i = 0; i < GIFTS; i++) {
        s->gift[i] = take(s->r, gifts[i]);
        s->gift_is_ours[i] = true;
    }
    CHECK_EQ(vm_free_bulk(s->r, 12, warm), 0); /* something in our magazines, the pools, or lazy */
    s->nr_held = 0;
}

static void my_ranges_are_intact(stage *s)
{
    for (int i = 0; i < SURVIVORS; i++) {
        vm_range now;
        CHECK_EQ(vm_lookup(s->r, s->mine[i].page, &now), 0);
        CHECK(now.id == s->mine[i].id && now.nr_pages == s->mine[i].nr_pages);
        for (uint64_t p = 0; p < now.nr_pages; p += STAMP_EVERY)
            CHECK_EQ(*first_of(s->r, now.page + p), stamp(&now, p));
    }
}

static int collect_name(void *arg, const char *name, uint64_t page)
{
    (void)page;
    snprintf(arg, VM_NAME_BYTES, "%s", name);
    return 1;
}

static void drop_names_and_gifts(stage *s)
{
    char name[VM_NAME_BYTES];
    while (vm_name_list(s->r, collect_name, name) == 1)
        CHECK_EQ(vm_name_delete(s->r, name), 0);
    for (int i = 0; i < GIFTS; i++) {
        vm_range now;
        bool is_there = vm_lookup(s->r, s->gift[i].page, &now) == 0 && now.id == s->gift[i].id;
        if (s->gift_is_ours[i] && is_there)
            GIVE_BACK(s->r, s->gift[i]);
        else
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

static void nothing_is_lost(stage *s)
{
    CHECK_CLEAN(s->r);
    my_ranges_are_intact(s);
    drop_names_and_gifts(s);
    the_rest_can_be_handed_out_once(s);
    my_ranges_are_intact(s);
    CHECK_EQ(vm_free_bulk(s->r, SURVIVORS, s->mine), 0);
    CHECK_ALL_FREE(s->r);
    CHECK_EQ(stats_of(s->r).nr_processes, 1 + (board->neighbour > 0));
    CHECK_EQ(stats_of(s->r).nr_thread_slots, 1 + (board->neighbour > 0));
}

/* ---- operations ---- */

static void hold(stage *s, uint64_t nr_pages, size_t count)
{
    for (size_t i = 0; i < count; i++)
        s->held[s->nr_held++] = take(s->r, nr_pages);
}
static void let_go(stage *s)
{
    CHECK_EQ(vm_free_bulk(s->r, s->nr_held, s->held), 0);
    s->nr_held = 0;
}
static void nothing(stage *s) { (void)s; }

static void warm_up(stage *s)
{
    hold(s, 1, 2);
    let_go(s);
}
static void take_one(stage *s) { take(s->r, 1); }
static void take_first_aligned(stage *s)
{
    vm_range a;
    CHECK_EQ(vm_alloc(s->r, 5, 64, 0, &a), 0);
}
static void warm_up_forty(stage *s)
{
    hold(s, 2, 40);
    let_go(s);
}
static void take_forty(stage *s) { hold(s, 2, 40); }
static void hold_forty(stage *s) { hold(s, 2, 40); }
static void shelve(stage *s)
{
    hold(s, 300, 2);
    let_go(s);
}
static void take_large_warm(stage *s) { take(s->r, 290); }
static void use_up_most(stage *s)
{
    vm_range a;
    hold(s, 1000, 7);
    hold(s, 256, 10);
    hold(s, 3, 5);
    for (int i = 0; i < 7; i += 2)
        GIVE_BACK(s->r, s->held[i]);
    for (int i = 7; i < 22; i++)
        GIVE_BACK(s->r, s->held[i]);
    while (vm_alloc(s->r, 700, 1, VM_NO_PURGE, &a) == 0)
        ;
}
static void ask_for_too_much(stage *s)
{
    vm_range a;
    vm_alloc(s->r, 4000, 1, 0, &a);
}
static void take_bulk(stage *s) { CHECK_EQ(vm_alloc_bulk(s->r, 3, 1, 10, s->held), 0); }
static void take_congruent(stage *s)
{
    CHECK_EQ(vm_alloc_congruent(s->r, 3, (uint64_t[]){0, 32, 64}, (uint64_t[]){5, 20, 300}, 16, s->held), 0);
}
static void hold_twenty(stage *s) { hold(s, 20, 1); }
static void hold_large(stage *s) { hold(s, 700, 1); }
static void resize_to_ten(stage *s) { CHECK_EQ(vm_resize(s->r, &s->held[0], 10), 0); }
static void resize_to_fifty(stage *s) { CHECK_EQ(vm_resize(s->r, &s->held[0], 50), 0); }

static void free_gift_0(stage *s) { GIVE_BACK(s->r, s->gift[0]); }
static void free_gift_2(stage *s) { GIVE_BACK(s->r, s->gift[2]); }
static void hold_thirtyfive_big(stage *s) { hold(s, 250, 35); }
static void lower_the_threshold(stage *s)
{
    hold(s, 300, 2);
    s->r->h->lazy_pages_fixed = 100;
}
static void raise_the_threshold(stage *s) { s->r->h->lazy_pages_fixed = 1u << 28; }

/* All thread slots seem taken by us: the victim's thread gets none. */
static void occupy_slots(stage *s)
{
    for (uint32_t i = VM_PROCESSES; i < s->r->nr_threads; i++)
        if (!(s->r->slots[i].state & 1))
            s->r->slots[i].state |= (uint64_t)s->r->process << 1 | 1;
    s->r->h->high_slot = s->r->nr_threads;
}
static void vacate_slots(stage *s)
{
    uint32_t own = vm__thread(s->r)->index;
    for (uint32_t i = VM_PROCESSES; i < s->r->nr_threads; i++)
        if (i != own && (s->r->slots[i].state >> 1 & (VM_PROCESSES - 1)) == s->r->process)
            s->r->slots[i].state = ((s->r->slots[i].state >> 32) + 1) << 32;
}
static void take_and_free_many(stage *s)
{
    for (uint64_t n = 1; n < 400; n *= 3)
        hold(s, n, 2);
    let_go(s);
}

static void share_held(stage *s) { CHECK_EQ(vm_share(s->r, s->held[0].page, s->held[0].id), 0); }
static void hold_two(stage *s) { hold(s, 2, 2); }
static void share_gifts(stage *s)
{
    CHECK_EQ(vm_share(s->r, s->gift[0].page, s->gift[0].id), 0);
    CHECK_EQ(vm_share(s->r, s->gift[2].page, s->gift[2].id), 0);
}
static void adopt_gifts(stage *s)
{
    vm_range a;
    CHECK_EQ(vm_adopt(s->r, s->gift[0].page, s->gift[0].id, &a), 0);
    CHECK_EQ(vm_adopt(s->r, s->gift[2].page, s->gift[2].id, &a), 0);
}
static void adopt_stale(stage *s)
{
    vm_range a;
    CHECK_EQ(vm_adopt(s->r, s->gift[0].page, s->gift[0].id + 1, &a), -ESTALE);
}
static void drop_gifts(stage *s)
{
    GIVE_BACK(s->r, s->gift[0]);
    GIVE_BACK(s->r, s->gift[2]);
}
static void drop_gifts_here(stage *s)
{
    drop_gifts(s);
    s->gift_is_ours[0] = s->gift_is_ours[2] = false;
}
static void try_to_adopt(stage *s)
{
    vm_range a;
    vm_adopt(s->r, s->gift[0].page, s->gift[0].id, &a);
    vm_adopt(s->r, s->gift[2].page, s->gift[2].id, &a);
}
static void name_held(stage *s)
{
    CHECK_EQ(vm_name_set(s->r, "name", s->held[s->nr_held - 1].page, s->held[s->nr_held - 1].id, "meta", 4), 0);
}
static void name_first_and_hold_another(stage *s)
{
    hold(s, 2, 1);
    name_held(s);
    GIVE_BACK(s->r, s->held[0]);
    hold(s, 300, 1);
}
static void unname(stage *s) { CHECK_EQ(vm_name_delete(s->r, "name"), 0); }
static void name_and_let_go(stage *s)
{
    hold(s, 2, 1);
    name_held(s);
    let_go(s);
}
static void get_name(stage *s)
{
    char meta[8];
    size_t bytes = sizeof meta;
    CHECK_EQ(vm_name_get(s->r, "name", &s->held[0], meta, &bytes), 0);
}
static void try_names(stage *s)
{
    char meta[8];
    size_t bytes = sizeof meta;
    vm_range a;
    vm_name_get(s->r, "name", &a, meta, &bytes);
    vm_name_delete(s->r, "name");
}

static void make_a_mess(stage *s)
{
    for (uint64_t n = 1; n < 6; n++)
        hold(s, n, 7);
    hold(s, 300, 3);
    GIVE_BACK(s->r, s->held[36]); /* between two that stay until the end */
    s->held[36] = s->held[--s->nr_held];
    let_go(s);
}
static void purge(stage *s) { CHECK_EQ(vm_purge(s->r, NULL), 0); }
static void shrink(stage *s) { CHECK_EQ(vm_shrink(s->r, NULL), 0); }
static void recover(stage *s) { CHECK_EQ(vm_recover(s->r, NULL), 0); }
static void free_the_middle_of_three(stage *s)
{
    hold(s, 300, 3);
    GIVE_BACK(s->r, s->held[0]);
    GIVE_BACK(s->r, s->held[2]);
    CHECK_EQ(vm_shrink(s->r, NULL), 0);
    GIVE_BACK(s->r, s->held[1]);
}

static void attach(stage *s)
{
    vm_region *again;
    CHECK_EQ(vm_attach(vm_fd(s->r), &again), 0);
}
static void attach_and_detach(stage *s)
{
    vm_region *again;
    CHECK_EQ(vm_attach(vm_fd(s->r), &again), 0);
    take(again, 3);
    vm_range a = take(again, 300);
    CHECK_EQ(vm_share(again, a.page, a.id), 0);
    a = take(again, 2);
    GIVE_BACK(again, a);
    CHECK_EQ(vm_detach(again), 0);
}
/* Every process slot looks as a dead process's recovery left it half-way. */
static void leave_no_clean_process_slot(stage *s)
{
    for (uint32_t p = 0; p < VM_PROCESS_NAMES; p++)
        if ((uint32_t)s->r->processes[p].state == 0)
            s->r->processes[p].state |= VM_PROCESS_DYING;
}
static vm_token drain_at_exit; /* as if a neighbour were at it */
static void *take_free_and_exit(void *arg)
{
    stage *s = arg;
    hold(s, 2, 3);
    let_go(s);
    if (drain_at_exit)
        vm__thread(s->r)->slot->drain = drain_at_exit;
    return NULL;
}
static void run_a_thread(stage *s)
{
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, take_free_and_exit, s), 0);
    pthread_join(thread, NULL);
}
static void run_a_thread_while_drained(stage *s)
{
    drain_at_exit = vm__thread(s->r)->token;
    run_a_thread(s);
}

/* ---- what deaths leave behind, made by hand where a death in the right place is a matter of luck ---- */

static vm_token dead_token(stage *s) { return vm__token(s->r->nr_threads - 1, 0x3ff0); }
static void leave_a_mess(stage *s)
{
    vm_region *r = s->r;
    vm_head *gift = &r->heads[s->gift[0].page];
    share_gifts(s);
    gift->word = vm__word(VM_FREEING, VM_WORD_SHARED | VM_WORD_DIRTY, 2, 200, 0x3ff0); /* a dead one was freeing it */
    r->sharings[s->gift[2].page].holders[VM_PROCESS_NAMES / 64] |= 1ull << VM_PROCESS_NAMES % 64; /* half named */
    r->h->names_lock.needs_repair = 1;
    r->h->purge_lock.needs_repair = 1;
    r->h->lazy_pages += 5;
    uint64_t page = vm__index_find(r, 0, 100), start = vm__index_run_start(r, page); /* not yet merged */
    vm_word w = r->heads[start].word;
    r->heads[start + 10].word = vm__word(VM_FREE, w & VM_WORD_DIRTY, vm__len(w) - 10, 0, 0);
    r->heads[start].word = vm__word(VM_FREE, w & VM_WORD_DIRTY, 10, 0, 0);
    r->h->high_pages = 0;
    r->h->space_lock.needs_repair = 1;
    for (uint32_t i = VM_PROCESSES; i < r->nr_threads; i++)
        r->slots[i].drain = dead_token(s);
    r->h->high_slot = r->nr_threads;
}
static void leave_pools_in_use(stage *s)
{
    for (int n = 0; n < 2; n++)
        for (int i = 0; i < 4; i++)
            s->r->nodes[n].pool[i].in_use = dead_token(s);
}
static void die_with_the_space_lock(stage *s)
{
    IN_CHILD(CHECK_EQ(vm__lock(s->r, vm__thread(s->r), &s->r->h->space_lock, 0), 0));
}
static void set_in_motion(stage *s) /* we are alive, between a word and a list */
{
    s->r->heads[s->gift[1].page].word = vm__thread(s->r)->moving | 2ull << VM_WORD_LEN_SHIFT;
    s->r->h->purge_needs_scan = 1;
}
static void come_to_rest(stage *s)
{
    s->r->heads[s->gift[1].page].word = vm__thread(s->r)->busy | 2ull << VM_WORD_LEN_SHIFT;
}
static void drain_myself(stage *s)
{
    hold(s, 2, 2);
    vm__thread(s->r)->slot->drain = dead_token(s);
}
static void hold_warm(stage *s)
{
    hold(s, 2, 2);
    let_go(s);
    hold(s, 2, 2);
}
static void free_aligned_first(stage *s)
{
    hold(s, 2, 8);
    let_go(s);
    hold(s, 2, 2);
    if (s->held[0].page % 4) { /* the aligned one below the other */
        vm_range other = s->held[0];
        s->held[0] = s->held[1];
        s->held[1] = other;
    }
    let_go(s);
}
static void take_aligned(stage *s)
{
    vm_range a;
    CHECK_EQ(vm_alloc(s->r, 2, 4, 0, &a), 0);
}

/* A process without memory for its own lists. */
static bool realloc_fails;
#if SLOWER == 1
extern void *__libc_realloc(void *, size_t);
void *realloc(void *p, size_t bytes)
{
    if (realloc_fails)
        return errno = ENOMEM, NULL;
    return __libc_realloc(p, bytes);
}
#endif
static void purge_without_memory(stage *s)
{
    realloc_fails = true;
    CHECK_EQ(vm_purge(s->r, NULL), 0);
    realloc_fails = false;
}

/* Another process adopts just when the last holder has cleared its bit. */
static stage *adopted_meanwhile;
static void adopt_in_between(void)
{
    if (!adopted_meanwhile)
        return;
    vm_region *r = adopted_meanwhile->r;
    uint64_t page = adopted_meanwhile->gift[0].page, any = 0;
    for (int i = 0; i < VM_PROCESSES / 64; i++)
        any |= r->sharings[page].holders[i];
    if (any == 0 && vm__state(VM_LOAD(&r->heads[page].word)) == VM_BUSY) {
        r->sharings[page].holders[0] |= 1; /* the survivor's bit: it has process slot 0 */
        adopted_meanwhile = NULL;
    }
}
static void drop_gifts_while_adopted(stage *s)
{
    adopted_meanwhile = s;
    drop_gifts(s);
    adopted_meanwhile = NULL;
}
static void take_over(stage *s)
{
    vm_range a;
    s->gift_is_ours[0] = vm_adopt(s->r, s->gift[0].page, s->gift[0].id, &a) == 0;
}

static void create(stage *s)
{
    (void)s;
    vm_region *r = MAKE(.nr_pages = 1000, .nr_nodes = 2, .nr_threads = 2);
    take(r, 1);
}
static void create_with_pthreads(stage *s)
{
    (void)s;
    MAKE(.nr_pages = 1000, .nr_nodes = 2, .nr_threads = 2, .pthread_locks = true);
}
static void check_and_repair(stage *s) { vm_check(s->r, false, true, NULL, NULL); }

/* A word that does not parse: whoever meets it marks the region corrupt. */
static void break_a_word(stage *s)
{
    hold(s, 2, 1);
    s->held[1].id = s->r->heads[s->mine[4].page].word;
    s->r->heads[s->mine[4].page].word = 0;
}
static void meet_it(stage *s)
{
    vm_stats stats;
    vm_get_stats(s->r, &stats);
}
static void mend_the_word(stage *s)
{
    vm_thread *t = vm__thread(s->r);
    s->r->heads[s->mine[4].page].word = t->busy | s->mine[4].nr_pages << VM_WORD_LEN_SHIFT;
    s->r->h->corrupt = 0;
}

/* Hints that lie; the words know better. */
static void let_the_index_lie(stage *s)
{
    hold(s, 300, 3);
    GIVE_BACK(s->r, s->held[1]);
    uint64_t left = s->held[1].page - 1;
    s->r->bits[left / 64] &= ~(1ull << left % 64);
}
static void let_the_index_promise_too_much(stage *s)
{
    for (uint32_t i = 0; i < PAGES / 64; i++)
        s->r->bits[i] = 0;
    vm__index_summarise_all(s->r);
}
static void let_a_list_lie(stage *s)
{
    hold(s, 2, 1);
    s->r->nodes[0].lazy_head = (uint32_t)s->held[0].page + 1;
}
static void mend_hints(stage *s) { CHECK_EQ(vm_check(s->r, false, true, NULL, NULL) >= 0, 1); }

/* A live neighbour in the way. */
static int blocker_holds;
static void *hold_the_space_lock(void *arg)
{
    stage *s = arg;
    vm_thread *t = vm__thread(s->r);
    CHECK_EQ(vm__lock(s->r, t, &s->r->h->space_lock, 0), 0);
    __atomic_store_n(&blocker_holds, 1, __ATOMIC_RELEASE);
    usleep(5000);
    vm__unlock(s->r, t, &s->r->h->space_lock);
    return NULL;
}
static void take_while_locked(stage *s)
{
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, hold_the_space_lock, s), 0);
    while (!__atomic_load_n(&blocker_holds, __ATOMIC_ACQUIRE))
        sched_yield();
    take(s->r, 77);
    pthread_join(thread, NULL);
}
static void use_pools_forever(stage *s)
{
    s->r->nodes[1].pool[1].in_use = vm__thread(s->r)->token;
    s->r->h->purge_needs_scan = 1;
}
static void stop_using_pools(stage *s) { s->r->nodes[1].pool[1].in_use = 0; }
static void purge_impatiently(stage *s)
{
    vm_set_lock_timeout(s->r, 0.001);
    vm_purge(s->r, NULL);
}
static void hold_space_lock(stage *s) { CHECK_EQ(vm__lock(s->r, vm__thread(s->r), &s->r->h->space_lock, 0), 0); }
static void release_space_lock(stage *s) { vm__unlock(s->r, vm__thread(s->r), &s->r->h->space_lock); }

static const operation operations[] = {
    {"first alloc of a process", NULL, NULL, NULL, take_one, NULL, DESIGNS},
    {"alloc hit", NULL, warm_up, NULL, take_one, NULL, DESIGNS},
    {"alloc miss and refill", NULL, warm_up_forty, NULL, take_forty, NULL, DESIGNS},
    {"alloc aligned, split", NULL, warm_up, NULL, take_first_aligned, NULL, DESIGNS},
    {"alloc large, warm", NULL, shelve, NULL, take_large_warm, NULL, DESIGNS},
    {"alloc out of space", NULL, use_up_most, NULL, ask_for_too_much, NULL, DESIGNS},
    {"alloc bulk", NULL, warm_up, NULL, take_bulk, NULL, DESIGNS},
    {"alloc congruent", NULL, warm_up, NULL, take_congruent, NULL, DESIGNS},
    {"alloc while locked", NULL, warm_up, NULL, take_while_locked, NULL, DESIGNS | PTHREAD},
    {"alloc and free without a slot", occupy_slots, NULL, NULL, take_and_free_many, vacate_slots, DESIGNS | ALONE},
    {"resize small", NULL, hold_twenty, NULL, resize_to_ten, NULL, DESIGNS},
    {"resize large", NULL, hold_large, NULL, resize_to_ten, NULL, DESIGNS},
    {"resize larger", NULL, hold_twenty, NULL, resize_to_fifty, NULL, DESIGNS},
    {"free own", NULL, hold_two, NULL, let_go, NULL, DESIGNS},
    {"free own, warm", NULL, hold_warm, NULL, let_go, NULL, DESIGNS},
    {"alloc aligned, warm", NULL, free_aligned_first, NULL, take_aligned, NULL, DESIGNS},
    {"free large", NULL, hold_large, NULL, let_go, NULL, DESIGNS},
    {"free foreign", NULL, NULL, NULL, free_gift_0, NULL, DESIGNS},
    {"free foreign large", NULL, NULL, NULL, free_gift_2, NULL, DESIGNS},
    {"free, overflow", NULL, hold_forty, NULL, let_go, NULL, DESIGNS},
    {"free, pool overflow", NULL, hold_thirtyfive_big, NULL, let_go, NULL, DESIGNS},
    {"free over the threshold", NULL, lower_the_threshold, NULL, let_go, raise_the_threshold, DESIGNS | ALONE},
    {"share", NULL, hold_two, NULL, share_held, NULL, DESIGNS},
    {"adopt", share_gifts, NULL, NULL, adopt_gifts, NULL, DESIGNS},
    {"adopt stale", share_gifts, NULL, NULL, adopt_stale, NULL, DESIGNS},
    {"drop", share_gifts, adopt_gifts, NULL, drop_gifts, NULL, DESIGNS},
    {"drop, last holder", share_gifts, adopt_gifts, drop_gifts_here, drop_gifts, NULL, DESIGNS},
    {"name", NULL, hold_two, NULL, name_held, NULL, DESIGNS},
    {"name replaced", NULL, name_first_and_hold_another, NULL, name_held, NULL, DESIGNS},
    {"name deleted", NULL, name_and_let_go, NULL, unname, NULL, DESIGNS},
    {"name got", NULL, name_and_let_go, NULL, get_name, NULL, DESIGNS},
    {"purge", NULL, make_a_mess, NULL, purge, NULL, DESIGNS},
    {"shrink and drain", NULL, make_a_mess, NULL, shrink, NULL, DESIGNS},
    {"merge with both sides", NULL, free_the_middle_of_three, NULL, purge, NULL, DESIGNS},
    {"attach", NULL, NULL, NULL, attach, NULL, DESIGNS},
    {"attach and detach", NULL, NULL, NULL, attach_and_detach, NULL, DESIGNS},
    {"attach in a dead one's place", leave_no_clean_process_slot, NULL, NULL, attach, NULL, DESIGNS | ALONE},
    {"fork", NULL, NULL, NULL, warm_up, NULL, DESIGNS | FORK},
    {"fork in a dead one's place", leave_no_clean_process_slot, NULL, NULL, nothing, NULL, DESIGNS | FORK | ALONE},
    {"thread exit", NULL, warm_up, NULL, run_a_thread, NULL, DESIGNS},
    {"thread exit while drained", NULL, warm_up, NULL, run_a_thread_while_drained, NULL, DESIGNS | ALONE},
    {"recover a mess", leave_a_mess, NULL, NULL, recover, NULL, DESIGNS | ALONE},
    {"adopt in a mess", leave_a_mess, NULL, NULL, adopt_gifts, NULL, DESIGNS | ALONE},
    {"alloc and free in a mess", leave_a_mess, NULL, NULL, take_and_free_many, NULL, DESIGNS | ALONE},
    {"shrink in a mess", leave_a_mess, NULL, NULL, shrink, NULL, DESIGNS | ALONE},
    {"names in a mess", leave_a_mess, hold_two, NULL, name_held, NULL, DESIGNS | ALONE},
    {"pools in use by the dead", leave_pools_in_use, NULL, NULL, take_and_free_many, NULL, LLIST | ALONE},
    {"space locked by the dead", die_with_the_space_lock, NULL, NULL, take_and_free_many, NULL, DESIGNS | ALONE | PTHREAD},
    {"scan with a range in motion", set_in_motion, NULL, NULL, recover, come_to_rest, DESIGNS | ALONE},
    {"drained by the dead", NULL, drain_myself, NULL, take_and_free_many, NULL, DESIGNS | ALONE},
    {"purge without memory", NULL, make_a_mess, NULL, purge_without_memory, NULL, DESIGNS | ALONE},
    {"drop while another adopts", share_gifts, adopt_gifts, drop_gifts_here, drop_gifts_while_adopted, take_over, DESIGNS | ALONE},
    {"create", NULL, NULL, NULL, create, NULL, MAGAZINE | ALONE},
    {"create with pthread locks", NULL, NULL, NULL, create_with_pthreads, NULL, MAGAZINE | ALONE},
    {"check and repair", NULL, make_a_mess, NULL, check_and_repair, NULL, DESIGNS | ALONE},
    {"meet corruption", NULL, break_a_word, NULL, meet_it, mend_the_word, DESIGNS | ALONE},
    {"purge with a lying index", NULL, let_the_index_lie, NULL, purge, mend_hints, DESIGNS | ALONE},
    {"alloc with a lying index", NULL, let_the_index_promise_too_much, NULL, take_large_warm, mend_hints, DESIGNS | ALONE},
    {"purge with a lying list", NULL, let_a_list_lie, NULL, purge, NULL, DESIGNS | ALONE},
    {"scan while a pool is in use", use_pools_forever, make_a_mess, NULL, purge_impatiently, stop_using_pools,
     LLIST | ALONE},
    {"purge while space is locked", NULL, make_a_mess, hold_space_lock, purge_impatiently, release_space_lock,
     DESIGNS | ALONE},
};

/* What may meet a death half-way through another operation. */
static const operation second_operations[] = {
    {"recover", NULL, NULL, NULL, recover, NULL, DESIGNS},
    {"then adopt", NULL, NULL, NULL, try_to_adopt, NULL, DESIGNS},
    {"then names", NULL, NULL, NULL, try_names, NULL, DESIGNS},
    {"then alloc", NULL, NULL, NULL, take_and_free_many, NULL, DESIGNS},
};

/* ---- one life and death ---- */

static void live(stage *s, const operation *op, moment m)
{
    if (op->setup && !(op->flags & FORK))
        op->setup(s);
    if (op->meanwhile) {
        __atomic_store_n(&board->ready, 1, __ATOMIC_RELEASE);
        while (!__atomic_load_n(&board->go, __ATOMIC_ACQUIRE))
            sched_yield();
    }
    if (!(op->flags & FORK))
        arm(m);
    op->run(s);
    disarm();
}

/* Runs op in a victim that dies at that moment. False: it lived to the end. */
static bool victim_dies(stage *s, const operation *op, moment m)
{
    pid_t pid;
    board->ready = board->go = 0;
    board->nr_log = m.nth ? board->nr_log : 0;
    if (op->flags & FORK)
        arm(m);
    CHILD(pid, live(s, op, m));
    disarm();
    int status = 0;
    if (op->meanwhile) {
        while (!__atomic_load_n(&board->ready, __ATOMIC_ACQUIRE) && waitpid(pid, &status, WNOHANG) == 0)
            sched_yield();
        CHECK(board->ready);
        op->meanwhile(s);
        __atomic_store_n(&board->go, 1, __ATOMIC_RELEASE);
    }
    status = end_of(pid);
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && m.nth) {
        count_kill(board->last);
        return true;
    }
    if (!WIFEXITED(status) || WEXITSTATUS(status)) {
        fprintf(stderr, "the victim ended with status 0x%x\n", (unsigned)status);
        exit(1);
    }
    return false;
}

/* Which writes to die before: all, or without the many repeats of a site within one operation. */
static size_t choose(moment *chosen, uint32_t repeats)
{
    size_t nr = 0;
    bool all = getenv("VM_CRASH_FULL") != NULL;
    for (uint32_t k = 0; k < board->nr_log; k++) {
        uint32_t nth = 1;
        bool is_last = true;
        for (uint32_t i = 0; i < k; i++)
            nth += is_same(board->log[i], board->log[k]);
        for (uint32_t i = k + 1; i < board->nr_log && is_last && nth > repeats; i++)
            is_last = !is_same(board->log[i], board->log[k]);
        if (all || nth <= repeats || (is_last && repeats > 1))
            chosen[nr++] = (moment){board->log[k], nth};
    }
    return nr;
}

static char doing[256];
static void say_where(void)
{
    if (*doing)
        fprintf(stderr, "while: %s\n", doing);
}
static void say_moment(moment m)
{
    size_t n = strlen(doing);
    if (m.nth)
        snprintf(doing + n, sizeof doing - n, ", death at %s:%d, pass %u",
                 strrchr(m.at.file, '/') ? strrchr(m.at.file, '/') + 1 : m.at.file, m.at.line, m.nth);
}
static void now_doing(const stage *s, const char *first, moment m, const char *second, moment m2)
{
    snprintf(doing, sizeof doing, "%s%s, %s", design_name[s->d], s->r->flags & VM_FLAG_PTHREAD ? " (pthread)" : "", first);
    say_moment(m);
    if (second)
        snprintf(doing + strlen(doing), sizeof doing - strlen(doing), ", %s", second);
    say_moment(m2);
}

static void one_death(stage *s, const operation *op, moment k)
{
    now_doing(s, op->name, k, NULL, NOT_ARMED);
    set_stage(s);
    if (op->before)
        op->before(s);
    victim_dies(s, op, k);
    if (op->after)
        op->after(s);
    CHECK_EQ(vm_recover(s->r, NULL), 0);
    nothing_is_lost(s);
}

static void deaths_in(stage *s, const operation *op)
{
    static moment chosen[LOG_MAX];
    one_death(s, op, NOT_ARMED);
    CHECK(board->nr_log > 0 && board->nr_log < LOG_MAX);
    size_t nr = choose(chosen, SLOWER == 1 ? 2 : 1), step = SLOWER == 1 ? 1 : nr / 4 + 1;
    for (size_t i = 0; i < nr; i += step)
        one_death(s, op, chosen[i]);
}

/* The second dies while it cleans up after the first, or runs into its mess. */
static void two_deaths(stage *s, const operation *op, moment k, const operation *second, moment k2)
{
    now_doing(s, op->name, k, second->name, k2);
    set_stage(s);
    if (op->before)
        op->before(s);
    victim_dies(s, op, k);
    victim_dies(s, second, k2);
    if (op->after)
        op->after(s);
    CHECK_EQ(vm_recover(s->r, NULL), 0);
    nothing_is_lost(s);
}

static void second_deaths_in(stage *s, const operation *op, size_t most_first, size_t most_second, uint64_t *seed)
{
    static moment first[LOG_MAX], next[LOG_MAX];
    one_death(s, op, NOT_ARMED);
    size_t nr_first = choose(first, 1);
    for (size_t i = 0; i < most_first && nr_first; i++) {
        moment k = first[random_below(seed, nr_first)];
        const operation *second = &second_operations[i % LENGTH(second_operations)];
        two_deaths(s, op, k, second, NOT_ARMED);
        size_t nr = choose(next, 1);
        size_t most = second == second_operations ? most_second : most_second / 4;
        for (size_t n = 0; n < most && nr; n++) {
            size_t pick = random_below(seed, nr);
            two_deaths(s, op, k, second, next[pick]);
            next[pick] = next[--nr];
        }
    }
}

/* ---- a neighbour who works throughout ---- */

static void be_a_neighbour(vm_region *r)
{
    enum { LIVE = 12 };
    vm_range live[LIVE] = {0};
    uint64_t seed = 99;
    int order;
    while ((order = __atomic_load_n(&board->neighbour, __ATOMIC_ACQUIRE)) != -1) {
        uint64_t i = random_below(&seed, LIVE);
        bool is_pause = order != 1;
        if (is_pause) {
            for (i = 0; i < LIVE; i++)
                if (live[i].nr_pages)
                    GIVE_BACK(r, live[i]);
            memset(live, 0, sizeof live);
            if (order == 0)
                __atomic_store_n(&board->neighbour, 2, __ATOMIC_RELEASE);
            usleep(100);
        } else if (live[i].nr_pages) {
            for (uint64_t p = 0; p < live[i].nr_pages; p++)
                CHECK_EQ(*first_of(r, live[i].page + p), stamp(&live[i], p));
            GIVE_BACK(r, live[i]);
            live[i].nr_pages = 0;
            board->neighbour_pairs++;
        } else if (vm_alloc(r, random_pages(&seed, 300), 1, VM_NO_PURGE, &live[i]) == 0) {
            for (uint64_t p = 0; p < live[i].nr_pages; p++)
                *first_of(r, live[i].page + p) = stamp(&live[i], p);
        }
    }
}
static void neighbour_works(void)
{
    __atomic_store_n(&board->neighbour, 1, __ATOMIC_RELEASE);
}
static void neighbour_pauses(pid_t pid)
{
    __atomic_store_n(&board->neighbour, 0, __ATOMIC_RELEASE);
    while (__atomic_load_n(&board->neighbour, __ATOMIC_ACQUIRE) != 2) {
        CHECK_EQ(waitpid(pid, NULL, WNOHANG), 0);
        sched_yield();
    }
}

static void deaths_beside_a_neighbour(stage *s, size_t most, uint64_t *seed)
{
    static moment chosen[LOG_MAX];
    pid_t pid;
    snprintf(doing, sizeof doing, "%s, the neighbour", design_name[s->d]);
    board->neighbour = 1;
    CHILD(pid, be_a_neighbour(s->r));
    neighbour_pauses(pid);
    for (size_t o = 0; o < LENGTH(operations); o++) {
        const operation *op = &operations[o];
        if (op->flags & (ALONE | PTHREAD) || !(op->flags & 1u << s->d) || op->run == ask_for_too_much
            || op->setup == hold_thirtyfive_big)
            continue; /* it wants nearly all of the region for itself */
        size_t nr = 0;
        for (size_t i = 0; i <= most; i++) {
            moment k = i && nr ? chosen[random_below(seed, nr)] : NOT_ARMED;
            now_doing(s, op->name, k, "beside a neighbour", NOT_ARMED);
            set_stage(s);
            if (op->before)
                op->before(s);
            neighbour_works();
            victim_dies(s, op, k);
            CHECK_EQ(vm_recover(s->r, NULL), 0);
            neighbour_pauses(pid);
            CHECK_EQ(vm_recover(s->r, NULL), 0); /* at rest: what was in motion before has settled */
            nothing_is_lost(s);
            if (i == 0)
                nr = choose(chosen, 1); /* of the first, who lived */
        }
    }
    __atomic_store_n(&board->neighbour, -1, __ATOMIC_RELEASE);
    ended_well(pid);
    board->neighbour = 0;
    CHECK_EQ(vm_recover(s->r, NULL), 0);
}

/* One CPU for survivor and victim: a fork runs at once, and both see one node first. */
static void stay_here(void)
{
    cpu_set_t set;
    int cpu = sched_getcpu();
    CPU_ZERO(&set);
    CPU_SET(cpu < 0 ? 0 : cpu, &set);
    sched_setaffinity(0, sizeof set, &set);
}

static bool selected(const char *name)
{
    const char *only = getenv("VM_CRASH_ONLY");
    return !only || strstr(name, only);
}

int main(void)
{
    if (IS_TSAN)
        return 2; /* not built to run under it: see LEFT_OUT in test_c.py */
    uint64_t seed = 12345;
    double started = seconds();
    const char *only_design = getenv("VM_CRASH_DESIGN");
    board = shared_memory(sizeof *board);
    vm_fault_filter(note);
    atexit(say_where);
    if (getenv("VM_CRASH_PIN"))
        stay_here();
    FOR_EACH_DESIGN (d)
        for (int pthreads = 0; pthreads < 2; pthreads++) {
            if (only_design && strcmp(only_design, design_name[d]) != 0)
                continue;
            stage s = {.r = make_stage_region(d, pthreads), .d = d};
            for (size_t i = 0; i < LENGTH(operations); i++) {
                const operation *op = &operations[i];
                bool wanted = op->flags & 1u << d && (!pthreads || op->flags & PTHREAD) && selected(op->name);
                if (wanted)
                    deaths_in(&s, op);
                if (wanted && SLOWER == 1 && !pthreads && !(op->flags & (ALONE | FORK | PTHREAD)))
                    second_deaths_in(&s, op, 4, 12, &seed);
            }
            if (!pthreads && SLOWER == 1 && !getenv("VM_CRASH_ONLY"))
                deaths_beside_a_neighbour(&s, 4, &seed);
            CHECK_EQ(vm_detach(s.r), 0);
            printf("%s%s: %.1f s, kills %" PRIu64 "\n", design_name[d], pthreads ? " (pthread)" : "",
                   seconds() - started, nr_kills);
            fflush(stdout);
        }
    *doing = 0;
    size_t never = report_sites();
    if (SLOWER == 1 && !only_design && !getenv("VM_CRASH_ONLY"))
        CHECK_EQ(never, 0);
    return 0;
}
