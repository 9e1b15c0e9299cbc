/* SPDX-License-Identifier: MIT */
/* The armed side of the fault hook (fault.h); empty in release builds. */
#include "base.h"

#ifdef VM_HOOKS
#include <signal.h>
#include <unistd.h>

extern vm_site __start_vm_sites[], __stop_vm_sites[];
static int64_t writes_left = -1; /* process-private; -1: not armed */
static uint64_t nr_writes;
static bool (*stop_here)(const char *file, int line, uint64_t nr_passed);

void vm__fault(vm_site *site)
{
    __atomic_add_fetch(&site->nr_passed, 1, __ATOMIC_RELAXED);
    __atomic_add_fetch(&nr_writes, 1, __ATOMIC_RELAXED);
    if (stop_here && !stop_here(site->file, site->line, __atomic_load_n(&site->nr_passed, __ATOMIC_RELAXED)))
        return;
    if (__atomic_load_n(&writes_left, __ATOMIC_RELAXED) < 0)
        return;
    if (__atomic_fetch_sub(&writes_left, 1, __ATOMIC_RELAXED) == 0) {
        kill(getpid(), SIGKILL);
        for (;;)
            pause();
    }
}

bool vm__asserts = true;
VM_API void vm_fault_assertions(bool on) { vm__asserts = on; }
__attribute__((constructor)) static void read_environment(void)
{
    const char *wanted = getenv("VMALLOC_ASSERTIONS");
    vm__asserts = !wanted || strcmp(wanted, "0") != 0;
}

VM_API int64_t vm_fault_arm(int64_t n) { return __atomic_exchange_n(&writes_left, n, __ATOMIC_RELAXED); }
VM_API uint64_t vm_fault_nr_writes(void) { return __atomic_load_n(&nr_writes, __ATOMIC_RELAXED); }
VM_API size_t vm_fault_nr_sites(void) { return (size_t)(__stop_vm_sites - __start_vm_sites); }
/* The site that the last counted write passed is not kept: a test asks each for its passes. */
VM_API uint64_t vm_fault_site(size_t i, const char **file, int *line)
{
    *file = __start_vm_sites[i].file;
    *line = __start_vm_sites[i].line;
    return __atomic_load_n(&__start_vm_sites[i].nr_passed, __ATOMIC_RELAXED);
}
/* Count (and die) only at writes the filter accepts; NULL: all. */
VM_API void vm_fault_filter(bool (*filter)(const char *file, int line, uint64_t nr_passed)) { stop_here = filter; }
#endif
