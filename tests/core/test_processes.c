/* SPDX-License-Identifier: MIT */
/* Processes and slots: attach, fork, exit, out of slots, and locks whose owner is gone or stopped. */
#include "kit.h"

#include <fcntl.h>

static vm_region *make(vm_pools d) { return MAKE(.nr_pages = 3000, .pools = d, SMALL); }

static void a_child_has_a_slot_of_its_own(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a = take(r, 2);
    uint32_t mine = r->process;
    IN_CHILD({
        CHECK(r->process != mine);
        vm_range b = take(r, 2);
        CHECK(b.page != a.page && b.id != a.id);
        CHECK_EQ(stats_of(r).nr_processes, 2);
        GIVE_BACK(r, b);
    });
    CHECK_EQ(r->process, mine);
    CHECK_EQ(vm_recover(r, NULL), 0);
    CHECK_EQ(stats_of(r).nr_processes, 1);
    GIVE_BACK(r, a);
    FINISH(r);
}

static void what_a_dead_process_held_comes_back(vm_pools d)
{
    vm_region *r = make(d);
    vm_range mine = take(r, 3);
    IN_CHILD({
        take(r, 1);
        take(r, 500);
        vm_range b = take(r, 20);
        GIVE_BACK(r, b);
    });
    uint64_t pages = 0;
    CHECK_EQ(vm_recover(r, NULL), 0); /* unless the fork found the child dead already */
    CHECK(stats_of(r).nr_recovered >= 501);
    CHECK_EQ(stats_of(r).busy_pages, 3);
    CHECK_EQ(vm_recover(r, &pages), 0);
    CHECK_EQ(pages, 0);
    GIVE_BACK(r, mine);
    FINISH(r);
}

static void a_request_that_would_fail_recovers_the_dead_first(vm_pools d)
{
    vm_region *r = make(d);
    IN_CHILD(take(r, 2900));
    vm_range a = take(r, 2900);
    GIVE_BACK(r, a);
    FINISH(r);
}

/* As the child of a vfork, or whoever just reads /proc/PID/maps: it uses a process's memory after that has ended. It lets go
 * when a word of the region, by which a request shows how far it came, is not 0 any more. */
static int stay_until(void *arg)
{
    const uint64_t *word = arg;
    for (double until = seconds() + 60; VM_ACQUIRE(word) == 0 && seconds() < until;)
        sched_yield();
    _exit(0);
}
static void die_and_stay_until(uint64_t *word)
{
    static uint8_t stack[1 << 16];
    *word = 0;
    CHECK(clone(stay_until, stack + sizeof stack, CLONE_VM | SIGCHLD, word) > 0);
}

static void a_request_waits_for_a_dead_process_whose_memory_is_in_use_yet(vm_pools d)
{
    vm_region *r = make(d);
    IN_CHILD({
        take(r, 2900);
        die_and_stay_until(&r->map.h->tight_s); /* it has looked everywhere once */
    });
    vm_range a = take(r, 200);
    GIVE_BACK(r, a);
    FINISH(r);
}

static void so_does_one_that_nobody_else_could_make_room_for(vm_pools d)
{
    vm_region *r = make(d);
    uint64_t *nr_alloc = &vm__thread(r)->slot->nr_alloc;
    IN_CHILD({
        take(r, 2900);
        die_and_stay_until(nr_alloc); /* it has begun */
    });
    vm_range a = take(r, 2900);
    GIVE_BACK(r, a);
    FINISH(r);
}

static void so_does_an_aligned_one_whose_only_place_he_has(vm_pools d)
{
    enum { PAGES = 1000, ALIGN = 2048 }; /* it can lie at 0 only */
    vm_region *r = make(d);
    uint64_t *nr_alloc = &vm__thread(r)->slot->nr_alloc;
    IN_CHILD({
        CHECK_EQ(take(r, 1).page, 0);
        die_and_stay_until(nr_alloc); /* it has begun */
    });
    vm_range a;
    CHECK_EQ(vm_alloc(r, PAGES, ALIGN, 0, &a), 0);
    CHECK_EQ(a.page, 0);
    GIVE_BACK(r, a);
    FINISH(r);
}

