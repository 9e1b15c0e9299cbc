/* SPDX-License-Identifier: MIT */
/* Recordings: what is written, what a reader makes of it, and that it costs nothing while nobody records. */
#include "kit.h"

#include <sys/resource.h>

enum { ROOM = VM_EVENT_RING };
static uint64_t events[2 * ROOM];

static vm_recorder *start(vm_region *r, bool exact)
{
    vm_recorder *rec = NULL;
    CHECK_EQ(vm_record_start(r, exact, &rec), 0);
    return rec;
}
static uint32_t here(vm_region *r) { return vm__thread(r)->index; }
static uint32_t read_here(vm_recorder *rec, vm_region *r, uint64_t *lost)
{
    return vm_record_read(rec, here(r), ROOM, events, lost);
}
static uint32_t kind(uint32_t i) { return (uint32_t)(events[2 * i] & 15); }
static uint64_t len(uint32_t i) { return events[2 * i] >> VM_EVENT_LEN_SHIFT & VM_PAGES_MAX; }
static uint64_t page(uint32_t i) { return events[2 * i] >> VM_EVENT_PAGE_SHIFT; }

/* Those that are no stamps, from the front. */
static uint32_t without_stamps(uint32_t nr)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < nr; i++)
        if (kind(i) != VM_EVENT_STAMP) {
            events[2 * kept] = events[2 * i];
            events[2 * kept++ + 1] = events[2 * i + 1];
        }
    return kept;
}

static uint64_t resident_rings(vm_region *r)
{
    uint64_t pages = 0;
    for (uint32_t i = 0; i < r->map.nr_threads; i++) {
        static uint8_t there[sizeof(vm_ring) / 4096];
        vm_ring *ring = vm__ring_map(r, i);
        CHECK(ring && vm__pages_resident(ring, sizeof *ring, there));
        for (size_t k = 0; k < sizeof *ring / vm__page_bytes(); k++)
            pages += there[k] & 1;
        vm__ring_unmap(ring);
    }
    return pages;
}

static void while_nobody_records_there_is_no_ring(vm_pools d)
{
    vm_region *r = MAKE(.nr_pages = 1000, .nr_nodes = 1, .nr_threads = 4, .pools = d);
    for (int i = 0; i < 100; i++) {
        vm_range a = take(r, 3);
        GIVE_BACK(r, a);
    }
    CHECK_EQ(resident_rings(r), 0);
    CHECK(vm__thread(r)->ring == NULL);
    vm_recorder *rec = start(r, false);
    CHECK(resident_rings(r) > 0);
    vm_record_end(rec);
    CHECK_EQ(resident_rings(r), 0);
    vm_range a = take(r, 3); /* and the hits are open again */
    CHECK(vm__thread(r)->ring == NULL);
    CHECK_EQ(vm__thread(r)->hit.key, vm__thread(r)->fast_pages ? r->hit_key : VM_HIT_KEY_NOBODY);
    GIVE_BACK(r, a);
    FINISH(r);
}

static void requests_and_frees_are_told_in_their_order(vm_pools d)
{
    vm_region *r = MAKE(.nr_pages = 1000, .nr_nodes = 1, .nr_threads = 4, .pools = d);
    uint64_t lost = 0;
    for (int exact = 0; exact < 2; exact++) {
        vm_recorder *rec = start(r, exact);
        vm_range a = take(r, 3), b = take(r, 300);
        GIVE_BACK(r, a);
        vm_range c = take(r, 3);
        GIVE_BACK(r, b);
        GIVE_BACK(r, c);
        uint32_t nr = without_stamps(read_here(rec, r, &lost)), at = 0;
        struct {
            uint32_t kind;
            uint64_t page, len;
        } wanted[] = {
            {VM_EVENT_ALLOC, a.page, 3}, {VM_EVENT_ALLOC, b.page, b.nr_pages}, {VM_EVENT_FREE, a.page, 3},
            {VM_EVENT_ALLOC, c.page, 3}, {VM_EVENT_FREE, b.page, b.nr_pages},  {VM_EVENT_FREE, c.page, 3},
        };
        for (uint32_t i = 0; i < nr; i++) {
            if (kind(i) != VM_EVENT_ALLOC && kind(i) != VM_EVENT_FREE)
                continue;
            CHECK(at < LENGTH(wanted));
            CHECK_EQ(kind(i), wanted[at].kind);
            CHECK_EQ(page(i), wanted[at].page);
            CHECK_EQ(len(i), wanted[at].len);
            at++;
        }
        CHECK_EQ(at, LENGTH(wanted));
        CHECK_EQ(lost, 0);
        vm_record_end(rec);
    }
    FINISH(r);
}

