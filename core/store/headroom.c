/* SPDX-License-Identifier: MIT */
/*
 * Headroom: what the machine and the memory cgroup have left. Asked before a region grows, so that a full machine is
 * ENOSPC here and not a signal later.
 */
#include "store.h"

#include <stdio.h>

#define MARGIN_BYTES (16ull << 20)

static uint64_t number_after(const char *text, const char *key)
{
    const char *at = strstr(text, key);
    return at ? strtoull(at + strlen(key), NULL, 10) : 0;
}

static uint64_t read_number(const char *dir, const char *file)
{
    char path[512], text[64];
    snprintf(path, sizeof path, "%s/%s", dir, file);
    if (!vm__read_text(path, text, sizeof text) || text[0] < '0' || text[0] > '9')
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
    if (vm__read_text(path, text, sizeof text))
        cache = number_after(text, "\ninactive_file ");
    usage = usage > cache ? usage - cache : 0;
    uint64_t margin = limit / 16 > MARGIN_BYTES ? limit / 16 : MARGIN_BYTES;
    return limit > usage + margin ? limit - usage - margin : 0;
}

/* A memory cgroup that this process is in. */
typedef struct cgroup {
    const char *dir;
    bool is_v2;
} cgroup;

/* From this process's own memory cgroup up to the root. */
static void each_cgroup(void (*look)(const cgroup *, void *), void *arg)
{
    char text[4096], dir[400];
    if (!vm__read_text("/proc/self/cgroup", text, sizeof text))
        return;
    for (char *save = NULL, *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        bool v2 = strncmp(line, "0::", 3) == 0, v1 = strstr(line, ":memory:") != NULL;
        if (!v1 && !v2)
            continue;
        const char *path = v2 ? line + 3 : strstr(line, ":memory:") + 8;
        const char *root = v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
        if (snprintf(dir, sizeof dir, "%s%s", root, path) >= (int)sizeof dir)
            continue;
        for (;;) {
            look(&(cgroup){dir, v2}, arg);
            char *slash = strrchr(dir, '/');
            if (!slash || strlen(dir) <= strlen(root))
                break;
            *slash = 0;
        }
    }
}

static uint64_t left_in(const cgroup *g)
{
    return g->is_v2 ? cgroup_left(g->dir, "memory.max", "memory.current")
                    : cgroup_left(g->dir, "memory.limit_in_bytes", "memory.usage_in_bytes");
}

static uint64_t limit_of(const cgroup *g)
{
    return read_number(g->dir, g->is_v2 ? "memory.max" : "memory.limit_in_bytes");
}

static void keep_least_limit(const cgroup *g, void *arg)
{
    uint64_t *least = arg, limit = limit_of(g);
    *least = limit < *least ? limit : *least;
}

uint64_t vm__cgroup_limit(void)
{
    uint64_t least = UINT64_MAX;
    each_cgroup(keep_least_limit, &least);
    return least;
}

static void keep_least(const cgroup *g, void *arg)
{
    uint64_t *least = arg, left = left_in(g);
    *least = left < *least ? left : *least;
}

/* The least that this process's memory cgroup or one of its ancestors allows. */
static uint64_t cgroups_left(void)
{
    uint64_t least = UINT64_MAX;
    each_cgroup(keep_least, &least);
    return least;
}

/* What of the resident bytes may be metadata, at the most: counted as data it would be granted again and
 * again. */
static uint64_t metadata_bytes_most(const vm_region *r)
{
    uint64_t high = VM_RELAXED(&r->map.h->high_slot), first = vm__first_thread(r);
    uint64_t nr_slots = vm__high_process(r) + (high > first ? high - first : 0);
    uint64_t each = sizeof(vm_head) + sizeof(vm_sharing) + (vm__nr_holders(r) - 1) * sizeof *r->map.holders;
    uint64_t ready = vm__nodes_used(r) * sizeof(vm_node) + vm__groups_used(r) * sizeof(vm_shelf);
    return VM_RELAXED(&r->map.h->high_pages) * each + ready + nr_slots * sizeof(vm_slot);
}

