/* SPDX-License-Identifier: MIT */
/*
 * WORKER: one of the soak's processes. Whatever the interface offers, in random order, by up to three threads
 * at once, until somebody kills it.
 *
 * Each thread has a lane of claims of its own on the process's row. The first thread also starts and joins
 * the others, forks, detaches and offers.
 */
#include "soak.h"

#include <fcntl.h>

enum { PAGES_MOST = 600, OPERATIONS_OF_A_THREAD = 400, REST_US = 200 };

typedef struct lane {
    uint32_t index;
    uint64_t seed;
    pthread_t thread;
    bool runs;       /* [main] */
    uint32_t stop, ended, parked;
} lane;

static vm_region *r;
static row *mine;
static uint32_t me; /* my name */
static lane lanes[LANES];
static pthread_rwlock_t calm; /* read: in an operation; written: a fork while no other thread is in one */

static uint64_t below(lane *l, uint64_t n) { return random_below(&l->seed, n); }
static bool one_in(lane *l, uint64_t n) { return below(l, n) == 0; }
static uint32_t phase(void) { return __atomic_load_n(&the_board->phase, __ATOMIC_SEQ_CST); }

/* Did it work? Not if it would have had to wait for a stopped process; all else is a violation. */
static bool worked(int rc, const char *what, uint64_t page, uint64_t id)
{
    if (rc == 0)
        return true;
    if (rc == -EBUSY)
        BUMP(nr_busy);
    else
        violation("row %u: %s of page %" PRIu64 ", id %" PRIx64 ": %s", me & 0xff, what, page, id, strerror(-rc));
    return false;
}

/* ---- my claims ---- */

static claim *random_cell(lane *l) { return &mine->claims[l->index][below(l, CELLS)]; }

/* One of my lane that is of this kind, or NULL. */
static claim *some(lane *l, uint32_t kind)
{
    uint64_t from = below(l, CELLS);
    for (uint64_t k = 0; k < CELLS; k++) {
        claim *c = &mine->claims[l->index][(from + k) % CELLS];
        if (kind_of(read_mark(&c->mark)) == kind)
            return c;
    }
    return NULL;
}

static void look(uint64_t page, uint64_t nr_pages, uint64_t id, const char *what)
{
    char found[160];
    if (!stamps_are(r, page, nr_pages, id, found, sizeof found))
        violation("row %u: %s pages %" PRIu64 " + %" PRIu64 ", id %" PRIx64 ", but %s", me & 0xff, what, page, nr_pages,
                  id, found);
}

static void put_claim(claim *c, const vm_range *a, bool is_shared)
{
    c->page = a->page, c->nr_pages = a->nr_pages, c->id = a->id;
    c->is_shared = is_shared, c->is_inherited = false;
    set_mark(&c->mark, HELD);
}

/* A claim of mine that nobody else may use now. */
static void let_go(lane *l, claim *c)
{
    unsigned flags = c->is_inherited ? VM_INHERITED : 0;
    look(c->page, c->nr_pages, c->id, "frees");
    set_mark(&c->mark, NOTHING);
    int rc = one_in(l, 4) ? vm_free(r, c->page, c->id, flags | VM_HIT_ONLY) : -EAGAIN;
    if (rc == -EAGAIN)
        rc = vm_free(r, c->page, c->id, flags);
    if (the_board->mistake == WRITES_AFTER_FREE)
        *(uint64_t *)vm_pointer(r, c->page) = 1;
    if (!worked(rc, c->is_shared ? "free (shared)" : "free", c->page, c->id))
        set_mark(&c->mark, HELD);
    else if (!c->is_shared && one_in(l, 16) && vm_free(r, c->page, c->id, 0) == 0)
        violation("row %u: page %" PRIu64 ", id %" PRIx64 " could be freed twice", me & 0xff, c->page, c->id);
}

/* ---- alone ---- */

static void have(claim *c, const vm_range *a, uint64_t nr_pages, uint64_t align_pages)
{
    if (a->nr_pages < nr_pages || a->page % align_pages)
        violation("row %u: asked for %" PRIu64 " pages at a multiple of %" PRIu64 ", got %" PRIu64 " at %" PRIu64,
                  me & 0xff, nr_pages, align_pages, a->nr_pages, a->page);
    for (uint64_t p = a->page; a->zeroed && p < a->page + a->nr_pages; p++)
        if (*(const uint64_t *)vm_pointer(r, p))
            violation("row %u: page %" PRIu64 " should be zeros", me & 0xff, p);
    stamp_pages(r, a->page, a->nr_pages, a->id, me);
    put_claim(c, a, false);
}

