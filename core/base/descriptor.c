/* SPDX-License-Identifier: MIT */
/*
 * Descriptors: numbers that a program may close, or give to another file, at any time.
 *
 * So no effect on others goes through a number without proof that it is the region's: the file behind it is looked at
 * before and after, and a number that is not ours any more is forgotten and not closed. What must last, the OFD lock by
 * which others see that this process lives, hangs on a mapping: one page of a description of its own is mapped, not
 * inherited by children, and the number is closed. The kernel lets go of the lock when the mapping goes: at unmap, exec and
 * death, and at nothing else.
 */
#include "base.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define TIE_BYTES 4096

static bool is_it(const vm_region *r, const struct stat *st)
{
    return st->st_ino == r->inode && st->st_dev == r->device;
}

bool vm__is_ours(const vm_region *r, int fd)
{
    struct stat st;
    return fd >= 0 && fstat(fd, &st) == 0 && is_it(r, &st);
}

void vm__close_ours(const vm_region *r, int fd)
{
    if (vm__is_ours(r, fd))
        close(fd);
}

int vm__above_standard_streams(int fd)
{
    if (fd < 0 || fd > STDERR_FILENO)
        return fd;
    int moved = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    close(fd);
    return moved;
}

int vm__note_file(vm_region *r) { return vm__identify(r->fd, &r->inode, &r->device); }

/* ---- a new description ---- */