/* Of a call that took less than the ticks' bits tell: another one is tried else. */
static void an_exact_event_has_the_time_of_its_call(vm_pools d)
{
    vm_region *r = MAKE(.nr_pages = 1000, .nr_nodes = 1, .nr_threads = 4, .pools = d);
    vm_recorder *rec = start(r, true);
    uint64_t lost = 0, ns, before, after, bits = (1ull << VM_EVENT_TICKS_BITS) - 1;
    uint32_t nr;
    do {
        for (int i = 0; i < 3; i++) { /* the last one hits */
            read_here(rec, r, &lost);
            vm_record_clock(&ns, &before);
            vm_range a = take(r, 3);
            GIVE_BACK(r, a);
            vm_record_clock(&ns, &after);
        }
        nr = read_here(rec, r, &lost);
    } while (vm__event_is_far(after - before));
    CHECK(nr >= 2);
    for (uint32_t i = 0; i < nr; i++)
        CHECK((((events[2 * i + 1] & UINT32_MAX) - before) & bits) <= after - before);
    vm_record_end(rec);
    vm_range a = take(r, 3);
    CHECK(!vm__thread(r)->is_exact); /* no call reads the counter any more */
    GIVE_BACK(r, a);
    FINISH(r);
}

/* A request looks at once; these are frees that hit. */
static void who_only_frees_writes_no_further_than_his_batch(void)
{
    enum { HELD = 20, ROUNDS = 10 };
    vm_region *r = MAKE(.nr_pages = 1000, .nr_nodes = 1, .nr_threads = 4, .pools = VM_POOLS_MAGAZINE);
    vm_range held[4 * HELD];
    for (int round = 0; round < ROUNDS; round++) { /* so that the magazine takes that many */
        for (int i = 0; i < 4 * HELD; i++)
            held[i] = take(r, 1);
        for (int i = 0; i < 4 * HELD; i++)
            GIVE_BACK(r, held[i]);
    }
    vm_recorder *rec = start(r, false);
    const vm_thread *t = vm__thread(r);
    for (int i = 0; i < HELD; i++)
        held[i] = take(r, 1);
    uint64_t next;
    do {
        vm_range a = take(r, 1);
        GIVE_BACK(r, a);
        next = VM_ACQUIRE(&t->ring->next);
    } while (next % VM_EVENT_BATCH < VM_EVENT_BATCH - HELD / 2);
    const vm_ring *ring = vm__ring_map(r, t->index);
    CHECK(ring);
    vm_record_stop(rec);
    for (int i = 0; i < HELD; i++)
        CHECK_EQ(vm_free(r, held[i].page, held[i].id, 0), 0);
    CHECK(VM_ACQUIRE(&ring->next) > next);
    CHECK_EQ(VM_ACQUIRE(&ring->next) % VM_EVENT_BATCH, 0);
    CHECK(!t->ring && vm__hits_are_open(&t->hit, &r->hit)); /* and its hits are as before */
    vm__ring_unmap((vm_ring *)(uintptr_t)ring);
    vm_record_end(rec);
    FINISH(r);
}

/* A stamp whose low bits are all ones, as long ago as may be: the sum stays below the CPU. */
static void what_is_added_to_a_stamp_carries_into_no_cpu(void)
{
    vm_region *r = MAKE(.nr_pages = 1000, .nr_nodes = 1, .nr_threads = 4);
    vm_recorder *rec = start(r, true);
    vm_thread *t = vm__thread(r);
    uint64_t lost = 0, bits = (1ull << VM_EVENT_TICKS_BITS) - 1, far = 1ull << (VM_EVENT_TICKS_BITS - 1);
    CHECK(vm__event_is_far(far) && !vm__event_is_far(far - 1));
    CHECK((bits + far - 1) >> VM_EVENT_CPU_SHIFT == 0);
    vm_range a = take(r, 3);
    GIVE_BACK(r, a);
    read_here(rec, r, &lost);
    t->stamped_ticks -= far; /* then the next hit is too far from it */
    a = take(r, 3);
    CHECK_EQ(read_here(rec, r, &lost), 2);
    CHECK_EQ(kind(0), VM_EVENT_STAMP);
    CHECK_EQ((uint32_t)events[1], (uint32_t)events[3]); /* what comes behind it has its time */
    GIVE_BACK(r, a);
    vm_record_end(rec);
    FINISH(r);
}

