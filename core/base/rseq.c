/* SPDX-License-Identifier: MIT */
/*
 * Restartable sequences: what a thread does to its CPU's slab, whole or not at all.
 *
 * The kernel aborts a sequence whose thread it preempts, migrates or gives a signal; the one store of the count is its
 * last instruction, so until there nothing happened. No lock, no locked instruction, and a thread that is killed in the
 * middle leaves the slab as it was. Whoever cannot run sequences never writes a slab: a plain commit could overwrite its
 * change.
 *
 * glibc 2.35 and newer registers each thread's area; where it is, is looked up at run time, so that a library built
 * there loads on older systems. The sequences for aarch64 run on an emulated machine (`make aarch64-machine`).
 * After: librseq; Linux Documentation/userspace-api/rseq.rst.
 */
#include "base.h"

#include <dlfcn.h>

ptrdiff_t vm__sequence_area;

__attribute__((constructor)) static void look_up(void)
{
    const ptrdiff_t *offset = dlsym(RTLD_DEFAULT, "__rseq_offset");
    const unsigned *size = dlsym(RTLD_DEFAULT, "__rseq_size");
    if (offset && size && *size)
        vm__sequence_area = *offset;
}

#if defined(__x86_64__)

static uint8_t *area_of_thread(ptrdiff_t offset)
{
    uint8_t *thread;
    __asm__("movq %%fs:0, %0" : "=r"(thread));
    return thread + offset;
}

#define BEGIN                                    \
    ".pushsection __rseq_cs, \"aw\"\n"           \
    ".balign 32\n"                               \
    "9: .long 0, 0\n"                            \
    ".quad 1f, 2f - 1f, 4f\n"                    \
    ".popsection\n"                              \
    ".pushsection __rseq_failure, \"ax\"\n"      \
    ".byte 0x0f, 0xb9, 0x3d\n.long 0x53053053\n" \
    "4: movl %[moved], %[how]\n"                 \
    "jmp 3f\n"                                   \
    ".popsection\n"                              \
    "leaq 9b(%%rip), %[n]\n"                     \
    "movq %[n], %c[sequence](%[area])\n"         \
    "movl %[moved], %[how]\n"                    \
    "1: cmpl %[cpu], %c[cpu_id](%[area])\n"      \
    "jne 3f\n"                                   \
    "movl (%[slab]), %k[n]\n"                    \
    "movl %[refused], %[how]\n"
#define COMMIT                  \
    "movl %k[n], (%[slab])\n"   \
    "2: movl %[done], %[how]\n" \
    "3:\n"
#define POP                      \
    BEGIN "decl %k[n]\n"         \
          "cmpl %[cap], %k[n]\n" \
          "jae 3f\n"             \
          "movl %c[pages](%[slab], %[n], 4), %[page]\n" COMMIT
#define PUSH                                            \
    BEGIN "cmpl %[cap], %k[n]\n"                        \
          "jae 3f\n"                                    \
          "movl %[page], %c[pages](%[slab], %[n], 4)\n" \
          "incl %k[n]\n" COMMIT

#elif defined(__aarch64__)

static uint8_t *area_of_thread(ptrdiff_t offset)
{
    uint8_t *thread;
    __asm__("mrs %0, tpidr_el0" : "=r"(thread));
    return thread + offset;
}

#define BEGIN                              \
    ".pushsection __rseq_cs, \"aw\"\n"     \
    ".balign 32\n"                         \
    "9: .long 0, 0\n"                      \
    ".quad 1f, 2f - 1f, 4f\n"              \
    ".popsection\n"                        \
    "b 5f\n"                               \
    ".inst 0xd428bc00\n"                   \
    "4: mov %w[how], %[moved]\n"           \
    "b 3f\n"                               \
    "5: adrp %[n], 9b\n"                   \
    "add %[n], %[n], :lo12:9b\n"           \
    "str %[n], [%[area], %[sequence]]\n"   \
    "mov %w[how], %[moved]\n"              \
    "1: ldr %w[n], [%[area], %[cpu_id]]\n" \
    "cmp %w[n], %w[cpu]\n"                 \
    "b.ne 3f\n"                            \
    "ldr %w[n], [%[slab]]\n"               \
    "mov %w[how], %[refused]\n"
#define COMMIT                  \
    "str %w[n], [%[slab]]\n"    \
    "2: mov %w[how], %[done]\n" \
    "3:\n"
#define POP                                \
    BEGIN "sub %w[n], %w[n], #1\n"         \
          "cmp %w[n], %w[cap]\n"           \
          "b.hs 3f\n"                      \
          "add %[at], %[slab], %[pages]\n" \
          "ldr %w[page], [%[at], %w[n], uxtw #2]\n" COMMIT
#define PUSH                                        \
    BEGIN "cmp %w[n], %w[cap]\n"                    \
          "b.hs 3f\n"                               \
          "add %[at], %[slab], %[pages]\n"          \
          "str %w[page], [%[at], %w[n], uxtw #2]\n" \
          "add %w[n], %w[n], #1\n" COMMIT

#endif

#ifdef BEGIN

#define NUMBERS                                                                                                  \
    [cpu_id] "i"(VM_SEQUENCE_CPU_ID), [sequence] "i"(VM_SEQUENCE_POINTER), [pages] "i"(offsetof(vm_slab, page)), \
        [done] "i"(VM_SEQUENCE_DONE), [refused] "i"(VM_SEQUENCE_REFUSED), [moved] "i"(VM_SEQUENCE_MOVED)

static uint8_t *my_area(void) { return area_of_thread(vm__sequence_area); } /* whoever has a CPU has one */

vm_sequence vm__slab_pop(uint32_t cpu, vm_slab *slab, uint32_t *page)
{
    uint32_t how, got = 0;
    uint64_t n, at;
    /* clang-format off */
    VM_FAULT(); __asm__ volatile(POP : [how] "=&r"(how), [n] "=&r"(n), [at] "=&r"(at), [page] "+&r"(got) : [area] "r"(my_area()), [cpu] "r"(cpu), [slab] "r"(slab), [cap] "r"((uint32_t)VM_SLAB_CAP), NUMBERS : "memory", "cc");
    /* clang-format on */
    *page = got;
    return (vm_sequence)how;
}

vm_sequence vm__slab_push(uint32_t cpu, vm_slab *slab, uint32_t page, uint32_t cap)
{
    uint32_t how;
    uint64_t n, at;
    /* clang-format off */
    VM_FAULT(); __asm__ volatile(PUSH : [how] "=&r"(how), [n] "=&r"(n), [at] "=&r"(at) : [page] "r"(page), [area] "r"(my_area()), [cpu] "r"(cpu), [slab] "r"(slab), [cap] "r"(cap), NUMBERS : "memory", "cc");
    /* clang-format on */
    return (vm_sequence)how;
}

#else

vm_sequence vm__slab_pop(uint32_t cpu, vm_slab *slab, uint32_t *page)
{
    (void)cpu, (void)slab, (void)page;
    return VM_SEQUENCE_MOVED;
}
vm_sequence vm__slab_push(uint32_t cpu, vm_slab *slab, uint32_t page, uint32_t cap)
{
    (void)cpu, (void)slab, (void)page, (void)cap;
    return VM_SEQUENCE_MOVED;
}

#endif
