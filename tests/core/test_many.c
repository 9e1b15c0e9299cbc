/* SPDX-License-Identifier: MIT */
/*
 * MANY: one region with as many processes, and as many threads with slots of their own, as a region can have.
 *
 * All are children of one process, which comes first. They go through the acts of `play` together: in each a child
 * waits for the parent, does something, and says so.
 */
#include "kit.h"

#include <pthread.h>

#define NR_CHILDREN ((VM_PROCESSES_MAX - 1) / SLOWER)
#define NR_KILLED (100 / SLOWER)
#define NR_THREADS (VM_THREADS_MAX / SLOWER) /* the parent's, and each child's first, among them */
#define STACK_BYTES (256 << 10)
#define CANNOT_RUN 77

enum act { TAKE, ADOPT, LET_GO, NR_ACTS };

typedef struct board {
    uint32_t nr_done[NR_ACTS], nr_told; /* children that did it; threads that have a slot of their own */
    uint8_t has_slot[VM_THREAD_SLOTS_MAX];
    vm_range given[NR_CHILDREN]; /* shared by each child, for the next one to adopt */
} board;

typedef struct child {
    int gate[NR_ACTS][2]; /* ends when the parent lets all begin with an act */
    pid_t pid[NR_CHILDREN];
} child;

static vm_region *r;
static board *b;
static child c;
static vm_range for_all;

static void say_done(enum act act) { __atomic_add_fetch(&b->nr_done[act], 1, __ATOMIC_SEQ_CST); }
static void wait_for(enum act act, uint32_t nr)
{
    while (__atomic_load_n(&b->nr_done[act], __ATOMIC_SEQ_CST) < nr)
        usleep(2000);
}
static void begin(enum act act) { close(c.gate[act][1]); }
static void wait_to_begin(enum act act)
{
    char none;
    CHECK_EQ(read(c.gate[act][0], &none, 1), 0);
}

/* ---- threads ---- */

/* A slot that nobody else has, and what a thread does with it. */
static void use_a_slot_of_its_own(void)
{
    vm_range a = take(r, 1), kept = take(r, 2);
    vm_thread *t = vm__thread(r);
    CHECK(!t->common && t->index >= vm__first_thread(r) && t->index < r->map.nr_threads);
    CHECK_EQ(__atomic_exchange_n(&b->has_slot[t->index], 1, __ATOMIC_SEQ_CST), 0);
    CHECK_EQ(vm_share(r, a.page, a.id), 0);
    GIVE_BACK(r, kept);
    GIVE_BACK(r, a);
    __atomic_add_fetch(&b->nr_told, 1, __ATOMIC_SEQ_CST);
}

static void *be_a_thread(void *unused)
{
    use_a_slot_of_its_own();
    wait_to_begin(LET_GO);
    return unused;
}

static bool start_thread(pthread_t *thread)
{
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    int rc = pthread_create(thread, &attr, be_a_thread, NULL);
    pthread_attr_destroy(&attr);
    return rc == 0;
}

/* ---- children ---- */

/* So many threads has child i beside its first. */
static int threads_of(int i)
{
    const int more = NR_THREADS - 1 - NR_CHILDREN;
    return more / NR_CHILDREN + (i < more % NR_CHILDREN);
}

static void play(int i)
{
    pthread_t thread[VM_THREADS_MAX / 64];
    vm_range got;
    for (int act = 0; act < NR_ACTS; act++)
        close(c.gate[act][1]);
    wait_to_begin(TAKE);
    use_a_slot_of_its_own();
    for (int k = 0; k < threads_of(i); k++)
        CHECK(start_thread(&thread[k]));
    b->given[i] = take(r, 1 + (uint64_t)i % 3);
    CHECK_EQ(vm_share(r, b->given[i].page, b->given[i].id), 0);
    take(r, 2); /* of nobody else */
    say_done(TAKE);
    wait_to_begin(ADOPT);
    vm_range next = b->given[(i + 1) % NR_CHILDREN];
    CHECK_EQ(vm_adopt(r, next.page, next.id, &got), 0);
    say_done(ADOPT);
    wait_to_begin(LET_GO);
    GIVE_BACK(r, next);
    GIVE_BACK(r, b->given[i]);
    for (int k = 0; k < threads_of(i); k++)
        pthread_join(thread[k], NULL);
    if (i % 64 == 0)
        CHECK_EQ(vm_detach(r), 0);
}