static void who_is_lapped_learns_how_much_is_lost(void)
{
    vm_region *r = MAKE(.nr_pages = 1000, .nr_nodes = 1, .nr_threads = 4);
    vm_recorder *rec = start(r, false);
    uint64_t lost = 0, lost_before;
    CHECK(read_here(rec, r, &lost) > 0);
    for (int i = 0; i < VM_EVENT_RING; i++) { /* two events each */
        vm_range a = take(r, 1);
        GIVE_BACK(r, a);
    }
    const vm_ring *ring = vm__thread(r)->ring;
    uint64_t before = VM_ACQUIRE(&ring->next);
    uint32_t nr = read_here(rec, r, &lost);
    CHECK_EQ(nr, VM_EVENT_RING - 1); /* the place of the oldest is the one that would be written now */
    CHECK(lost > VM_EVENT_RING / 2);
    lost_before = lost;
    vm_range a = take(r, 1);
    nr = read_here(rec, r, &lost);
    CHECK_EQ(lost, lost_before);
    CHECK_EQ(nr, VM_ACQUIRE(&ring->next) - before);
    GIVE_BACK(r, a);
    vm_record_end(rec);
    FINISH(r);
}

static void a_half_written_event_is_never_read(void)
{
    vm_region *r = MAKE(.nr_pages = 1000, .nr_nodes = 1, .nr_threads = 4);
    vm_recorder *rec = start(r, false);
    uint64_t lost = 0;
    vm_range a = take(r, 1);
    vm_ring *ring = vm__thread(r)->ring;
    uint64_t at = VM_ACQUIRE(&ring->next);
    ring->event[at % VM_EVENT_RING].what = UINT64_MAX; /* as a writer leaves it who dies before he counts it */
    uint32_t nr = read_here(rec, r, &lost);
    CHECK_EQ(nr, at);
    for (uint32_t i = 0; i < nr; i++)
        CHECK(events[2 * i] != UINT64_MAX);
    GIVE_BACK(r, a); /* the place is written again */
    nr = read_here(rec, r, &lost);
    for (uint32_t i = 0; i < nr; i++)
        CHECK(events[2 * i] != UINT64_MAX);
    CHECK_EQ(lost, 0);
    vm_record_end(rec);
    FINISH(r);
}

static void one_records_at_a_time_and_a_death_ends_it(void)
{
    vm_region *r = MAKE(.nr_pages = 1000, .nr_nodes = 1, .nr_threads = 4);
    vm_recorder *rec = start(r, false), *second = NULL;
    CHECK_EQ(vm_record_start(r, false, &second), -EBUSY);
    vm_record_end(rec);
    pid_t child = fork();
    if (child == 0) {
        start(r, false);
        kill(getpid(), SIGKILL);
    }
    CHECK_EQ(waitpid(child, NULL, 0), child);
    CHECK_EQ(vm_recover(r, NULL), 0);
    CHECK_EQ(r->map.h->recording, 0);
    CHECK_EQ(resident_rings(r), 0);
    rec = start(r, true);
    vm_record_end(rec);
    FINISH(r);
}

/* As the child of a vfork, or whoever just reads /proc/PID/maps: it has a process's memory, and with it the lock, a while after
 * that has ended. */
static int stay_a_while(void *arg)
{
    (void)arg;
    for (double until = seconds() + 0.01; seconds() < until;)
        sched_yield(); /* TSan does not survive a sleep here */
    _exit(0);
}

static void one_whose_memory_outlives_him_a_moment_is_waited_for(void)
{
    vm_region *r = MAKE(.nr_pages = 1000, .nr_nodes = 1, .nr_threads = 4);
    pid_t child;
    CHILD(child, {
        static uint8_t stack[1 << 16];
        start(r, false);
        CHECK(clone(stay_a_while, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL) > 0);
    });
    ended_well(child);
    vm_recorder *rec = start(r, false);
    vm_record_end(rec);
    CHECK_EQ(vm_recover(r, NULL), 0);
    FINISH(r);
}

