/* SPDX-License-Identifier: MIT */
/* Channels: where the bytes of messages are, and which messages end by themselves. */
#include "kit.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>

enum { LONG_NS = 1000000000 }; /* older than what a look passes over */

typedef struct sent {
    vm_lease_name name;
    uint64_t channel;
} sent;

static vm_region *make(void)
{
    vm_region *r = MAKE(.nr_pages = 3000, SMALL);
    vm_mark_reads(r, true);
    return r;
}

/* A message of one page that only its lease keeps, old enough to be looked at. */
static sent message_to(vm_region *r, int fd)
{
    sent s = {.channel = vm_channel_of(fd)};
    vm_range a = take(r, 1);
    s.name = (vm_lease_name){a.page, a.id, 0};
    CHECK_EQ(vm_lease_message(r, a.page, a.id, s.channel, &s.name.lease), 0);
    GIVE_BACK(r, a);
    r->map.leases[s.name.lease % VM_LEASES_MAX].made_ns -= LONG_NS;
    return s;
}

static sent written_to(vm_region *r, int fd, size_t nr_bytes)
{
    sent s = message_to(r, fd);
    char text[8] = {0};
    CHECK_EQ(write(fd, text, nr_bytes), nr_bytes);
    CHECK_EQ(vm_move_leases(r, &s.name, 1, VM_MOVE_SENT, s.channel), 0);
    return s;
}

static bool is_there(const vm_region *r, sent s)
{
    return VM_ACQUIRE(&r->map.leases[s.name.lease % VM_LEASES_MAX].id) == s.name.lease;
}

static void tick_for(vm_region *r, int ms)
{
    for (int i = 0; i < ms / 50; i++) {
        usleep(50 * 1000);
        CHECK_EQ(vm_tick(r), 0);
    }
}
#define GRACE VM_CHANNEL_GRACE_MS + 4 * VM_CHANNEL_TICKS *VM_TICK_MS

static void read_one(int fd)
{
    char text[8];
    CHECK(read(fd, text, sizeof text) > 0);
}

static void a_pipe_and_a_socket_have_numbers_and_a_file_has_none(void)
{
    int p[2], s[2];
    CHECK_EQ(pipe(p), 0);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, s), 0);
    CHECK(vm_channel_of(p[0]) && vm_channel_of(p[0]) == vm_channel_of(p[1]));
    if (vm_channel_of(s[0])) /* else sock_diag is not to be had here */
        CHECK(vm_channel_of(s[0]) != vm_channel_of(s[1]));
    CHECK_EQ(vm_channel_of(open("/proc/self/exe", O_RDONLY)), 0);
    CHECK_EQ(vm_channel_of(-1), 0);
}

static void who_can_still_be_loaded_stays_and_the_others_end(void)
{
    vm_region *r = make();
    int full[2], emptied[2], closed[2], unread[2], fresh[2], half[2], pair[2], eaten[2];
    CHECK(!pipe(full) && !pipe(emptied) && !pipe(closed) && !pipe(unread) && !pipe(fresh) && !pipe(half));
    CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair) && !socketpair(AF_UNIX, SOCK_STREAM, 0, eaten));

    sent in_pipe = written_to(r, full[1], 4);
    sent was_read = written_to(r, emptied[1], 4);
    read_one(emptied[0]);
    sent gone = written_to(r, closed[1], 4);
    close(closed[0]);
    close(closed[1]);
    sent no_reader = written_to(r, unread[1], 4);
    close(unread[0]);
    sent on_its_way = message_to(r, fresh[1]); /* the pipe is empty, but we are at it */
    sent in_hands = written_to(r, half[1], 4);
    read_one(half[0]);
    CHECK_EQ(vm_move_leases(r, &in_hands.name, 1, VM_MOVE_RECEIVED, 0), 0);
    sent nowhere = message_to(r, -1);
    sent in_socket = written_to(r, pair[1], 4);
    sent out_of_socket = written_to(r, eaten[1], 4);
    read_one(eaten[0]);

    tick_for(r, VM_CHANNEL_GRACE_MS / 2);
    CHECK_EQ(stats_of(r).nr_leases, 9); /* they may be between a read and its note */
    tick_for(r, GRACE);
    CHECK(is_there(r, in_pipe) && is_there(r, on_its_way) && is_there(r, in_hands) && is_there(r, nowhere));
    CHECK(is_there(r, in_socket));
    CHECK(!is_there(r, was_read) && !is_there(r, gone) && !is_there(r, no_reader));
    CHECK(is_there(r, out_of_socket) == !out_of_socket.channel);
    CHECK_EQ(write(unread[1], "", 1), -1); /* SIGPIPE is ignored: nobody reads it because we looked */
    close(full[1]);
    char text[8];
    CHECK_EQ(read(full[0], text, sizeof text), 4);
    CHECK_EQ(read(full[0], text, sizeof text), 0); /* its end */
    uint64_t nr;
    CHECK_EQ(vm_expire_leases(r, 1, &nr), 0);
    CHECK_EQ(stats_of(r).busy_pages, 0);
    FINISH(r);
}

