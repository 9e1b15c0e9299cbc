/* SPDX-License-Identifier: MIT */
/*
 * Layer 5, mend: what deaths and pressure make necessary. The scan of the words, the purge, the recovery of the dead.
 */
#ifndef VM_MEND_H
#define VM_MEND_H

#include "../share/share.h"

/* ---- scan.c [purge_lock] ---- */

int vm__scan(vm_thread *t, unsigned flags, vm_batch *out);
int vm__mend_lazy_pages(vm_thread *t, unsigned flags);

/* ---- purge.c ---- */

enum {
    VM_PURGE_FULL = 1 << 8,    /* empty the pools too                                             */
    VM_PURGE_IF_IDLE = 1 << 9, /* leave it to whoever purges already                              */
    VM_PURGE_UNPUNCHED = 1 << 10, /* ranges go to space with their pages: it is short, memory is not */
};
int vm__purge(vm_thread *t, unsigned flags, uint64_t *pages_returned);
void vm__purge_step(vm_thread *t, uint64_t most_pages, unsigned flags);
bool vm__pools_to_warm(vm_thread *t); /* false: somebody purges just now */
/* A purge in scan mode; `then` runs after a complete one, still under purge_lock. */
int vm__purge_scan(vm_thread *t, unsigned flags, void (*then)(vm_region *, const void *), const void *arg);

/* ---- recover.c ---- */

int vm__recover_dead(vm_thread *t, unsigned flags, uint64_t *pages);

#endif