/* It gets the dead one's slot, and nobody finds that one dead any more. */
static void who_joins_where_only_a_dead_recorders_slot_is_left_ends_his_recording(void)
{
    enum { OTHERS = 61 };
    vm_region *r = MAKE(.nr_pages = 1000, .nr_nodes = 1, .nr_threads = 4, .nr_processes = OTHERS + 2);
    vm_region *other[OTHERS], *joined;
    int ready[2];
    char byte;
    pid_t child;
    CHECK_EQ(pipe(ready), 0);
    CHILD(child, {
        start(r, false);
        CHECK_EQ(write(ready[1], "", 1), 1);
        for (;;)
            pause();
    });
    CHECK_EQ(read(ready[0], &byte, 1), 1);
    for (int i = 0; i < OTHERS; i++)
        CHECK_EQ(vm_attach(vm_fd(r), &other[i]), 0);
    kill(child, SIGKILL);
    CHECK(WIFSIGNALED(end_of(child)));
    CHECK(VM_ACQUIRE(&r->map.h->recording) != 0);
    CHECK_EQ(vm_attach(vm_fd(r), &joined), 0);
    CHECK_EQ(VM_ACQUIRE(&r->map.h->recording), 0);
    CHECK_EQ(vm_detach(joined), 0);
    for (int i = 0; i < OTHERS; i++)
        CHECK_EQ(vm_detach(other[i]), 0);
    close(ready[0]);
    close(ready[1]);
    FINISH(r);
}

/* In its process's slot, and meets one who died: what it recovers with is written down. */
static void who_attaches_where_all_slots_are_taken_follows(void)
{
    vm_region *r = MAKE(.nr_pages = 1000, .nr_nodes = 1, .nr_threads = 1), *second = NULL;
    vm_recorder *rec = start(r, false);
    uint64_t lost = 0;
    pid_t child = fork();
    if (child == 0)
        for (;;)
            pause();
    kill(child, SIGKILL);
    CHECK_EQ(waitpid(child, NULL, 0), child);
    CHECK_EQ(vm_attach(vm_fd(r), &second), 0);
    uint32_t slot = here(second), nr_recovered = 0;
    CHECK(vm__thread(second)->common);
    for (uint32_t i = vm_record_read(rec, slot, ROOM, events, &lost); i-- > 0;)
        nr_recovered += kind(i) == VM_EVENT_RECOVER;
    CHECK_EQ(nr_recovered, 1);
    CHECK_EQ(vm_detach(second), 0);
    vm_record_end(rec);
    FINISH(r);
}

/* As `ulimit -n` leaves a process: its threads that share a slot try once, and do not hinder one another. */
static void who_cannot_have_a_ring_in_a_shared_slot_does_not_try_again(void)
{
    vm_region *r = MAKE(.nr_pages = 1000, .nr_nodes = 1, .nr_threads = 1), *second = NULL;
    CHECK_EQ(vm_attach(vm_fd(r), &second), 0);
    CHECK(vm__thread(second)->common);
    vm_recorder *rec = start(r, false);
    vm_thread *t = vm__thread(second);
    struct rlimit before;
    CHECK_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &(struct rlimit){0, before.rlim_max}), 0);
    vm_range a = take(second, 1);
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
    uint32_t recording = VM_ACQUIRE(&t->slot->recording);
    CHECK(recording != 0 && t->ring == NULL);
    vm_range b = take(second, 1);
    CHECK(t->ring == NULL);
    CHECK_EQ(VM_ACQUIRE(&t->slot->recording), recording);
    GIVE_BACK(second, b);
    GIVE_BACK(second, a);
    vm_record_end(rec);
    CHECK_EQ(vm_detach(second), 0);
    FINISH(r);
}

/* One who was stopped in the middle of ending it, and goes on when another one has ended it and a third began. */
static void who_is_late_with_an_end_ends_no_later_recording(void)
{
    vm_region *r = MAKE(.nr_pages = 1000, .nr_nodes = 1, .nr_threads = 4);
    uint64_t lost = 0;
    vm_recorder *rec = start(r, false);
    uint64_t first = VM_ACQUIRE(&r->map.h->recording);
    vm_record_end(rec);
    rec = start(r, false);
    uint32_t number = VM_ACQUIRE(&r->map.slots[here(r)].recording);
    vm__recording_withdraw(r, first);
    vm__recording_end(r, first);
    CHECK_EQ(VM_ACQUIRE(&r->map.slots[here(r)].recording), number);
    vm_range a = take(r, 1);
    CHECK(read_here(rec, r, &lost) > 0);
    GIVE_BACK(r, a);
    vm_record_end(rec);
    CHECK_EQ(VM_ACQUIRE(&r->map.slots[here(r)].recording), 0);
    FINISH(r);
}

