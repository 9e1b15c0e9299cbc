/* SPDX-License-Identifier: MIT */
/* Slabs of a CPU: what is taken by sequences, what stale entries cost, who may not, what a death leaves. */
#include "kit.h"

#include <sys/syscall.h>

enum { PAGES = 20000 };

/* In front of the C library's: so many CPUs the kernel knows, and whoever has not room for all is refused. */
static size_t nr_of_kernel;
int sched_getaffinity(pid_t pid, size_t bytes, cpu_set_t *out)
{
    if (bytes * 8 < nr_of_kernel) {
        errno = EINVAL;
        return -1;
    }
    memset(out, 0, bytes);
    return syscall(SYS_sched_getaffinity, pid, bytes, out) < 0 ? -1 : 0;
}

static vm_region *make(void) { return MAKE(.nr_pages = PAGES, .pools = VM_POOLS_PERCPU, SMALL); }

static void stay_on_this_cpu(void)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    CHECK_EQ(sched_setaffinity(0, sizeof one, &one), 0);
}
static vm_slab *slab(vm_region *r, uint64_t nr_pages)
{
    return &r->map.cpus[sched_getcpu()].slab[vm__pool_index(nr_pages)];
}
static void free_so_many(vm_region *r, uint64_t nr_pages, int count)
{
    vm_range a[200];
    for (int i = 0; i < count; i++)
        a[i] = take(r, nr_pages);
    for (int i = 0; i < count; i++)
        GIVE_BACK(r, a[i]);
}

static void what_a_cpu_frees_it_takes_again_the_newest_first(void)
{
    vm_region *r = make();
    vm_range a = take(r, 3), b = take(r, 3);
    GIVE_BACK(r, a);
    GIVE_BACK(r, b);
    CHECK_EQ(slab(r, 3)->count, 2);
    vm_glance glance;
    vm_get_glance(r, &glance);
    CHECK_EQ(glance.pooled_pages, 6);
    CHECK_EQ(vm__owner(r->map.heads[a.page].word), VM_NODES_MAX + (uint32_t)sched_getcpu());
    CHECK_EQ(stats_of(r).per_cpu, 1);
    vm_range c = take(r, 3), d = take(r, 3);
    CHECK(c.page == b.page && d.page == a.page);
    CHECK_EQ(slab(r, 3)->count, 0);
    GIVE_BACK(r, c);
    GIVE_BACK(r, d);
    FINISH(r);
}

static void a_thread_that_goes_from_region_to_region_is_served_by_both_slabs(void)
{
    vm_region *r[2] = {make(), make()};
    for (int n = 0; n < 20; n++) {
        vm_range a[2] = {take(r[0], 3), take(r[1], 3)};
        for (int i = 0; i < 2; i++) {
            CHECK_EQ(vm__current->here_key != VM_HIT_KEY_NOBODY, 1);
            GIVE_BACK(r[i], a[i]);
            CHECK(vm__current->here_key == r[i]->hit_key);
            CHECK_EQ(slab(r[i], 3)->count, 1);
        }
    }
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(stats_of(r[i]).nr_slab_hit, 19);
        CHECK_CLEAN(r[i]);
        FINISH(r[i]);
    }
}

static void a_full_slab_gives_its_older_half_to_the_pools_behind(void)
{
    vm_region *r = make();
    vm_range a[VM_SLAB_CAP + 1];
    for (size_t i = 0; i < LENGTH(a); i++)
        a[i] = take(r, 1);
    for (size_t i = 0; i < LENGTH(a); i++)
        GIVE_BACK(r, a[i]);
    CHECK_EQ(slab(r, 1)->count, VM_SLAB_CAP / 2 + 1);
    CHECK_EQ(r->map.nodes[0].pool[0].nr_ranges, VM_SLAB_CAP / 2);
    vm_range b = take(r, 1), c = take(r, 1);
    CHECK(b.page == a[VM_SLAB_CAP].page && c.page == a[VM_SLAB_CAP - 1].page);
    GIVE_BACK(r, b);
    GIVE_BACK(r, c);
    FINISH(r);
}

