/* SPDX-License-Identifier: MIT */
/* Pressure: what the system says of memory, read from files that this test writes: few machines have all kinds of cgroup. */
#include "kit.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/stat.h>

#define MIB (1ull << 20)

static char root[] = "/tmp/vmalloc-pressure-XXXXXX";

/* In front of the C library's: files of the kernel's that tell of memory are ours. */
int open(const char *path, int flags, ...)
{
    static int (*next)(const char *, int, ...);
    char ours[600];
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    if (!next)
        *(void **)&next = dlsym(RTLD_NEXT, sizeof(off_t) == sizeof(long) ? "open64" : "open");
    if (strncmp(path, "/sys/fs/cgroup", 14) && strncmp(path, "/proc/pressure", 14) && strcmp(path, "/proc/meminfo")
        && strcmp(path, "/proc/self/cgroup"))
        return next(path, flags, mode);
    CHECK(snprintf(ours, sizeof ours, "%s%s", root, path) < (int)sizeof ours);
    return next(ours, flags, mode);
}

/* Its folders are made, too. */
static void say(const char *path, const char *text)
{
    char ours[600];
    snprintf(ours, sizeof ours, "%s%s", root, path);
    for (char *at = ours + sizeof root; (at = strchr(at, '/')); at++) {
        *at = 0;
        mkdir(ours, 0700);
        *at = '/';
    }
    FILE *file = fopen(ours, "w");
    CHECK(file && fputs(text, file) >= 0);
    fclose(file);
}
static void say_number(const char *path, uint64_t n)
{
    char text[32];
    snprintf(text, sizeof text, "%llu\n", (unsigned long long)n);
    say(path, text);
}
static void forget_everything(void)
{
    char command[100];
    snprintf(command, sizeof command, "rm -rf %s && mkdir %s", root, root);
    CHECK_EQ(system(command), 0);
}

static vm_pressure told;
static uint32_t sources;
static void look(void) { told = vm__memory_pressure(&sources); }

static void say_what_is_available(uint64_t percent)
{
    char text[100];
    snprintf(text, sizeof text, "MemFree: 1 kB\nMemAvailable: %llu kB\n",
             (unsigned long long)(vm__memory_bytes() / 100 * percent >> 10));
    say("/proc/meminfo", text);
}

static void where_nothing_is_told_there_is_none(void)
{
    forget_everything();
    look();
    CHECK(told == VM_PRESSURE_NONE && sources == 0);
}

static void what_the_machine_has_left_is_looked_at(void)
{
    forget_everything();
    say_what_is_available(VM_PRESSURE_PERCENT + 1);
    look();
    CHECK(told == VM_PRESSURE_NONE && sources == VM_PRESSURE_BY_MEMINFO);
    say_what_is_available(VM_PRESSURE_PERCENT - 1);
    look();
    CHECK_EQ(told, VM_PRESSURE_SOME);
    say_what_is_available(VM_PRESSURE_PERCENT / 3);
    look();
    CHECK_EQ(told, VM_PRESSURE_HIGH);
}

static void stalls_are_looked_at(void)
{
    char text[100];
    for (vm_pressure i = VM_PRESSURE_NONE; i <= VM_PRESSURE_HIGH; i++) {
        const int stalled[] = {0, VM_PRESSURE_STALL_PERCENT, 4 * VM_PRESSURE_STALL_PERCENT};
        forget_everything();
        snprintf(text, sizeof text, "some avg10=%d.00 avg60=0.00 avg300=0.00 total=0\n", stalled[i]);
        say("/proc/pressure/memory", text);
        look();
        CHECK(told == i && sources == VM_PRESSURE_BY_STALLS);
    }
}

/* A cgroup of 1 GiB, of which so much is used, and a sixteenth kept back. */
static void say_usage(const char *limit_file, const char *usage_file, uint64_t used)
{
    say_number(limit_file, 1024 * MIB);
    say_number(usage_file, used);
}

static void near_the_limit_of_a_cgroup_there_is_pressure(void)
{
    static const struct {
        const char *line, *limit, *usage;
        uint32_t source;
    } kinds[] = {
        {"4:memory:/a/b\n0::/\n", "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
         "/sys/fs/cgroup/memory/a/memory.usage_in_bytes", VM_PRESSURE_BY_CGROUP1},
        {"0::/a/b\n", "/sys/fs/cgroup/a/memory.max", "/sys/fs/cgroup/a/memory.current", VM_PRESSURE_BY_CGROUP2},
        {"0::/a/b\n", "/sys/fs/cgroup/a/memory.high", "/sys/fs/cgroup/a/memory.current", VM_PRESSURE_BY_CGROUP2},
    };
    for (size_t i = 0; i < LENGTH(kinds); i++) {
        forget_everything();
        say("/proc/self/cgroup", kinds[i].line);
        say_usage(kinds[i].limit, kinds[i].usage, 100 * MIB);
        look();
        CHECK(told == VM_PRESSURE_NONE && sources == kinds[i].source);
        say_usage(kinds[i].limit, kinds[i].usage, 1024 * MIB - 64 * MIB - 10 * MIB * VM_PRESSURE_PERCENT + 10 * MIB);
        look();
        CHECK_EQ(told, VM_PRESSURE_SOME);
        say_usage(kinds[i].limit, kinds[i].usage, 1020 * MIB);
        look();
        CHECK_EQ(told, VM_PRESSURE_HIGH);
    }
}

/* Above it whoever allocates is slowed down, and nothing fails. */
static void memory_high_is_no_bound_of_a_region(void)
{
    forget_everything();
    say("/proc/self/cgroup", "0::/a\n");
    say("/sys/fs/cgroup/a/memory.max", "max\n");
    say_usage("/sys/fs/cgroup/a/memory.high", "/sys/fs/cgroup/a/memory.current", 2048 * MIB);
    CHECK_EQ(vm_cgroup_limit(), UINT64_MAX);
    look();
    CHECK_EQ(told, VM_PRESSURE_HIGH);
}

int main(void)
{
    CHECK(mkdtemp(root));
    where_nothing_is_told_there_is_none();
    what_the_machine_has_left_is_looked_at();
    stalls_are_looked_at();
    near_the_limit_of_a_cgroup_there_is_pressure();
    memory_high_is_no_bound_of_a_region();
    forget_everything();
    rmdir(root);
    return 0;
}
