/* SPDX-License-Identifier: MIT */
/*
 * Pages: the only file that asks the operating system for memory.
 *
 * One sealed memfd, one mapping, left out of core dumps. Discard punches holes. Headroom is what the
 * machine and the cgroup still have: space.c asks before it grows, so that a full machine is
 * ENOSPC here and not a signal later.
 */
#include "internal.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define MARGIN_BYTES (16ull << 20)

/* A memfd of that size, nothing of it touched; it can be neither shrunk nor grown by anybody, and opened anew
 * through /proc only by its owner. */
int vm__pages_create(const char *name, uint64_t bytes, int *fd)
{
    struct rlimit file_size;
    char full[128];
    if (getrlimit(RLIMIT_FSIZE, &file_size) == 0 && file_size.rlim_cur != RLIM_INFINITY && bytes > file_size.rlim_cur)
        return -EFBIG; /* ftruncate would raise SIGXFSZ */
    if (bytes > INT64_MAX)
        return -EFBIG;
    snprintf(full, sizeof full, "vmalloc:%s", name ? name : "");
    int made = memfd_create(full, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (made < 0)
        return -errno;
    if (fchmod(made, S_IRUSR | S_IWUSR) < 0 || ftruncate(made, (off_t)bytes) < 0
        || fcntl(made, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        int rc = -errno;
        close(made);
        return rc;
    }
    *fd = made;
    return 0;
}

/* Mapped at a multiple of VM_MAP_ALIGN, so that up to there an aligned page is an aligned address. */
int vm__pages_map(int fd, uint64_t bytes, bool readonly, void **base)
{
    uint64_t reserved = bytes + VM_MAP_ALIGN;
    uint8_t *all = mmap(NULL, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED)
        return -errno;
    uint8_t *at = all + (VM_MAP_ALIGN - (uintptr_t)all % VM_MAP_ALIGN) % VM_MAP_ALIGN;
    int access = readonly ? PROT_READ : PROT_READ | PROT_WRITE;
    if (mmap(at, bytes, access, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, fd, 0) == MAP_FAILED) {
        int rc = -errno;
        munmap(all, reserved);
        return rc;
    }
    uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE), used = (bytes + page_bytes - 1) / page_bytes * page_bytes;
    if (at != all)
        munmap(all, (size_t)(at - all));
    munmap(at + used, (size_t)(all + reserved - (at + used)));
    madvise(at, bytes, MADV_DONTDUMP);
    *base = at;
    return 0;
}

/* Return the pages to the system; they read as zeros afterwards. Idempotent. */
int vm__pages_discard(vm_region *r, uint64_t page, uint64_t nr_pages)
{
    if (r->flags & VM_FLAG_NO_DATA)
        return 0;
    VM_FAULT();
    off_t offset = (off_t)(r->data_offset + (page << r->page_shift));
    int rc = fallocate(r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, (off_t)(nr_pages << r->page_shift));
    return rc < 0 ? -errno : 0;
}

uint64_t vm__pages_resident_bytes(const vm_region *r)
{
    struct stat st;
    return fstat(r->fd, &st) == 0 ? (uint64_t)st.st_blocks * 512 : 0;
}

static bool read_text(const char *path, char *text, size_t bytes)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, text, bytes - 1);
    close(fd);
    if (n < 0)
        return false;
    text[n] = 0;
    return true;
}

static uint64_t number_after(const char *text, const char *key)
{
    const char *at = strstr(text, key);
    return at ? strtoull(at + strlen(key), NULL, 10) : 0;
}

static uint64_t read_number(const char *dir, const char *file)
{
    char path[512], text[64];
    snprintf(path, sizeof path, "%s/%s", dir, file);
    if (!read_text(path, text, sizeof text) || text[0] < '0' || text[0] > '9')
        return UINT64_MAX; /* missing or "max" */
    return strtoull(text, NULL, 10);
}

/* Bytes a memory cgroup directory still allows; reclaimable file cache counts as free. A margin is left
 * for our metadata and for what the processes themselves need meanwhile. */
static uint64_t cgroup_left(const char *dir, const char *limit_file, const char *usage_file)
{
    char path[512], text[4096];
    uint64_t limit = read_number(dir, limit_file), usage = read_number(dir, usage_file), cache = 0;
    if (limit == UINT64_MAX || usage == UINT64_MAX)
        return UINT64_MAX;
    snprintf(path, sizeof path, "%s/memory.stat", dir);
    if (read_text(path, text, sizeof text))
        cache = number_after(text, "\ninactive_file ");
    usage = usage > cache ? usage - cache : 0;
    uint64_t margin = limit / 16 > MARGIN_BYTES ? limit / 16 : MARGIN_BYTES;
    return limit > usage + margin ? limit - usage - margin : 0;
}

/* The least that this process's memory cgroup or one of its ancestors allows. */
static uint64_t cgroups_left(void)
{
    char text[4096], dir[400];
    uint64_t least = UINT64_MAX;
    if (!read_text("/proc/self/cgroup", text, sizeof text))
        return least;
    for (char *save = NULL, *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        bool v2 = strncmp(line, "0::", 3) == 0, v1 = strstr(line, ":memory:") != NULL;
        if (!v1 && !v2)
            continue;
        const char *path = v2 ? line + 3 : strstr(line, ":memory:") + 8;
        const char *root = v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
        if (snprintf(dir, sizeof dir, "%s%s", root, path) >= (int)sizeof dir)
            continue;
        for (;;) {
            uint64_t left = v2 ? cgroup_left(dir, "memory.max", "memory.current")
                               : cgroup_left(dir, "memory.limit_in_bytes", "memory.usage_in_bytes");
            least = left < least ? left : least;
            char *slash = strrchr(dir, '/');
            if (!slash || strlen(dir) <= strlen(root))
                break;
            *slash = 0;
        }
    }
    return least;
}

/* What of the resident bytes may be metadata, at the most: counted as data it would be granted again and
 * again. */
static uint64_t metadata_bytes_most(const vm_region *r)
{
    return VM_PEEK(&r->h->high_pages) * (sizeof(vm_head) + sizeof(vm_sharing)) + r->nr_nodes * sizeof(vm_node)
           + VM_PEEK(&r->h->high_slot) * sizeof(vm_slot);
}

/* Pages that may be outside space at once without bringing the machine or the cgroup to its limit: the
 * resident ones and what is left. What was handed out and never touched still wants its pages. */
uint64_t vm__pages_most(const vm_region *r)
{
    char text[2048];
    uint64_t bytes = UINT64_MAX;
    if (read_text("/proc/meminfo", text, sizeof text) && strstr(text, "MemAvailable:"))
        bytes = number_after(text, "MemAvailable:") << 10;
    uint64_t cgroup = cgroups_left();
    bytes = cgroup < bytes ? cgroup : bytes;
    uint64_t resident = vm__pages_resident_bytes(r), metadata = metadata_bytes_most(r);
    resident = resident > metadata ? resident - metadata : 0;
    return (bytes > UINT64_MAX - resident ? UINT64_MAX : bytes + resident) >> r->page_shift;
}