static void what_a_shrink_took_is_skipped(void)
{
    vm_region *r = make();
    free_so_many(r, 5, 10);
    CHECK_EQ(vm_shrink(r, NULL), 0);
    CHECK_EQ(stats_of(r).free_pages, PAGES);
    CHECK_EQ(slab(r, 5)->count, 10); /* stale, all of them */
    vm_range large = take(r, 100), a = take(r, 5);
    CHECK_EQ(slab(r, 5)->count, 0);
    CHECK(a.page >= large.page + 100 || a.page + 5 <= large.page);
    GIVE_BACK(r, a);
    GIVE_BACK(r, large);
    CHECK_CLEAN(r);
    FINISH(r);
}

/* The page of a stale entry is the start of another range of the slab by now: two entries, one range. */
static void two_entries_of_one_range_give_it_once(void)
{
    vm_region *r = make();
    free_so_many(r, 2, 1);
    CHECK_EQ(vm_shrink(r, NULL), 0);
    vm_slab *s = slab(r, 2);
    uint32_t page = s->page[0];
    CHECK_EQ(s->count, 1);
    free_so_many(r, 2, 1); /* pops the stale one, and is the same first fit */
    CHECK_EQ(s->page[0], page);
    s->page[1] = page;
    s->count = 2;
    CHECK_CLEAN(r);
    vm_range a = take(r, 2), b = take(r, 2);
    CHECK(a.page != b.page);
    GIVE_BACK(r, a);
    GIVE_BACK(r, b);
    FINISH(r);
}

static void a_count_that_is_none_is_repaired(void)
{
    vm_region *r = make();
    free_so_many(r, 2, 3);
    slab(r, 2)->count = 1000;
    vm_range a = take(r, 2), b = take(r, 2); /* from elsewhere */
    CHECK(a.page != b.page);
    GIVE_BACK(r, a);
    GIVE_BACK(r, b);
    CHECK(vm_repair(r, NULL, NULL) >= 0);
    CHECK(slab(r, 2)->count <= VM_SLAB_CAP);
    CHECK_CLEAN(r);
    FINISH(r);
}

/* A CPU past the table, as one that was plugged in later. */
static void a_cpu_without_slabs_uses_the_pools_behind(void)
{
    vm_region *r = make();
    free_so_many(r, 2, 3);
    uint32_t nr = r->map.nr_cpus, kept = slab(r, 2)->count;
    CHECK_EQ(kept, 3);
    r->map.nr_cpus = 0;
    free_so_many(r, 2, 3);
    CHECK_EQ(r->map.nodes[0].pool[1].nr_ranges, 3);
    r->map.nr_cpus = nr;
    CHECK_EQ(slab(r, 2)->count, kept);
    CHECK_CLEAN(r);
    FINISH(r);
}

static void a_list_of_cpus_is_read_as_the_system_writes_it(void)
{
    vm_cpus c = {{0}};
    vm__cpus_of_list("0-2,5,63-64,1023-4000\n", &c);
    uint64_t rest = c.bit[VM_SLAB_CPUS_MAX / 64 - 1];
    CHECK(c.bit[0] == (0x27 | 1ull << 63) && c.bit[1] == 1 && rest == 1ull << 63);
    c = (vm_cpus){{0}};
    vm__cpus_of_list("\n", &c);
    CHECK_EQ(c.bit[0], 0);
    vm__cpus_online(&c);
    CHECK(vm__has_cpu(&c, (uint32_t)sched_getcpu()));
}

static void where_a_process_may_run_is_told_on_the_largest_machines_too(void)
{
    vm_cpus its = {{0}};
    uint64_t nr = 0;
    nr_of_kernel = 8192;
    vm__cpus_of_process(vm__pid(), &its); /* stays on one */
    nr_of_kernel = 0;
    for (uint32_t cpu = 0; cpu < VM_SLAB_CPUS_MAX; cpu++)
        nr += vm__has_cpu(&its, cpu);
    CHECK_EQ(nr, 1);
}

static void what_a_cpu_keeps_that_is_off_line_goes_at_once(void)
{
    vm_region *r = make();
    const vm_cpus none = {{0}};
    vm_cpus all;
    memset(&all, 0xff, sizeof all);
    free_so_many(r, 5, 10);
    free_so_many(r, 7, 2);
    CHECK_EQ(vm__purge_unused_cpus(vm__thread(r), &all, &all), 0);
    CHECK_EQ(vm__purge_unused_cpus(vm__thread(r), &none, &none), 64);
    CHECK_EQ(stats_of(r).free_pages, PAGES);
    CHECK_CLEAN(r);
    FINISH(r);
}