static bool was_refused(int rc, unsigned flags)
{
    if (rc != -ENOSPC && !(rc == -EAGAIN && flags & (VM_NO_WAIT | VM_HIT_ONLY)))
        return false;
    BUMP(nr_refused);
    return true;
}

static void allocate(lane *l)
{
    static const unsigned some_flags[] = {0, 0, 0, VM_NO_PURGE, VM_NO_WAIT, VM_HIT_ONLY};
    claim *c = some(l, NOTHING);
    uint64_t nr_pages = random_pages(&l->seed, PAGES_MOST), align = one_in(l, 6) ? 1ull << below(l, 5) : 1;
    unsigned flags = some_flags[below(l, LENGTH(some_flags))];
    vm_range a;
    if (!c)
        return;
    int rc = vm_alloc(r, nr_pages, align, flags, &a);
    if (was_refused(rc, flags) || !worked(rc, "alloc", 0, nr_pages))
        return;
    have(c, &a, nr_pages, align);
    if (the_board->mistake == LOSES_A_RANGE && one_in(l, 50))
        set_mark(&c->mark, NOTHING);
}

static void allocate_congruent(lane *l)
{
    claim *c[2] = {some(l, NOTHING), NULL};
    uint64_t nr_pages[2] = {1 + below(l, 8), 1 + below(l, 8)}, offsets[2] = {0, 8 + below(l, 50)};
    vm_range a[2];
    if (!c[0])
        return;
    int rc = vm_alloc_congruent(r, 2, offsets, nr_pages, 1, a);
    if (was_refused(rc, 0) || !worked(rc, "congruent alloc", 0, 0))
        return;
    have(c[0], &a[0], nr_pages[0], 1);
    if ((c[1] = some(l, NOTHING)))
        have(c[1], &a[1], nr_pages[1], 1);
    else
        worked(vm_free(r, a[1].page, a[1].id, 0), "free", a[1].page, a[1].id);
}

static void free_one(lane *l)
{
    claim *c = some(l, one_in(l, 3) ? SHOWN : HELD);
    if (c)
        let_go(l, c);
}

static void look_at_one(lane *l)
{
    claim *c = random_cell(l);
    uint32_t kind = kind_of(read_mark(&c->mark));
    if (kind == HELD || kind == SHOWN)
        look(c->page, c->nr_pages, c->id, "holds");
}

static void resize(lane *l)
{
    claim *c = some(l, HELD);
    if (!c || c->is_shared)
        return;
    vm_range a = {c->page, c->nr_pages, c->id, false};
    int rc = vm_resize(r, &a, 1 + below(l, c->nr_pages * 2));
    if (rc == -EBUSY || was_refused(rc, 0)) /* a fork shares it just now */
        return;
    if (worked(rc, "resize", c->page, c->id)) {
        if (a.id == c->id)
            look(a.page, a.nr_pages, a.id, "keeps");
        stamp_pages(r, a.page, a.nr_pages, a.id, me);
        put_claim(c, &a, false);
    }
}

/* ---- with others ---- */

static void show(lane *l)
{
    claim *c = some(l, HELD);
    if (!c)
        return;
    c->is_shared = true;
    if (worked(vm_share(r, c->page, c->id), "share", c->page, c->id))
        set_mark(&c->mark, SHOWN);
}

/* Somebody's claim of that kind, as it was at one moment; its mark, or 0. */
static mark look_around(lane *l, uint32_t kind, claim **at, claim *copy, uint32_t *his)
{
    uint32_t i = (uint32_t)below(l, ROWS);
    *his = name_of(i);
    *at = &the_board->rows[i].claims[below(l, LANES)][below(l, CELLS)];
    for (int k = 0; k < CELLS && kind_of(read_mark(&(*at)->mark)) != kind; k++)
        *at = &the_board->rows[i].claims[below(l, LANES)][below(l, CELLS)];
    mark seen = read_mark(&(*at)->mark);
    memcpy(copy, *at, sizeof *copy);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return kind_of(seen) == kind && read_mark(&(*at)->mark) == seen ? seen : 0;
}