static void a_region_is_attached_by_its_descriptor(vm_pools d)
{
    vm_region *r = make(d), *same;
    vm_range a = take(r, 2);
    strcpy(vm_pointer(r, a.page), "seen by both");
    CHECK_EQ(vm_attach(vm_fd(r), &same), 0);
    CHECK(same->process != r->process);
    CHECK(strcmp(vm_pointer(same, a.page), "seen by both") == 0);
    vm_range b = take(same, 700);
    CHECK_EQ(stats_of(r).busy_pages, 702);
    CHECK_EQ(vm_free(same, a.page, a.id, 0), 0);
    CHECK_EQ(vm_detach(same), 0); /* b was held only there */
    CHECK(vm_free(r, b.page, b.id, 0) < 0);
    CHECK_EQ(stats_of(r).busy_pages, 0);
    FINISH(r);
}

static void a_process_attaches_through_proc(vm_pools d)
{
    vm_region *r = make(d);
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", getpid(), vm_fd(r));
    vm_range a = take(r, 2);
    CHECK_EQ(vm_share(r, a.page, a.id), 0);
    IN_CHILD({
        CHECK_EQ(vm_detach(r), 0); /* the inherited mapping, and what it held */
        int fd = open(path, O_RDWR | O_CLOEXEC);
        vm_region *again;
        CHECK(fd >= 0);
        CHECK_EQ(vm_attach(fd, &again), 0);
        close(fd);
        CHECK_EQ(vm_free(again, a.page, a.id, 0), -ENOENT);
        CHECK_EQ(vm_adopt(again, a.page, a.id, &a), 0);
        CHECK_EQ(vm_free(again, a.page, a.id, 0), 0);
        CHECK_EQ(vm_detach(again), 0);
    });
    GIVE_BACK(r, a);
    CHECK_EQ(stats_of(r).busy_pages, 0);
    CHECK_EQ(stats_of(r).nr_processes, 1);
    FINISH(r);
}

/* What a thread does when it is told to: take a range, then end. */
typedef struct late_thread {
    vm_region *r;
    volatile int told, done;
} late_thread;
static void wait_for(volatile int *what, int value)
{
    for (double until = seconds() + 60; __atomic_load_n(what, __ATOMIC_ACQUIRE) < value; sched_yield())
        CHECK(seconds() < until);
}
static void *take_then_end(void *arg)
{
    late_thread *me = arg;
    vm_range a = take(me->r, 1);
    GIVE_BACK(me->r, a);
    __atomic_store_n(&me->done, 1, __ATOMIC_RELEASE);
    wait_for(&me->told, 1);
    return NULL;
}
static uint32_t slots_in_use(const vm_region *r)
{
    uint32_t nr = 0;
    for (uint32_t i = vm__first_thread(r); i < r->map.nr_threads; i++)
        nr += VM_ACQUIRE(&r->map.slots[i].state) & 1;
    return nr;
}

static void *detach(void *r)
{
    CHECK_EQ(vm_detach(r), 0);
    return NULL;
}

static void a_thread_that_ends_during_a_detach_leaves_its_old_slot_to_the_new_owner(vm_pools d)
{
    enum { HEIRS = 3 }; /* slots become free: the thread's, ours, the detaching one's */
    vm_region *r = make(d), *left, *other;
    late_thread late = {0}, heir[HEIRS] = {{0}};
    pthread_t of_late, of_detach, of_heir[HEIRS];
    CHECK_EQ(vm_attach(vm_fd(r), &left), 0);
    CHECK_EQ(vm_attach(vm_fd(r), &other), 0);
    uint32_t before = slots_in_use(r);
    late.r = left;
    CHECK_EQ(pthread_create(&of_late, NULL, take_then_end, &late), 0);
    wait_for(&late.done, 1);
    CHECK_EQ(vm__lock(vm__thread(r), &r->map.h->purge_lock, 0), 0); /* here the detach must wait */
    CHECK_EQ(pthread_create(&of_detach, NULL, detach, left), 0);
    for (double until = seconds() + 60; slots_in_use(r) >= before; sched_yield()) /* it retires its threads' slots */
        CHECK(seconds() < until);
    for (int i = 0; i < HEIRS; i++) { /* and here they are used again */
        heir[i].r = other;
        CHECK_EQ(pthread_create(&of_heir[i], NULL, take_then_end, &heir[i]), 0);
        wait_for(&heir[i].done, 1);
    }
    uint32_t in_use = slots_in_use(r);
    __atomic_store_n(&late.told, 1, __ATOMIC_RELEASE);
    pthread_join(of_late, NULL);
    CHECK_EQ(slots_in_use(r), in_use);
    vm__unlock(vm__thread(r), &r->map.h->purge_lock);
    pthread_join(of_detach, NULL);
    for (int i = 0; i < HEIRS; i++) {
        __atomic_store_n(&heir[i].told, 1, __ATOMIC_RELEASE);
        pthread_join(of_heir[i], NULL);
    }
    CHECK_EQ(vm_detach(other), 0);
    FINISH(r);
}