static void what_a_process_had_read_ends_with_it(void)
{
    vm_region *r = make();
    int p[2];
    CHECK_EQ(pipe(p), 0);
    sent s = written_to(r, p[1], 4);
    IN_CHILD({
        read_one(p[0]);
        CHECK_EQ(vm_move_leases(r, &s.name, 1, VM_MOVE_RECEIVED, 0), 0);
    });
    CHECK_EQ(vm_recover(r, NULL), 0);
    tick_for(r, 4 * VM_CHANNEL_TICKS * VM_TICK_MS);
    CHECK(!is_there(r, s));
    FINISH(r);
}

static void what_was_passed_on_is_where_it_was_passed_to(void)
{
    vm_region *r = make();
    int p[2], q[2];
    CHECK(!pipe(p) && !pipe(q));
    sent s = written_to(r, p[1], 4);
    uint64_t to = vm_channel_of(q[1]);
    IN_CHILD({
        read_one(p[0]);
        CHECK_EQ(vm_move_leases(r, &s.name, 1, VM_MOVE_RECEIVED, 0), 0);
        CHECK_EQ(vm_move_leases(r, &s.name, 1, VM_MOVE_SENDING, to), 0);
        CHECK_EQ(write(q[1], "text", 4), 4);
        CHECK_EQ(vm_move_leases(r, &s.name, 1, VM_MOVE_SENT, to), 0);
    });
    CHECK_EQ(vm_recover(r, NULL), 0);
    tick_for(r, GRACE);
    CHECK(is_there(r, s));
    vm_range b;
    CHECK_EQ(vm_claim(r, s.name.page, s.name.id, s.name.lease, &b), 0);
    GIVE_BACK(r, b);
    FINISH(r);
}

static void what_a_process_without_notes_or_a_stopped_one_may_have_read_stays(void)
{
    vm_region *r = make();
    int p[2], q[2];
    CHECK(!pipe(p) && !pipe(q));
    sent s = written_to(r, p[1], 4), stopped = written_to(r, q[1], 4);
    pid_t reader, stops;
    CHILD(reader, {
        vm_mark_reads(r, false);
        read_one(p[0]);
        pause();
    });
    CHILD(stops, {
        read_one(q[0]);
        raise(SIGSTOP);
        pause();
    });
    tick_for(r, GRACE);
    CHECK(is_there(r, s) && is_there(r, stopped));
    kill(stops, SIGCONT);
    kill(reader, SIGKILL);
    CHECK_EQ(waitpid(reader, NULL, 0), reader);
    tick_for(r, GRACE);
    CHECK(!is_there(r, s) && !is_there(r, stopped));
    kill(stops, SIGKILL);
    CHECK_EQ(waitpid(stops, NULL, 0), stops);
    CHECK_EQ(vm_recover(r, NULL), 0);
    FINISH(r);
}

static void a_move_of_what_is_gone_or_no_message_moves_nothing(void)
{
    vm_region *r = make();
    vm_range a = take(r, 1);
    uint64_t lease;
    CHECK_EQ(vm_lease(r, a.page, a.id, &lease), 0);
    vm_lease_name names[] = {{a.page, a.id, lease}, {a.page, a.id, lease + VM_LEASES_MAX}, {a.page + 1, a.id, lease}};
    CHECK_EQ(vm_move_leases(r, names, 3, VM_MOVE_RECEIVED, 0), 0);
    CHECK_EQ(r->map.leases[lease % VM_LEASES_MAX].channel, 0);
    CHECK_EQ(vm_drop_lease(r, lease), 0);
    GIVE_BACK(r, a);
    FINISH(r);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    a_pipe_and_a_socket_have_numbers_and_a_file_has_none();
    a_move_of_what_is_gone_or_no_message_moves_nothing();
    who_can_still_be_loaded_stays_and_the_others_end();
    what_a_process_had_read_ends_with_it();
    what_was_passed_on_is_where_it_was_passed_to();
    what_a_process_without_notes_or_a_stopped_one_may_have_read_stays();
    return 0;
}