static void received(lane *l, const vm_range *a, uint64_t nr_pages, const char *how)
{
    claim *c = some(l, NOTHING);
    if (a->nr_pages != nr_pages)
        violation("row %u: %s page %" PRIu64 ", id %" PRIx64 ": %" PRIu64 " pages, not %" PRIu64, me & 0xff, how,
                  a->page, a->id, a->nr_pages, nr_pages);
    look(a->page, a->nr_pages, a->id, how);
    if (c)
        put_claim(c, a, true);
    else
        worked(vm_free(r, a->page, a->id, 0), "drop", a->page, a->id);
}

static void adopt(lane *l)
{
    claim *at, c;
    uint32_t his;
    vm_range a;
    mark seen = look_around(l, SHOWN, &at, &c, &his);
    if (!seen)
        return;
    int rc = vm_adopt(r, c.page, c.id, &a);
    bool is_stale = rc == -ESTALE;
    if (is_stale && read_mark(&at->mark) == seen && !is_doomed(his))
        violation("row %u: cannot adopt page %" PRIu64 ", id %" PRIx64 ", which row %u holds", me & 0xff, c.page, c.id,
                  his & 0xff);
    if (!is_stale && worked(rc, "adopt", c.page, c.id))
        received(l, &a, c.nr_pages, "adopted");
}

static void offer(lane *l)
{
    claim *c = some(l, HELD);
    if (l->index == 0 && c && !c->is_shared)
        set_mark(&c->mark, OFFERED);
}

/* Back to HELD, or NOTHING if a taker who died had freed it. False: somebody is at it. */
static bool withdraw(claim *c)
{
    mark seen = read_mark(&c->mark);
    vm_range now;
    if (kind_of(seen) == OFFERED)
        return swap_mark(&c->mark, seen, HELD, 0);
    if (kind_of(seen) != TAKEN)
        return true;
    if (!is_gone(by_of(seen)))
        return false;
    bool is_there = vm_lookup(r, c->page, &now) == 0 && now.id == c->id;
    set_mark(&c->mark, is_there ? HELD : NOTHING);
    return true;
}

static void withdraw_one(lane *l)
{
    if (l->index == 0)
        withdraw(random_cell(l));
}

static void free_foreign(lane *l)
{
    claim *at, c;
    uint32_t his;
    char found[160];
    mark seen = look_around(l, OFFERED, &at, &c, &his), taken = make_mark(TAKEN, me, change_of(seen) + 1);
    uint32_t *his_stay = &the_board->rows[his & 0xff].stay, stay = __atomic_load_n(his_stay, __ATOMIC_SEQ_CST);
    if (!seen || stay % 2 || !swap_mark(&at->mark, seen, TAKEN, me))
        return;
    bool is_it = stamps_are(r, c.page, c.nr_pages, c.id, found, sizeof found);
    bool was_there = !is_doomed(his) && __atomic_load_n(his_stay, __ATOMIC_SEQ_CST) == stay;
    if (!is_it && was_there)
        violation("row %u: takes pages %" PRIu64 " + %" PRIu64 ", id %" PRIx64 " that row %u offers, but %s", me & 0xff,
                  c.page, c.nr_pages, c.id, his & 0xff, found);
    int rc = vm_free(r, c.page, c.id, 0);
    was_there = !is_doomed(his) && __atomic_load_n(his_stay, __ATOMIC_SEQ_CST) == stay;
    if (rc == 0 || rc == -EBUSY || was_there)
        worked(rc, "free (foreign)", c.page, c.id);
    swap_mark(&at->mark, taken, rc == -EBUSY ? OFFERED : NOTHING, 0);
}

