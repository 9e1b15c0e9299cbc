/* SPDX-License-Identifier: MIT */
/* Walks over /proc while the program closes every number and opens files of its own: those stay open. And what the library
 * opened does not. */
#include "kit.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/syscall.h>

static int nr_reads, taken_at; /* at which look at a folder its number is taken away; 0: at none */
static int taken_number, canary;

/* In front of the C library's: another thread was here, which closes all that is not its own, and opens a file. */
long syscall(long number, ...)
{
    static long (*next)(long, ...);
    long a[6];
    va_list rest;
    va_start(rest, number);
    for (size_t i = 0; i < LENGTH(a); i++)
        a[i] = va_arg(rest, long);
    va_end(rest);
    if (!next)
        *(void **)&next = dlsym(RTLD_NEXT, "syscall");
    if (number == SYS_getdents64 && ++nr_reads == taken_at) {
        taken_number = (int)a[0];
        CHECK_EQ(dup2(canary, taken_number), taken_number);
    }
    return next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

static void take_number_at(int nth)
{
    nr_reads = 0;
    taken_at = nth;
    taken_number = -1;
}

static void the_file_is_open_yet(void)
{
    struct stat there, wanted;
    CHECK(taken_number >= 0);
    CHECK_EQ(fstat(canary, &wanted), 0);
    CHECK_EQ(fstat(taken_number, &there), 0);
    CHECK_EQ(there.st_ino, wanted.st_ino);
    close(taken_number);
}

enum { OF_PROC = 1, LOOKS = 12 }; /* the first is at /proc, then come those at processes */

static void who_looks_for_a_region_by_its_name_closes_no_other_file(void)
{
    vm_region *r = NULL;
    for (int nth = OF_PROC; nth < OF_PROC + LOOKS; nth++) {
        take_number_at(nth);
        CHECK_EQ(vm_attach_named("nobody's", &r), -ENOENT);
        the_file_is_open_yet();
    }
    CHECK(r == NULL);
}

static bool always(vm_thread *t)
{
    (void)t;
    return true;
}

/* And who has not seen all of it does not say that nobody has the pipe. */
static void who_looks_for_those_that_have_a_pipe_closes_no_other_file(void)
{
    vm_region *r = MAKE(.nr_pages = 1000, SMALL);
    int ends[2];
    struct stat there;
    CHECK_EQ(pipe(ends), 0);
    CHECK_EQ(fstat(ends[0], &there), 0);
    vm_pipe p = {.inode = there.st_ino};
    take_number_at(0);
    CHECK_EQ(vm__look_at_pipes(vm__thread(r), &p, 1, always), 0);
    CHECK(p.is_open && !p.is_unread);
    for (int nth = OF_PROC; nth < OF_PROC + LOOKS; nth++) {
        take_number_at(nth);
        CHECK_EQ(vm__look_at_pipes(vm__thread(r), &p, 1, always), -EAGAIN);
        the_file_is_open_yet();
    }
    take_number_at(0);
    close(ends[0]);
    close(ends[1]);
    FINISH(r);
}

/* Its own number and all others are gone: another process has the region open. */
static void who_looks_for_the_regions_file_closes_no_other_file(void)
{
    vm_region *r = MAKE(.nr_pages = 1000, SMALL);
    int ready[2];
    char byte;
    CHECK_EQ(pipe(ready), 0);
    pid_t child;
    CHILD(child, {
        take(r, 1);
        CHECK_EQ(write(ready[1], "", 1), 1);
        for (;;)
            pause();
    });
    CHECK_EQ(read(ready[0], &byte, 1), 1);
    void *page = r->tie.page;
    r->tie.page = NULL; /* as where the kernel lets nobody open a file through its mapping */
    for (int nth = OF_PROC; nth < OF_PROC + 2; nth++) {
        int fd = r->fd, probe = r->probe_fd;
        close(fd);
        if (probe >= 0)
            close(probe);
        take_number_at(nth);
        vm__fd(r); /* -EBADF where the folder was taken away before the file was found */
        the_file_is_open_yet();
        take_number_at(0);
        CHECK(vm__fd(r) >= 0);
    }
    r->tie.page = page;
    kill(child, SIGKILL);
    CHECK_EQ(waitpid(child, NULL, 0), child);
    CHECK_EQ(vm_recover(r, NULL), 0);
    close(ready[0]);
    close(ready[1]);
    FINISH(r);
}

/* A read would move on where its owner reads next. */
static void a_folder_that_was_put_in_its_place_is_not_read(void)
{
    vm_folder f;
    int theirs = open("/", O_RDONLY | O_DIRECTORY);
    CHECK(theirs >= 0);
    CHECK_EQ(vm__folder_open(&f, AT_FDCWD, "/proc"), 0);
    CHECK(vm__folder_next(&f) != NULL);
    CHECK_EQ(dup2(theirs, f.fd), f.fd);
    while (vm__folder_next(&f))
        ;
    CHECK_EQ(lseek(theirs, 0, SEEK_CUR), 0);
    CHECK(!vm__folder_close(&f));
    CHECK_EQ(close(f.fd), 0);
    close(theirs);
}

/* A helper reads some at every tick. In a container they may be the container's own, in a file system of its. */
static void a_file_is_closed_once_it_was_read(void)
{
    char own[] = "/tmp/vmalloc-text-XXXXXX", text[64];
    int fd = mkstemp(own), first = dup(fd);
    close(first);
    CHECK_EQ(write(fd, "0-3\n", 4), 4);
    const char *const paths[] = {"/proc/self/stat", "/sys/devices/system/cpu/online", own};
    for (size_t i = 0; i < LENGTH(paths); i++) {
        vm__read_text(paths[i], text, sizeof text);
        int next = dup(fd);
        CHECK_EQ(next, first);
        close(next);
    }
    CHECK_EQ(strcmp(text, "0-3\n"), 0);
    close(fd);
    unlink(own);
}

int main(void)
{
    char path[] = "/tmp/vmalloc-canary-XXXXXX";
    canary = mkstemp(path);
    CHECK(canary >= 0);
    unlink(path);
    who_looks_for_a_region_by_its_name_closes_no_other_file();
    who_looks_for_those_that_have_a_pipe_closes_no_other_file();
    who_looks_for_the_regions_file_closes_no_other_file();
    a_folder_that_was_put_in_its_place_is_not_read();
    a_file_is_closed_once_it_was_read();
    return 0;
}
