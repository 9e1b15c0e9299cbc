/* SPDX-License-Identifier: MIT */
/*
 * Pipe: what can be told of pipes and sockets of this machine. Who has them open, and are there unread bytes?
 *
 * A pipe is known by its inode. Whoever has it open is found through the descriptors in /proc. FIONREAD tells the unread
 * bytes; in another process's pipe that takes a descriptor, opened for reading if somebody has it open for that already
 * and closed at once: it changes neither when a reader sees the end nor when a writer is told that nobody reads. If
 * only writers are seen, one is opened for writing, and poll() tells whether there is a reader anywhere.
 * Of a Unix socket sock_diag(7) tells it all, by inode.
 *
 * Who can be seen is not everybody. If a process that has the region attached cannot be (another pid namespace, another user,
 * hidepid), nothing is told at all. If one that cannot be looked into may have been given a channel by a fork, no channel
 * is over.
 */
#include "base.h"

#include <ctype.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <poll.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct vm_looking { /* one look */
    vm_thread *t;
    vm_pipe *pipes;
    size_t nr;
    uint32_t own_pid, pid[VM_PROCESSES]; /* of the attached processes; 0: none */
    bool is_seen[VM_PROCESSES];
    bool has_sockets;
    bool is_asked;        /* since when there are users of the region */
    uint64_t first_began;
    bool is_one_hidden;   /* who may have read from any channel */
} vm_looking;

int vm__compare_pipes(const void *a, const void *b)
{
    const vm_pipe *x = a, *y = b;
    if (x->is_socket != y->is_socket)
        return x->is_socket - y->is_socket;
    return (x->inode > y->inode) - (x->inode < y->inode);
}

/* ---- unread bytes ---- */

static bool is_pipe(int fd, uint64_t inode)
{
    struct stat there;
    return fstat(fd, &there) == 0 && S_ISFIFO(there.st_mode) && there.st_ino == inode;
}

/* Whether anybody reads, and whether there is something to read; false: it is another file's by now. */
static bool ask(int fd, vm_pipe *p)
{
    struct pollfd out = {.fd = fd, .events = POLLOUT};
    int nr = 0;
    if (!is_pipe(fd, p->inode) || ioctl(fd, FIONREAD, &nr) != 0 || poll(&out, 1, 0) < 0 || !is_pipe(fd, p->inode))
        return false;
    p->is_open = *p->reader || !(out.revents & POLLERR);
    p->is_unread = nr > 0;
    return true;
}

/* Nothing else is opened, should the number be another file's by now. */
static int open_again(const char *path, uint64_t inode, int way)
{
    char found[32];
    uint64_t inode_there, device_there;
    int fd = -1, at = open(path, O_PATH | O_CLOEXEC);
    if (at < 0 || vm__identify(at, &inode_there, &device_there) != 0)
        return -1;
    snprintf(found, sizeof found, "/proc/self/fd/%d", at);
    if (is_pipe(at, inode))
        fd = open(found, way | O_NONBLOCK | O_CLOEXEC);
    vm__close_same(at, inode_there, device_there);
    return fd;
}

static void look_into(const vm_looking *v, vm_pipe *p)
{
    const char *name = *p->reader ? p->reader : p->writer;
    char path[64];
    bool is_told = false;
    if (!*name)
        return;
    p->is_open = p->is_unread = true; /* until one knows better */
    if (p->pid == v->own_pid)
        is_told = ask(atoi(name), p);
    if (!is_told) {
        snprintf(path, sizeof path, "/proc/%u/fd/%s", p->pid, name);
        int fd = open_again(path, p->inode, *p->reader ? O_RDONLY : O_WRONLY);
        if (fd < 0)
            return;
        ask(fd, p);
        if (is_pipe(fd, p->inode))
            close(fd);
    }
    p->is_strange = p->is_strange || (p->is_open && !*p->reader); /* its readers cannot be seen */
}

/* ---- sockets ---- */

typedef struct vm_diag {
    bool exists;
    uint32_t peer, nr_unread; /* peer: inode, 0 if there is none */
} vm_diag;