static void send(lane *l)
{
    message *m = &the_board->messages[below(l, MESSAGES)];
    claim *c = some(l, HELD);
    mark seen = read_mark(&m->mark);
    bool is_free = kind_of(seen) == NOTHING || (kind_of(seen) == WRITING && is_gone(by_of(seen)));
    if (!c || !is_free || !swap_mark(&m->mark, seen, WRITING, me))
        return;
    uint64_t nr_done = __atomic_load_n(&the_board->nr_forced_done, __ATOMIC_SEQ_CST);
    m->nr_forced = __atomic_load_n(&the_board->nr_forced, __ATOMIC_SEQ_CST);
    m->page = c->page, m->nr_pages = c->nr_pages, m->id = c->id;
    m->sender = me, m->sender_stay = mine->stay, m->is_shaky = m->nr_forced != nr_done;
    c->is_shared = true;
    if (!worked(vm_lease(r, c->page, c->id, &m->lease), "lease", c->page, c->id)) {
        set_mark(&m->mark, NOTHING);
        return;
    }
    set_mark(&m->mark, FULL);
    if (one_in(l, 2))
        let_go(l, c); /* before anybody claimed it */
}

static bool lease_may_be_over(const message *m)
{
    bool was_forced = __atomic_load_n(&the_board->nr_forced, __ATOMIC_SEQ_CST) != m->nr_forced;
    bool has_left = is_doomed(m->sender)
                    || __atomic_load_n(&the_board->rows[m->sender & 0xff].stay, __ATOMIC_SEQ_CST) != m->sender_stay;
    return m->is_shaky || was_forced || (has_left && the_board->lease_ttl_s < LONG_TTL_S);
}

/* True: the message is done with. */
static bool open_message(lane *l, const message *m)
{
    vm_range a;
    bool is_dropped = one_in(l, 6);
    int rc = is_dropped ? vm_drop_lease(r, m->lease) : vm_claim(r, m->page, m->id, m->lease, &a);
    if (rc == (is_dropped ? -ENOENT : -ESTALE) && lease_may_be_over(m))
        return true;
    if (!worked(rc, is_dropped ? "drop of the lease" : "claim", m->page, m->id))
        return rc != -EBUSY;
    if (!is_dropped)
        received(l, &a, m->nr_pages, "claimed");
    BUMP(nr_claimed);
    return true;
}

static void receive(lane *l)
{
    message *at = &the_board->messages[below(l, MESSAGES)], m;
    mark seen = read_mark(&at->mark);
    bool was_taken = kind_of(seen) == TAKEN && is_gone(by_of(seen));
    memcpy(&m, at, sizeof m);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if ((kind_of(seen) != FULL && !was_taken) || !swap_mark(&at->mark, seen, TAKEN, me))
        return;
    at->is_shaky = m.is_shaky = m.is_shaky || was_taken;
    if (open_message(l, &m)) {
        set_mark(&at->mark, NOTHING);
        return;
    }
    at->sender = me, at->sender_stay = mine->stay; /* the lease may be ours by now */
    set_mark(&at->mark, FULL);
}

/* ---- names ---- */

typedef struct described {
    uint64_t page, nr_pages, id;
} described;

static void set_name(lane *l, const char *name)
{
    claim *c = some(l, HELD);
    if (!c)
        return;
    described meta = {c->page, c->nr_pages, c->id};
    c->is_shared = true;
    int rc = one_in(l, 2) ? vm_name_set(r, name, c->page, c->id, &meta, sizeof meta)
                          : vm_name_new(r, name, c->page, c->id, &meta, sizeof meta);
    if (rc != -EEXIST)
        worked(rc, "naming", c->page, c->id);
}

static void get_name(lane *l, const char *name)
{
    described meta = {0};
    size_t bytes = sizeof meta;
    vm_range a;
    int rc = vm_name_get(r, name, &a, &meta, &bytes);
    if (rc == -ENOENT || !worked(rc, name, 0, 0))
        return;
    if (bytes != sizeof meta || meta.page != a.page || meta.id != a.id)
        violation("row %u: %s is page %" PRIu64 ", id %" PRIx64 ", but describes page %" PRIu64 ", id %" PRIx64,
                  me & 0xff, name, a.page, a.id, meta.page, meta.id);
    received(l, &a, meta.nr_pages, "found by name");
}

static void use_names(lane *l)
{
    char name[16];
    snprintf(name, sizeof name, "name %d", (int)below(l, SOAK_NAMES));
    switch (below(l, 4)) {
    case 0:
        set_name(l, name);
        break;
    case 1:
        if (vm_name_delete(r, name) == -EBUSY)
            BUMP(nr_busy);
        break;
    default:
        get_name(l, name);
    }
}