/* One who would go on later might discard the rings of the next recording. */
static void who_ends_a_recording_is_left_alone_with_it_while_he_lives(void)
{
    vm_region *r = MAKE(.nr_pages = 1000, .nr_nodes = 1, .nr_threads = 4);
    vm_recorder *second = NULL;
    int ready[2];
    CHECK_EQ(pipe(ready), 0);
    pid_t child;
    /* Records, and stands still at the beginning of the end. */
    CHILD(child, {
        start(r, false);
        vm__recording_withdraw(r, r->map.h->recording);
        VM_AND(&r->map.h->recording, ~(uint64_t)VM_RECORDING_ON);
        CHECK_EQ(write(ready[1], "", 1), 1);
        for (;;)
            pause();
    });
    close(ready[1]);
    char byte;
    CHECK_EQ(read(ready[0], &byte, 1), 1);
    uint64_t ended = VM_ACQUIRE(&r->map.h->recording);
    CHECK(ended != 0);
    vm__recording_end_of_dead(r, true);
    CHECK_EQ(VM_ACQUIRE(&r->map.h->recording), ended);
    CHECK_EQ(vm_record_start(r, false, &second), -EBUSY);
    CHECK(resident_rings(r) > 0);
    kill(child, SIGKILL);
    CHECK_EQ(waitpid(child, NULL, 0), child);
    second = start(r, false); /* who comes first goes on with it */
    CHECK_EQ(VM_ACQUIRE(&r->map.slots[here(r)].followed), (uint32_t)r->map.h->recording);
    vm_record_end(second);
    CHECK_EQ(vm_recover(r, NULL), 0);
    CHECK_EQ(VM_ACQUIRE(&r->map.h->recording), 0);
    CHECK_EQ(resident_rings(r), 0);
    close(ready[0]);
    FINISH(r);
}

/* A dead one's recording, which one process ends, is that one's from the first moment on. */
static void who_ends_the_recording_of_another_owns_it(void)
{
    vm_region *r = MAKE(.nr_pages = 1000, .nr_nodes = 1, .nr_threads = 4);
    vm_recorder *rec = start(r, false);
    uint64_t recording = VM_ACQUIRE(&r->map.h->recording)
                         ^ 1ull << VM_RECORDING_OWNER_SHIFT; /* as if it were another's */
    VM_STORE(&r->map.h->recording, recording);
    vm__recording_end(r, recording);
    CHECK_EQ(VM_ACQUIRE(&r->map.h->recording), 0);
    CHECK_EQ(resident_rings(r), 0);
    vm_record_end(rec);
    FINISH(r);
}

static struct {
    vm_region *r;
    pthread_barrier_t step;
    uint32_t slot;
    bool was_told;
} other;

/* As under `ulimit -f`: a file may be no longer than the region without its rings. */
static void where_files_may_not_be_long_a_region_has_no_rings(void)
{
    vm_region *whole = MAKE(.nr_pages = 1000, .nr_nodes = 1, .nr_threads = 4);
    rlim_t without = whole->map.h->off_rings;
    FINISH(whole);
    pid_t child;
    CHILD(child, {
        CHECK_EQ(setrlimit(RLIMIT_FSIZE, &(struct rlimit){without, without}), 0);
        vm_region *r = MAKE(.nr_pages = 1000, .nr_nodes = 1, .nr_threads = 4), *again;
        vm_recorder *rec;
        CHECK_EQ(r->map.h->total_bytes, without);
        CHECK_EQ(vm_record_start(r, false, &rec), -EFBIG);
        CHECK(vm__ring_map(r, here(r)) == NULL);
        CHECK_EQ(vm_attach_readonly(vm_fd(r), &again), 0);
        vm_detach(again);
        vm_range a = take(r, 1);
        GIVE_BACK(r, a);
        FINISH(r);
    });
    ended_well(child);
}

static void *work_while_a_recording_ends(void *unused)
{
    (void)unused;
    for (int i = 0; i < 3; i++) {
        if (i)
            pthread_barrier_wait(&other.step);
        vm_range a = take(other.r, 1);
        GIVE_BACK(other.r, a);
        CHECK_EQ(vm__thread(other.r)->ring != NULL, i == 0);
        other.slot = here(other.r);
        pthread_barrier_wait(&other.step);
    }
    return NULL;
}

