/* SPDX-License-Identifier: MIT */
/*
 * The fault hook: every write to the region goes through one of these macros.
 *
 * In a build with VM_HOOKS each use is a named site. A test arms the hook with a number and the
 * process dies (SIGKILL) before its n-th shared write; tests/core/test_crash.c enumerates them all
 * and asserts that every site was killed. In a release build the macros are the bare atomics.
 *
 * Stores are atomic because neighbours read while we write; release order is enough, since a killed
 * thread leaves a prefix of its program order (docs/decisions/0001).
 */
#ifndef VM_FAULT_H
#define VM_FAULT_H

#include <stdint.h>

#ifdef VM_HOOKS
#include <stdbool.h>
#include <stddef.h>
typedef struct vm_site {
    const char *file;
    int line;
    uint32_t pad;
    uint64_t nr_passed;
} vm_site;
_Static_assert(sizeof(vm_site) == 24, "an array of these is laid out by the linker");
void vm__fault(vm_site *site);

/* For tests; all of it is per process. */
/* Die before the (n+1)-th shared write from now on; n < 0 disarms. What was left: below 0 if nothing was armed, or a thread
 * is just about to kill us. */
int64_t vm_fault_arm(int64_t n);
void vm_fault_assertions(bool on); /* VM_ASSERT; off also by VMALLOC_ASSERTIONS=0 in the environment */
extern bool vm__asserts;
uint64_t vm_fault_nr_writes(void);
size_t vm_fault_nr_sites(void);
uint64_t vm_fault_site(size_t i, const char **file, int *line); /* how often it was passed */
void vm_fault_filter(bool (*filter)(const char *file, int line, uint64_t nr_passed));
void vm_clock_advance(uint64_t ns); /* vm__now_ns() goes on from so much later */
void vm_clock_hold(uint64_t s);     /* vm__now_s() stands at so many seconds; 0: goes on */
#define VM_FAULT()                                                                               \
    do {                                                                                         \
        static vm_site vm_site_here                                                              \
            __attribute__((section("vm_sites"), used, aligned(8))) = {__FILE__, __LINE__, 0, 0}; \
        vm__fault(&vm_site_here);                                                                \
    } while (0)
#else
#define VM_FAULT() ((void)0)
#endif

#define VM_ACQUIRE(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define VM_RELAXED(p) __atomic_load_n((p), __ATOMIC_RELAXED) /* hints, and words this thread owns */

/* As VM_RELAXED, for one comparison: atomics are never folded into the instruction that compares. */
#ifdef __SANITIZE_THREAD__
#define VM_PLAIN(p) VM_RELAXED(p)
#else
#define VM_PLAIN(p) (*(p))
#endif

/* A commit: everything before it is visible to whoever sees it. */
#define VM_STORE(p, v)                                \
    do {                                              \
        VM_FAULT();                                   \
        __atomic_store_n((p), (v), __ATOMIC_RELEASE); \
    } while (0)
/* A hint or a counter; its order to other writes does not matter to neighbours. */
#define VM_PUT(p, v)                                  \
    do {                                              \
        VM_FAULT();                                   \
        __atomic_store_n((p), (v), __ATOMIC_RELAXED); \
    } while (0)
#define VM_CAS(p, expected, desired)                                                                  \
    ({                                                                                                \
        VM_FAULT();                                                                                   \
        __typeof__(*(p)) vm_seen = (expected);                                                        \
        __atomic_compare_exchange_n((p), &vm_seen, (desired), 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
    })
#define VM_SWAP(p, v)                                    \
    ({                                                   \
        VM_FAULT();                                      \
        __atomic_exchange_n((p), (v), __ATOMIC_SEQ_CST); \
    })
#define VM_ADD(p, v)                                    \
    ({                                                  \
        VM_FAULT();                                     \
        __atomic_fetch_add((p), (v), __ATOMIC_SEQ_CST); \
    })
#define VM_OR(p, v)                                    \
    ({                                                 \
        VM_FAULT();                                    \
        __atomic_fetch_or((p), (v), __ATOMIC_SEQ_CST); \
    })
#define VM_AND(p, v)                                    \
    ({                                                  \
        VM_FAULT();                                     \
        __atomic_fetch_and((p), (v), __ATOMIC_SEQ_CST); \
    })

#endif
