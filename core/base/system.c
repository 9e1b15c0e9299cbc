/* SPDX-License-Identifier: MIT */
/*
 * System: calls to the kernel that are about neither memory nor descriptors. Futexes, the barrier across processes, CPUs.
 */
#include "base.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <linux/magic.h>
#include <linux/membarrier.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#define STACK_BYTES (256u << 10)
#define CPUS_OF_KERNEL 8192 /* the most it can be built for: an affinity that has not room for all is refused */

/* ---- futexes ---- */

void vm__futex_wait(vm_token *word, vm_token seen, long ns)
{
    struct timespec slice = {0, ns};
    syscall(SYS_futex, word, FUTEX_WAIT, seen, &slice, NULL, 0);
}

void vm__futex_wake_one(vm_token *word) { syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0); }

void vm__futex_wake_all(vm_token *word) { syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0); }

/* ---- the barrier ---- */

bool vm__can_drain(void) { return syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0) == 0; }
void vm__barrier_everywhere(void) { syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0); }

/* ---- CPUs and processes ---- */

uint32_t vm__cpu(void)
{
    int cpu = sched_getcpu();
    return cpu < 0 ? 0 : (uint32_t)cpu;
}

static uint32_t ask(int what, uint32_t *known)
{
    uint32_t n = __atomic_load_n(known, __ATOMIC_RELAXED);
    if (!n) {
        long said = sysconf(what);
        n = said < 1 ? 1 : (uint32_t)said;
        __atomic_store_n(known, n, __ATOMIC_RELAXED);
    }
    return n;
}

uint32_t vm__online_cpus(void)
{
    static uint32_t known;
    return ask(_SC_NPROCESSORS_ONLN, &known);
}

uint32_t vm__configured_cpus(void)
{
    static uint32_t known;
    return ask(_SC_NPROCESSORS_CONF, &known);
}

static void add_cpus(vm_cpus *out, unsigned long first, unsigned long last)
{
    for (unsigned long cpu = first; cpu <= last && cpu < VM_SLAB_CPUS_MAX; cpu++)
        out->bit[cpu / 64] |= 1ull << cpu % 64;
}

void vm__cpus_of_list(const char *list, vm_cpus *out)
{
    while (*list >= '0' && *list <= '9') {
        char *end;
        unsigned long first = strtoul(list, &end, 10), last = *end == '-' ? strtoul(end + 1, &end, 10) : first;
        add_cpus(out, first, last);
        list = *end == ',' ? end + 1 : "";
    }
}

void vm__cpus_online(vm_cpus *out)
{
    char text[4096] = "";
    *out = (vm_cpus){{0}};
    if (vm__read_text("/sys/devices/system/cpu/online", text, sizeof text) && text[0])
        vm__cpus_of_list(text, out);
    else
        add_cpus(out, 0, VM_SLAB_CPUS_MAX - 1);
}

void vm__cpus_of_process(uint32_t pid, vm_cpus *out)
{
    cpu_set_t may[CPUS_OF_KERNEL / CPU_SETSIZE];
    bool is_told = sched_getaffinity((pid_t)pid, sizeof may, may) == 0;
    for (unsigned long cpu = 0; cpu < VM_SLAB_CPUS_MAX; cpu++)
        if (!is_told || CPU_ISSET(cpu, may))
            add_cpus(out, cpu, cpu);
}
_Static_assert(VM_SLAB_CPUS_MAX <= CPU_SETSIZE, "each has its bit");

uint32_t vm__pid(void) { return (uint32_t)getpid(); }

static bool is_kernels(int fd)
{
    struct statfs there;
    return fstatfs(fd, &there) == 0
           && (there.f_type == PROC_SUPER_MAGIC || there.f_type == SYSFS_MAGIC || there.f_type == CGROUP_SUPER_MAGIC
               || there.f_type == CGROUP2_SUPER_MAGIC);
}

/* Another thread may close every descriptor, and open a file of its own under this number: that one stays open. What a
 * container puts in place of one of the kernel's is told by its path. */
static void close_if_read(int fd, const char *path)
{
    if (is_kernels(fd) || vm__is_at(fd, path))
        close(fd);
}

bool vm__read_text(const char *path, char *text, size_t bytes)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, text, bytes - 1);
    close_if_read(fd, path);
    text[n < 0 ? 0 : n] = 0;
    return n >= 0;
}

/* The state is the letter behind the last bracket of /proc/PID/stat. */
bool vm__is_stopped(uint32_t pid)
{
    char path[32], text[512] = "";
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    vm__read_text(path, text, sizeof text);
    const char *name_end = strrchr(text, ')');
    return !name_end || name_end[1] != ' ' || strchr("TtDZX", name_end[2]);
}

bool vm__pid_is_nobodys(uint32_t pid) { return pid && kill((pid_t)pid, 0) < 0 && errno == ESRCH; }

uint64_t vm__process_began(uint32_t pid, uint32_t *parent)
{
    char path[32], text[512] = "";
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    vm__read_text(path, text, sizeof text);
    const char *at = strrchr(text, ')');
    for (int field = 2; at && field < 22; field++) {
        at = strchr(at + 1, ' ');
        if (at && field == 3 && parent)
            *parent = (uint32_t)strtoul(at, NULL, 10);
    }
    return at ? strtoull(at, NULL, 10) : 0;
}

uint32_t vm__process_user(uint32_t pid)
{
    char path[32], text[512] = "";
    snprintf(path, sizeof path, "/proc/%u/status", pid);
    vm__read_text(path, text, sizeof text);
    const char *line = strstr(text, "\nUid:");
    return line ? (uint32_t)strtoul(line + 5, NULL, 10) : UINT32_MAX;
}

void vm__yield(void) { sched_yield(); }

/* ---- threads ---- */

int vm__start_thread(pthread_t *thread, const char *name, void *(*run)(void *), void *arg)
{
    pthread_attr_t attributes;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    int rc = pthread_create(thread, &attributes, run, arg);
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc == 0)
        pthread_setname_np(*thread, name);
    return -rc;
}
