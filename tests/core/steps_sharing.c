/* SPDX-License-Identifier: MIT */
/* Steps of operations.c: what processes share and how they come and go: messages, names, purge, recovery, fork. */
#include "steps.h"

#include <sys/resource.h>

/* ---- messages ---- */

void lease_held(stage *s) /* the lease is known to others only when it is complete */
{
    uint64_t lease;
    CHECK_EQ(vm_lease(s->r, s->held[0].page, s->held[0].id, &lease), 0);
    s->sent = s->held[0];
    s->lease = lease;
}
/* As in a region that never had a lease. */
void forget_leases(stage *s) { s->r->map.h->lease_high = s->r->map.h->lease_unused = 0; }
void send_and_let_go(stage *s)
{
    lease_held(s);
    GIVE_BACK(s->r, s->held[0]);
}
void lease_gift_0(stage *s) { CHECK_EQ(vm_lease(s->r, s->gift[0].page, s->gift[0].id, &s->lease), 0); }
void lease_gift_and_let_go(stage *s)
{
    lease_gift_0(s);
    GIVE_BACK(s->r, s->gift[0]);
    s->gift_is_ours[0] = false;
}
void claim_gift(stage *s)
{
    vm_range a;
    CHECK_EQ(vm_claim(s->r, s->gift[0].page, s->gift[0].id, s->lease, &a), 0);
    check_stamps(s, &a);
}
void claim_gift_twice(stage *s)
{
    claim_gift(s);
    claim_gift(s); /* the lease is gone, the range is there */
    GIVE_BACK(s->r, s->gift[0]);
    GIVE_BACK(s->r, s->gift[0]);
}
void claim_stale(stage *s)
{
    vm_range a;
    CHECK_EQ(vm_claim(s->r, s->gift[0].page, s->gift[0].id + 1, s->lease, &a), -ESTALE);
}
void read_gift(stage *s) /* through a window; then its lease may end */
{
    vm_window *w;
    uint64_t first;
    CHECK_EQ(vm_window_open(vm_fd(s->r), false, &w), 0);
    CHECK_EQ(vm_window_read(w, s->gift[0].page, s->gift[0].id, 0, sizeof first, &first), 0);
    vm_window_done(w, s->lease);
    vm_window_close(w);
    CHECK_EQ(vm_tick(s->r), 0);
}
void claim_what_was_sent(stage *s) /* its sender is dead, and had let go of it or not */
{
    vm_range a;
    if (!s->lease)
        return;
    CHECK_EQ(vm_claim(s->r, s->sent.page, s->sent.id, s->lease, &a), 0);
    check_stamps(s, &a);
    GIVE_BACK(s->r, a);
    CHECK_EQ(vm_drop_lease(s->r, s->lease), -ENOENT);
}
void hold_two_and_lease(stage *s)
{
    hold(s, 2, 2);
    lease_held(s);
}
void hold_and_send(stage *s)
{
    hold(s, 300, 1);
    send_and_let_go(s);
}
void drop_lease(stage *s) { CHECK_EQ(vm_drop_lease(s->r, s->lease), 0); }
void use_leases_before(stage *s)
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
void expire_all(stage *s)
{
    uint64_t nr;
    CHECK_EQ(vm_expire_leases(s->r, true, &nr), 0);
}
void send_and_claim(stage *s)
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
void leave_a_lease_of_the_dead(stage *s)
{
    lease_gift_and_let_go(s);
    s->r->map.leases[s->lease % VM_LEASES_MAX].owner = vm__lease_owner(200, 0x3ff0);
    s->r->map.h->purge_needs_scan = 1;
    s->r->map.h->lease_ttl_ns = 1;
}
void recover_and_purge(stage *s)
{
    CHECK_EQ(vm_recover(s->r, NULL), 0);
    CHECK_EQ(vm_purge(s->r, NULL), 0);
}
void lease_message_held(stage *s)
{
    uint64_t lease;
    CHECK_EQ(vm_lease_message(s->r, s->held[0].page, s->held[0].id, 0, &lease), 0);
    s->sent = s->held[0];
    s->lease = lease;
}
enum { CHANNEL = 4711 }; /* nobody's: no tick is old enough to look for it */
static void move(stage *s, const vm_range *range, vm_move way)
{
    vm_lease_name name = {range->page, range->id, s->lease};
    CHECK_EQ(vm_move_leases(s->r, &name, 1, way, CHANNEL), 0);
}
void lease_into_a_channel(stage *s)
{
    uint64_t lease;
    CHECK_EQ(vm_lease_message(s->r, s->held[0].page, s->held[0].id, CHANNEL, &lease), 0);
    s->sent = s->held[0];
    s->lease = lease;
    move(s, &s->sent, VM_MOVE_SENT);
}
void mark_reads(stage *s)
{
    vm_mark_reads(s->r, true);
    vm_mark_reads(s->r, false);
}
void leave_a_message(stage *s)
{
    vm_range a = s->gift[0];
    CHECK_EQ(vm_lease_message(s->r, a.page, a.id, CHANNEL, &s->lease), 0);
    move(s, &a, VM_MOVE_SENT);
}
void receive_message(stage *s) { move(s, &s->gift[0], VM_MOVE_RECEIVED); }
void lose_message(stage *s) { move(s, &s->gift[0], VM_MOVE_LOST); }
void pass_on(stage *s)
{
    move(s, &s->gift[0], VM_MOVE_SENDING);
    move(s, &s->gift[0], VM_MOVE_SENT);
}
void receive_through_a_window(stage *s)
{
    vm_window *w;
    CHECK_EQ(vm_window_open(vm_fd(s->r), false, &w), 0);
    vm_window_keep(w, s->lease);
    vm_window_done(w, s->lease);
    vm_window_close(w);
}
/* As if its receiver had died just now. */
void leave_a_lost_message(stage *s)
{
    leave_a_message(s);
    vm_lease_entry *e = &s->r->map.leases[s->lease % VM_LEASES_MAX];
    e->owner = vm__lease_owner(200, 0x3ff0) | VM_LEASE_KEPT;
    e->channel = VM_CHANNEL_RECEIVED;
    e->made_ns -= 1000000000;
    e->deadline_ns = 1;
}
void leave_a_message_of_the_dead(stage *s)
{
    leave_a_lease_of_the_dead(s);
    s->r->map.leases[s->lease % VM_LEASES_MAX].owner |= VM_LEASE_KEPT;
    CHECK_EQ(vm_recover(s->r, NULL), 0); /* it has its deadline now, and stays */
}
void end_oldest(stage *s)
{
    uint64_t nr;
    CHECK_EQ(vm_end_oldest(s->r, 1, &nr), 0);
}
void lengthen_leases(stage *s) { s->r->map.h->lease_ttl_ns = 60ull * 1000 * 1000 * 1000; }

