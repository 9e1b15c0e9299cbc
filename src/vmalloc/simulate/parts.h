/* SPDX-License-Identifier: MIT */
/*
 * Parts: what the files of the engine share, and nobody else sees.
 *
 *     engine.c      threads and their turns: which step comes next; the face
 *     events.c      the heap of who acts when, chance, the log of calls
 *     locks.c       a visit to a lock or a line, what a way down a tree costs
 *     suite.c       the kernel's test suite: the next operation of a thread
 *     tally.c       what is counted, and from when on
 *     requests.c    an allocation and a free of the kernel, step by step
 *     pages.c       the page allocator: a list for each CPU, the zone's lock
 *     purges.c      the purge worker, its helpers, memory pressure
 *     ours.c        our own designs: what an operation did, as visits to locks
 *
 * A step is what a thread does between two arrivals at something shared. It leaves the thread's time and phase as
 * they are when it gets there.
 */
#ifndef VMALLOC_SIMULATE_PARTS_H
#define VMALLOC_SIMULATE_PARTS_H

#include "engine.h"

enum phase {
    NEXT,
    POOL, /* the kernel's: an allocation ... */
    SPACE,
    BUSY,
    SETUP,
    PAGES,
    FREE_BUSY, /* ... and a free */
    COUNTER,
    LAZY,
    ZONE,
    OURS_ALLOC,
    OURS_FREE,
    TODO,
    LOOK,
    DECAY, /* the purge worker's */
    RECLAIM,
    DETACH,
    FLUSH,
    FILL,
    SETTLE,
    GIVE,
    PRESSURE,
};
enum { TODO_MAX = 6, TRACE_WORDS = 5 };
enum { FIX_SIZE, FULL_FIT, LONG_BUSY, RANDOM_SIZE, FIX_ALIGN, RANDOM_SIZE_ALIGN, ALIGN_SHIFT, LOOKUP };
#define PS_PER_US 1000000ll

typedef struct lock {
    int64_t free_at;
    int64_t *ends; /* when those leave who have arrived and not left: a ring */
    uint32_t head, nr, room;
    uint32_t cpu;
    enum sim_kind kind;
    bool is_atomic; /* no lock: one compare-exchange, tried again by who comes second */
} lock;

typedef struct visit_due {
    lock *at;
    int64_t hold;
} visit_due;

typedef struct thread {
    int64_t at, began, ended;
    uint64_t random;
    uint32_t id, cpu;
    enum phase phase;
    uint8_t order[SIM_TESTS], nr_tests, test, stage;
    uint32_t i;
    int64_t test_began;
    uint32_t *slot;
    /* the operation under way */
    bool is_alloc;
    uint32_t pages, align, in_slot, start, looks;
    visit_due todo[TODO_MAX];
    uint32_t nr_todo, at_todo;
    /* of a purge worker */
    uint32_t node, last_node;
    int64_t node_began;
} thread;

typedef struct cpu_state {
    uint32_t *waiting; /* a ring of threads */
    uint32_t head, nr;
    int64_t slice_end;
    uint32_t listed_pages; /* on this CPU's page list */
    uint32_t percent;      /* own work takes so much of what it takes alone */
} cpu_state;

typedef struct entry {
    int64_t at;
    uint32_t id;
} entry;

struct sim_sim {
    sim_plan plan;
    sim_twin *twin;
    uint32_t cpus, nodes, threads;
    thread *thread; /* then the purge worker, its helpers, pressure */
    uint32_t worker, pressure;
    cpu_state *cpu;
    entry *heap;
    uint32_t nr_heap;
    lock space, counter, zone, upkeep;
    lock *busy, *lazy, *pool;
    uint32_t *nr_busy;
    bool is_purging;
    uint32_t *work, nr_work; /* nodes that this purge fills */
    uint32_t nr_filling;
    uint32_t next_shrunk; /* the node where a scan that rotates begins */
    uint64_t purged;
    bool is_warm;
    uint64_t total_pairs;
    uint32_t nr_done;
    double pooled_sum, lazy_sum;
    uint64_t nr_samples;
    uint32_t *trace;
    uint32_t nr_trace, room_trace;
    sim_result result;
};

static inline int64_t sim_cost(const sim_sim *s, int name) { return s->plan.cost[name]; }

/* Work that nobody else takes part in. */
static inline void sim_own_work(sim_sim *s, thread *th, int64_t alone)
{
    th->at += alone * s->cpu[th->cpu].percent / 100;
}

/* ---- events.c --------------------------------------------------------------------------------- */

uint64_t sim_next_random(uint64_t *state);
uint32_t sim_below(thread *th, uint32_t n);
/* Note a call of the twin, if calls are logged. */
void sim_log_call(sim_sim *s, uint32_t call, uint32_t cpu, uint32_t pages, uint32_t align, uint32_t start);
static inline void sim_note(sim_sim *s, uint32_t call, uint32_t cpu, uint32_t pages, uint32_t align, uint32_t start)
{
    if (s->plan.log_calls)
        sim_log_call(s, call, cpu, pages, align, start);
}
/* The thread acts at its time. */
void sim_wake(sim_sim *s, thread *th);
/* The entry at this place may be later than those below it. */
void sim_sift_down(sim_sim *s, uint32_t i);

/* ---- locks.c ---------------------------------------------------------------------------------- */

static inline uint32_t sim_core_of(const sim_sim *s, uint32_t cpu) { return cpu % (s->cpus / s->plan.topology.smt); }
/* Arrive at a lock, wait, hold it, leave: the thread's time is that of the leaving afterwards. */
void sim_visit(sim_sim *s, thread *th, lock *l, int64_t hold);
/* A way down a tree of so many areas, of which there are so many. */
int64_t sim_descent(const sim_sim *s, uint64_t areas, uint32_t trees);
/* And a change at its end. */
int64_t sim_change(const sim_sim *s, uint64_t areas, uint32_t trees);
int64_t sim_change_busy(const sim_sim *s, uint32_t areas);
int64_t sim_change_space(const sim_sim *s);
/* False without memory; what there is is freed by sim_free_locks(). */
bool sim_init_locks(sim_sim *s);
void sim_free_locks(sim_sim *s);

/* ---- suite.c, tally.c ------------------------------------------------------------------------- */

/* The thread's next operation; false when it has done all its tests. */
bool sim_next_op(sim_sim *s, thread *th);
uint64_t sim_pairs_of(const sim_plan *p);
void sim_operation_ends(sim_sim *s, thread *th);

/* ---- steps ------------------------------------------------------------------------------------ */

void sim_request_step(sim_sim *s, thread *th);
void sim_pages_step(sim_sim *s, thread *th);
/* False: the worker has nothing more to do. */
bool sim_purge_step(sim_sim *s, thread *w);
void sim_wake_purge(sim_sim *s, const thread *by);
void sim_ours_step(sim_sim *s, thread *th);

#endif