static bool parse(const char *text, ssize_t size, vm_diag *out)
{
    const struct nlmsghdr *h = (const struct nlmsghdr *)(const void *)text;
    if (size < (ssize_t)sizeof *h || h->nlmsg_len > (size_t)size)
        return false;
    if (h->nlmsg_type == NLMSG_ERROR) {
        const struct nlmsgerr *e = NLMSG_DATA(h);
        return h->nlmsg_len >= NLMSG_LENGTH(sizeof *e) && e->error == -ENOENT;
    }
    if (h->nlmsg_type != SOCK_DIAG_BY_FAMILY || h->nlmsg_len < NLMSG_LENGTH(sizeof(struct unix_diag_msg)))
        return false;
    const char *at = (const char *)NLMSG_DATA(h) + NLMSG_ALIGN(sizeof(struct unix_diag_msg));
    const struct rtattr *a = (const struct rtattr *)(const void *)at;
    int left = (int)(h->nlmsg_len - NLMSG_LENGTH(sizeof(struct unix_diag_msg)));
    out->exists = true;
    for (; RTA_OK(a, left); a = RTA_NEXT(a, left)) {
        if (a->rta_type == UNIX_DIAG_PEER && RTA_PAYLOAD(a) >= sizeof out->peer)
            memcpy(&out->peer, RTA_DATA(a), sizeof out->peer);
        if (a->rta_type == UNIX_DIAG_RQLEN && RTA_PAYLOAD(a) >= sizeof out->nr_unread)
            memcpy(&out->nr_unread, RTA_DATA(a), sizeof out->nr_unread);
    }
    return true;
}

typedef struct vm_asked { /* whom */
    int fd;
    uint64_t inode, device;
} vm_asked;

static vm_asked open_diag(void)
{
    vm_asked a = {.fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG)};
    if (a.fd >= 0 && vm__identify(a.fd, &a.inode, &a.device) != 0)
        a.fd = -1;
    return a;
}
static void close_diag(const vm_asked *a) { vm__close_same(a->fd, a->inode, a->device); }

static bool ask_diag(int fd, uint64_t inode, vm_diag *out)
{
    struct {
        struct nlmsghdr h;
        struct unix_diag_req q;
    } ask = {.h = {.nlmsg_len = sizeof ask, .nlmsg_type = SOCK_DIAG_BY_FAMILY, .nlmsg_flags = NLM_F_REQUEST},
             .q = {.sdiag_family = AF_UNIX,
                   .udiag_states = UINT32_MAX,
                   .udiag_ino = (uint32_t)inode,
                   .udiag_show = UDIAG_SHOW_PEER | UDIAG_SHOW_RQLEN,
                   .udiag_cookie = {UINT32_MAX, UINT32_MAX}}};
    _Alignas(8) char answer[1024];
    *out = (vm_diag){.exists = false};
    if (fd < 0 || inode > UINT32_MAX || send(fd, &ask, sizeof ask, 0) != sizeof ask)
        return false;
    struct pollfd in = {.fd = fd, .events = POLLIN};
    if (poll(&in, 1, 1000) != 1)
        return false;
    return parse(answer, recv(fd, answer, sizeof answer, MSG_DONTWAIT), out);
}

static void look_into_sockets(const vm_looking *v, bool in_one_net)
{
    vm_asked kernel = open_diag();
    for (size_t i = 0; i < v->nr; i++) {
        vm_pipe *p = &v->pipes[i];
        vm_diag diag;
        if (!p->is_socket)
            continue;
        bool is_told = in_one_net && ask_diag(kernel.fd, p->inode, &diag);
        p->is_open = !is_told || diag.exists;
        p->is_unread = !is_told || (diag.exists && diag.nr_unread);
    }
    close_diag(&kernel);
}

