/* SPDX-License-Identifier: MIT */
/* Served: a region by a socket that is a file, whatever the process there sends. */
#include "kit.h"

#include <dirent.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

/* What the other side answers: so many bytes, so many descriptors of the region, after so many us. */
typedef struct answer {
    size_t nr_bytes, nr_fds;
    useconds_t after_us;
} answer;

static int nr_signals;
static void note_signal(int unused)
{
    (void)unused;
    nr_signals++;
}

static void send_signals_each(suseconds_t us)
{
    struct itimerval often = {{0, us}, {0, us}};
    CHECK(signal(SIGALRM, note_signal) != SIG_ERR);
    CHECK_EQ(setitimer(ITIMER_REAL, &often, NULL), 0);
}

static int nr_open(void)
{
    int nr = 0;
    DIR *dir = opendir("/proc/self/fd");
    CHECK(dir != NULL);
    while (readdir(dir))
        nr++;
    closedir(dir);
    return nr;
}

static void send_answer(int asking, int region, answer a)
{
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(3 * sizeof(int))];
    } attached = {{0}};
    char byte = 0;
    struct iovec data = {&byte, a.nr_bytes};
    struct msghdr m = {.msg_iov = &data, .msg_iovlen = 1};
    if (a.nr_fds) {
        attached.head = (struct cmsghdr){CMSG_LEN(a.nr_fds * sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
        for (size_t i = 0; i < a.nr_fds; i++)
            memcpy(CMSG_DATA(&attached.head) + i * sizeof(int), &region, sizeof region);
        m.msg_control = &attached;
        m.msg_controllen = CMSG_SPACE(a.nr_fds * sizeof(int));
    }
    CHECK_EQ(sendmsg(asking, &m, 0), a.nr_bytes);
}

/* Attaches what a child serves that answers so; no descriptor of all that came is left, but the region's own. */
static int attach_what_answers(answer a, vm_region **out)
{
    vm_region *r = MAKE(.nr_pages = 100);
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    snprintf(at.sun_path, sizeof at.sun_path, "/tmp/vmalloc-served-%d", getpid());
    unlink(at.sun_path);
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    CHECK_EQ(bind(listener, (struct sockaddr *)&at, sizeof at), 0);
    CHECK_EQ(listen(listener, 1), 0);
    pid_t child;
    CHILD(child, {
        char asked[64];
        int asking = accept(listener, NULL, NULL);
        CHECK(recv(asking, asked, sizeof asked, 0) > 0);
        usleep(a.after_us);
        send_answer(asking, vm_fd(r), a);
        recv(asking, asked, sizeof asked, 0); /* until the other side hangs up */
    });
    close(listener);
    int before = nr_open();
    send_signals_each(a.after_us / 20);
    int rc = vm_attach_served(at.sun_path, NULL, 0, out);
    send_signals_each(0);
    if (rc == 0)
        CHECK_EQ(vm_detach(*out), 0);
    CHECK_EQ(nr_open(), before);
    ended_well(child);
    unlink(at.sun_path);
    FINISH(r);
    return rc;
}

static void one_descriptor_is_taken_and_the_rest_is_not_kept(void)
{
    vm_region *r;
    for (size_t nr = 1; nr <= 3; nr++)
        CHECK_EQ(attach_what_answers((answer){.nr_bytes = 1, .nr_fds = nr}, &r), 0);
    CHECK_EQ(attach_what_answers((answer){.nr_bytes = 0, .nr_fds = 1}, &r), 0);
    CHECK_EQ(attach_what_answers((answer){.nr_bytes = 1}, &r), -ENOENT);
    CHECK_EQ(attach_what_answers((answer){.nr_bytes = 0}, &r), -EPERM);
}

static void signals_end_no_wait(void)
{
    vm_region *r;
    CHECK_EQ(attach_what_answers((answer){.nr_bytes = 1, .nr_fds = 1, .after_us = 50000}, &r), 0);
    CHECK(nr_signals > 0);
}

int main(void)
{
    one_descriptor_is_taken_and_the_rest_is_not_kept();
    signals_end_no_wait();
    return 0;
}