/* A container may have a list of its own, which counts as many CPUs as it may use from 0. */
static void where_a_process_may_run_a_cpu_is_on_line_whatever_the_list_says(void)
{
    vm_region *r = make();
    const vm_cpus none = {{0}};
    vm_cpus its = {{0}};
    vm__cpus_of_process(vm__pid(), &its);
    free_so_many(r, 5, 10);
    CHECK_EQ(vm__purge_unused_cpus(vm__thread(r), &none, &its), 0);
    CHECK_EQ(stats_of(r).pooled_pages, 50);
    FINISH(r);
}

static void tick(vm_region *r, int nr)
{
    for (int i = 0; i < nr; i++) {
        CHECK_EQ(vm_tick(r), 0);
        vm_clock_advance(VM_TICK_MS * 1000000ull);
    }
}

/* This process may run on one CPU and was on another before. */
static void where_no_process_may_run_what_lay_unused_in_a_turn_goes(void)
{
    vm_region *r = make();
    uint32_t here = (uint32_t)sched_getcpu(), other = here ? here - 1 : here + 1;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(other, &one);
    if (other >= r->map.nr_cpus || sched_setaffinity(0, sizeof one, &one) != 0) {
        FINISH(r); /* there is no other */
        return;
    }
    free_so_many(r, 5, 10);
    CPU_ZERO(&one);
    CPU_SET(here, &one);
    CHECK_EQ(sched_setaffinity(0, sizeof one, &one), 0);
    free_so_many(r, 5, 10);
    tick(r, 1); /* turns */
    free_so_many(r, 5, 10);
    CHECK_EQ(stats_of(r).pooled_pages, 100);
    tick(r, 1);
    CHECK_EQ(stats_of(r).pooled_pages, 50);
    CHECK_EQ(slab(r, 5)->count, 10);
    free_so_many(r, 5, 10);
    CHECK_EQ(stats_of(r).nr_slab_hit, 20);
    CHECK_CLEAN(r);
    FINISH(r);
}

/* Between the word and the entry. */
static void what_a_death_left_in_no_slab_is_found(void)
{
    vm_region *r = make();
    pid_t pid;
    CHILD(pid, {
        vm_range a = take(r, 7);
        r->map.heads[a.page].word = vm__word(VM_POOLED, VM_WORD_DIRTY, 7, VM_NODES_MAX + (uint32_t)sched_getcpu(), 0);
        kill(getpid(), SIGKILL);
    });
    CHECK(WIFSIGNALED(end_of(pid)));
    CHECK_EQ(vm_recover(r, NULL), 0);
    CHECK_EQ(stats_of(r).pooled_pages, 0);
    CHECK_EQ(stats_of(r).free_pages + stats_of(r).lazy_pages, PAGES);
    CHECK_CLEAN(r);
    FINISH(r);
}

/* Threads of one CPU interrupt each other all the time. */
static int stops;
static void *work(void *arg)
{
    vm_region *r = arg;
    for (int i = 0; i < 40000 / SLOWER; i++) {
        vm_range a = take(r, 1), b = take(r, 1);
        *(volatile uint64_t *)(r->map.data + (a.page << r->map.page_shift)) = a.id;
        *(volatile uint64_t *)(r->map.data + (b.page << r->map.page_shift)) = b.id;
        if (i % 64 == 0)
            sched_yield();
        CHECK_EQ(*(volatile uint64_t *)(r->map.data + (a.page << r->map.page_shift)), a.id);
        CHECK_EQ(*(volatile uint64_t *)(r->map.data + (b.page << r->map.page_shift)), b.id);
        GIVE_BACK(r, a);
        GIVE_BACK(r, b);
    }
    return NULL;
}
static void *tap(void *arg) /* signals abort sequences, too */
{
    pthread_t *thread = arg;
    while (!__atomic_load_n(&stops, __ATOMIC_ACQUIRE)) {
        for (int i = 0; i < 4; i++)
            pthread_kill(thread[i], SIGUSR1);
        usleep(100);
    }
    return NULL;
}
static void nothing(int signal) { (void)signal; }
static void interrupted_sequences_lose_and_double_nothing(void)
{
    vm_region *r = make();
    pthread_t thread[4], taps;
    signal(SIGUSR1, nothing);
    for (int i = 0; i < 4; i++)
        CHECK_EQ(pthread_create(&thread[i], NULL, work, r), 0);
    stops = 0;
    CHECK_EQ(pthread_create(&taps, NULL, tap, thread), 0);
    usleep(100000 / SLOWER);
    __atomic_store_n(&stops, 1, __ATOMIC_RELEASE); /* before the threads are gone */
    pthread_join(taps, NULL);
    for (int i = 0; i < 4; i++)
        pthread_join(thread[i], NULL);
    CHECK_CLEAN(r);
    CHECK_EQ(vm_shrink(r, NULL), 0);
    CHECK_EQ(stats_of(r).free_pages, PAGES);
    FINISH(r);
}

