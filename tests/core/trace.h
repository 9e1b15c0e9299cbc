/* SPDX-License-Identifier: MIT */
/*
 * TRACE: what test_step.c needs to know of a CPU: where a stopped process is, who called what it is in,
 * how to let it do one system call, and how to stop it at an instruction.
 */
#ifndef VM_TESTS_TRACE_H
#define VM_TESTS_TRACE_H

#include <elf.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/auxv.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/user.h>

extern char vm_gate[]; /* one system call, at the same address in every child */

#if defined(__x86_64__)
#define CAN_TRACE 1
__asm__(".text\n.globl vm_gate\nvm_gate: syscall\nint3\n");

typedef struct user_regs_struct registers;
static inline uint64_t pc_of(const registers *r) { return r->rip; }
/* Of a leaf that has pushed nothing, as memcpy() is. */
static inline uint64_t caller_of(pid_t pid, const registers *r)
{
    return (uint64_t)ptrace(PTRACE_PEEKDATA, pid, (void *)(uintptr_t)r->rsp, NULL);
}
static inline void aim_at_gate(registers *r, uint64_t number, uint64_t a, uint64_t b, uint64_t c)
{
    r->rip = (uint64_t)(uintptr_t)vm_gate;
    r->rax = number, r->rdi = a, r->rsi = b, r->rdx = c;
    r->orig_rax = UINT64_MAX; /* nothing to restart */
}
static inline int64_t result_of(const registers *r) { return (int64_t)r->rax; }
static inline long with_breakpoint(long instruction) { return (instruction & ~0xffl) | 0xcc; } /* int3 */
static inline void go_back_to(registers *r, uint64_t address) { r->rip = address; } /* from behind it */
static inline bool atomics_are_one_instruction(void) { return true; }

#elif defined(__aarch64__)
#define CAN_TRACE 1
__asm__(".text\n.globl vm_gate\nvm_gate: svc #0\nbrk #0\n");

typedef struct user_regs_struct registers;
static inline uint64_t pc_of(const registers *r) { return r->pc; }
static inline uint64_t caller_of(pid_t pid, const registers *r) { return (void)pid, r->regs[30]; }
static inline void aim_at_gate(registers *r, uint64_t number, uint64_t a, uint64_t b, uint64_t c)
{
    r->pc = (uint64_t)(uintptr_t)vm_gate;
    r->regs[8] = number, r->regs[0] = a, r->regs[1] = b, r->regs[2] = c;
}
static inline int64_t result_of(const registers *r) { return (int64_t)r->regs[0]; }
static inline long with_breakpoint(long instruction) { return (instruction & ~0xffffffffl) | 0xd4200000; } /* brk */
static inline void go_back_to(registers *r, uint64_t address) { r->pc = address; }
/* A step ends what a load-exclusive began: without LSE no compare-and-swap would ever come to its end. */
static inline bool atomics_are_one_instruction(void) { return getauxval(AT_HWCAP) & (1 << 8); }

#else
#define CAN_TRACE 0
#endif

#if CAN_TRACE
static inline bool get_registers(pid_t pid, registers *r)
{
    struct iovec all = {r, sizeof *r};
    return ptrace(PTRACE_GETREGSET, pid, (void *)NT_PRSTATUS, &all) == 0;
}
static inline bool set_registers(pid_t pid, registers *r)
{
    struct iovec all = {r, sizeof *r};
    return ptrace(PTRACE_SETREGSET, pid, (void *)NT_PRSTATUS, &all) == 0;
}
#endif

#endif