static void a_file_that_is_no_region_is_refused(void)
{
    vm_region *r = MAKE(.nr_pages = 10, SMALL), *other = NULL;
    int fd = open("/dev/null", O_RDWR), made = memfd_create("no region", MFD_ALLOW_SEALING);
    CHECK_EQ(vm_attach(-1, &other), -EBADF);
    CHECK_EQ(vm_attach(fd, &other), -ENOEXEC);
    CHECK_EQ(vm_attach(made, &other), -ENOEXEC);
    vm_header h = *r->map.h;
    CHECK_EQ(write(made, &h, sizeof h), sizeof h);
    CHECK_EQ(vm_attach(made, &other), -EUCLEAN); /* not sealed, and truncated */
    close(fd);
    close(made);
    for (int i = 0; i < 10; i++) {
        vm_header *broken = r->map.h;
        *(i == 0   ? &broken->format
          : i == 1 ? &broken->page_bytes
          : i == 2 ? &broken->ready
          : i == 3 ? &broken->nr_nodes
          : i == 4 ? &broken->nr_threads
          : i == 5 ? &broken->pools
          : i == 6 ? &broken->nr_processes
          : i == 7 ? &broken->nr_groups
          : i == 8 ? &broken->nr_cpus
                   : &broken->nr_levels) ^= i == 2 ? 1 : 0x40000001;
        int rc = vm_attach(vm_fd(r), &other);
        CHECK_EQ(rc, i < 2 ? -EPROTO : -EUCLEAN);
        *r->map.h = h;
    }
    static const size_t offsets[] = {
        offsetof(vm_header, off_processes), offsetof(vm_header, off_threads), offsetof(vm_header, off_nodes),
        offsetof(vm_header, off_names),     offsetof(vm_header, off_leases),  offsetof(vm_header, off_bits),
        offsetof(vm_header, off_summaries), offsetof(vm_header, off_heads),   offsetof(vm_header, off_sharings),
        offsetof(vm_header, off_data),      offsetof(vm_header, off_slabs),   offsetof(vm_header, off_holders),
        offsetof(vm_header, off_shelves),   offsetof(vm_header, total_bytes), offsetof(vm_header, off_rings),
    };
    for (size_t i = 0; i < LENGTH(offsets); i++) {
        *(uint64_t *)((char *)r->map.h + offsets[i]) += 4096;
        CHECK_EQ(vm_attach(vm_fd(r), &other), -EUCLEAN);
        *r->map.h = h;
    }
    CHECK(other == NULL);
    FINISH(r);
}

/* Only some regions have groups of processes; a maker who says that another has is hostile. */
static void groups_where_there_are_none_are_refused(void)
{
    vm_region *r = MAKE(.nr_pages = 10, .pools = VM_POOLS_MAGAZINE, SMALL);
    vm_header h = *r->map.h;
    CHECK(h.nr_groups > 1);
    CHECK_EQ(vm__check_header(&h, h.total_bytes), 0);
    for (uint32_t pools = 0; pools < VM_NR_POOL_DESIGNS; pools++) {
        h.pools = pools;
        vm__lay_out(&h);
        CHECK_EQ(vm__check_header(&h, h.total_bytes), vm__pool_design(pools)->has_magazines ? 0 : -EUCLEAN);
    }
    h = *r->map.h;
    h.flags |= VM_FLAG_NO_DATA;
    vm__lay_out(&h);
    CHECK_EQ(vm__check_header(&h, h.total_bytes), -EUCLEAN);
    FINISH(r);
}

