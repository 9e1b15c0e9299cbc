/* SPDX-License-Identifier: MIT */
/* One worker's two files: what it does (soak_acts.c) and how it lives (soak_worker.c). */
#ifndef VM_TESTS_SOAK_WORKER_H
#define VM_TESTS_SOAK_WORKER_H

#include "soak.h"

enum { PAGES_MOST = 600 };

typedef struct lane {
    uint32_t index;
    uint64_t seed;
    pthread_t thread;
    bool runs;       /* [main] */
    uint32_t stop, ended, parked;
} lane;

extern vm_region *r;
extern row *mine;
extern uint32_t me; /* my name */

static inline uint64_t below(lane *l, uint64_t n) { return random_below(&l->seed, n); }
static inline bool one_in(lane *l, uint64_t n) { return below(l, n) == 0; }
/* Did it work? Not if it would have had to wait for a stopped process; all else is a violation. */
bool worked(int rc, const char *what, uint64_t page, uint64_t id);

/* ---- soak_acts.c ---- */
void let_go(lane *l, claim *c);
void have(claim *c, const vm_range *a, uint64_t nr_pages, uint64_t align_pages);
void allocate(lane *l);
void allocate_congruent(lane *l);
void free_one(lane *l);
void look_at_one(lane *l);
void resize(lane *l);
void show(lane *l);
void adopt(lane *l);
void offer(lane *l);
bool withdraw(claim *c);
void withdraw_one(lane *l);
void free_foreign(lane *l);
void send(lane *l);
void receive(lane *l);
void use_names(lane *l);
void look_after(lane *l);

#endif