/* EMFILE and ENFILE as such; whatever else is in the way, EBADF: it is not there. */
static int open_if_ours(const vm_region *r, int dir, const char *path)
{
    int fd = vm__above_standard_streams(openat(dir, path, (r->readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC));
    if (fd < 0)
        return errno == EMFILE || errno == ENFILE ? -errno : -EBADF;
    if (vm__is_ours(r, fd))
        return fd;
    close(fd);
    errno = 0;
    return -EBADF;
}

static int open_own(const vm_region *r, int number)
{
    char path[32];
    if (!vm__is_ours(r, number))
        return -EBADF;
    snprintf(path, sizeof path, "/proc/self/fd/%d", number);
    int fd = open_if_ours(r, AT_FDCWD, path);
    return fd == -EBADF && errno == ENOENT ? -ENOENT : fd; /* no /proc */
}

static int open_anothers(const vm_region *r, uint32_t pid)
{
    char path[32];
    struct stat st;
    vm_folder fds;
    int found = -EBADF;
    snprintf(path, sizeof path, "/proc/%u/fd", pid);
    vm__folder_open(&fds, AT_FDCWD, path);
    for (const char *number; found == -EBADF && (number = vm__folder_next(&fds));)
        if (fstatat(fds.fd, number, &st, 0) == 0 && is_it(r, &st))
            found = open_if_ours(r, fds.fd, number);
    vm__folder_close(&fds);
    return found;
}

/* Through the mapped page; the kernel lets only privileged processes do that. */
static int open_mapped(const vm_region *r)
{
    char path[64];
    uintptr_t at = (uintptr_t)r->tie.page;
    snprintf(path, sizeof path, "/proc/self/map_files/%lx-%lx", (unsigned long)at, (unsigned long)(at + TIE_BYTES));
    return at ? open_if_ours(r, AT_FDCWD, path) : -EBADF;
}

int vm__open_region(const vm_region *r)
{
    int fd = open_own(r, r->fd);
    if (fd == -EBADF)
        fd = open_own(r, r->probe_fd);
    if (fd == -EBADF)
        fd = open_mapped(r);
    for (uint32_t p = 0; fd == -EBADF && p < vm__high_process(r); p++)
        if ((uint32_t)VM_ACQUIRE(&r->map.processes[p].state))
            fd = open_anothers(r, VM_RELAXED(&r->map.processes[p].pid));
    return fd;
}

int vm__fd(vm_region *r)
{
    int now = __atomic_load_n(&r->fd, __ATOMIC_RELAXED);
    if (vm__is_ours(r, now))
        return now;
    int fd = vm__open_region(r);
    if (fd >= 0 && !__atomic_compare_exchange_n(&r->fd, &now, fd, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
        close(fd);
        fd = now; /* another thread of ours was first */
    }
    return fd;
}

/* ---- by name or pid ---- */

#define LINK_PREFIX "/memfd:vmalloc:"

typedef struct vm_finding {
    const char *which;
    bool by_pid;   /* and not by the region's name */
    int fd;        /* of the one found */
    bool is_only;  /* another one fits as well if not */
    struct stat st;
} vm_finding;

/* Of what a link of /proc/PID/fd says, the region's name; NULL for another file. Cuts off what the kernel adds. */
static const char *region_name(char *link)
{
    const size_t prefix = sizeof LINK_PREFIX - 1;
    char *deleted = strstr(link, " (deleted)");
    if (strncmp(link, LINK_PREFIX, prefix) != 0)
        return NULL;
    for (char *next = deleted; next; next = strstr(next + 1, " (deleted)"))
        deleted = next; /* the name may say so, too */
    if (deleted)
        *deleted = 0;
    return link + prefix;
}

/* Anybody may call a region anything, so a name counts among this user's only. */
static void look_at(vm_finding *f, int dir, const char *number)
{
    char link[sizeof LINK_PREFIX + VM_REGION_NAME_BYTES_MAX + sizeof " (deleted)"];
    struct stat st;
    ssize_t n = readlinkat(dir, number, link, sizeof link - 1);
    if (n < 0)
        return;
    link[n] = 0;
    const char *name = region_name(link);
    if (!name || (!f->by_pid && strcmp(name, f->which) != 0) || fstatat(dir, number, &st, 0) < 0)
        return;
    if (!f->by_pid && st.st_uid != geteuid())
        return;
    if (f->fd >= 0) {
        f->is_only &= st.st_ino == f->st.st_ino && st.st_dev == f->st.st_dev;
        return;
    }
    int fd = vm__above_standard_streams(openat(dir, number, O_RDWR | O_CLOEXEC));
    if (fd >= 0 && (fstat(fd, &f->st) < 0 || f->st.st_ino != st.st_ino || f->st.st_dev != st.st_dev)) {
        close(fd); /* the number was given to another file meanwhile */
        fd = -1;
    }
    f->fd = fd;
}

static void look_at_process(vm_finding *f, const char *pid)
{
    char path[40];
    vm_folder fds;
    if (strspn(pid, "0123456789") != strlen(pid) || strlen(pid) > 20)
        return;
    snprintf(path, sizeof path, "/proc/%s/fd", pid);
    vm__folder_open(&fds, AT_FDCWD, path);
    for (const char *number; (number = vm__folder_next(&fds));)
        look_at(f, fds.fd, number);
    vm__folder_close(&fds);
}

int vm__open_named(const char *which)
{
    vm_finding f = {.which = which, .fd = -1, .is_only = true};
    vm_folder proc;
    int rc = vm__folder_open(&proc, AT_FDCWD, "/proc");
    if (rc)
        return rc;
    if (*which)
        for (const char *pid; (pid = vm__folder_next(&proc));)
            look_at_process(&f, pid);
    vm__folder_close(&proc);
    if (f.fd < 0 && *which) {
        f.by_pid = true;
        look_at_process(&f, which);
    }
    if (f.fd >= 0 && !f.is_only) {
        vm__close_same(f.fd, f.st.st_ino, f.st.st_dev);
        return -EEXIST;
    }
    return f.fd < 0 ? -ENOENT : f.fd;
}

/* ---- OFD locks ---- */

static int ofd(int fd, int command, short type, uint32_t process, struct flock *l)
{
    *l = (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = process, .l_len = 1};
    return fcntl(fd, command, l) < 0 ? -errno : 0;
}

int vm__claim_process(const vm_region *r, const vm_tie *tie, uint32_t process)
{
    struct flock l;
    int rc = ofd(tie->fd, F_OFD_SETLK, F_WRLCK, process, &l);
    return rc == 0 && !vm__is_ours(r, tie->fd) ? -EBADF : rc;
}

void vm__unclaim_process(const vm_region *r, const vm_tie *tie, uint32_t process)
{
    struct flock l;
    if (vm__is_ours(r, tie->fd))
        ofd(tie->fd, F_OFD_SETLK, F_UNLCK, process, &l);
}

/* 1: somebody has it. 0: nobody. -1: the number is not the region's any more. */
static int probe(const vm_region *r, int fd, uint32_t process)
{
    struct flock l;
    if (!vm__is_ours(r, fd))
        return -1;
    int rc = ofd(fd, F_OFD_GETLK, F_WRLCK, process, &l);
    return !vm__is_ours(r, fd) ? -1 : rc != 0 || l.l_type != F_UNLCK;
}

bool vm__process_is_claimed(vm_region *r, uint32_t process)
{
    int fd = __atomic_load_n(&r->probe_fd, __ATOMIC_RELAXED), answer = probe(r, fd, process);
    if (answer >= 0)
        return answer;
    int fresh = vm__open_region(r);
    if (fresh < 0)
        return true;
    answer = probe(r, fresh, process);
    if (!__atomic_compare_exchange_n(&r->probe_fd, &fd, fresh, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        vm__close_ours(r, fresh);
    return answer != 0;
}

/* ---- ties ---- */

int vm__tie(const vm_region *r, vm_tie *tie)
{
    *tie = (vm_tie){.fd = vm__open_region(r)};
    if (tie->fd < 0)
        return tie->fd;
    void *page = mmap(NULL, TIE_BYTES, PROT_READ, MAP_SHARED, tie->fd, 0);
    int rc = page == MAP_FAILED ? -errno : !vm__is_ours(r, tie->fd) ? -EBADF : 0;
    if (page != MAP_FAILED)
        tie->page = page;
    if (rc)
        vm__untie(r, tie);
    return rc;
}

int vm__tie_to_this_process(vm_tie *tie) { return madvise(tie->page, TIE_BYTES, MADV_DONTFORK) < 0 ? -errno : 0; }

void vm__tie_without_number(const vm_region *r, vm_tie *tie)
{
    vm__close_ours(r, tie->fd);
    tie->fd = -1;
}

void vm__untie(const vm_region *r, vm_tie *tie)
{
    vm__tie_without_number(r, tie);
    if (tie->page)
        munmap(tie->page, TIE_BYTES);
    tie->page = NULL;
}