static void out_of_process_slots_is_said(uint32_t nr_processes)
{
    vm_region *r = MAKE(.nr_pages = 100, .nr_nodes = 1, .nr_threads = 4, .nr_processes = nr_processes);
    static vm_region *all[VM_PROCESSES];
    int nr = 0, rc;
    while ((rc = vm_attach(vm_fd(r), &all[nr])) == 0)
        nr++;
    CHECK_EQ(rc, -ENOLCK);
    CHECK_EQ(nr, nr_processes - 1);
    CHECK_CLEAN(r);
    vm_range a = take(all[17], 3);
    GIVE_BACK(r, a);
    while (nr-- > 0)
        CHECK_EQ(vm_detach(all[nr]), 0);
    CHECK_EQ(vm_attach(vm_fd(r), &all[0]), 0);
    CHECK_EQ(vm_detach(all[0]), 0);
    FINISH(r);
}

static void process_slots_are_as_many_as_asked_for_or_some_more(void)
{
    const struct {
        uint64_t nr_pages;
        uint32_t asked, has;
    } rows[] = {
        {100, 1, 63},
        {100, 63, 63},
        {100, 64, 127},
        {100, 960, 1023},
        {100, 0, VM_PROCESSES_FEW},
        {VM_PROCESSES_MANY_PAGES - 1, 0, VM_PROCESSES_FEW},
        {VM_PROCESSES_MANY_PAGES, 0, VM_PROCESSES_MAX},
    };
    vm_info info;
    vm_region *r;
    for (size_t i = 0; i < LENGTH(rows); i++) {
        r = MAKE(.nr_pages = rows[i].nr_pages, .nr_processes = rows[i].asked, .nr_threads = 2);
        vm_describe(r, &info);
        CHECK_EQ(info.nr_processes, rows[i].has);
        CHECK_EQ(info.nr_threads, 2);
        FINISH(r);
    }
    CHECK_EQ(vm_create(&(vm_options){.nr_pages = 100, .nr_processes = VM_PROCESSES_MAX + 1}, &r), -EINVAL);
}

/* Attached 130 times: holders in three words, and each goes on when the others end. */
static void who_attaches_sees_what_is_shared_by_slots_of_every_word(void)
{
    enum { NR = 130 };
    vm_region *r = MAKE(.nr_pages = 100, .nr_nodes = 1, .nr_threads = 4, .nr_processes = 191), *all[NR];
    vm_range a = take(r, 3), got;
    CHECK_EQ(vm_share(r, a.page, a.id), 0);
    for (int i = 0; i < NR; i++) {
        CHECK_EQ(vm_attach(vm_fd(r), &all[i]), 0);
        CHECK_EQ(vm_adopt(all[i], a.page, a.id, &got), 0);
    }
    GIVE_BACK(r, a);
    for (int i = 0; i < NR - 1; i++) {
        GIVE_BACK(all[i], a);
        CHECK_EQ(vm_detach(all[i]), 0);
        CHECK_EQ(vm_lookup(r, a.page, &got), 0);
    }
    CHECK_EQ(vm_name_set(all[NR - 1], "kept", a.page, a.id, NULL, 0), 0);
    CHECK_EQ(vm_detach(all[NR - 1]), 0);
    CHECK_EQ(vm_lookup(r, a.page, &got), 0);
    CHECK_EQ(vm_name_delete(r, "kept"), 0);
    CHECK_EQ(vm_lookup(r, a.page, &got), -ENOENT);
    FINISH(r);
}

/* The slots that a large table has, and nobody used, are no memory that headroom could not grant. */
static void what_a_larger_table_could_take_does_not_count_as_taken(void)
{
    vm_region *r = MAKE(.nr_pages = 8192, .nr_nodes = 1, .nr_processes = VM_PROCESSES_MAX);
    vm_range a = take(r, 4096);
    memset(vm_pointer(r, a.page), 1, 4096 * vm__page_bytes());
    CHECK(vm__resident_pages(r) > 3500);
    GIVE_BACK(r, a);
    FINISH(r);
}

/* ---- locks ---- */

static void a_lock_of_a_dead_owner_is_stolen_and_mended(vm_pools d)
{
    vm_region *r = make(d);
    vm_range a = take(r, 2);
    IN_CHILD({
        CHECK_EQ(vm__lock(vm__thread(r), &r->map.h->space_lock, 0), 0);
        r->map.h->free_pages = 1; /* half-way through something */
    });
    double started = seconds();
    vm_range b = take(r, 600);
    CHECK(seconds() - started < 2);
    CHECK_EQ(stats_of(r).free_pages, r->map.nr_pages - 602);
    CHECK_EQ(vm_recover(r, NULL), 0);
    GIVE_BACK(r, a);
    GIVE_BACK(r, b);
    FINISH(r);
}

