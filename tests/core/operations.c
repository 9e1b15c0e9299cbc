/* SPDX-License-Identifier: MIT */
/*
 * OPERATIONS: everything a process can do to a region, one function each, and what must be there first.
 *
 * Both lists at the end are what test_crash.c and test_step.c run. A function named as a verb in the
 * imperative is the victim's, unless the list has it in a column of the survivor's.
 */
#include "stage.h"

#include <sys/resource.h>

/* ---- alloc, free, resize ---- */

static void hold(stage *s, uint64_t nr_pages, size_t count)
{
    CHECK(s->nr_held + count <= HELD_MAX);
    for (size_t i = 0; i < count; i++) {
        s->held[s->nr_held] = take(s->r, nr_pages);
        stamp_range(s, &s->held[s->nr_held++]);
    }
}
static void let_go(stage *s)
{
    CHECK_EQ(vm_free_bulk(s->r, s->nr_held, s->held), 0);
    s->nr_held = 0;
}
static void warm_up(stage *s)
{
    hold(s, 1, 2);
    let_go(s);
}
static void take_one(stage *s) { take(s->r, 1); }
/* As in a region where no slot was used that is not used now. */
static void forget_slots(stage *s)
{
    uint32_t high = VM_PROCESSES;
    for (uint32_t i = high; i < s->r->map.nr_threads; i++)
        high = s->r->map.slots[i].state & 1 ? i + 1 : high;
    s->r->map.h->high_slot = high;
}
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
static void free_one_twice_as_long(stage *s)
{
    hold(s, 700, 1);
    let_go(s);
}
static void free_neighbours(stage *s)
{
    hold(s, 300, 3);
    let_go(s);
    take(s->r, 300); /* sorts */
}
static void take_their_sum(stage *s) { take(s->r, 600); }
static void free_small_ones(stage *s)
{
    hold(s, 1, 70);
    let_go(s);
    hold(s, 256, 20);
    let_go(s);
}
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
    s->r->map.h->lazy_pages_fixed = 100;
}
static void take_cold_over_the_threshold(stage *s)
{
    let_go(s);
    take(s->r, 2000);
}
static void raise_the_threshold(stage *s) { s->r->map.h->lazy_pages_fixed = 1u << 28; }