uint64_t vm__resident_pages(const vm_region *r)
{
    uint64_t resident = vm__pages_resident_bytes(r), metadata = metadata_bytes_most(r);
    return (resident > metadata ? resident - metadata : 0) >> r->map.page_shift;
}

/* UINT64_MAX where the system does not say. */
static uint64_t memory_available(void)
{
    char text[2048];
    bool is_told = vm__read_text("/proc/meminfo", text, sizeof text) && strstr(text, "MemAvailable:");
    return is_told ? number_after(text, "MemAvailable:") << 10 : UINT64_MAX;
}

/* Pages that may be outside space at once without bringing the machine or the cgroup to its limit: the
 * resident ones and what is left. What was handed out and never touched still wants its pages. */
uint64_t vm__headroom_pages(const vm_region *r)
{
    uint64_t bytes = memory_available(), allowed = cgroups_left();
    bytes = allowed < bytes ? allowed : bytes;
    uint64_t resident = vm__resident_pages(r) << r->map.page_shift;
    return (bytes > UINT64_MAX - resident ? UINT64_MAX : bytes + resident) >> r->map.page_shift;
}

bool vm__cgroup_is_tightest(void) { return cgroups_left() < memory_available(); }

/* ---- pressure ---- */

typedef struct looked {
    vm_pressure worst;
    uint32_t sources;
} looked;

static void note(looked *l, uint32_t source, vm_pressure seen)
{
    l->sources |= source;
    l->worst = seen > l->worst ? seen : l->worst;
}

static vm_pressure by_what_is_left(uint64_t left, uint64_t of)
{
    uint64_t some = of / 100 * VM_PRESSURE_PERCENT;
    return left >= some ? VM_PRESSURE_NONE : left >= some / 2 ? VM_PRESSURE_SOME : VM_PRESSURE_HIGH;
}

/* PSI: the percentage of the last ten seconds in which somebody waited for memory. */
static void look_at_stalls(const char *path, looked *l)
{
    char text[256];
    if (!vm__read_text(path, text, sizeof text) || !strstr(text, "some avg10="))
        return;
    uint64_t stalled = number_after(text, "some avg10=");
    note(l, VM_PRESSURE_BY_STALLS,
         stalled < VM_PRESSURE_STALL_PERCENT       ? VM_PRESSURE_NONE
         : stalled < 4 * VM_PRESSURE_STALL_PERCENT ? VM_PRESSURE_SOME
                                                   : VM_PRESSURE_HIGH);
}

static void look_at_bound(looked *l, uint32_t source, uint64_t limit, uint64_t left)
{
    if (limit != UINT64_MAX && left != UINT64_MAX && limit < vm__memory_bytes())
        note(l, source, by_what_is_left(left, limit));
}

/* Above memory.high nothing fails, but whoever allocates is slowed down: pressure, and no bound of a region. */
static void look_at_cgroup(const cgroup *g, void *arg)
{
    char path[512];
    look_at_bound(arg, g->is_v2 ? VM_PRESSURE_BY_CGROUP2 : VM_PRESSURE_BY_CGROUP1, limit_of(g), left_in(g));
    if (!g->is_v2)
        return;
    look_at_bound(arg, VM_PRESSURE_BY_CGROUP2, read_number(g->dir, "memory.high"),
                  cgroup_left(g->dir, "memory.high", "memory.current"));
    snprintf(path, sizeof path, "%s/memory.pressure", g->dir);
    look_at_stalls(path, arg);
}

vm_pressure vm__memory_pressure(uint32_t *sources)
{
    looked l = {VM_PRESSURE_NONE, 0};
    uint64_t available = memory_available();
    if (available != UINT64_MAX)
        note(&l, VM_PRESSURE_BY_MEMINFO, by_what_is_left(available, vm__memory_bytes()));
    look_at_stalls("/proc/pressure/memory", &l);
    each_cgroup(look_at_cgroup, &l);
    *sources = l.sources;
    return l.worst;
}