/* As soon as its slot says so, and the end goes on. */
static bool let_the_other_work(const char *file, int line, uint64_t nr_passed)
{
    (void)file, (void)line, (void)nr_passed;
    if (!other.was_told && VM_ACQUIRE(&other.r->map.slots[other.slot].recording) == 0) {
        other.was_told = true;
        pthread_barrier_wait(&other.step);
        pthread_barrier_wait(&other.step);
    }
    return false;
}

static void nobody_follows_a_recording_that_ends_with_a_death(void)
{
    vm_region *r = other.r = MAKE(.nr_pages = 1000, .nr_nodes = 1, .nr_threads = 4);
    pthread_t thread;
    int ready[2];
    char byte = 0;
    CHECK_EQ(pipe(ready), 0);
    pid_t child = fork();
    if (child == 0) {
        start(r, false);
        CHECK_EQ(write(ready[1], &byte, 1), 1);
        for (;;)
            pause();
    }
    close(ready[1]);
    CHECK_EQ(read(ready[0], &byte, 1), 1);
    pthread_barrier_init(&other.step, NULL, 2);
    CHECK_EQ(pthread_create(&thread, NULL, work_while_a_recording_ends, NULL), 0);
    pthread_barrier_wait(&other.step);
    kill(child, SIGKILL);
    CHECK_EQ(waitpid(child, NULL, 0), child);
    vm_fault_filter(let_the_other_work);
    CHECK_EQ(vm_recover(r, NULL), 0);
    vm_fault_filter(NULL);
    CHECK(other.was_told);
    pthread_barrier_wait(&other.step);
    pthread_barrier_wait(&other.step);
    pthread_join(thread, NULL);
    CHECK_EQ(resident_rings(r), 0);
    close(ready[0]);
    FINISH(r);
}

static void a_child_neither_writes_its_parents_ring_nor_ends_its_recording(void)
{
    vm_region *r = MAKE(.nr_pages = 1000, .nr_nodes = 1, .nr_threads = 4);
    vm_recorder *rec = start(r, false);
    uint64_t lost = 0, count = VM_ACQUIRE(&vm__thread(r)->ring->next), recording = r->map.h->recording;
    uint32_t slot = here(r);
    pid_t child = fork();
    if (child == 0) {
        vm_range a = take(r, 1);
        CHECK(vm__thread(r)->ring != NULL && here(r) != slot);
        GIVE_BACK(r, a);
        vm_record_end(rec);
        _exit(0);
    }
    int status;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
    CHECK_EQ(r->map.h->recording, recording);
    uint32_t nr = read_here(rec, r, &lost);
    CHECK(nr >= count);
    nr = 0;
    for (uint32_t i = 0; i < vm_record_slots(rec); i++) /* the child's events are there */
        nr += i == slot ? 0 : vm_record_read(rec, i, ROOM, events, &lost);
    CHECK(nr > 0);
    vm_record_end(rec);
    FINISH(r);
}

/* ---- who watches ---- */

static void who_watches_begins_where_the_rings_stand_and_is_lapped_as_a_reader_is(void)
{
    vm_region *r = MAKE(.nr_pages = 1000, .nr_nodes = 1, .nr_threads = 4);
    vm_recorder *watch = NULL;
    CHECK_EQ(vm_record_watch(r, &watch), -ENODATA);
    vm_recorder *rec = start(r, false);
    vm_range a = take(r, 1);
    CHECK_EQ(vm_record_watch(r, &watch), 0);
    uint64_t lost = 0;
    CHECK_EQ(read_here(watch, r, &lost), 0);
    GIVE_BACK(r, a);
    CHECK_EQ(without_stamps(read_here(watch, r, &lost)), 1);
    CHECK_EQ(kind(0), VM_EVENT_FREE);
    CHECK_EQ(lost, 0);
    for (int i = 0; i < VM_EVENT_RING; i++) { /* two events each */
        a = take(r, 1);
        GIVE_BACK(r, a);
    }
    CHECK_EQ(read_here(watch, r, &lost), VM_EVENT_RING - 1);
    CHECK(lost >= VM_EVENT_RING);
    CHECK(vm_record_is_on(watch));
    uint64_t recording = VM_ACQUIRE(&r->map.h->recording);
    vm_record_stop(watch); /* is not his */
    CHECK_EQ(VM_ACQUIRE(&r->map.h->recording), recording);
    vm_record_end(rec);
    CHECK(!vm_record_is_on(watch));
    vm_record_end(watch);
    FINISH(r);
}

