/* SPDX-License-Identifier: MIT */
/* Channels: where the bytes of messages are, and which messages end by themselves. */
#include "kit.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
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

/* So that a message need not be looked into where there is none. */
static void that_there_are_leases_is_known_wherever_one_was_made(void)
{
    vm_region *r = make();
    CHECK(!vm_has_leases(r));
    vm_range a = take(r, 1);
    uint64_t lease;
    pid_t pid = fork();
    if (pid == 0) {
        vm_region *theirs;
        CHECK_EQ(vm_attach(vm_fd(r), &theirs), 0);
        vm_range b = take(theirs, 1);
        CHECK_EQ(vm_lease_message(theirs, b.page, b.id, 0, &lease), 0);
        _exit(0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(vm_has_leases(r)); /* and it outlives its maker */
    uint64_t nr;
    CHECK_EQ(vm_expire_leases(r, 1, &nr), 0);
    CHECK(!vm_has_leases(r));
    CHECK_EQ(vm_lease(r, a.page, a.id, &lease), 0);
    CHECK(vm_has_leases(r));
    CHECK_EQ(vm_drop_lease(r, lease), 0);
    CHECK(!vm_has_leases(r));
    GIVE_BACK(r, a);
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

/* root sees everybody. */
static void become_a_user(void)
{
    if (geteuid() == 0 && (setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534))) {
        fprintf(stderr, "skipped: root of a user namespace with one user cannot become another\n");
        _exit(0);
    }
    CHECK_EQ(prctl(PR_SET_DUMPABLE, 1), 0);
}

static void what_a_process_may_read_that_cannot_be_looked_into_stays(void)
{
    uint32_t *is_ready = shared_memory(sizeof *is_ready);
    int p[2];
    pid_t reader;
    CHECK_EQ(pipe(p), 0);
    CHILD(reader, { /* before there is a region: it has not attached it yet */
                    CHECK_EQ(prctl(PR_SET_DUMPABLE, 0), 0);
                    __atomic_store_n(is_ready, 1, __ATOMIC_RELEASE);
                    pause();
    });
    while (!__atomic_load_n(is_ready, __ATOMIC_ACQUIRE))
        usleep(1000);
    vm_region *r = make();
    sent s = written_to(r, p[1], 4);
    close(p[0]);
    close(p[1]);
    tick_for(r, GRACE);
    CHECK(is_there(r, s));
    kill(reader, SIGKILL);
    CHECK_EQ(waitpid(reader, NULL, 0), reader);
    CHECK_EQ(vm_recover(r, NULL), 0);
    tick_for(r, GRACE);
    CHECK(!is_there(r, s));
    FINISH(r);
}

static void a_user_s_message_to_one_that_cannot_be_looked_into_stays(void)
{
    IN_CHILD({
        become_a_user();
        what_a_process_may_read_that_cannot_be_looked_into_stays();
    });
}

static uint64_t quickest_of(vm_region *r, int nr, int (*call)(vm_region *))
{
    uint64_t least = UINT64_MAX;
    while (nr--) {
        uint64_t started = vm__now_ns();
        call(r);
        uint64_t took = vm__now_ns() - started;
        least = took < least ? took : least;
        vm_clock_advance(VM_CHANNEL_TICKS * VM_TICK_MS * 1000000ull * 100); /* the pause after a look, too */
    }
    return least;
}

enum { MANY = 20000 / SLOWER };

static int ask_for_each(vm_region *r)
{
    for (int i = 0; i < MANY; i++)
        CHECK(!vm__process_is_dead(r, r->process + 1));
    return 0;
}

static void of_many_that_one_process_has_the_system_is_asked_once(void)
{
    vm_region *r = make();
    vm_range a = take(r, 1);
    vm_lease_name *names = shared_memory(MANY * sizeof *names);
    for (int i = 0; i < MANY; i++) {
        names[i] = (vm_lease_name){a.page, a.id, 0};
        CHECK_EQ(vm_lease_message(r, a.page, a.id, 0, &names[i].lease), 0);
        r->map.leases[names[i].lease % VM_LEASES_MAX].made_ns -= LONG_NS;
    }
    uint32_t *is_ready = shared_memory(sizeof *is_ready);
    pid_t reader;
    CHILD(reader, {
        CHECK_EQ(vm_move_leases(r, names, MANY, VM_MOVE_RECEIVED, 0), 0);
        __atomic_store_n(is_ready, 1, __ATOMIC_RELEASE);
        pause();
    });
    while (!__atomic_load_n(is_ready, __ATOMIC_ACQUIRE))
        usleep(1000);
    uint64_t asking = quickest_of(r, 3, ask_for_each), ticking = 0;
    for (int i = 0; i < 3; i++) { /* of VM_CHANNEL_TICKS ticks one looks */
        uint64_t took = 0;
        for (int k = 0; k < VM_CHANNEL_TICKS; k++) {
            uint64_t one = quickest_of(r, 1, vm_tick);
            took = one > took ? one : took;
        }
        ticking = i == 0 || took < ticking ? took : ticking;
    }
    CHECK(ticking < asking / 2);
    kill(reader, SIGKILL);
    CHECK_EQ(waitpid(reader, NULL, 0), reader);
    CHECK_EQ(vm_recover(r, NULL), 0);
    for (int i = 0; i < 2 * VM_CHANNEL_TICKS; i++)
        quickest_of(r, 1, vm_tick);
    CHECK_EQ(stats_of(r).nr_leases, 0);
    GIVE_BACK(r, a);
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

static void what_was_written_to_several_stays_though_one_of_them_is_closed(void)
{
    vm_region *r = make();
    int p[3][2];
    sent s = {0};
    for (int i = 0; i < 3; i++) {
        CHECK(!pipe(p[i]));
        if (i == 0)
            s = written_to(r, p[0][1], 4);
        CHECK_EQ(vm_move_leases(r, &s.name, 1, VM_MOVE_SENDING, vm_channel_of(p[i][1])), 0);
        CHECK_EQ(vm_move_leases(r, &s.name, 1, VM_MOVE_SENT, vm_channel_of(p[i][1])), 0);
    }
    for (int i = 1; i < 3; i++)
        CHECK(!close(p[i][0]) && !close(p[i][1]));
    tick_for(r, GRACE);
    CHECK(is_there(r, s));
    vm_range b;
    CHECK_EQ(vm_claim(r, s.name.page, s.name.id, s.name.lease, &b), 0);
    CHECK(!is_there(r, s));
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

static void what_a_process_had_read_and_lost_ends_and_nothing_else_does(void)
{
    vm_region *r = make();
    int p[2];
    CHECK_EQ(pipe(p), 0);
    sent mine = written_to(r, p[1], 4), unread = written_to(r, p[1], 4), passed_on = written_to(r, p[1], 4);
    vm_range a = take(r, 1);
    uint64_t ref;
    CHECK_EQ(vm_lease(r, a.page, a.id, &ref), 0);
    CHECK_EQ(vm_move_leases(r, &mine.name, 1, VM_MOVE_RECEIVED, 0), 0);
    IN_CHILD({ CHECK_EQ(vm_move_leases(r, &passed_on.name, 1, VM_MOVE_RECEIVED, 0), 0); });
    vm_lease_name names[] = {mine.name, unread.name, passed_on.name, {a.page, a.id, ref}};
    CHECK_EQ(vm_move_leases(r, names, 4, VM_MOVE_LOST, 0), 0);
    CHECK(!is_there(r, mine) && is_there(r, unread) && is_there(r, passed_on));
    CHECK_EQ(vm_drop_lease(r, ref), 0);
    CHECK_EQ(vm_drop_lease(r, unread.name.lease), 0);
    CHECK_EQ(vm_drop_lease(r, passed_on.name.lease), 0);
    GIVE_BACK(r, a);
    FINISH(r);
}

static bool takes_an_hour(vm_thread *t)
{
    (void)t;
    vm_clock_advance(3600 * 1000000000ull);
    return true;
}

static void look_for_an_hour(vm_thread *t)
{
    for (int i = 0; i < VM_CHANNEL_TICKS; i++) { /* of these one looks */
        vm_clock_advance(VM_TICK_MS * 1000000ull);
        CHECK(vm__helper_round(t, takes_an_hour));
    }
}

static void a_look_that_had_to_wait_for_the_cpu_puts_off_no_other(void)
{
    vm_region *r = make();
    vm_thread t;
    int p[2];
    CHECK_EQ(pipe(p), 0);
    sent s = written_to(r, p[1], 4);
    CHECK(!close(p[0]) && !close(p[1]));
    vm__thread_borrow(r, &t);
    look_for_an_hour(&t);
    CHECK(is_there(r, s));
    vm_clock_advance(60 * 1000000000ull);
    look_for_an_hour(&t);
    CHECK(!is_there(r, s));
    vm__thread_return(&t);
    vm__helper_resign(r);
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
    that_there_are_leases_is_known_wherever_one_was_made();
    a_move_of_what_is_gone_or_no_message_moves_nothing();
    who_can_still_be_loaded_stays_and_the_others_end();
    what_a_process_had_read_ends_with_it();
    a_user_s_message_to_one_that_cannot_be_looked_into_stays();
    what_a_process_had_read_and_lost_ends_and_nothing_else_does();
    a_look_that_had_to_wait_for_the_cpu_puts_off_no_other();
    of_many_that_one_process_has_the_system_is_asked_once();
    what_was_passed_on_is_where_it_was_passed_to();
    what_was_written_to_several_stays_though_one_of_them_is_closed();
    what_a_process_without_notes_or_a_stopped_one_may_have_read_stays();
    return 0;
}