/* ---- upkeep ---- */

static void say_violation(void *arg, const char *text) { violation("%s: %s", (const char *)arg, text); }

static void expire(lane *l)
{
    uint64_t nr;
    bool all = one_in(l, 8);
    if (all)
        __atomic_fetch_add(&the_board->nr_forced, 1, __ATOMIC_SEQ_CST);
    worked(vm_expire_leases(r, all, &nr), "expiry", 0, 0);
    if (all)
        __atomic_fetch_add(&the_board->nr_forced_done, 1, __ATOMIC_SEQ_CST);
}

static void look_after(lane *l)
{
    uint64_t pages = 0;
    switch (below(l, 16)) {
    case 0:
    case 1:
    case 2:
        worked(vm_purge(r, NULL), "purge", 0, 0);
        break;
    case 3:
        worked(vm_shrink(r, NULL), "shrink", 0, 0);
        break;
    case 4:
        expire(l);
        break;
    case 5: {
        int nr = vm_check(r, false, say_violation, "check, under way");
        worked(nr < 0 ? nr : 0, "check", 0, 0);
        break;
    }
    default:
        if (worked(vm_recover(r, &pages), "recovery", 0, 0) && pages)
            BUMP(nr_recovered);
    }
}

/* ---- threads ---- */

static void rest_while(const uint32_t *flag, uint32_t value)
{
    while (__atomic_load_n(flag, __ATOMIC_SEQ_CST) == value && kill(the_board->supervisor, 0) == 0)
        usleep(REST_US);
    if (kill(the_board->supervisor, 0) != 0)
        _exit(1);
}

/* With hooks: now and then right before one of its next writes to the region. */
static void die_at_a_write(lane *l, void (*operation)(lane *))
{
#ifdef VM_HOOKS
    if (l->index == 0 && one_in(l, 100)) {
        __atomic_fetch_or(&mine->doomed, DOOMED_BY_ITSELF, __ATOMIC_SEQ_CST);
        vm_fault_arm((int64_t)below(l, one_in(l, 2) ? 8 : 60));
        operation(l);
        vm_fault_arm(-1);
        __atomic_fetch_and(&mine->doomed, ~DOOMED_BY_ITSELF, __ATOMIC_SEQ_CST);
        return;
    }
#endif
    operation(l);
}

static void any_operation(lane *l)
{
    static void (*const operations[])(lane *) = {
        allocate, allocate,     allocate,     allocate,     allocate,    allocate_congruent,
        free_one, free_one,     free_one,     free_one,     look_at_one, resize,
        show,     show,         adopt,        adopt,        adopt,       offer,
        offer,    withdraw_one, free_foreign, free_foreign, send,        send,
        receive,  receive,      use_names,    use_names,
    };
    void (*operation)(lane *) = one_in(l, 60) ? look_after : operations[below(l, LENGTH(operations))];
    pthread_rwlock_rdlock(&calm);
    die_at_a_write(l, operation);
    pthread_rwlock_unlock(&calm);
    __atomic_fetch_add(&mine->nr_done, 1, __ATOMIC_RELAXED);
}

static void *run_lane(void *arg)
{
    lane *l = arg;
    int64_t left = (int64_t)below(l, OPERATIONS_OF_A_THREAD);
    while (!__atomic_load_n(&l->stop, __ATOMIC_SEQ_CST) && left > 0 && !is_over()) {
        uint32_t now = phase();
        if (now % 8 == WORK) {
            any_operation(l);
            left--;
            continue;
        }
        __atomic_store_n(&l->parked, now, __ATOMIC_SEQ_CST);
        usleep(REST_US);
    }
    __atomic_store_n(&l->ended, 1, __ATOMIC_SEQ_CST);
    return NULL;
}

static void start_thread(lane *l)
{
    lane *other = &lanes[1 + below(l, LANES - 1)];
    if (other->runs && __atomic_load_n(&other->ended, __ATOMIC_SEQ_CST)) {
        pthread_join(other->thread, NULL);
        other->runs = false;
    }
    if (other->runs)
        return;
    *other = (lane){.index = (uint32_t)(other - lanes), .seed = next_random(&l->seed) | 1};
    other->runs = pthread_create(&other->thread, NULL, run_lane, other) == 0;
}

