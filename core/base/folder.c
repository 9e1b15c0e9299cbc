/* SPDX-License-Identifier: MIT */
/*
 * Folder: the names in a folder of /proc, read under a number that the program may close, or give to another file, meanwhile.
 *
 * A walk over /proc takes long. Whoever closes all descriptors in that time and opens a file of its own keeps that one: it is
 * not closed at the end. What was read then is not all there was, and the reader is told.
 */
#include "base.h"

#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

static int begin(vm_folder *f, int fd)
{
    *f = (vm_folder){.names = NULL};
    if (fd < 0)
        return -errno;
    int rc = vm__identify(fd, &f->inode, &f->device);
    f->names = fdopendir(fd);
    if (!f->names) {
        rc = -errno;
        close(fd);
    }
    return rc;
}

int vm__folder_open(vm_folder *f, int at, const char *path)
{
    return begin(f, openat(at, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
}

const char *vm__folder_next(vm_folder *f)
{
    const struct dirent *e = f->names ? readdir(f->names) : NULL;
    return e ? e->d_name : NULL;
}

int vm__folder_number(const vm_folder *f) { return dirfd(f->names); }

/* Of a number that is another's by now nothing is closed, and what the C library keeps of it is lost: some 32 KiB. */
bool vm__folder_close(vm_folder *f)
{
    if (!f->names || !vm__is_same(dirfd(f->names), f->inode, f->device))
        return false;
    closedir(f->names);
    return true;
}
