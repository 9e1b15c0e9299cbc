/* SPDX-License-Identifier: MIT */
/*
 * Number: what stands behind a descriptor's number now, and the names in a folder of /proc, read under one.
 *
 * A walk over /proc takes long. Whoever closes all descriptors in that time and opens a file of its own keeps that one: it is
 * not closed at the end. What was read then is not all there was, and the reader is told. The C library's way to read a
 * folder would close the number, or lose the memory that it keeps for it.
 */
#include "base.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

int vm__identify(int fd, uint64_t *inode, uint64_t *device)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return -errno;
    *inode = st.st_ino;
    *device = st.st_dev;
    return 0;
}

bool vm__is_same(int fd, uint64_t inode, uint64_t device)
{
    uint64_t inode_now = 0, device_now = 0;
    return fd >= 0 && vm__identify(fd, &inode_now, &device_now) == 0 && inode_now == inode && device_now == device;
}

bool vm__is_at(int fd, const char *path)
{
    struct stat now;
    return stat(path, &now) == 0 && vm__is_same(fd, now.st_ino, now.st_dev);
}

void vm__close_same(int fd, uint64_t inode, uint64_t device)
{
    if (vm__is_same(fd, inode, device))
        close(fd);
}

/* ---- folders ---- */

typedef struct vm_entry { /* as the kernel writes it: struct linux_dirent64 */
    uint64_t inode, next;
    uint16_t bytes;
    uint8_t type;
    char name[];
} vm_entry;

int vm__folder_open(vm_folder *f, int at, const char *path)
{
    f->nr_bytes = f->read_to = 0;
    f->inode = f->device = 0;
    f->fd = openat(at, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return f->fd < 0 ? -errno : vm__identify(f->fd, &f->inode, &f->device);
}

/* Not from another file: a read moves on where that one's owner reads next. */
static bool read_more(vm_folder *f)
{
    bool is_ours = vm__is_same(f->fd, f->inode, f->device);
    long nr = is_ours ? syscall(SYS_getdents64, f->fd, f->entries, sizeof f->entries) : 0;
    f->read_to = 0;
    f->nr_bytes = nr > 0 ? (size_t)nr : 0;
    return f->nr_bytes > 0;
}

const char *vm__folder_next(vm_folder *f)
{
    if (f->read_to >= f->nr_bytes && !read_more(f))
        return NULL;
    const vm_entry *e = (const vm_entry *)(const void *)(f->entries + f->read_to);
    f->read_to += e->bytes;
    return e->name;
}

bool vm__folder_close(vm_folder *f)
{
    bool is_ours = vm__is_same(f->fd, f->inode, f->device);
    if (is_ours)
        close(f->fd);
    return is_ours;
}