uint64_t vm__channel_of(int fd)
{
    struct stat there;
    vm_diag diag;
    if (fstat(fd, &there) != 0)
        return 0;
    if (S_ISFIFO(there.st_mode)) /* one with a name can be opened by anybody */
        return there.st_nlink <= 1 && there.st_ino <= VM_CHANNEL_INODE ? there.st_ino : 0;
    int family = 0;
    socklen_t size = sizeof family;
    if (!S_ISSOCK(there.st_mode) || getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &size) != 0 || family != AF_UNIX)
        return 0;
    vm_asked kernel = open_diag();
    bool is_told = ask_diag(kernel.fd, there.st_ino, &diag);
    close_diag(&kernel);
    return is_told && diag.peer ? diag.peer | VM_CHANNEL_SOCKET : 0;
}

/* ---- processes ---- */

static vm_pipe *find(const vm_looking *v, const char *link)
{
    bool is_socket = strncmp(link, "socket:[", 8) == 0;
    if (!is_socket && strncmp(link, "pipe:[", 6) != 0)
        return NULL;
    vm_pipe key = {.is_socket = is_socket, .inode = strtoull(strchr(link, '[') + 1, NULL, 10)};
    return bsearch(&key, v->pipes, v->nr, sizeof key, vm__compare_pipes);
}

static bool is_the_region(const vm_region *r, int dir, const char *name)
{
    struct stat there;
    return fstatat(dir, name, &there, 0) == 0 && there.st_ino == r->inode && there.st_dev == r->device;
}

/* Whether it may have read from a channel without saying so. It says so if it is attached and told us, or if it was
 * given the region at its start and did not need it yet: then it attaches first. */
static bool is_strange(vm_looking *v, uint32_t pid, bool has_region)
{
    const vm_region *r = v->t->region;
    bool is_attached = false, marks = true;
    for (uint32_t p = 0; p < vm__high_process(v->t->region); p++)
        if (v->pid[p] == pid) {
            is_attached = true;
            v->is_seen[p] = v->is_seen[p] || has_region;
            marks = marks && VM_RELAXED(&r->map.processes[p].marks_reads);
        }
    return is_attached ? !marks : !has_region;
}

/* It has it open. */
static bool note(vm_pipe *p, uint32_t pid, int dir, const char *name)
{
    struct stat link;
    if (p->is_socket)
        return true;
    if (fstatat(dir, name, &link, AT_SYMLINK_NOFOLLOW) != 0)
        return false;
    bool reads = link.st_mode & S_IRUSR;
    if (strlen(name) < sizeof p->reader && (reads ? !*p->reader : !*p->reader && !*p->writer)) {
        strcpy(reads ? p->reader : p->writer, name);
        p->pid = pid;
    }
    return reads;
}

/* When the first of the attached processes began, or its parent, which may have made the channels. */
static uint64_t first_began(vm_looking *v)
{
    for (uint32_t p = 0; p < vm__high_process(v->t->region) && !v->is_asked; p++) {
        uint32_t parent = 0;
        uint64_t began = v->pid[p] ? vm__process_began(v->pid[p], &parent) : 0;
        uint64_t before = parent > 1 ? vm__process_began(parent, NULL) : 0;
        began = before && before < began ? before : began;
        if (began && (!v->first_began || began < v->first_began))
            v->first_began = began;
    }
    v->is_asked = true;
    return v->first_began;
}

/* Whether one that may not be looked into can have our channels: of this user, and not older than who uses the region.
 * A program that is root may have children of any user. */
static bool may_have_channels(vm_looking *v, uint32_t pid)
{
    uint64_t began = vm__process_began(pid, NULL);
    return began && began >= first_began(v) && (geteuid() == 0 || vm__process_user(pid) == getuid());
}

enum { HITS_MAX = 64 };