static void join_threads(void)
{
    for (int i = 1; i < LANES; i++)
        if (lanes[i].runs) {
            __atomic_store_n(&lanes[i].stop, 1, __ATOMIC_SEQ_CST);
            pthread_join(lanes[i].thread, NULL);
            lanes[i].runs = false;
        }
}

/* ---- coming and going ---- */

static void attach(void)
{
    int rc;
    while ((rc = vm_attach(REGION_FD, &r)) == -EBUSY || rc == -ENOLCK)
        usleep(REST_US);
    if (!worked(rc, "attach", 0, 0))
        rest_while(&the_board->has_failed, 2);
    vm_set_lock_timeout(r, the_board->lock_timeout_s);
    mine->process = r->process;
}

static void clear_claims(void)
{
    for (int lane = 0; lane < LANES; lane++)
        for (int k = 0; k < CELLS; k++)
            set_mark(&mine->claims[lane][k].mark, NOTHING);
}

static void detach(void)
{
    join_threads();
    __atomic_fetch_add(&mine->stay, 1, __ATOMIC_SEQ_CST);
    clear_claims();
    vm_detach(r);
    BUMP(nr_detached);
}

static void attach_again(lane *l)
{
    (void)l;
    detach();
    attach();
    __atomic_store_n(&mine->is_uncertain, 0, __ATOMIC_SEQ_CST);
    __atomic_fetch_add(&mine->stay, 1, __ATOMIC_SEQ_CST);
}

static bool withdraw_all(void)
{
    bool all = true;
    for (int k = 0; k < CELLS; k++)
        all &= withdraw(&mine->claims[0][k]);
    return all;
}

/* Only what nobody was at when it forked is sure to be the child's. */
static void take_over_claims(const claim parents[LANES][CELLS], bool is_calm)
{
    for (int lane = 0; lane < (is_calm ? LANES : 1); lane++)
        for (int k = 0; k < CELLS; k++) {
            claim *c = &mine->claims[lane][k];
            uint32_t kind = kind_of(parents[lane][k].mark);
            c->page = parents[lane][k].page, c->nr_pages = parents[lane][k].nr_pages, c->id = parents[lane][k].id;
            c->is_shared = c->is_inherited = true;
            set_mark(&c->mark, kind == HELD || kind == SHOWN ? HELD : NOTHING);
        }
}

static void start_row(uint32_t i)
{
    mine = &the_board->rows[i];
    me = name_of(i);
    mine->family = getpgrp();
    __atomic_store_n(&mine->pid, getpid(), __ATOMIC_SEQ_CST);
}

/* In the child. Its region may have no process slot; then it attaches anew and has nothing. */
static void be_a_child(uint32_t i, int row_fd, const claim parents[LANES][CELLS], bool is_calm, bool is_certain)
{
    row *parents_row = mine;
    dup2(row_fd, ROW_FD);
    close(row_fd);
    pthread_rwlock_init(&calm, NULL);
    start_row(i);
    for (uint32_t k = 0; k < LANES; k++)
        lanes[k] = (lane){.index = k, .seed = (lanes[0].seed ^ (uint64_t)getpid() << 20) | 1};
    if (r->process < VM_PROCESSES) {
        mine->process = r->process;
        take_over_claims(parents, is_calm);
        if (!is_certain)
            __atomic_store_n(&mine->is_uncertain, HAS_INHERITED, __ATOMIC_SEQ_CST);
    } else {
        __atomic_fetch_or(&parents_row->is_uncertain, HAS_KEPT, __ATOMIC_SEQ_CST); /* it leases what we would hold */
        attach();
    }
    __atomic_store_n(&mine->state, ROW_LIVE, __ATOMIC_SEQ_CST);
}