static void a_stopped_owner_is_never_robbed(vm_pools d)
{
    vm_region *r = make(d);
    volatile int *is_locked = shared_memory(4096);
    vm_range a;
    pid_t child;
    CHILD(child, {
        CHECK_EQ(vm__lock(vm__thread(r), &r->map.h->space_lock, 0), 0);
        *is_locked = 1;
        raise(SIGSTOP);
        vm__unlock(vm__thread(r), &r->map.h->space_lock);
    });
    while (!*is_locked)
        sched_yield();
    waitpid(child, NULL, WUNTRACED);
    vm_set_lock_timeout(r, 0.1);
    uint64_t waits = vm_lock_waits(r);
    CHECK_EQ(vm_alloc(r, 600, 1, 0, &a), -EBUSY);
    CHECK_EQ(vm_lock_waits(r), waits + 1);
    CHECK_EQ(vm_busy_pid(r), child);
    CHECK_EQ(vm_alloc(r, 600, 1, VM_NO_WAIT, &a), -EAGAIN);
    vm_wait wait = {.timeout_ns = 60000000000ull, .in_slices = true}; /* long: on a busy machine a slice is */
    vm_wait_begin(&wait);
    CHECK_EQ(vm_alloc(r, 600, 1, 0, &a), -EINTR);
    vm_wait_end();
    CHECK(vm_lock_wait_ns(r) >= 100000000);
    vm_set_lock_timeout(r, 10);
    kill(child, SIGCONT);
    a = take(r, 600);
    ended_well(child);
    CHECK_EQ(vm_recover(r, NULL), 0);
    GIVE_BACK(r, a);
    FINISH(r);
}

/* ---- threads without a slot ---- */

static void *take_and_free(void *arg)
{
    vm_region *r = arg;
    uint64_t seed = (uint64_t)(uintptr_t)&seed | 1;
    for (int i = 0; i < 2000 / SLOWER; i++) {
        vm_range a = take(r, random_pages(&seed, 300)), b = take(r, 2);
        GIVE_BACK(r, a);
        GIVE_BACK(r, b);
    }
    return NULL;
}

static void threads_without_a_slot_take_turns(vm_pools d)
{
    vm_region *r = MAKE(.nr_pages = 20000, .pools = d, .nr_nodes = 2, .nr_threads = 1);
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, take_and_free, r), 0);
    take_and_free(r);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    CHECK(stats_of(r).nr_thread_slots <= 1);
    CHECK_EQ(stats_of(r).busy_pages, 0);
    FINISH(r);
}

static void (*const for_every_design[])(vm_pools) = {
    a_child_has_a_slot_of_its_own,
    what_a_dead_process_held_comes_back,
    a_request_that_would_fail_recovers_the_dead_first,
    a_request_waits_for_a_dead_process_whose_memory_is_in_use_yet,
    so_does_one_that_nobody_else_could_make_room_for,
    so_does_an_aligned_one_whose_only_place_he_has,
    a_region_is_attached_by_its_descriptor,
    a_process_attaches_through_proc,
    a_lock_of_a_dead_owner_is_stolen_and_mended,
    a_stopped_owner_is_never_robbed,
};

int main(void)
{
    FOR_EACH_DESIGN (d)
        for (size_t i = 0; i < LENGTH(for_every_design); i++)
            for_every_design[i](d);
    a_file_that_is_no_region_is_refused();
    groups_where_there_are_none_are_refused();
    out_of_process_slots_is_said(63);
    out_of_process_slots_is_said(VM_PROCESSES_FEW);
    out_of_process_slots_is_said(VM_PROCESSES_MAX / SLOWER | 63);
    process_slots_are_as_many_as_asked_for_or_some_more();
    who_attaches_sees_what_is_shared_by_slots_of_every_word();
    what_a_larger_table_could_take_does_not_count_as_taken();
    FOR_EACH_DESIGN (d) /* last: TSan does not fork after threads were there */
        threads_without_a_slot_take_turns(d);
    FOR_EACH_DESIGN (d)
        a_thread_that_ends_during_a_detach_leaves_its_old_slot_to_the_new_owner(d);
    return 0;
}
