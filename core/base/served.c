/* SPDX-License-Identifier: MIT */
/*
 * Served: the descriptor of a region that another process serves at a socket which is a file.
 *
 * The other side is in Python (serve.py): asked with a region's id, or with zeros where the file says which region it is,
 * it answers with a byte and the descriptor. Both sides look first at the user that the kernel noted of the other. It
 * waits SERVE_WAIT_S for it, not less after signals: who serves may be stopped.
 */
#include "base.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

static bool is_one_of(uint32_t uid, const uint32_t *uids, size_t nr)
{
    for (size_t i = 0; i < nr; i++)
        if (uids[i] == uid)
            return true;
    return false;
}

/* Root's is anybody's, and root takes anybody's. */
static bool is_trusted(uint32_t uid, const uint32_t *uids, size_t nr)
{
    uint32_t here = geteuid();
    return here == 0 || uid == 0 || uid == here || is_one_of(uid, uids, nr);
}

/* A signal ended a wait that may go on. */
static bool is_to_go_on(uint64_t until_ns) { return errno == EINTR && vm__now_ns() < until_ns; }

static int connect_to(int fd, const char *path, uint64_t until_ns)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    struct timeval wait = {.tv_sec = VM_SERVE_WAIT_S};
    size_t nbytes = strlen(path);
    if (nbytes == 0 || nbytes > VM_SOCKET_PATH_BYTES_MAX)
        return -EINVAL;
    memcpy(at.sun_path, path, nbytes + 1);
    if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait)
        || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait))
        return -errno;
    while (connect(fd, (struct sockaddr *)&at, sizeof at))
        if (!is_to_go_on(until_ns))
            return -errno;
    return 0;
}
_Static_assert(sizeof((struct sockaddr_un *)0)->sun_path == VM_SOCKET_PATH_BYTES_MAX + 1, "a path and its end");

/* The descriptor; -EPERM: it hung up, as it does on whom it does not trust. There is room for one: of more the kernel drops
 * the rest. One that came with no byte is taken as well, for it is open here. */
static int receive_descriptor(int fd, uint64_t until_ns)
{
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(sizeof(int))];
    } attached;
    char answer;
    struct iovec data = {.iov_base = &answer, .iov_len = 1};
    struct msghdr m = {.msg_iov = &data,
                       .msg_iovlen = 1,
                       .msg_control = &attached,
                       .msg_controllen = CMSG_LEN(sizeof(int))};
    ssize_t n;
    while ((n = recvmsg(fd, &m, MSG_CMSG_CLOEXEC)) < 0 && is_to_go_on(until_ns))
        ;
    const struct cmsghdr *c = n >= 0 ? CMSG_FIRSTHDR(&m) : NULL;
    int got = n < 0 ? -errno : n == 0 ? -EPERM : m.msg_flags & MSG_CTRUNC ? -EMFILE : -ENOENT;
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof(int)))
        memcpy(&got, CMSG_DATA(c), sizeof got);
    return got;
}

static int ask(int fd, uint64_t until_ns, const uint32_t *uids, size_t nr, bool *is_given)
{
    struct ucred peer;
    socklen_t nbytes = sizeof peer;
    const char any[sizeof((vm_header *)0)->id] = {0};
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &nbytes))
        return -errno;
    if (!is_trusted(peer.uid, uids, nr))
        return -EPERM;
    *is_given = is_one_of(peer.uid, uids, nr);
    if (send(fd, any, sizeof any, MSG_NOSIGNAL) < 0)
        return errno == EPIPE || errno == ECONNRESET ? -EPERM : -errno;
    int got = receive_descriptor(fd, until_ns);
    return got == -ECONNRESET ? -EPERM : got;
}

int vm__open_served(const char *path, const uint32_t *uids, size_t nr, bool *is_given)
{
    int fd = vm__above_standard_streams(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    if (fd < 0)
        return -errno;
    uint64_t until_ns = vm__now_ns() + VM_SERVE_WAIT_S * 1000000000ull, inode, device;
    int rc = vm__identify(fd, &inode, &device);
    if (rc == 0)
        rc = connect_to(fd, path, until_ns);
    if (rc == 0)
        rc = ask(fd, until_ns, uids, nr, is_given);
    vm__close_same(fd, inode, device); /* it may have taken seconds */
    if (rc < 0)
        return rc == -EAGAIN || rc == -EINTR ? -ETIMEDOUT : rc;
    int got = vm__above_standard_streams(rc);
    return got < 0 ? -errno : got;
}
