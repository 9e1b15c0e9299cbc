/* SPDX-License-Identifier: MIT */
/*
 * WORKER: one of the soak's processes. Whatever the interface offers, in random order, by up to three threads
 * at once, until somebody kills it.
 *
 * Each thread has a lane of claims of its own on the process's row. The first thread also starts and joins
 * the others, forks, detaches and offers.
 */
#include "soak_worker.h"

#include <fcntl.h>

enum { OPERATIONS_OF_A_THREAD = 400, REST_US = 200, HESITATES_ONE_IN = 12, HESITATES_US = 400 };

vm_region *r;
row *mine;
uint32_t me;
static lane lanes[LANES];
static pthread_rwlock_t calm; /* read: in an operation; written: a fork while no other thread is in one */

static uint32_t phase(void) { return __atomic_load_n(&the_board->phase, __ATOMIC_SEQ_CST); }

/* ---- threads ---- */

static void rest_while(const uint32_t *flag, uint32_t value)
{
    while (__atomic_load_n(flag, __ATOMIC_SEQ_CST) == value && kill(the_board->supervisor, 0) == 0)
        usleep(REST_US);
    if (kill(the_board->supervisor, 0) != 0)
        _exit(1);
}

/* With hooks: one in so many times right before one of its next writes to the region. */
static void die_at_a_write(lane *l, void (*operation)(lane *), uint64_t one_in_times, uint64_t most_writes)
{
#ifdef VM_HOOKS
    if (l->index == 0 && one_in(l, one_in_times)) {
        __atomic_fetch_or(&mine->doomed, DOOMED_BY_ITSELF, __ATOMIC_SEQ_CST);
        vm_fault_arm((int64_t)below(l, one_in(l, 2) ? 8 : most_writes));
        operation(l);
        while (vm_fault_arm(-1) < 0) /* it was another lane's write: that one has not come to kill us yet */
            usleep(REST_US);
        __atomic_fetch_and(&mine->doomed, ~DOOMED_BY_ITSELF, __ATOMIC_SEQ_CST);
        return;
    }
#else
    (void)one_in_times, (void)most_writes;
#endif
    operation(l);
}

#ifdef VM_HOOKS
/* Now and then a pause before a write of who references a range, so that others come in between. */
static bool hesitate(const char *file, int line, uint64_t nr_passed)
{
    static _Thread_local uint64_t seed;
    if (!seed)
        seed = ((uint64_t)gettid() * 1000003 ^ (uint64_t)line << 32 ^ nr_passed) | 1;
    if (random_below(&seed, HESITATES_ONE_IN) == 0 && (strstr(file, "/share/") || strstr(file, "/mend/")))
        usleep((useconds_t)random_below(&seed, HESITATES_US));
    return true;
}
#endif

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
    die_at_a_write(l, operation, 100, 60);
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
        die_at_a_write(l, attach_again, 3, 400);
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
#ifdef VM_HOOKS
    if (the_board->hesitates)
        vm_fault_filter(hesitate);
#endif
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