/* false: for want of descriptors or memory, or because they were taken away, not because it ended or is another's. */
static bool look_at_process(vm_looking *v, uint32_t pid)
{
    char path[32], link[64];
    vm_pipe *hit[HITS_MAX];
    size_t nr_hits = 0;
    bool has_region = false;
    vm_folder fds;
    snprintf(path, sizeof path, "/proc/%u/fd", pid);
    int rc = vm__folder_open(&fds, AT_FDCWD, path);
    if (rc) {
        if (rc == -EACCES || rc == -EPERM)
            v->is_one_hidden = v->is_one_hidden || may_have_channels(v, pid);
        return rc != -EMFILE && rc != -ENFILE && rc != -ENOMEM && rc != -EBADF;
    }
    for (const char *number; (number = vm__folder_next(&fds));) {
        int dir = fds.fd;
        ssize_t size = readlinkat(dir, number, link, sizeof link - 1);
        link[size < 0 ? 0 : size] = 0;
        vm_pipe *p = find(v, link);
        if (p && note(p, pid, dir, number)) {
            if (nr_hits < HITS_MAX)
                hit[nr_hits++] = p;
            else
                p->is_strange = true; /* to be on the safe side */
        }
        if (!has_region && strncmp(link, "/memfd:", 7) == 0)
            has_region = is_the_region(v->t->region, dir, number);
    }
    bool is_whole = vm__folder_close(&fds);
    bool strange = is_strange(v, pid, has_region);
    if (nr_hits && !strange && pid != v->own_pid)
        strange = vm__is_stopped(pid);
    for (size_t i = 0; i < nr_hits; i++)
        hit[i]->is_strange = hit[i]->is_strange || strange;
    return is_whole;
}

static bool look_at_processes(vm_looking *v, bool (*go_on)(vm_thread *))
{
    vm_folder proc;
    bool is_whole = vm__folder_open(&proc, AT_FDCWD, "/proc") == 0;
    for (const char *pid; is_whole && (pid = vm__folder_next(&proc));)
        if (isdigit((unsigned char)*pid))
            is_whole = go_on(v->t) && look_at_process(v, (uint32_t)strtoul(pid, NULL, 10));
    return vm__folder_close(&proc) && is_whole;
}

static void list_attached(vm_looking *v)
{
    const vm_region *r = v->t->region;
    for (uint32_t p = 0; p < vm__high_process(v->t->region); p++)
        if (VM_ACQUIRE(&r->map.processes[p].state) & VM_PROCESS_LIVE)
            v->pid[p] = VM_RELAXED(&r->map.processes[p].pid);
    v->is_seen[r->process] = true;
}

static bool saw_everybody(const vm_looking *v)
{
    for (uint32_t p = 0; p < vm__high_process(v->t->region); p++)
        if (v->pid[p] && !v->is_seen[p] && !vm__process_is_dead(v->t->region, p))
            return false;
    return true;
}

/* Where sockets are concerned: an inode is a socket's only within a network namespace. */
static bool is_in_our_net(uint32_t pid)
{
    char path[32], theirs[64], ours[64];
    snprintf(path, sizeof path, "/proc/%u/ns/net", pid);
    ssize_t n = readlink(path, theirs, sizeof theirs), m = readlink("/proc/self/ns/net", ours, sizeof ours);
    return n > 0 && n == m && memcmp(ours, theirs, (size_t)n) == 0;
}

static bool are_in_one_net(const vm_looking *v)
{
    for (uint32_t p = 0; p < vm__high_process(v->t->region); p++)
        if (v->pid[p] && v->pid[p] != v->own_pid && !is_in_our_net(v->pid[p]) && !vm__process_is_dead(v->t->region, p))
            return false;
    return true;
}

int vm__look_at_pipes(vm_thread *t, vm_pipe *pipes, size_t nr, bool (*go_on)(vm_thread *))
{
    vm_looking v = {.t = t, .pipes = pipes, .nr = nr, .own_pid = vm__pid()};
    list_attached(&v);
    if (!look_at_processes(&v, go_on) || !saw_everybody(&v))
        return -EAGAIN;
    for (size_t i = 0; i < nr; i++) {
        v.has_sockets = v.has_sockets || pipes[i].is_socket;
        if (!pipes[i].is_socket)
            look_into(&v, &pipes[i]);
        pipes[i].is_strange = pipes[i].is_strange || v.is_one_hidden;
    }
    if (v.has_sockets)
        look_into_sockets(&v, are_in_one_net(&v));
    return 0;
}