/* ---- names ---- */

void name_held(stage *s)
{
    CHECK_EQ(vm_name_set(s->r, "name", s->held[s->nr_held - 1].page, s->held[s->nr_held - 1].id, "meta", 4), 0);
}
void name_first_and_hold_another(stage *s)
{
    hold(s, 2, 1);
    name_held(s);
    GIVE_BACK(s->r, s->held[0]);
    hold(s, 300, 1);
}
void unname(stage *s) { CHECK_EQ(vm_name_delete(s->r, "name"), 0); }
void name_and_let_go(stage *s)
{
    hold(s, 2, 1);
    name_held(s);
    let_go(s);
}
void get_name(stage *s)
{
    char meta[8];
    size_t bytes = sizeof meta;
    CHECK_EQ(vm_name_get(s->r, "name", &s->held[0], meta, &bytes), 0);
}
void try_names(stage *s)
{
    char meta[8];
    size_t bytes = sizeof meta;
    vm_range a;
    vm_name_get(s->r, "name", &a, meta, &bytes);
    vm_name_delete(s->r, "name");
}

/* ---- purge, recover ---- */

void make_a_mess(stage *s)
{
    for (uint64_t n = 1; n < 6; n++)
        hold(s, n, 7);
    hold(s, 300, 3);
    GIVE_BACK(s->r, s->held[36]); /* between two that stay until the end */
    s->held[36] = s->held[--s->nr_held];
    let_go(s);
}
void purge(stage *s) { CHECK_EQ(vm_purge(s->r, NULL), 0); }
void shrink(stage *s) { CHECK_EQ(vm_shrink(s->r, NULL), 0); }
void recover(stage *s) { CHECK_EQ(vm_recover(s->r, NULL), 0); }
void free_the_middle_of_three(stage *s)
{
    hold(s, 300, 3);
    GIVE_BACK(s->r, s->held[0]);
    GIVE_BACK(s->r, s->held[2]);
    CHECK_EQ(vm_shrink(s->r, NULL), 0);
    GIVE_BACK(s->r, s->held[1]);
}

/* ---- who comes and goes ---- */

void attach(stage *s)
{
    vm_region *again;
    CHECK_EQ(vm_attach(vm_fd(s->r), &again), 0);
}
void attach_and_detach(stage *s)
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
void leave_no_clean_process_slot(stage *s)
{
    for (uint32_t p = 0; p < s->r->map.nr_processes; p++)
        if ((uint32_t)s->r->map.processes[p].state == 0)
            s->r->map.processes[p].state |= VM_PROCESS_DYING;
    s->r->map.h->high_process = s->r->map.nr_processes;
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
void fork_and_wait(stage *s)
{
    pid_t pid = fork_a_child(s, use_what_was_inherited);
    check_end(pid, end_of(pid), true);
    let_go(s);
}
void fork_and_let_go(stage *s)
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
void fork_without_a_slot(stage *s)
{
    pid_t pid = fork_a_child(s, look_only);
    check_end(pid, end_of(pid), true);
}
void hold_of_every_kind(stage *s)
{
    hold(s, 2, 2);
    hold(s, 300, 1);
    CHECK_EQ(vm_share(s->r, s->held[0].page, s->held[0].id), 0);
    CHECK_EQ(vm_adopt(s->r, s->gift[0].page, s->gift[0].id, &s->held[s->nr_held]), 0);
    s->nr_held++;
}
void use_up_descriptors(stage *s)
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
void run_a_thread(stage *s)
{
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, take_free_and_exit, s), 0);
    pthread_join(thread, NULL);
}
/* Whoever takes its slot next finds ids in its magazines. */
void leave_a_slot_with_hits(stage *s)
{
    warm_up(s);
    for (int i = 0; i < 2; i++)
        run_a_thread(s);
}
void run_a_thread_while_drained(stage *s)
{
    drain_at_exit = vm__thread(s->r)->token;
    run_a_thread(s);
}