/* All thread slots seem taken by us: the victim's thread gets none. */
static void occupy_slots(stage *s)
{
    for (uint32_t i = VM_PROCESSES; i < s->r->map.nr_threads; i++)
        if (!(s->r->map.slots[i].state & 1))
            s->r->map.slots[i].state |= (uint64_t)s->r->process << 1 | 1;
    s->r->map.h->high_slot = s->r->map.nr_threads;
}
static void vacate_slots(stage *s)
{
    uint32_t own = vm__thread(s->r)->index;
    for (uint32_t i = VM_PROCESSES; i < s->r->map.nr_threads; i++)
        if (i != own && (s->r->map.slots[i].state >> 1 & (VM_PROCESSES - 1)) == s->r->process)
            s->r->map.slots[i].state = ((s->r->map.slots[i].state >> 32) + 1) << 32;
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

/* ---- messages ---- */

static void lease_held(stage *s) /* the lease is known to others only when it is complete */
{
    uint64_t lease;
    CHECK_EQ(vm_lease(s->r, s->held[0].page, s->held[0].id, &lease), 0);
    s->sent = s->held[0];
    s->lease = lease;
}
/* As in a region that never had a lease. */
static void forget_leases(stage *s) { s->r->map.h->lease_high = s->r->map.h->lease_unused = 0; }
static void send_and_let_go(stage *s)
{
    lease_held(s);
    GIVE_BACK(s->r, s->held[0]);
}
static void lease_gift_0(stage *s) { CHECK_EQ(vm_lease(s->r, s->gift[0].page, s->gift[0].id, &s->lease), 0); }
static void lease_gift_and_let_go(stage *s)
{
    lease_gift_0(s);
    GIVE_BACK(s->r, s->gift[0]);
    s->gift_is_ours[0] = false;
}
static void claim_gift(stage *s)
{
    vm_range a;
    CHECK_EQ(vm_claim(s->r, s->gift[0].page, s->gift[0].id, s->lease, &a), 0);
    check_stamps(s, &a);
}
static void claim_gift_twice(stage *s)
{
    claim_gift(s);
    claim_gift(s); /* the lease is gone, the range is there */
    GIVE_BACK(s->r, s->gift[0]);
    GIVE_BACK(s->r, s->gift[0]);
}
static void claim_stale(stage *s)
{
    vm_range a;
    CHECK_EQ(vm_claim(s->r, s->gift[0].page, s->gift[0].id + 1, s->lease, &a), -ESTALE);
}
static void claim_what_was_sent(stage *s) /* its sender is dead, and had let go of it or not */
{
    vm_range a;
    if (!s->lease)
        return;
    CHECK_EQ(vm_claim(s->r, s->sent.page, s->sent.id, s->lease, &a), 0);
    check_stamps(s, &a);
    GIVE_BACK(s->r, a);
    CHECK_EQ(vm_drop_lease(s->r, s->lease), -ENOENT);
}
static void hold_two_and_lease(stage *s)
{
    hold(s, 2, 2);
    lease_held(s);
}
static void hold_and_send(stage *s)
{
    hold(s, 300, 1);
    send_and_let_go(s);
}
static void drop_lease(stage *s) { CHECK_EQ(vm_drop_lease(s->r, s->lease), 0); }
static void use_leases_before(stage *s)
{
    hold(s, 2, 2);
    for (int i = 0; i < 3; i++) {
        uint64_t first, second;
        CHECK_EQ(vm_lease(s->r, s->held[0].page, s->held[0].id, &first), 0);
        CHECK_EQ(vm_lease(s->r, s->held[0].page, s->held[0].id, &second), 0);
        CHECK_EQ(vm_drop_lease(s->r, first), 0);
        CHECK_EQ(vm_drop_lease(s->r, second), 0);
    }
}
static void expire_all(stage *s)
{
    uint64_t nr;
    CHECK_EQ(vm_expire_leases(s->r, true, &nr), 0);
}
static void send_and_claim(stage *s)
{
    vm_range a;
    uint64_t lease;
    hold(s, 2, 1);
    CHECK_EQ(vm_lease(s->r, s->held[0].page, s->held[0].id, &lease), 0);
    CHECK_EQ(vm_claim(s->r, s->held[0].page, s->held[0].id, lease, &a), 0);
    GIVE_BACK(s->r, a);
    GIVE_BACK(s->r, a);
}
/* As if its sender had died just now. */
static void leave_a_lease_of_the_dead(stage *s)
{
    lease_gift_and_let_go(s);
    s->r->map.leases[s->lease % VM_LEASES_MAX].owner = vm__lease_owner(200, 0x3ff0);
    s->r->map.h->purge_needs_scan = 1;
    s->r->map.h->lease_ttl_ns = 1;
}
static void recover_and_purge(stage *s)
{
    CHECK_EQ(vm_recover(s->r, NULL), 0);
    CHECK_EQ(vm_purge(s->r, NULL), 0);
}
static void lengthen_leases(stage *s) { s->r->map.h->lease_ttl_ns = 60ull * 1000 * 1000 * 1000; }

/* ---- names ---- */

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

/* ---- purge, recover ---- */

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

/* ---- who comes and goes ---- */

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
        if ((uint32_t)s->r->map.processes[p].state == 0)
            s->r->map.processes[p].state |= VM_PROCESS_DYING;
}