static uint32_t nr_holders(const vm_range *a)
{
    uint32_t nr = 0;
    for (uint32_t i = 0; i < vm__nr_holders(r); i++)
        nr += (uint32_t)__builtin_popcountll(VM_ACQUIRE(vm__holders(r, a->page, i)));
    return nr;
}

/* False: this system does not allow so many. */
static bool fork_all(void)
{
    for (int i = 0; i < NR_CHILDREN; i++) {
        c.pid[i] = fork();
        if (c.pid[i] < 0)
            return false;
        if (c.pid[i] == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            play(i);
            _exit(0);
        }
    }
    return true;
}

static void kill_some(void)
{
    for (int i = 0; i < NR_KILLED; i++)
        kill(c.pid[i * (NR_CHILDREN / NR_KILLED)], SIGKILL);
    for (int i = 0; i < NR_KILLED; i++)
        end_of(c.pid[i * (NR_CHILDREN / NR_KILLED)]);
}
static bool was_killed(int i)
{
    return i % (NR_CHILDREN / NR_KILLED) == 0 && i / (NR_CHILDREN / NR_KILLED) < NR_KILLED;
}

/* What those who live hold: their own two ranges, and what they adopted of the next one. */
static uint64_t pages_held(void)
{
    uint64_t nr = for_all.nr_pages;
    for (int i = 0; i < NR_CHILDREN; i++) {
        bool is_adopted = !was_killed((i + NR_CHILDREN - 1) % NR_CHILDREN);
        nr += was_killed(i) ? 0 : 2;
        nr += was_killed(i) && !is_adopted ? 0 : b->given[i].nr_pages;
    }
    return nr;
}

static bool a_region_serves_as_many_processes_and_threads_as_it_can_have(void)
{
    vm_region *another;
    r = MAKE(.nr_pages = 30000, .nr_nodes = 1, .nr_processes = VM_PROCESSES_MAX, .nr_threads = VM_THREADS_MAX,
             .pools = VM_POOLS_MAGAZINE, .lazy_pages_max = 1u << 28);
    b = shared_memory(sizeof *b);
    for (int act = 0; act < NR_ACTS; act++)
        CHECK_EQ(pipe(c.gate[act]), 0);
    use_a_slot_of_its_own();
    for_all = take(r, 3);
    CHECK_EQ(vm_share(r, for_all.page, for_all.id), 0);
    if (!fork_all())
        return false;
    CHECK_EQ(stats_of(r).nr_processes, NR_CHILDREN + 1);
    CHECK_EQ(nr_holders(&for_all), NR_CHILDREN + 1);
    if (SLOWER == 1)
        CHECK_EQ(vm_attach(vm_fd(r), &another), -ENOLCK);
    begin(TAKE);
    wait_for(TAKE, NR_CHILDREN);
    while (__atomic_load_n(&b->nr_told, __ATOMIC_SEQ_CST) < NR_THREADS)
        usleep(2000);
    CHECK_EQ(stats_of(r).nr_thread_slots, NR_THREADS);
    begin(ADOPT);
    wait_for(ADOPT, NR_CHILDREN);
    CHECK_EQ(nr_holders(&b->given[NR_CHILDREN - 1]), 2);
    kill_some();
    CHECK_EQ(vm_recover(r, NULL), 0);
    vm_stats now = stats_of(r);
    CHECK_EQ(now.nr_processes, NR_CHILDREN + 1 - NR_KILLED);
    CHECK_EQ(now.busy_pages, pages_held());
    CHECK_EQ(nr_holders(&for_all), NR_CHILDREN + 1 - NR_KILLED);
    CHECK_EQ(vm_attach(vm_fd(r), &another), 0); /* in a slot of one of the dead */
    CHECK_EQ(vm_detach(another), 0);
    CHECK_EQ(vm_check(r, false, say_finding, "crowded"), 0);
    begin(LET_GO);
    for (int i = 0; i < NR_CHILDREN; i++)
        if (!was_killed(i))
            ended_well(c.pid[i]);
    CHECK_EQ(vm_recover(r, NULL), 0);
    CHECK_EQ(stats_of(r).nr_processes, 1);
    CHECK_EQ(nr_holders(&for_all), 1);
    GIVE_BACK(r, for_all);
    CHECK_EQ(stats_of(r).busy_pages, 0);
    FINISH(r);
    return true;
}

int main(void)
{
    if (a_region_serves_as_many_processes_and_threads_as_it_can_have())
        return 0;
    printf("this system does not allow %d processes of one user\n", NR_CHILDREN);
    return CANNOT_RUN;
}