/* At any instruction: most of its time such a process is in a sequence or next to one. */
static void who_is_killed_in_a_sequence_loses_nothing(void)
{
    vm_region *r = make();
    uint64_t seed = 11;
    for (int i = 0; i < 300 / SLOWER; i++) {
        volatile int *has_begun = shared_memory(4096);
        pid_t pid;
        CHILD(pid, {
            for (vm_range a, b;; *has_begun = 1) {
                a = take(r, 1), b = take(r, 1);
                GIVE_BACK(r, a);
                GIVE_BACK(r, b);
            }
        });
        while (!*has_begun)
            sched_yield();
        usleep((useconds_t)random_below(&seed, 200));
        kill(pid, SIGKILL);
        CHECK(WIFSIGNALED(end_of(pid)));
        munmap((void *)has_begun, 4096);
        CHECK_EQ(vm_recover(r, NULL), 0);
        CHECK_CLEAN(r);
    }
    CHECK_EQ(vm_shrink(r, NULL), 0);
    CHECK_EQ(stats_of(r).free_pages, PAGES);
    FINISH(r);
}

static void without_sequences_no_slab_is_written(void)
{
    vm_region *r = make();
    free_so_many(r, 2, 3);
    CHECK_EQ(stats_of(r).per_cpu, -1);
    for (uint32_t cpu = 0; cpu < r->map.nr_cpus; cpu++)
        for (uint32_t k = 0; k < VM_POOL_PAGES_MAX; k++)
            CHECK_EQ(r->map.cpus[cpu].slab[k].count, 0);
    CHECK_EQ(r->map.nodes[0].pool[1].nr_ranges, 3);
    CHECK_CLEAN(r);
    FINISH(r);
}

static void (*const cases[])(void) = {
    what_a_cpu_frees_it_takes_again_the_newest_first,
    a_thread_that_goes_from_region_to_region_is_served_by_both_slabs,
    a_full_slab_gives_its_older_half_to_the_pools_behind,
    what_a_shrink_took_is_skipped,
    two_entries_of_one_range_give_it_once,
    a_count_that_is_none_is_repaired,
    a_cpu_without_slabs_uses_the_pools_behind,
    a_list_of_cpus_is_read_as_the_system_writes_it,
    where_a_process_may_run_is_told_on_the_largest_machines_too,
    what_a_cpu_keeps_that_is_off_line_goes_at_once,
    where_a_process_may_run_a_cpu_is_on_line_whatever_the_list_says,
    where_no_process_may_run_what_lay_unused_in_a_turn_goes,
    what_a_death_left_in_no_slab_is_found,
    interrupted_sequences_lose_and_double_nothing,
    who_is_killed_in_a_sequence_loses_nothing,
};

int main(int argc, char **argv)
{
    bool may = vm__sequence_cpu() >= 0;
    CHECK_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
    if (argc > 1 || !may)
        without_sequences_no_slab_is_written();
    if (argc > 1)
        return may; /* it was to be started without */
    puts(may ? "with restartable sequences" : "without restartable sequences, which this system has not");
    fflush(stdout); /* the same process is another program at the end */
    stay_on_this_cpu();
    for (size_t i = 0; i < LENGTH(cases) && may; i++)
        cases[i]();
    CHECK_EQ(setenv("GLIBC_TUNABLES", "glibc.pthread.rseq=0", 1), 0);
    return execl(argv[0], argv[0], "without", (char *)NULL);
}