static void a_child_of_who_watches_reads_nothing_and_its_parent_goes_on(void)
{
    vm_region *r = MAKE(.nr_pages = 1000, .nr_nodes = 1, .nr_threads = 4);
    vm_recorder *rec = start(r, false), *watch = NULL;
    CHECK_EQ(vm_record_watch(r, &watch), 0);
    uint64_t lost = 0;
    uint32_t slot = here(r);
    vm_range a = take(r, 1);
    pid_t child = fork();
    if (child == 0) {
        CHECK_EQ(vm_record_slots(watch), 0);
        CHECK_EQ(vm_record_read(watch, slot, ROOM, events, &lost), 0);
        CHECK_EQ(vm_record_pid(watch, slot), 0);
        CHECK(!vm_record_is_on(watch) && lost == 0);
        vm_record_end(watch);
        _exit(0);
    }
    int status;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
    CHECK(vm_record_is_on(watch));
    uint32_t nr_allocs = 0;
    for (uint32_t i = read_here(watch, r, &lost); i-- > 0;)
        nr_allocs += kind(i) == VM_EVENT_ALLOC;
    CHECK_EQ(nr_allocs, 1);
    CHECK_EQ(vm_record_pid(watch, slot), (uint32_t)getpid());
    CHECK_EQ(vm_record_pid(watch, vm_record_slots(watch)), 0);
    GIVE_BACK(r, a);
    vm_record_end(watch);
    vm_record_end(rec);
    FINISH(r);
}

/* Whatever the rings and the words of a recording say, reading ends and stays within the ring. */
static void scribbles_lead_a_reader_nowhere(void)
{
    vm_region *r = MAKE(.nr_pages = 1000, .nr_nodes = 1, .nr_threads = 4);
    uint64_t seed = 19, lost = 0;
    vm_recorder *rec = start(r, false);
    for (int round = 0; round < 2000; round++) {
        vm_range a = take(r, 1);
        vm_ring *ring = vm__thread(r)->ring;
        if (ring) {
            uint64_t n = seed = seed * 6364136223846793005ull + 1442695040888963407ull;
            ring->next = round % 3 ? n : n >> 40;
            ring->event[n % VM_EVENT_RING].what = n;
        }
        if (round % 7 == 0)
            vm__thread(r)->slot->recording = (uint32_t)(seed >> 20);
        if (round % 11 == 0)
            vm__thread(r)->slot->followed = (uint32_t)(seed >> 13);
        CHECK(vm_record_read(rec, here(r), ROOM, events, &lost) <= ROOM);
        GIVE_BACK(r, a);
    }
    vm_record_end(rec);
    CHECK_CLEAN(r);
    FINISH(r);
}

int main(void)
{
    FOR_EACH_DESIGN (d) {
        while_nobody_records_there_is_no_ring(d);
        requests_and_frees_are_told_in_their_order(d);
        an_exact_event_has_the_time_of_its_call(d);
    }
    what_is_added_to_a_stamp_carries_into_no_cpu();
    who_only_frees_writes_no_further_than_his_batch();
    who_is_lapped_learns_how_much_is_lost();
    a_half_written_event_is_never_read();
    one_records_at_a_time_and_a_death_ends_it();
    one_whose_memory_outlives_him_a_moment_is_waited_for();
    who_joins_where_only_a_dead_recorders_slot_is_left_ends_his_recording();
    who_attaches_where_all_slots_are_taken_follows();
    nobody_follows_a_recording_that_ends_with_a_death();
    where_files_may_not_be_long_a_region_has_no_rings();
    who_cannot_have_a_ring_in_a_shared_slot_does_not_try_again();
    who_is_late_with_an_end_ends_no_later_recording();
    who_ends_a_recording_is_left_alone_with_it_while_he_lives();
    who_ends_the_recording_of_another_owns_it();
    who_watches_begins_where_the_rings_stand_and_is_lapped_as_a_reader_is();
    a_child_of_who_watches_reads_nothing_and_its_parent_goes_on();
    a_child_neither_writes_its_parents_ring_nor_ends_its_recording();
    scribbles_lead_a_reader_nowhere();
    return 0;
}