static void fork_one(lane *l)
{
    static claim copy[LANES][CELLS];
    uint32_t i;
    bool is_calm = one_in(l, 2), is_certain = false;
    int row_fd = lock_a_row(BOARD_FD, &i, mine->family);
    if (row_fd < 0)
        return;
    if (is_calm)
        pthread_rwlock_wrlock(&calm);
    pid_t pid = -1;
    if (withdraw_all()) {
        for (int lane = 0; lane < (is_calm ? LANES : 1); lane++)
            for (int k = 0; k < CELLS; k++)
                mine->claims[lane][k].is_shared = true;
        memcpy(copy, mine->claims, sizeof copy);
        if (__atomic_load_n(&the_board->has_long_stops, __ATOMIC_SEQ_CST)) /* it may keep what a stopped one frees */
            __atomic_fetch_or(&mine->is_uncertain, HAS_KEPT, __ATOMIC_SEQ_CST);
        is_certain = is_calm && !__atomic_load_n(&mine->is_uncertain, __ATOMIC_SEQ_CST); /* it has that as well */
        pid = fork();
    }
    if (pid == 0) {
        be_a_child(i, row_fd, copy, is_calm, is_certain);
        return;
    }
    if (is_calm)
        pthread_rwlock_unlock(&calm);
    if (pid < 0)
        __atomic_store_n(&the_board->rows[i].state, ROW_UNUSED, __ATOMIC_SEQ_CST);
    else
        BUMP(nr_forks);
    close(row_fd);
}

static void drop_inherited(lane *l)
{
    uint64_t nr;
    (void)l;
    join_threads();
    for (int lane = 0; lane < LANES; lane++)
        for (int k = 0; k < CELLS; k++)
            if (mine->claims[lane][k].is_inherited) {
                mine->claims[lane][k].is_inherited = false;
                set_mark(&mine->claims[lane][k].mark, NOTHING);
            }
    worked(vm_drop_inherited(r, &nr), "drop of what was inherited", 0, 0);
    __atomic_fetch_and(&mine->is_uncertain, ~HAS_INHERITED, __ATOMIC_SEQ_CST);
}

static void leave(bool in_order)
{
    __atomic_fetch_or(&mine->doomed, DOOMED_BY_ITSELF, __ATOMIC_SEQ_CST);
    if (in_order)
        detach();
    BUMP(nr_ended);
    _exit(0);
}

/* ---- the first thread ---- */

/* All claims; what somebody has taken he will give back. */
static void let_go_of_all(lane *l)
{
    join_threads();
    for (int lane = 0; lane < LANES; lane++)
        for (int k = 0; k < CELLS; k++) {
            claim *c = &mine->claims[lane][k];
            while (!is_over() && kind_of(read_mark(&c->mark)) != NOTHING) {
                if (!withdraw(c))
                    usleep(REST_US);
                else if (kind_of(read_mark(&c->mark)) != NOTHING)
                    let_go(l, c);
            }
        }
}

static void park(uint32_t now)
{
    for (int i = 1; i < LANES; i++)
        while (lanes[i].runs && __atomic_load_n(&lanes[i].parked, __ATOMIC_SEQ_CST) != now
               && !__atomic_load_n(&lanes[i].ended, __ATOMIC_SEQ_CST))
            usleep(REST_US);
    __atomic_store_n(&mine->parked, now, __ATOMIC_SEQ_CST);
    rest_while(&the_board->phase, now);
}

static void work(lane *l)
{
    switch (below(l, 1000)) {
    case 0:
        attach_again(l);
        break;
    case 1:
        drop_inherited(l);
        break;
    case 2:
    case 3:
    case 4:
        fork_one(l);
        break;
    case 5:
        join_threads();
        break;
    case 6:
        if (one_in(l, 4))
            leave(one_in(l, 2));
        break;
    default:
        if (one_in(l, 100))
            start_thread(l);
        any_operation(l);
    }
}

int be_a_worker(uint32_t i, uint64_t seed)
{
    lane *l = &lanes[0];
    pthread_rwlock_init(&calm, NULL);
    for (uint32_t k = 0; k < LANES; k++)
        lanes[k] = (lane){.index = k, .seed = seed};
    start_row(i);
    attach();
    __atomic_store_n(&mine->state, ROW_LIVE, __ATOMIC_SEQ_CST);
    for (;;) {
        uint32_t now = phase();
        if (is_over())
            rest_while(&the_board->has_failed, 2);
        switch (now % 8) {
        case WORK:
            work(l);
            break;
        case LET_GO:
            let_go_of_all(l);
            park(now);
            break;
        case END:
            leave(true);
            break;
        default:
            park(now);
        }
    }
}