/* A child of the victim: what it found in its memory is its own, whoever dies. */
static vm_range inherited[HELD_MAX];
static size_t nr_inherited;
static void use_what_was_inherited(stage *s)
{
    uint64_t nr;
    for (size_t i = 0; i < nr_inherited; i++)
        check_stamps(s, &inherited[i]);
    take(s->r, 2);
    if (nr_inherited)
        CHECK_EQ(vm_free(s->r, inherited[0].page, inherited[0].id, VM_INHERITED), 0);
    CHECK_EQ(vm_drop_inherited(s->r, &nr), 0);
    CHECK_EQ(nr + (nr_inherited != 0), nr_inherited);
    take(s->r, 2);
}
static pid_t forker;
static void use_what_was_inherited_after_its_end(stage *s)
{
    while (getppid() == forker)
        usleep(100);
    use_what_was_inherited(s);
}
static pid_t fork_a_child(stage *s, void (*live)(stage *))
{
    nr_inherited = s->nr_held;
    memcpy(inherited, s->held, sizeof inherited);
    forker = getpid();
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid)
        return pid;
    live(s);
    fflush(NULL);
    _exit(0);
}
static void fork_and_wait(stage *s)
{
    pid_t pid = fork_a_child(s, use_what_was_inherited);
    check_end(pid, end_of(pid), true);
    let_go(s);
}
static void fork_and_let_go(stage *s)
{
    fork_a_child(s, use_what_was_inherited_after_its_end);
    let_go(s);
}
static void look_only(stage *s)
{
    vm_range a;
    for (size_t i = 0; i < nr_inherited; i++)
        check_stamps(s, &inherited[i]);
    CHECK_EQ(vm_alloc(s->r, 2, 1, 0, &a), -ENOLCK);
}
static void fork_without_a_slot(stage *s)
{
    pid_t pid = fork_a_child(s, look_only);
    check_end(pid, end_of(pid), true);
}
static void hold_of_every_kind(stage *s)
{
    hold(s, 2, 2);
    hold(s, 300, 1);
    CHECK_EQ(vm_share(s->r, s->held[0].page, s->held[0].id), 0);
    CHECK_EQ(vm_adopt(s->r, s->gift[0].page, s->gift[0].id, &s->held[s->nr_held]), 0);
    s->nr_held++;
}
static void use_up_descriptors(stage *s)
{
    hold_of_every_kind(s);
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &(struct rlimit){3, 3}), 0);
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

