/* SPDX-License-Identifier: MIT */
/*
 * Headroom: what the machine and the memory cgroup have left. Asked before a region grows, so that a full machine is
 * ENOSPC here and not a signal later.
 */
#include "store.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#define MARGIN_BYTES (16ull << 20)

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
    return VM_RELAXED(&r->map.h->high_pages) * (sizeof(vm_head) + sizeof(vm_sharing))
           + r->map.nr_nodes * sizeof(vm_node) + VM_RELAXED(&r->map.h->high_slot) * sizeof(vm_slot);
}

uint64_t vm__resident_pages(const vm_region *r)
{
    uint64_t resident = vm__pages_resident_bytes(r), metadata = metadata_bytes_most(r);
    return (resident > metadata ? resident - metadata : 0) >> r->map.page_shift;
}

/* Pages that may be outside space at once without bringing the machine or the cgroup to its limit: the
 * resident ones and what is left. What was handed out and never touched still wants its pages. */
uint64_t vm__headroom_pages(const vm_region *r)
{
    char text[2048];
    uint64_t bytes = UINT64_MAX;
    if (read_text("/proc/meminfo", text, sizeof text) && strstr(text, "MemAvailable:"))
        bytes = number_after(text, "MemAvailable:") << 10;
    uint64_t cgroup = cgroups_left();
    bytes = cgroup < bytes ? cgroup : bytes;
    uint64_t resident = vm__resident_pages(r) << r->map.page_shift;
    return (bytes > UINT64_MAX - resident ? UINT64_MAX : bytes + resident) >> r->map.page_shift;
}