static vm_token dead_token(stage *s) { return vm__token(s->r->map.nr_threads - 1, 0x3ff0); }
static void leave_a_mess(stage *s)
{
    vm_region *r = s->r;
    vm_head *gift = &r->map.heads[s->gift[0].page];
    share_gifts(s);
    r->map.heads[s->gift[1].page].word =
        vm__word(VM_FREEING, VM_WORD_DIRTY, 2, 200, 0x3ff0); /* was about to share it */
    gift->word = vm__word(VM_FREEING, VM_WORD_SHARED | VM_WORD_DIRTY, 2, 200, 0x3ff0); /* a dead one was freeing it */
    r->map.sharings[s->gift[2].page].holders[VM_PROCESS_NAMES / 64] |= 1ull << VM_PROCESS_NAMES % 64; /* half named */
    r->map.h->names_lock.needs_mending = 1;
    r->map.h->lease_lock.needs_mending = 1;
    r->map.h->lease_high = 3;
    r->map.h->lease_unused = 2;
    r->map.h->nr_leases = 5;
    r->map.sharings[s->gift[2].page].nr_leases = 2; /* counted, and not yet made */
    r->map.leases[1] = /* of what is gone */
        (vm_lease_entry){.id = 1 << VM_LEASE_BITS | 1, .page = s->gift[2].page, .range_id = 1};
    r->map.h->purge_lock.needs_mending = 1;
    r->map.h->purge_needs_scan = 1;
    r->map.h->lazy_pages += 5;
    uint64_t page = vm__index_find(&r->map, 0, 100), start = vm__index_run_start(&r->map, page); /* not yet merged */
    vm_word w = r->map.heads[start].word;
    r->map.heads[start + 10].word = vm__word(VM_FREE, w & VM_WORD_DIRTY, vm__len(w) - 10, 0, 0);
    r->map.heads[start].word = vm__word(VM_FREE, w & VM_WORD_DIRTY, 10, 0, 0);
    r->map.h->high_pages = 0;
    r->map.h->space_lock.needs_mending = 1;
    for (uint32_t i = VM_PROCESSES; i < r->map.nr_threads; i++)
        r->map.slots[i].drain = dead_token(s);
    r->map.h->high_slot = r->map.nr_threads;
}
/* A child of the survivor's, so it holds all that this one holds; and it dies of its own. */
static void work_and_be_killed(stage *s)
{
    uint64_t lease;
    wait_for_cue(&s->victim[1].cue, CUE_RUN, 0); /* its parent is through with the fork */
    vm_range a = take(s->r, 3), b = take(s->r, 300);
    CHECK_EQ(vm_lease(s->r, a.page, a.id, &lease), 0);
    GIVE_BACK(s->r, a);
    CHECK_EQ(vm_share(s->r, b.page, b.id), 0);
    kill(getpid(), SIGKILL);
}
static void lock_warm_and_be_killed(stage *s)
{
    vm_warm *w = &s->r->map.h->warm;
    wait_for_cue(&s->victim[1].cue, CUE_RUN, 0);
    CHECK_EQ(vm__warm_lock(vm__thread(s->r), 0), 0);
    w->list[0].head = w->list[0].tail = 7; /* half-way through something */
    w->unsorted = 9;
    s->r->map.nodes[0].lazy_head = 11;
    kill(getpid(), SIGKILL);
}
static void lock_space_and_be_killed(stage *s)
{
    wait_for_cue(&s->victim[1].cue, CUE_RUN, 0);
    CHECK_EQ(vm__lock(vm__thread(s->r), &s->r->map.h->space_lock, 0), 0);
    kill(getpid(), SIGKILL);
}
static void let_die(stage *s, void (*live)(stage *))
{
    pid_t pid;
    s->victim[1].cue = CUE_NONE;
    CHILD(pid, live(s));
    give_cue(&s->victim[1].cue, CUE_RUN);
    CHECK(WIFSIGNALED(end_of(pid)));
}
static void let_another_be_killed(stage *s) { let_die(s, work_and_be_killed); }
static void die_with_the_warm_lock(stage *s) { let_die(s, lock_warm_and_be_killed); }
static void die_with_the_space_lock(stage *s) { let_die(s, lock_space_and_be_killed); }
static void leave_pools_in_use(stage *s)
{
    for (int n = 0; n < 2; n++)
        for (int i = 0; i < 4; i++)
            s->r->map.nodes[n].pool[i].in_use = dead_token(s);
}
static void set_in_motion(stage *s) /* we are alive, between a word and a list */
{
    s->r->map.heads[s->gift[1].page].word = vm__thread(s->r)->moving | 2ull << VM_WORD_LEN_SHIFT;
    s->r->map.h->purge_needs_scan = 1;
}
static void come_to_rest(stage *s)
{
    s->r->map.heads[s->gift[1].page].word = vm__thread(s->r)->busy | 2ull << VM_WORD_LEN_SHIFT;
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

/* Another process adopts just when the last holder has cleared its bit; another thread has freed and taken
 * again what is about to be shared. */
void between_writes(stage *s)
{
    vm_region *r = s->r;
    uint64_t page = s->gift[0].page, any = 0;
    if (s->reuses_in_between) {
        r->map.heads[s->held[0].page].aux = s->held[1].id;
        s->reuses_in_between = false;
    }
    if (!s->adopts_in_between)
        return;
    for (int i = 0; i < VM_PROCESSES / 64; i++)
        any |= r->map.sharings[page].holders[i];
    if (any == 0 && vm__state(VM_ACQUIRE(&r->map.heads[page].word)) == VM_BUSY) {
        r->map.sharings[page].holders[s->survivor / 64] |= 1ull << s->survivor % 64;
        s->adopts_in_between = false;
    }
}
static void drop_gifts_while_adopted(stage *s)
{
    s->adopts_in_between = true;
    drop_gifts(s);
    s->adopts_in_between = false;
}
static void share_while_reused(stage *s)
{
    s->reuses_in_between = true;
    CHECK_EQ(vm_share(s->r, s->held[0].page, s->held[0].id), -ESTALE);
}
static void take_over(stage *s)
{
    s->adopts_in_between = false;
    vm_range a;
    s->gift_is_ours[0] = vm_adopt(s->r, s->gift[0].page, s->gift[0].id, &a) == 0;
}

static void create(stage *s)
{
    (void)s;
    vm_region *r = MAKE(.nr_pages = 1000, .nr_nodes = 2, .nr_threads = 2);
    take(r, 1);
}
static void check_and_repair(stage *s) { vm_repair(s->r, NULL, NULL); }

/* Damage that no death leaves, but a scribbling neighbour: vm_repair() mends it. */
static void damage(stage *s)
{
    vm_region *r = s->r;
    uint32_t stranger = 200, unused_slot = r->map.nr_threads - 1;
    vm_range *named = &s->gift[2];
    share_gifts(s);
    CHECK_EQ(vm_name_set(r, "unheld", named->page, named->id, NULL, 0), 0);
    r->map.sharings[named->page].holders[VM_PROCESS_NAMES / 64] &= ~(1ull << VM_PROCESS_NAMES % 64);
    for (int i = VM_NAMES_MAX - 1; i > VM_NAMES_MAX - 3; i--)
        r->map.names[i].state = 1 << 20; /* of what is gone, at page 0 */
    r->map.sharings[s->gift[0].page].holders[stranger / 64] |= 1ull << stranger % 64;
    r->map.sharings[s->gift[0].page].holders[VM_PROCESS_NAMES / 64] |= 1ull << VM_PROCESS_NAMES % 64;
    r->map.slots[unused_slot].state |= stranger << 1 | 1;
    r->map.h->high_slot = r->map.nr_threads;
    r->map.h->next_id = VM_ID_BLOCK;
    for (uint32_t n = 1; n <= 3; n++) /* what this one keeps is in no magazine now */
        vm__thread(r)->magazine[n].header &= ~0xffull;
    r->map.h->corrupt = 1;
}
static void repair(stage *s) { CHECK(vm_repair(s->r, NULL, NULL) >= 0); }

/* Somebody who lives is freeing it, and takes long. */
static void stop_in_freeing(stage *s)
{
    lease_gift_0(s);
    vm_head *gift = &s->r->map.heads[s->gift[0].page];
    gift->word = vm__word(VM_FREEING, VM_WORD_SHARED | VM_WORD_DIRTY, 2, s->survivor, s->r->process_inc);
}
static void go_on_from_freeing(stage *s)
{
    vm_head *gift = &s->r->map.heads[s->gift[0].page];
    gift->word = (gift->word & ~VM_WORD_STATE_MASK) | VM_BUSY;
}
static void claim_impatiently(stage *s)
{
    vm_range a;
    vm_set_lock_timeout(s->r, 0.001);
    CHECK_EQ(vm_claim(s->r, s->gift[0].page, s->gift[0].id, s->lease, &a), -EBUSY);
}

/* A word that does not parse: whoever meets it marks the region corrupt. */
static void break_a_word(stage *s)
{
    hold(s, 2, 1);
    s->r->map.heads[s->mine[4].page].word = 0;
}
static void meet_it(stage *s)
{
    vm_stats stats;
    vm_get_stats(s->r, &stats);
}
static void mend_the_word(stage *s)
{
    vm_thread *t = vm__thread(s->r);
    s->r->map.heads[s->mine[4].page].word = t->busy | s->mine[4].nr_pages << VM_WORD_LEN_SHIFT;
    s->r->map.h->corrupt = 0;
}

/* Hints that lie; the words know better. */
static void let_the_index_lie(stage *s)
{
    hold(s, 300, 3);
    GIVE_BACK(s->r, s->held[1]);
    uint64_t left = s->held[1].page - 1;
    s->r->map.bits[left / 64] &= ~(1ull << left % 64);
}
static void let_the_index_promise_too_much(stage *s)
{
    for (uint32_t i = 0; i < PAGES / 64; i++)
        s->r->map.bits[i] = 0;
    vm__index_summarise_all(&s->r->map);
}
static void let_a_list_lie(stage *s)
{
    hold(s, 2, 1);
    s->r->map.nodes[0].lazy_head = (uint32_t)s->held[0].page + 1;
}
static void let_warm_lists_lie(stage *s)
{
    vm_warm *w = &s->r->map.h->warm;
    shelve(s);
    hold(s, 2, 1);
    w->unsorted = (uint32_t)s->held[s->nr_held - 1].page + 1; /* busy; its id is taken for the next link */
    for (int i = 0; i < VM_WARM_CLASSES; i++)
        w->list[i].head = w->list[i].tail = w->unsorted;
    memset(w->used, 0xff, sizeof w->used - sizeof w->used[0]);
}
static void mend_hints(stage *s) { CHECK_EQ(vm_repair(s->r, NULL, NULL) >= 0, 1); }

/* A live neighbour in the way. */
static int blocker_holds;
static void *hold_the_space_lock(void *arg)
{
    stage *s = arg;
    vm_thread *t = vm__thread(s->r);
    CHECK_EQ(vm__lock(t, &s->r->map.h->space_lock, 0), 0);
    __atomic_store_n(&blocker_holds, 1, __ATOMIC_RELEASE);
    usleep(5000);
    vm__unlock(t, &s->r->map.h->space_lock);
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
    s->r->map.nodes[1].pool[1].in_use = vm__thread(s->r)->token;
    s->r->map.h->purge_needs_scan = 1;
}
static void stop_using_pools(stage *s) { s->r->map.nodes[1].pool[1].in_use = 0; }
static void purge_impatiently(stage *s)
{
    vm_set_lock_timeout(s->r, 0.001);
    vm_purge(s->r, NULL);
}
static void hold_space_lock(stage *s) { CHECK_EQ(vm__lock(vm__thread(s->r), &s->r->map.h->space_lock, 0), 0); }
static void release_space_lock(stage *s) { vm__unlock(vm__thread(s->r), &s->r->map.h->space_lock); }

const operation operations[] = {
    {"first alloc of a process", .before = forget_slots, .run = take_one},
    {"alloc hit", .setup = warm_up, .run = take_one},
    {"alloc miss and refill", .setup = warm_up_forty, .run = take_forty},
    {"alloc aligned, split", .setup = warm_up, .run = take_first_aligned},
    {"alloc large, warm", .setup = shelve, .run = take_large_warm},
    {"alloc warm, split", .setup = free_one_twice_as_long, .run = take_large_warm},
    {"alloc warm, joined", .setup = free_neighbours, .run = take_their_sum, .flags = ALONE},
    {"alloc warm, small", .setup = free_small_ones, .run = take_forty},
    {"warm lists of the dead", .before = die_with_the_warm_lock, .setup = shelve, .run = take_large_warm,
     .flags = ALONE},
    {"alloc over the threshold", .setup = lower_the_threshold, .run = take_cold_over_the_threshold,
     .after = raise_the_threshold, .flags = ALONE},
    {"alloc out of space", .setup = use_up_most, .run = ask_for_too_much, .flags = HUNGRY},
    {"alloc bulk", .setup = warm_up, .run = take_bulk},
    {"alloc congruent", .setup = warm_up, .run = take_congruent},
    {"alloc while locked", .setup = warm_up, .run = take_while_locked, .flags = ONE_DEATH},
    {"alloc and free without a slot", .before = occupy_slots, .run = take_and_free_many, .after = vacate_slots,
     .flags = ALONE},
    {"resize small", .setup = hold_twenty, .run = resize_to_ten},
    {"resize large", .setup = hold_large, .run = resize_to_ten},
    {"resize larger", .setup = hold_twenty, .run = resize_to_fifty},
    {"free own", .setup = hold_two, .run = let_go},
    {"free own, warm", .setup = hold_warm, .run = let_go},
    {"alloc aligned, warm", .setup = free_aligned_first, .run = take_aligned},
    {"free large", .setup = hold_large, .run = let_go},
    {"free foreign", .run = free_gift_0},
    {"free foreign large", .run = free_gift_2},
    {"free, overflow", .setup = hold_forty, .run = let_go},
    {"free, pool overflow", .setup = hold_thirtyfive_big, .run = let_go, .flags = HUNGRY},
    {"free over the threshold", .setup = lower_the_threshold, .run = let_go, .after = raise_the_threshold,
     .flags = ALONE},
    {"share", .setup = hold_two, .run = share_held},
    {"adopt", .before = share_gifts, .run = adopt_gifts},
    {"adopt stale", .before = share_gifts, .run = adopt_stale},
    {"drop", .before = share_gifts, .setup = adopt_gifts, .run = drop_gifts},
    {"drop, last holder", .before = share_gifts, .setup = adopt_gifts, .meanwhile = drop_gifts_here, .run = drop_gifts},
    {"send", .before = forget_leases, .setup = hold_two, .run = lease_held, .later = claim_what_was_sent},
    {"send and let go", .setup = hold_two, .run = send_and_let_go, .later = claim_what_was_sent},
    {"send and let go, then claim before recovery", .setup = hold_two, .run = send_and_let_go,
     .after = claim_what_was_sent},
    {"send again", .setup = use_leases_before, .run = lease_held, .later = claim_what_was_sent},
    {"send what is shared", .before = share_gifts, .setup = adopt_gifts, .run = lease_gift_0},
    {"claim", .before = lease_gift_0, .run = claim_gift},
    {"claim what nobody holds", .before = lease_gift_and_let_go, .run = claim_gift_twice},
    {"claim stale", .before = lease_gift_and_let_go, .run = claim_stale},
    {"claim in vain", .before = stop_in_freeing, .run = claim_impatiently, .after = go_on_from_freeing, .flags = ALONE},
    {"drop a lease", .setup = hold_two_and_lease, .run = drop_lease},
    {"drop the last lease", .setup = hold_and_send, .run = drop_lease},
    {"expire leases", .before = lease_gift_and_let_go, .run = expire_all},
    {"expire leases of the dead", .before = leave_a_lease_of_the_dead, .run = recover_and_purge,
     .after = lengthen_leases, .flags = ALONE},
    {"name", .setup = hold_two, .run = name_held},
    {"name replaced", .setup = name_first_and_hold_another, .run = name_held},
    {"name deleted", .setup = name_and_let_go, .run = unname},
    {"name got", .setup = name_and_let_go, .run = get_name},
    {"purge", .setup = make_a_mess, .run = purge},
    {"shrink and drain", .setup = make_a_mess, .run = shrink},
    {"merge with both sides", .setup = free_the_middle_of_three, .run = purge},
    {"attach", .run = attach},
    {"attach and detach", .run = attach_and_detach},
    {"attach in a dead one's place", .before = leave_no_clean_process_slot, .run = attach, .flags = ALONE},
    {"fork", .before = share_gifts, .setup = hold_of_every_kind, .run = fork_and_wait},
    {"fork, and the child stays", .before = share_gifts, .setup = hold_of_every_kind, .run = fork_and_let_go},
    {"fork without descriptors", .before = share_gifts, .setup = use_up_descriptors, .run = fork_without_a_slot},
    {"fork in a dead one's place", .before = leave_no_clean_process_slot, .run = fork_and_wait, .flags = ALONE},
    {"thread exit", .setup = warm_up, .run = run_a_thread},
    {"thread exit while drained", .setup = warm_up, .run = run_a_thread_while_drained, .flags = ALONE},
    {"recover a process that was killed", .before = let_another_be_killed, .run = recover, .flags = ONCE},
    {"join while another is dead", .before = let_another_be_killed, .run = attach, .flags = ONCE},
    {"recover a mess", .before = leave_a_mess, .run = recover, .flags = ALONE},
    {"adopt in a mess", .before = leave_a_mess, .run = adopt_gifts, .flags = ALONE},
    {"alloc and free in a mess", .before = leave_a_mess, .run = take_and_free_many, .flags = ALONE},
    {"shrink in a mess", .before = leave_a_mess, .run = shrink, .flags = ALONE},
    {"send in a mess", .before = leave_a_mess, .setup = hold_two, .run = lease_held, .flags = ALONE},
    {"names in a mess", .before = leave_a_mess, .setup = hold_two, .run = name_held, .flags = ALONE},
    {"pools in use by the dead", .before = leave_pools_in_use, .run = take_and_free_many, .flags = LLIST | ALONE},
    {"space locked by the dead", .before = die_with_the_space_lock, .run = take_and_free_many, .flags = ALONE},
    {"scan with a range in motion", .before = set_in_motion, .run = recover, .after = come_to_rest, .flags = ALONE},
    {"drained by the dead", .setup = drain_myself, .run = take_and_free_many, .flags = ALONE},
    {"purge without memory", .setup = make_a_mess, .run = purge_without_memory, .flags = ALONE},
    {"drop while another adopts", .before = share_gifts, .setup = adopt_gifts, .meanwhile = drop_gifts_here,
     .run = drop_gifts_while_adopted, .after = take_over, .flags = ALONE | BETWEEN},
    {"share while it is another's", .setup = hold_two, .run = share_while_reused, .flags = ALONE | BETWEEN},
    {"create", .run = create, .flags = MAGAZINE | ALONE | PRIVATE},
    {"check and repair", .setup = make_a_mess, .run = check_and_repair, .flags = ALONE},
    {"repair damage", .before = damage, .run = repair, .after = repair, .flags = ALONE},
    {"meet corruption", .setup = break_a_word, .run = meet_it, .after = mend_the_word, .flags = ALONE},
    {"purge with a lying index", .setup = let_the_index_lie, .run = purge, .after = mend_hints, .flags = ALONE},
    {"alloc with a lying index", .setup = let_the_index_promise_too_much, .run = take_large_warm, .after = mend_hints,
     .flags = ALONE},
    {"purge with a lying list", .setup = let_a_list_lie, .run = purge, .flags = ALONE},
    {"alloc with lying warm lists", .setup = let_warm_lists_lie, .run = take_large_warm, .after = mend_hints,
     .flags = ALONE},
    {"scan while a pool is in use", .before = use_pools_forever, .setup = make_a_mess, .run = purge_impatiently,
     .after = stop_using_pools, .flags = LLIST | ALONE},
    {"purge while space is locked", .setup = make_a_mess, .meanwhile = hold_space_lock, .run = purge_impatiently,
     .after = release_space_lock, .flags = ALONE},
};

/* What may meet a death half-way through another operation. */
const operation second_operations[] = {
    {"recover", .run = recover},         {"then adopt", .run = try_to_adopt},
    {"then names", .run = try_names},    {"then send", .run = send_and_claim},
    {"then fork", .run = fork_and_wait}, {"then alloc", .run = take_and_free_many},
};
const size_t nr_operations = LENGTH(operations), nr_second_operations = LENGTH(second_operations);

bool is_design_selected(vm_pools d)
{
    const char *only = getenv("VM_CRASH_DESIGN");
    return !only || strcmp(only, vm_pools_name(d)) == 0;
}
bool is_selected(const operation *op, vm_pools d)
{
    const char *only = getenv("VM_CRASH_ONLY");
    return (!(op->flags & DESIGNS) || op->flags & 1u << d) && (!only || strstr(op->name, only));
}
